//! Why the watchdog cannot run.

use std::io;

use super::sockets::SocketError;
use crate::backoff::GivenUp;
use crate::ipc::IpcError;

/// Why a set cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchdogError {
    /// Segments, doorbells, or another set in the same directory.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// An address is in use or not permitted.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its previous incarnations have failed too often.
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
    /// Processes of the set survive SIGKILL.
    #[error("processes of the set do not end: {0}; kill them, then start the set again")]
    Leftover(String),
    /// A process of the previous set lives where this one cannot see it.
    #[error(
        "the {0} of the previous set still runs, but not in this pid namespace: stop the container that it runs in, or \
         give this set another set.runtime_dir"
    )]
    Hidden(String),
    /// A reload requires a change that a running set cannot make.
    #[error("{0}")]
    CannotChange(&'static str),
    /// The environment of a unit is not as required.
    #[error("{0}")]
    Environment(&'static str),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(String, io::Error),
}

/// Adds to the error of a system call what it was for.
pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> WatchdogError {
    move |error| WatchdogError::System(what.into(), error)
}
