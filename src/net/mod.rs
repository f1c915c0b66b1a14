//! What dispatcher and worker both do with the sockets of clients.

mod gone;
mod host;
mod hosts;
mod linger;
mod problem;
mod stream;

pub use gone::gone;
pub use host::{host, own_name};
pub use hosts::is_allowed;
pub use linger::{linger, set_reset_on_close};
pub use problem::{OUTCOME, Outcome, Problem};
pub use stream::{Listener, Shared, Stream};
