//! Why a worker cannot start or continue.

use std::io;
use std::time::Duration;

use super::handler::HandlerStartError;
use crate::config::LoadError;
use crate::ids::{BadWorkerId, WorkerId};
use crate::ipc::IpcError;
use crate::shm::Damage;

/// Why a worker cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The program was not started as a worker.
    #[error(
        "{0} is not set: this program is a patou worker and is started by a pool with handler = {{ program = [...] }}"
    )]
    NotAWorker(&'static str),
    /// `PATOU_WORKER` is not a worker's name.
    #[error(transparent)]
    BadName(#[from] BadWorkerId),
    /// The configuration has no such worker.
    #[error("the configuration has no worker {0}")]
    Unknown(WorkerId),
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The segment or a doorbell cannot be opened.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Another process has the role of this worker.
    #[error("worker {worker} is already running as process {pid}")]
    Taken {
        /// The worker.
        worker: WorkerId,
        /// The process that has its role.
        pid: u32,
    },
    /// Its previous incarnations have failed too often.
    #[error("{0}")]
    GivenUp(String),
    /// The previous incarnation, or another process, has corrupted the segment.
    #[error(
        "the segment of worker {worker} is unusable ({damage}), and no dispatcher has recreated it within {waited:?}"
    )]
    Damaged {
        /// The worker.
        worker: WorkerId,
        /// What is wrong with its segment.
        damage: Damage,
        /// How long the worker waited for the dispatcher.
        waited: Duration,
    },
    /// There is no socket to listen on.
    #[error("no listening socket was passed (LISTEN_FDS): start the worker with patou run or through systemd")]
    NoSocket,
    /// The handler cannot be started.
    #[error("the handler cannot be started: {0}")]
    HandlerConfig(#[from] HandlerStartError),
    /// The process has no free descriptor, and does not get one.
    #[error(
        "the worker has used up its limit of open files ({0}) and cannot receive connections: check the handler for \
         descriptors that it does not close, or raise limits.open_files of the pool"
    )]
    Exhausted(u64),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// For `map_err`: names the system call, or the part of the worker, that failed.
pub(super) fn system(call: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System(call, error)
}
