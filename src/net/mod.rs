//! Client sockets and the HTTP that the roles share.

mod allowed_hosts;
mod chunks;
mod disconnect;
pub(crate) mod fastcgi;
mod fastcgi_request;
mod forwarded;
mod host;
mod last_look;
mod linger;
mod lingering_close;
mod patou_headers;
mod problem;
mod proxy_header;
pub(crate) mod request_head;
mod request_input;
mod stream;
mod validate;
mod wire;

pub(crate) use allowed_hosts::is_host_allowed;
pub(crate) use disconnect::{HalfClose, disconnected, has_ended, probe_half_closed};
pub(crate) use fastcgi_request::FastcgiRequest;
pub(crate) use forwarded::{RequestOrigin, request_origin};
pub(crate) use host::{fallback_host, host};
pub(crate) use last_look::until;
pub(crate) use linger::LingerBounds;
pub(crate) use lingering_close::{
    deliver, discard_until_closed, discard_until_closed_blocking, lingering_close, reset, set_reset_on_close,
};
pub(crate) use patou_headers::remove_patou_headers;
pub(crate) use problem::{ProblemResponse, RequestOutcome};
pub(crate) use proxy_header::{ProxiedAddresses, ProxyHeader, parse_proxy_header};
pub(crate) use request_head::TARGET_MAX;
pub(crate) use request_input::{NoRequest, OneRequestIo, RequestInput, discard_input};
pub(crate) use stream::{
    ACCEPT_RETRY_DELAY, SharedStream, SocketListener, SocketStream, close_without_waiting, is_retired, local_address,
    peer_address, peer_user,
};
pub(crate) use validate::{LEASE_PATH, LEASE_PREFIX_LENGTH, check_host, check_request};
pub(crate) use wire::{PeekedRequest, WireProtocol, encode_cgi_head, encode_end_request, encode_fastcgi_end};
