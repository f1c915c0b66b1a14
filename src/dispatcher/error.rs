//! Why the dispatcher cannot start or continue.

use std::io;

use crate::backoff::GivenUp;
use crate::config::LoadError;
use crate::ipc::IpcError;

/// Why the dispatcher cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DispatcherError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// A segment or doorbell cannot be opened.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Its previous incarnations have failed too often.
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
    /// Another dispatcher serves the set.
    #[error("another dispatcher is already running as process {0}")]
    Taken(u32),
    /// A socket was not passed.
    #[error("the socket for {0} was not passed (LISTEN_FDS): start the dispatcher with patou run or through systemd")]
    NoSocket(String),
    /// The limit of open files is too low for the set.
    #[error(
        "the limit of open files is {limit}, and the dispatcher of this set needs at least {needed}: raise it \
         (LimitNOFILE= of the unit, ulimit -Hn before patou run)"
    )]
    Descriptors { limit: u64, needed: u64 },
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}
