//! The worker: answers the dispatcher, serves one request per lease, and is replaced in place when it is old.
//!
//! Two threads that never wait for each other. The *control loop* answers questions and never runs the
//! handler's code, so that its silence means "frozen" and nothing else. The *serving task* accepts
//! connections, claims and runs the handler, one request at a time.
//!
//! A program of your own becomes a worker with [`serve`]:
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
mod control;
pub mod handler;
mod handoff;
mod handoff_receiver;
mod inetd;
pub mod lease_url;
mod program;
mod recycle;
mod redirect;
mod serve;
mod state;
mod task_ping;
mod turn;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use handler::{Body, BoxError};
pub use program::serve;

use crate::clock;
use crate::config::{Config, FrontConfig, HandlerConfig, LoadError, PoolConfig};
use crate::doorbell::Doorbell;
use crate::exchange::WorkerSide;
use crate::ids::WorkerId;
use crate::ipc::IpcError;
use crate::net::SocketListener;
use crate::shm::Segment;
use crate::signals::Signal;
use crate::{log, process_tree, sys};
use handler::{Builtin, Spec, StartError};
use state::WorkerState;

/// Why a worker cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The program was not started as a worker.
    #[error(
        "{0} is not set: this program is a patou worker and is started by a pool with handler = {{ program = [...] }}"
    )]
    NotAWorker(&'static str),
    /// The worker's name is no name.
    #[error(transparent)]
    BadName(#[from] crate::ids::BadWorkerId),
    /// The configuration has no such worker.
    #[error("the configuration has no worker {0}")]
    Unknown(WorkerId),
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// Segment or bells cannot be opened.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Another process is this worker.
    #[error("worker {worker} is running already, as process {pid}")]
    Taken {
        /// Which.
        worker: WorkerId,
        /// Who.
        pid: u32,
    },
    /// Its predecessor, or another process, has spoilt its segment.
    #[error(
        "the segment of worker {worker} cannot be used ({damage}), and no dispatcher has made it anew within {waited:?}"
    )]
    Damaged {
        /// Whose.
        worker: WorkerId,
        /// What is wrong with it.
        damage: crate::shm::Damage,
        /// How long it waited.
        waited: std::time::Duration,
    },
    /// There is no socket to listen on.
    #[error("no listening socket was passed (LISTEN_FDS): start the worker with patou run or through systemd")]
    NoSocket,
    /// The handler cannot be started.
    #[error("the handler cannot be started: {0}")]
    HandlerConfig(#[from] StartError),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

fn system(call: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System(call, error)
}

/// Runs worker `id` with its built-in handler until it is told to stop.
///
/// # Errors
/// See [`ServeError`]. A `program` handler is not run here: its binary calls [`serve`].
pub async fn run(config: &Config, id: &WorkerId) -> Result<(), ServeError> {
    let office = WorkerSetup::take(config, id)?;
    let spec = match &office.pool.handler {
        HandlerConfig::Echo => Spec::Echo,
        HandlerConfig::Exec(command) => Spec::Exec(command.clone()),
        HandlerConfig::Coprocess(command) => Spec::Coprocess(command.clone()),
        HandlerConfig::Inetd(command) => Spec::Inetd(command.clone()),
        HandlerConfig::Program(_) => return Err(ServeError::Unknown(id.clone())),
    };
    let builtin = Builtin::start(&spec, id, &office.pool.environment)?;
    office.serve(builtin.clone(), Some(builtin)).await
}

/// A worker's place in the set: its sockets, its slot and its bells, taken for this incarnation.
struct WorkerSetup {
    id: WorkerId,
    pool: PoolConfig,
    front: FrontConfig,
    listener: SocketListener,
    /// Where connections are handed over.
    handed: Option<OwnedFd>,
    respondent: WorkerSide<Arc<Segment>>,
    ring: Doorbell,
    hear: Doorbell,
    signals: Signals,
}

/// Heard from the start: what a handler starts inherits the signals that are held back until then.
struct Signals {
    stop: Signal,
    reload: Signal,
}

impl WorkerSetup {
    fn take(config: &Config, id: &WorkerId) -> Result<Self, ServeError> {
        log::init(log::LogContext::worker(id, &config.set.name));
        let pool = config.pool(&id.pool).filter(|pool| id.number.get() <= pool.workers);
        let pool = pool.ok_or_else(|| ServeError::Unknown(id.clone()))?.clone();
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| system("prctl")(e.into()))?;

        let sockets = sys::listen_fds().map_err(system("LISTEN_FDS"))?;
        let (mut handed, mut others) = (Vec::new(), Vec::new());
        for (socket, _) in sockets {
            if crate::handoff::is_handoff_socket(&socket) { handed.push(socket) } else { others.push(socket) }
        }
        let socket = others.into_iter().next().ok_or(ServeError::NoSocket)?;
        let listener = SocketListener::from_fd(socket).map_err(system("the listening socket"))?;

        let parts = attach::take(config, id)?;
        let pid = std::process::id();
        let started = process_tree::read_process(pid).map_or(0, |process| process.started);
        let port = listener.tcp_address().map(|address| address.port());
        let respondent = WorkerSide::attach(parts.segment, pid, started, port, clock::now());
        log::set_epoch(respondent.epoch().get());
        Ok(Self {
            id: id.clone(),
            pool,
            front: config.front.clone(),
            listener,
            handed: handed.into_iter().next(),
            respondent,
            ring: parts.to_dispatcher,
            hear: parts.to_worker,
            signals: Signals {
                stop: Signal::stop().map_err(system("signals"))?,
                reload: Signal::reload().map_err(system("signals"))?,
            },
        })
    }

    async fn serve(self, service: impl redirect::Handler, builtin: Option<Builtin>) -> Result<(), ServeError> {
        let (shared, orders, hear, sockets, signals) = WorkerState::new(self, builtin)?;
        let shared = Arc::new(shared);
        let control = control::start(shared.clone(), hear, signals)?;
        serve::serve(shared, service, sockets, orders, control).await
    }
}
