//! Client sockets and the HTTP that the roles share.

mod allowed_hosts;
mod disconnect;
mod host;
mod lingering_close;
mod problem;
mod proxy_header;
mod stream;
mod validate;

pub use allowed_hosts::is_host_allowed;
pub use disconnect::disconnected;
pub use host::{fallback_host, host};
pub use lingering_close::{discard_until_closed, lingering_close, reset, set_reset_on_close};
pub use problem::{ProblemResponse, RequestOutcome};
pub use proxy_header::{ProxyHeader, parse_proxy_header};
pub use stream::{
    ACCEPT_RETRY_DELAY, SharedStream, SocketListener, SocketStream, local_address, peer_address, peer_user,
};
pub use validate::{LEASE_PATH, check_request};
