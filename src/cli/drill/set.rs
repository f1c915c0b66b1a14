//! The set that is drilled: a private one, or a running one.

mod leftovers;
mod pausable_log;
mod private;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

pub(super) use self::pausable_log::LogGate;
use self::private::PrivateDrillSet;
use super::checker::{CheckedListener, DrillBounds};
use super::fault::DrillPart;
use super::generator::SetKind;
use crate::bounds::{BLOCKED_GRACE, DISPATCHER_GRACE};
use crate::cli::config_source::load_applied;
use crate::cli::error::{CommandError, failed, no_set};
use crate::cli::patou_run::{POLL_INTERVAL, all_parts_up};
use crate::config::{Config, Delivery, HandlerConfig, ListenAddress, ListenerConfig, PoolConfig};
use crate::ids::{PoolName, WorkerId};
use crate::ipc;
use crate::status::SavedState;
use crate::units;

/// `WatchdogSec=` and `TimeoutAbortSec=` of the watchdog's unit.
const UNIT_WATCHDOG_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) struct DrillSet {
    pub config: Config,
    pub kind: SetKind,
    pub workers: Vec<WorkerId>,
    private: Option<PrivateDrillSet>,
}

/// What the drill knows of a pool's handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DrillHandler {
    /// `patou record FILE`: responds with the request's body, and records each start in this file.
    Recording(PathBuf),
    /// Responds with the request's body.
    Echo,
    /// Any other: only how the connection ends can be judged.
    Unknown,
}

impl DrillSet {
    /// Starts a private set with every kind of handler and listener and short timeouts.
    pub(super) fn start_private() -> Result<Self, CommandError> {
        let (private, config) = PrivateDrillSet::start()?;
        let workers = config.workers().collect();
        let set = Self { config, kind: SetKind::Private, workers, private: Some(private) };
        if !set.wait_until_up(set.config.watchdog.start_timeout * 2) {
            return Err(failed(format!("the private set does not start: {}", set.log_tail())));
        }
        Ok(set)
    }

    /// The running set of this configuration.
    pub(super) fn running(path: Option<&Path>) -> Result<Self, CommandError> {
        let config = load_applied(path)?;
        let dir = &config.set.runtime_dir;
        let state = SavedState::read(dir).map_err(|_| no_set(dir))?;
        if !state.has_local_pids() {
            return Err(failed(
                "the set runs in another pid namespace, where its pids have their meaning: drill it there",
            ));
        }
        state.watchdog().ok_or_else(|| no_set(dir))?;
        let kind = if ipc::is_run_by_systemd(dir) { SetKind::Units } else { SetKind::PatouRun };
        let workers = config.workers().collect();
        Ok(Self { config, kind, workers, private: None })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.config.set.runtime_dir
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = DrillPart> {
        [DrillPart::Watchdog, DrillPart::Dispatcher].into_iter().chain((0..self.workers.len()).map(DrillPart::Worker))
    }

    fn pool_index(&self, name: &PoolName) -> usize {
        self.config.pools.iter().position(|pool| pool.name == *name).unwrap_or(0)
    }

    /// The pool of each worker, by their indices in the configuration.
    pub(super) fn pool_of(&self) -> Vec<usize> {
        self.workers.iter().map(|id| self.pool_index(&id.pool)).collect()
    }

    /// The handler of a pool.
    pub(super) fn handler(&self, pool: usize) -> DrillHandler {
        match &self.config.pools[pool].handler {
            HandlerConfig::Echo => DrillHandler::Echo,
            handler => match handler.command() {
                [_, subcommand, file, ..] if subcommand == "record" => DrillHandler::Recording(file.into()),
                _ => DrillHandler::Unknown,
            },
        }
    }

    /// The most sessions of a pool; 0 if its handler has none.
    pub(super) fn max_sessions(&self, pool: usize) -> u16 {
        match self.handler(pool) {
            DrillHandler::Recording(_) => self.config.pools[pool].sessions().map_or(0, |bounds| bounds.max),
            _ => 0,
        }
    }

    /// Whether the protocol of a pool is that of its program, and not HTTP.
    pub(super) fn is_inetd(&self, pool: usize) -> bool {
        matches!(self.config.pools[pool].handler, HandlerConfig::Inetd(_))
    }

    /// The listeners as the checker needs to know them.
    pub(super) fn listeners(&self) -> Vec<CheckedListener> {
        let listener = |listener: &ListenerConfig| {
            let pool = self.pool_index(&listener.pool);
            CheckedListener {
                pool,
                records: matches!(self.handler(pool), DrillHandler::Recording(_)),
                handoff: listener.delivery == Delivery::Handoff,
                max_sessions: self.max_sessions(pool),
                refuses_silently_after: self.is_inetd(pool).then(|| queue_time(&self.config.pools[pool])),
            }
        };
        self.config.listeners.iter().map(listener).collect()
    }

    /// Whether the delivery of a listener is redirect.
    pub(super) fn redirects(&self, listener: usize) -> bool {
        self.config.listeners[listener].delivery == Delivery::Redirect
    }

    /// Whether any listener has the delivery handoff.
    pub(super) fn has_handoff(&self) -> bool {
        self.config.listeners.iter().any(|listener| listener.delivery == Delivery::Handoff)
    }

    /// How long each step may take by the configuration.
    pub(super) fn bounds(&self) -> DrillBounds {
        let Config { pools, front, watchdog, .. } = &self.config;
        let grace = if self.has_handoff() { DISPATCHER_GRACE } else { BLOCKED_GRACE };
        let attempt = pools
            .iter()
            .map(|pool| queue_time(pool) + pool.offer_timeout + pool.request_timeout + grace + front.linger_timeout);
        let drain_timeout = pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
        let drain = drain_timeout + front.linger_timeout + BLOCKED_GRACE;
        let restart = watchdog.restarts.delay_max.mul_f64(1.25) + watchdog.start_timeout;
        DrillBounds {
            attempt: attempt.collect(),
            // The worker is pinged at one probe, and the result is reported at another.
            worker: watchdog.worker_timeout + watchdog.probe_interval * 2 + watchdog.abort_grace,
            dispatcher: watchdog.dispatcher_timeout + watchdog.probe_interval + watchdog.abort_grace,
            watchdog: restart * 2 + if self.kind == SetKind::Units { UNIT_WATCHDOG_TIMEOUT } else { drain },
            drain,
            restart,
            // A repair that needs the dispatcher waits until it answers a probe again.
            repair: watchdog.dispatcher_timeout + watchdog.probe_interval * 2,
            store_after: front.store_after,
            slack: Duration::from_millis(250),
            parts_follow_watchdog: self.kind != SetKind::Units,
        }
    }

    /// How long after a fault's action a process may still be killed for it.
    pub(super) fn settle_time(&self) -> Duration {
        let bounds = self.bounds();
        bounds.worker.max(bounds.dispatcher) + Duration::from_millis(50)
    }

    /// Waits until every part is up.
    pub(super) fn wait_until_up(&self, timeout: Duration) -> bool {
        let child = self.private.as_ref().map(PrivateDrillSet::pid);
        let deadline = Instant::now() + timeout;
        loop {
            if let Ok(state) = SavedState::read(self.dir())
                && state.watchdog().is_some()
                && child.is_none_or(|child| child == state.pid)
                && all_parts_up(&state)
            {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills the watchdog of a private set with SIGKILL. Its parts drain and stop by themselves.
    pub(super) fn kill_watchdog(&mut self) -> Result<(), CommandError> {
        let Some(private) = &mut self.private else { return Err(failed("the watchdog is not a child of the drill")) };
        private.kill_watchdog()
    }

    /// Starts the watchdog of a private set again, which removes what is left of the previous one.
    pub(super) fn restart_watchdog(&mut self) -> Result<(), CommandError> {
        self.private.as_mut().map_or(Ok(()), PrivateDrillSet::restart_watchdog)
    }

    /// Stops a private set. Returns what is wrong afterwards (P6).
    pub(super) fn stop(&mut self) -> Vec<String> {
        let timeout = self.bounds().drain * 2 + Duration::from_secs(5);
        let Some(private) = &mut self.private else { return Vec::new() };
        let mut wrong: Vec<_> = private.stop(timeout).into_iter().collect();
        wrong.extend(leftovers::find(&self.config));
        wrong
    }

    /// Writes the configuration of a private set, without the last worker of pool `smaller`.
    pub(super) fn configure(&self, smaller: Option<&PoolName>) -> Result<(), CommandError> {
        self.private.as_ref().map_or(Ok(()), |private| private.configure(self.config.set.name.as_str(), smaller))
    }

    /// Starts a second `patou run` on the configuration of a private set, which must be refused.
    pub(super) fn start_second(&self) -> Option<Child> {
        self.private.as_ref()?.start_second().ok()
    }

    /// Pauses the reader of a private set's log.
    pub(super) fn log_gate(&self) -> Option<LogGate> {
        self.private.as_ref().map(PrivateDrillSet::log_gate)
    }

    /// The last worker of each pool.
    pub(super) fn last_workers(&self) -> Vec<usize> {
        let is_last =
            |id: &WorkerId| !self.workers.iter().any(|other| other.pool == id.pool && other.number > id.number);
        (0..self.workers.len()).filter(|index| is_last(&self.workers[*index])).collect()
    }

    /// Whether a listener or a worker has a Unix address.
    pub(super) fn has_unix_addresses(&self) -> bool {
        let Config { listeners, pools, .. } = &self.config;
        let workers = pools.iter().map(|pool| &pool.address);
        let mut addresses = listeners.iter().map(|listener| &listener.address).chain(workers);
        addresses.any(|address| matches!(address, ListenAddress::Unix(_)))
    }

    /// Whether the part is a worker with a Unix address.
    pub(super) fn has_unix_address(&self, part: DrillPart) -> bool {
        let DrillPart::Worker(worker) = part else { return false };
        let pool = self.config.pool(&self.workers[worker].pool);
        pool.is_some_and(|pool| matches!(pool.address, ListenAddress::Unix(_)))
    }

    /// Whether the delivery of a listener is handoff and its address is TCP.
    pub(super) fn is_tcp_handoff(&self, listener: usize) -> bool {
        let listener = &self.config.listeners[listener];
        listener.delivery == Delivery::Handoff && matches!(listener.address, ListenAddress::Tcp(_))
    }

    /// The processes that were started for this set.
    pub(super) fn processes(&self) -> Vec<u32> {
        leftovers::processes(self.dir())
    }

    /// The last lines of a private set's log.
    pub(super) fn log_tail(&self) -> String {
        self.private.as_ref().map(PrivateDrillSet::log_tail).unwrap_or_default()
    }

    /// The log file of a private set.
    pub(super) fn log(&self) -> Option<PathBuf> {
        self.private.as_ref().map(PrivateDrillSet::log)
    }

    /// Removes the directory of a private set.
    pub(super) fn remove(mut self) {
        if let Some(private) = self.private.take() {
            private.remove();
        }
    }

    /// The unit of a part.
    pub(super) fn unit(&self, part: DrillPart) -> String {
        match part {
            DrillPart::Watchdog => units::WATCHDOG.to_owned(),
            DrillPart::Dispatcher => units::DISPATCHER.to_owned(),
            DrillPart::Worker(index) => units::worker_service(&self.workers[index]),
        }
    }
}

impl Drop for DrillSet {
    fn drop(&mut self) {
        // Only after a failure is the set still running.
        if self.private.as_mut().is_some_and(PrivateDrillSet::is_running) {
            let _ = self.stop();
        }
    }
}

/// How long a client may wait in the queue of this pool.
fn queue_time(pool: &PoolConfig) -> Duration {
    if pool.queue > 0 { pool.queue_timeout } else { Duration::ZERO }
}
