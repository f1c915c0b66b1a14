//! What a handler knows about a request besides the request itself.

use std::borrow::Cow;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Extensions, StatusCode, header, request};

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

    /// The client's address without the port. On a Unix socket the client has none: `unix:`, as nginx says.
    pub(super) fn remote_address(&self) -> String {
        self.peer.map_or("unix:".to_owned(), |peer| peer.ip().to_canonical().to_string())
    }

    /// The host name that the client of this request used, and the port it connected to if that is known.
    pub(super) fn server_name_and_port(&self, parts: &request::Parts) -> (String, u16) {
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let host = parts.uri.authority().map_or(Cow::Borrowed(host), |authority| authority.as_str().into());
        let requested: Option<http::uri::Authority> = host.parse().ok();
        let name = requested.as_ref().map(|requested| requested.host()).filter(|host| !host.is_empty());
        let name =
            name.map(str::to_owned).unwrap_or_else(|| match self.server.map(|local| local.ip().to_canonical()) {
                Some(IpAddr::V6(ip)) => format!("[{ip}]"),
                Some(ip) => ip.to_string(),
                None => "localhost".to_owned(),
            });
        let port = self.port.or(self.server.map(|local| local.port()));
        (name, port.or_else(|| requested.and_then(|requested| requested.port_u16())).unwrap_or(80))
    }
}

/// Whether the program of a request may have learned of it, as its worker and its handler share it: the worker inserts it
/// into the request's extensions, too. A request is taken for started unless its handler says otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestStart(Arc<AtomicBool>);

impl RequestStart {
    pub(super) fn from_extensions(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// A step before the start. If it is dropped, the start is still pending.
    pub(super) async fn precede<T>(&self, step: impl Future<Output = T>) -> T {
        self.0.store(true, Ordering::Relaxed); // read by the same task
        let result = step.await;
        self.0.store(false, Ordering::Relaxed);
        result
    }

    /// Whether no program has learned of the request.
    pub(crate) fn is_pending(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
