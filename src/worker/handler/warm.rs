//! What the handlers with a warm process have in common: one process per worker, from its start until its end, and what
//! may use it.
//!
//! [`WarmHandler`] owns the process between requests. A request takes it ([`Borrowed`]) and returns it when request and
//! response are complete. A request that is dropped before that leaves it [unfinished](state::CurrentProcess::Unfinished):
//! [`WarmHandler::end_request`] lets the process finish, within the deadline of the request, and discards the response.
//! A process that is lost is killed with everything it has started, and [`WarmHandler::keep`] brings up the next one.

mod backoff;
mod borrowed;
mod handler;
mod keeper;
mod lifecycle;
mod process;
mod stage;
mod start;
mod state;

pub(super) use borrowed::Borrowed;
pub(super) use handler::WarmHandler;
pub(crate) use keeper::WarmEvent;
pub(crate) use process::WarmSettings;
pub(super) use process::{Launch, NotFinished, WarmProcess, await_exit};
pub(crate) use stage::HandlerReadiness;
#[cfg(test)]
pub(super) use state::CurrentProcess;
