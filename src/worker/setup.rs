//! One incarnation of a worker from its start on: sockets, slot, doorbells and signals, then its two threads.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::error::{ServeError, system};
use super::handler::BuiltinHandler;
use super::handoff_receiver::WorkerListeners;
use super::service::HandlerService;
use super::signals::WorkerSignals;
use super::state::WorkerState;
use super::{attach, control, serve};
use crate::config::{Config, FrontConfig, PoolConfig};
use crate::doorbell::Doorbell;
use crate::exchange::WorkerSide;
use crate::ids::{Epoch, ProcessId, WorkerId};
use crate::shm::Segment;
use crate::{clock, log, procfs, sys};

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
        let listeners = WorkerListeners::from_passed(sys::listen_fds().map_err(system("LISTEN_FDS"))?)?;

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

    /// The number of this incarnation.
    pub(super) fn epoch(&self) -> Epoch {
        self.slot.epoch()
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
        let listener = listeners.redirect.as_fd().try_clone_to_owned().map_err(system("the listening socket"))?;
        let control = control::start(state.clone(), to_worker, signals, listener)?;
        serve::serve(state, service, listeners, commands, control).await
    }
}
