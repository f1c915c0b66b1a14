//! What dispatcher and worker both do with the sockets of clients.

mod disconnect;
mod host;
mod hosts;
mod lingering_close;
mod problem;
mod proxy;
mod stream;
mod validate;

pub use disconnect::disconnected;
pub use host::{host, own_name};
pub use hosts::is_allowed;
pub use lingering_close::{drain, lingering_close, reset, set_reset_on_close};
pub use problem::{OUTCOME, Outcome, ProblemResponse};
pub use proxy::{HEADER_MAX, ProxyHeader, proxied};
pub use stream::ACCEPT_RETRY_DELAY;
pub use stream::{SharedStream, SocketListener, SocketStream, local_address, peer_address, peer_user};
pub use validate::{LEASE, check};
