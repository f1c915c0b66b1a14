//! Where a client is sent. Pure.

use http::HeaderValue;

use crate::ids::Token;
pub use crate::net::{LEASE_PATH, check_request};

/// The target of `OPTIONS *`: a URI without a path (RFC 9112, section 3.2.4).
const ASTERISK: &str = "*";

/// The worker's address with the token, and behind it what was asked for. `host` is what the client called us.
/// `None` if that is no value of a header.
pub fn location(host: &str, port: u16, token: Token, target: &str) -> Option<HeaderValue> {
    let target = if target == ASTERISK { "" } else { target };
    // From bytes: a target may have some beyond ASCII, and goes back as it came.
    HeaderValue::from_bytes(format!("http://{host}:{port}/.patou/{token}{target}").as_bytes()).ok()
}
