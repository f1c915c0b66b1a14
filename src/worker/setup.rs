//! One incarnation of a worker from its start on: sockets, slot, doorbells and signals, then its two threads.

use std::sync::Arc;

use super::error::{ServeError, system};
use super::handler::BuiltinHandler;
use super::handoff_receiver::{HandoffReceiver, WorkerListeners};
use super::service::HandlerService;
use super::signals::WorkerSignals;
use super::state::WorkerState;
use super::{attach, control, serve};
use crate::config::{Config, FrontConfig, PoolConfig};
use crate::doorbell::Doorbell;
use crate::exchange::WorkerSide;
use crate::ids::{ProcessId, WorkerId};
use crate::net::SocketListener;
use crate::shm::Segment;
use crate::{clock, handoff, log, procfs, sys};

/// Everything that one incarnation holds before its handler starts.
pub(super) struct WorkerSetup {
    id: WorkerId,
    pool: PoolConfig,
    front: FrontConfig,
    listeners: WorkerListeners,
    slot: WorkerSide<Arc<Segment>>,
    to_dispatcher: Doorbell,
    to_worker: Doorbell,
    signals: WorkerSignals,
}

impl WorkerSetup {
    /// Takes the sockets passed to this process and the role of worker `id`, and publishes the new incarnation.
    pub(super) fn new(config: &Config, id: &WorkerId) -> Result<Self, ServeError> {
        sys::ignore_terminal_output_stop();
        log::init(log::LogContext::worker(id, &config.set.name));
        let pool = config.pool(&id.pool).filter(|pool| id.number.get() <= pool.workers);
        let pool = pool.ok_or_else(|| ServeError::Unknown(id.clone()))?.clone();
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| system("prctl")(e.into()))?;
        let listeners = inherited_listeners()?;

        let ipc = attach::attach(config, id)?;
        let ProcessId { pid, start_time } = procfs::this_process();
        let port = listeners.redirect.tcp_address().map(|address| address.port());
        let slot = WorkerSide::attach(ipc.segment, pid, start_time, port, clock::now());
        log::set_epoch(slot.epoch().get());
        Ok(Self {
            id: id.clone(),
            pool,
            front: config.front.clone(),
            listeners,
            slot,
            to_dispatcher: ipc.to_dispatcher,
            to_worker: ipc.to_worker,
            signals: WorkerSignals::catch()?,
        })
    }

    /// The configuration of the worker's pool.
    pub(super) fn pool(&self) -> &PoolConfig {
        &self.pool
    }

    /// Starts the control loop, and serves with `service` until the worker stops. `builtin` is the same handler, if
    /// it is a built-in one.
    pub(super) async fn serve(
        self,
        service: impl HandlerService,
        builtin: Option<BuiltinHandler>,
    ) -> Result<(), ServeError> {
        let Self { id, pool, front, listeners, slot, to_dispatcher, to_worker, signals } = self;
        let stop = signals.stop.flag();
        let (state, commands) = WorkerState::new(id, &pool, front, slot, to_dispatcher, stop, builtin)?;
        let state = Arc::new(state);
        let control = control::start(state.clone(), to_worker, signals)?;
        serve::serve(state, service, listeners, commands, control).await
    }
}

/// The first socket of each kind in `LISTEN_FDS`.
fn inherited_listeners() -> Result<WorkerListeners, ServeError> {
    let sockets = sys::listen_fds().map_err(system("LISTEN_FDS"))?.into_iter().map(|(socket, _)| socket);
    let (handoff, redirect): (Vec<_>, Vec<_>) = sockets.partition(handoff::is_handoff_socket);
    let redirect = redirect.into_iter().next().ok_or(ServeError::NoSocket)?;
    let handoff = handoff.into_iter().next();
    Ok(WorkerListeners {
        redirect: SocketListener::from_fd(redirect).map_err(system("the listening socket"))?,
        handoff: handoff.map(HandoffReceiver::new).transpose().map_err(system("the handoff socket"))?,
    })
}
