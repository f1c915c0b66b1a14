//! The address of a dispatcher or worker: a TCP port or a Unix socket, validated when parsed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An address to connect to, written `host:port`, `[ipv6]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// Host name or IP address, IPv6 without brackets.
        host: String,
        /// Port, never 0.
        port: u16,
    },
    /// A Unix stream socket at this absolute path.
    Unix(PathBuf),
}

/// The text is not an address; the message describes a valid one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: write {1}")]
pub struct BadAddress(String, &'static str);

/// Longest path of a Unix socket in bytes: `sun_path` without the final NUL (unix(7)).
const PATH_MAX: usize = 107;

/// The longest host name (RFC 1035, 2.3.4).
const HOST_MAX: usize = 253;

impl Address {
    /// The address of a worker for a client of the dispatcher at `target`: a wildcard address (`0.0.0.0`, `[::]`) is
    /// replaced by the dispatcher's host.
    pub(super) fn resolve_wildcard(self, target: &Address) -> Address {
        let Address::Tcp { host, port } = self else { return self };
        let host = match (host.parse::<IpAddr>(), target) {
            (Ok(ip), Address::Tcp { host, .. }) if ip.is_unspecified() => host.clone(),
            (Ok(IpAddr::V4(ip)), Address::Unix(_)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            (Ok(IpAddr::V6(ip)), Address::Unix(_)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            _ => host,
        };
        Address::Tcp { host, port }
    }
}

/// A host as written in an authority: IPv6 in brackets (RFC 3986, 3.2.2).
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } => write!(f, "{}:{port}", bracketed(host)),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned(), "HOST:PORT, [IPV6]:PORT or unix:/PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Address::Unix).ok_or_else(bad);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        tcp(host, port).ok_or_else(bad)
    }
}

fn socket_path(path: &str) -> Option<PathBuf> {
    let fits = path.len() <= PATH_MAX && !path.contains(char::is_control);
    (fits && Path::new(path).is_absolute()).then(|| path.into())
}

fn tcp(host: &str, port: &str) -> Option<Address> {
    // `str::parse` would accept a leading `+`.
    let port: u16 = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
        None => {
            let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            let is_valid = !host.is_empty() && host.len() <= HOST_MAX && host.bytes().all(is_allowed);
            is_valid.then(|| host.to_owned())?
        }
    };
    (port != 0).then_some(Address::Tcp { host, port })
}

/// The address of a dispatcher as a URL: `http://host:port` (port 80 if absent) or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target(Address);

impl Target {
    /// The address to connect to.
    pub fn address(&self) -> &Address {
        &self.0
    }

    /// The value of the `Host` header (RFC 9112, 3.2). A Unix socket has no authority; every dispatcher accepts
    /// `localhost`.
    pub fn authority(&self) -> String {
        match &self.0 {
            Address::Tcp { host, port: 80 } => bracketed(host),
            Address::Tcp { .. } => self.0.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self(address)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Address::Unix(_) => self.0.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = BadAddress;
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned(), "http://HOST:PORT or unix:/PATH, without the path of a request");
        let Some(rest) = text.strip_prefix("http://") else {
            let path = text.strip_prefix("unix:").and_then(socket_path).ok_or_else(bad)?;
            return Ok(Self(Address::Unix(path)));
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        // A colon inside the brackets of an IPv6 address is not followed by a port.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, "80"),
        };
        tcp(host, port).map(Self).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_displayed_in_canonical_form() {
        for (text, shown, authority) in [
            ("http://127.0.0.1:7286", "http://127.0.0.1:7286", "127.0.0.1:7286"),
            ("http://flock.example:7286/", "http://flock.example:7286", "flock.example:7286"),
            ("http://[::1]:7286", "http://[::1]:7286", "[::1]:7286"),
            ("http://[0:0::1]", "http://[::1]", "[::1]"),
            ("http://localhost:80", "http://localhost", "localhost"),
            ("unix:/run/patou/front.sock", "unix:/run/patou/front.sock", "localhost"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.to_string().as_str(), target.authority().as_str()), (shown, authority));
        }
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        for bad in ["", "127.0.0.1:7286", "https://a:1", "http://", "http://a:0", "http://a:1/path", "http://a:+1"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        for bad in ["http://::1:80", "http://u@a:1", "http://[::1", "http://[a]:1", "unix:relative", "unix:/a\nb"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        assert!(format!("unix:/{}", "x".repeat(PATH_MAX)).parse::<Target>().is_err());
        for bad in ["", "a", "a:", ":1", "a:65536", "a b:1", "a\r\nX:1", "http://a:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn wildcard_is_replaced_by_the_host_of_the_dispatcher() {
        let resolve = |worker: &str, target: &str| {
            let target: Target = target.parse().unwrap();
            worker.parse::<Address>().unwrap().resolve_wildcard(target.address()).to_string()
        };
        assert_eq!(resolve("0.0.0.0:7300", "http://flock.example:7286"), "flock.example:7300");
        assert_eq!(resolve("[::]:7300", "http://[fe80::2]:7286"), "[fe80::2]:7300");
        assert_eq!(resolve("0.0.0.0:7300", "unix:/s"), "127.0.0.1:7300");
        assert_eq!(resolve("[::]:7300", "unix:/s"), "[::1]:7300");
        assert_eq!(resolve("10.0.0.1:7300", "http://flock.example:7286"), "10.0.0.1:7300");
        assert_eq!(resolve("unix:/w", "http://flock.example:7286"), "unix:/w");
    }
}
