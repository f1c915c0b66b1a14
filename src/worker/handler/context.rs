//! What a handler knows about a request besides the request itself.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Extensions, StatusCode};

use super::failure::RequestFailure;
use crate::ids::WorkerId;

/// The circumstances of a request. The worker inserts them into the request's extensions.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's address; `None` on a Unix socket. As named by a proxy of `trusted_proxies`, if the request came from
    /// one; then the port is 0 unless the proxy named it, too.
    pub peer: Option<SocketAddr>,
    /// Whether the client used HTTPS to such a proxy.
    pub is_https: bool,
    /// The port at which the client reached such a proxy; `None` if no proxy has named it: the port of `server`.
    pub port: Option<u16>,
    /// The user in the header `remote_user_header` of such a proxy.
    pub user: Option<String>,
    /// The address the client connected to; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    /// The worker that serves the request.
    pub worker: WorkerId,
    /// The lease as text.
    pub lease: String,
    /// The longest time without a byte of the request body.
    pub body_timeout: Duration,
    /// The largest request body in bytes; 0: unlimited.
    pub max_body: u64,
}

impl RequestContext {
    pub(super) fn from_extensions(extensions: &Extensions) -> Result<Self, RequestFailure> {
        let missing = || {
            let reason = "internal error: the request has no RequestContext extension";
            RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason).not_started()
        };
        extensions.get().cloned().ok_or_else(missing)
    }
}
