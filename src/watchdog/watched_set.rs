//! What the watchdog knows of its set, whatever starts the parts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sd_notify::NotifyState;

use super::admin::AdminServer;
use super::plan::{Plan, PlanKind};
use super::prober::{ProbeSocket, Prober};
use super::restart_stats::RestartStats;
use super::state::StateWriter;
use crate::config::{Config, Origin};
use crate::ids::{Monotonic, WorkerId};
use crate::sd_notification::{FAULT_STATUS, notify};
use crate::status::{SavedReloads, SavedState};

/// A running set. Its loop alone passes events to the plan; a supervisor reads it and counts what it does.
pub(super) struct WatchedSet<K: PlanKind> {
    pub config: Arc<Config>,
    pub origin: Origin,
    pub plan: Plan<K>,
    pub prober: Prober,
    pub restart_stats: RestartStats,
    pub admin: AdminServer,
    /// The admin sockets until the first report arrives, at most until this time. Requests wait in the backlog.
    pub unserved_admin: Option<(Monotonic, Vec<OwnedFd>)>,
    pub state_writer: StateWriter,
    pub reloads: SavedReloads,
    /// Whether all child processes have been up, or have failed.
    pub is_up: bool,
    /// Whether READY=1 was sent.
    pub is_ready: bool,
    /// Whether there is nothing left to do.
    pub is_finished: bool,
}

impl<K: PlanKind> WatchedSet<K> {
    pub(super) fn new(config: Config, origin: Origin, plan: Plan<K>, probe_socket: ProbeSocket) -> Self {
        Self {
            config: Arc::new(config),
            origin,
            plan,
            prober: Prober::start(probe_socket),
            restart_stats: RestartStats::default(),
            admin: AdminServer::default(),
            unserved_admin: None,
            state_writer: StateWriter::default(),
            reloads: SavedReloads::default(),
            is_up: false,
            is_ready: false,
            is_finished: false,
        }
    }

    /// What operators have to know of pools whose requests fail. `state` has the statuses of the workers.
    pub(super) fn failing_pools(&self, now: Monotonic, state: &SavedState) -> Vec<String> {
        let degraded_after = self.config.watchdog.degraded_after;
        let failing = self.prober.outcomes().iter().filter_map(|(pool, outcomes)| {
            let (_, number) = outcomes.failing(now, degraded_after)?;
            let id = WorkerId { pool: pool.clone(), number }.to_string();
            let status = state.workers.get(&id).and_then(|part| part.status.as_deref());
            let error =
                status.and_then(|status| status.split_once(FAULT_STATUS)).map_or("see the log", |(_, error)| error);
            let within = humantime::format_duration(degraded_after);
            Some(format!(
                "every request to pool {pool} failed in the last {within} (last error, of worker {id}: {error})"
            ))
        });
        failing.collect()
    }

    /// Sends READY=1: the set can be used.
    pub(super) fn notify_ready(&mut self) {
        self.is_ready = true;
        notify(&[NotifyState::Ready]);
    }
}
