//! Client sockets and the HTTP that the roles share.

mod allowed_hosts;
mod disconnect;
mod host;
mod lingering_close;
mod problem;
mod proxy_header;
mod stream;
mod validate;

pub(crate) use allowed_hosts::is_host_allowed;
pub(crate) use disconnect::disconnected;
pub(crate) use host::{fallback_host, host};
pub(crate) use lingering_close::{discard_until_closed, lingering_close, reset, set_reset_on_close};
pub(crate) use problem::{ProblemResponse, RequestOutcome};
pub(crate) use proxy_header::{ProxyHeader, parse_proxy_header};
pub(crate) use stream::{
    ACCEPT_RETRY_DELAY, SharedStream, SocketListener, SocketStream, close_without_waiting, local_address, peer_address,
    peer_user,
};
pub(crate) use validate::{LEASE_PATH, check_request};
