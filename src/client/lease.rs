//! A lease granted by the dispatcher, read from its response and validated field by field.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::address::Address;
use crate::ids::{Token, WorkerId};

/// The right to send one request to one worker, until it expires.
///
/// The token is a secret with one use; `Debug` does not show it.
#[derive(Debug)]
pub struct Lease {
    /// The worker that accepted.
    pub worker: WorkerId,
    /// Its address; never a wildcard.
    pub address: Address,
    /// Until then the worker accepts the token; later it redirects the client to the dispatcher.
    pub expires: Instant,
    token: Token,
}

/// No set has a longer `claim_timeout`; a larger number is an invalid response, not a long lease.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Deserialize)]
struct LeaseDocument {
    worker: WorkerId,
    address: String,
    token: String,
    expires_ms: u64,
}

impl Lease {
    /// Reads the JSON of a granted lease: `{"worker","address","token","expires_ms"}`, other fields ignored.
    /// `target` is the dispatcher's address, `now` the time when the response arrived.
    ///
    /// The error names the violated rule; it never quotes the token.
    pub(super) fn read(json: &[u8], target: &Address, now: Instant) -> Result<Self, String> {
        let document: LeaseDocument = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let address: Address = document.address.parse().map_err(|e| format!("address: {e}"))?;
        let token = Token::parse(&document.token).ok_or("token: not 32 lower-case hexadecimal digits")?;
        let left = Duration::from_millis(document.expires_ms);
        if left > DURATION_MAX {
            return Err(format!("expires_ms: {} is more than a day", document.expires_ms));
        }
        Ok(Self { worker: document.worker, address: address.resolve_wildcard(target), expires: now + left, token })
    }

    /// The token, for a caller that sends its own request to the worker.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The request target under this lease: `/.patou/<token>/<path and query>`. `path` starts with a slash.
    pub fn path(&self, path: &str) -> String {
        format!("/.patou/{}{path}", self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"worker":"default/1","address":"0.0.0.0:7300",
        "token":"000102030405060708090a0b0c0d0e0f","expires_ms":1000,"later":[1]}"#;

    fn read(json: &str) -> Result<Lease, String> {
        let target = Address::Tcp { host: "flock.example".into(), port: 7286 };
        Lease::read(json.as_bytes(), &target, Instant::now())
    }

    #[test]
    fn valid_lease_is_read_and_debug_hides_its_token() {
        let lease = read(GOOD).unwrap();
        assert_eq!(
            (lease.worker.to_string(), lease.address.to_string()),
            ("default/1".into(), "flock.example:7300".into())
        );
        assert_eq!(lease.path("/a?b=c"), "/.patou/000102030405060708090a0b0c0d0e0f/a?b=c");
        assert!(!format!("{lease:?}").contains("0001020304"));
    }

    #[test]
    fn invalid_lease_is_rejected_with_the_violated_rule() {
        for (from, to, named) in [
            ("default/1", "../etc", "not a worker"),
            ("0.0.0.0:7300", "unix:etc", "address"),
            ("0.0.0.0:7300", r"a:1\r\nX: y", "address"),
            ("0001", r"\r\n01", "token"),
            ("0f\"", "0f0\"", "token"),
            ("0f\"", "0F\"", "token"),
            ("1000", "1e99", "invalid"),
            ("1000", "-1", "invalid"),
            ("1000", "86400001", "expires_ms"),
            ("\"expires_ms\":1000,", "", "missing field"),
            ("\"later\"", "\"worker\":\"a/1\",\"later\"", "duplicate field"),
        ] {
            let json = GOOD.replacen(from, to, 1);
            assert_ne!(json, GOOD);
            let why = read(&json).unwrap_err();
            assert!(why.contains(named), "{json}: {why}");
            assert!(!why.contains("0203040506"), "{why}");
        }
        for invalid in ["", "null", "[]", "<html>", "\u{0}"] {
            assert!(read(invalid).is_err());
        }
    }
}
