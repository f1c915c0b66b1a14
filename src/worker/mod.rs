//! The worker: answers the dispatcher's questions, serves one request per lease, and replaces itself in place when it
//! has reached a limit of its pool.
//!
//! It has two threads that never wait for each other. The *control loop* answers questions and never runs the
//! handler's code, so a control loop that is silent is frozen. The *serving task* accepts connections, claims leases
//! and runs the handler, one request at a time.
//!
//! A program of your own becomes a worker with [`serve()`]:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), patou::worker::ServeError> {
//!     patou::worker::serve(Router::new().route("/hello", get(|| async { "hello\n" }))).await
//! }
//! ```
//!
//! and a pool with `handler = { program = ["/path/to/it"] }`.

mod attach;
mod checked_request;
mod claim;
mod control;
mod counted_body;
mod error;
mod fastcgi;
mod finish;
pub(crate) mod handler;
mod handoff;
mod handoff_receiver;
mod http10_response;
mod inetd;
mod last_end;
pub(crate) mod lease_url;
mod lifecycle_state;
mod program;
mod recycle;
mod redirect;
mod reported_status;
mod request_io;
mod send_back;
mod serve;
mod served_connection;
mod service;
mod serving_thread;
mod session;
mod setup;
mod signals;
mod stand_in;
mod state;
mod task_ping;
pub(crate) mod transaction;

pub use error::ServeError;
pub use handler::{Body, BoxError, RequestContext};
pub use program::serve;

pub use crate::ids::WorkerId;

use crate::config::Config;
use crate::ipc;
use handler::BuiltinHandler;
use setup::WorkerSetup;
pub(crate) use stand_in::{hold_back, run as run_stand_in};

/// Runs worker `id` with its built-in handler until it is stopped.
///
/// # Errors
/// See [`ServeError`]. A `program` handler is not run here: its binary calls [`serve()`].
pub(crate) async fn run(config: &Config, id: &WorkerId) -> Result<(), ServeError> {
    let setup = WorkerSetup::new(config, id)?;
    let dir = &config.set.runtime_dir;
    // A worker with another user than the set's cannot remove them. They harm nothing.
    let _ = ipc::remove_app_sockets(dir, id);
    let socket = ipc::app_sockets(dir, id, setup.epoch());
    let builtin = BuiltinHandler::start(setup.pool(), id, &config.watchdog, socket)?;
    let builtin = builtin.ok_or_else(|| ServeError::Unknown(id.clone()))?;
    setup.serve(builtin.clone(), Some(builtin)).await
}
