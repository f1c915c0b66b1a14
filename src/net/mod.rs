//! What dispatcher and worker both do with the sockets of clients.

mod check;
mod gone;
mod host;
mod hosts;
mod linger;
mod problem;
mod proxy;
mod stream;

pub use check::{LEASE, check};
pub use gone::gone;
pub use host::{host, own_name};
pub use hosts::is_allowed;
pub use linger::{drain, linger, reset, set_reset_on_close};
pub use problem::{OUTCOME, Outcome, Problem};
pub use proxy::{HEADER_MAX, Proxied, proxied};
pub use stream::{Listener, Shared, Stream, local_address, peer_address, peer_user};
