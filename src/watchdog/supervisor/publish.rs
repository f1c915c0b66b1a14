//! What the watchdog of `patou run` shows of the set: `watchdog.json`, the snapshot that the admin sockets
//! serve, and warnings about the configuration.

use super::child_supervisor::ChildSupervisor;
use crate::clock;
use crate::ids::Monotonic;
use crate::watchdog::admin::SetSnapshot;
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::state;

impl ChildSupervisor {
    /// Writes `watchdog.json`.
    pub(super) fn write_state(&mut self) {
        let listeners = self.sockets.listeners.iter().map(|socket| socket.address.to_string()).collect();
        let mut state = state::saved_state(&self.plan, &self.config.set.name, self.own_id, listeners);
        state.problems = self.files.problems().to_vec();
        for id in self.files.lost() {
            let endpoints = self.endpoints.get(id);
            if let (Some(part), Some(endpoints)) = (state.workers.get_mut(&id.to_string()), endpoints) {
                part.segment_fd = Some(endpoints.objects.segment_fd());
            }
        }
        let dir = self.files.lock.is_in_place(&self.runtime_dir).then_some(&*self.runtime_dir);
        self.state_writer.write_if_changed(state, dir);
    }

    /// Serves on the admin sockets of the configuration in force.
    pub(crate) fn serve_admin(&mut self) -> Result<(), WatchdogError> {
        self.publish_snapshot(clock::now());
        let served = self.sockets.clone_admin().and_then(|sockets| self.admin.serve(sockets));
        if let Some(socket) = &self.sockets.admin_tcp {
            tracing::info!("metrics of the set: curl http://{}/metrics", socket.address);
        }
        served.map_err(system("admin.sock"))
    }

    /// Leaves the current state for the admin thread.
    pub(super) fn publish_snapshot(&self, now: Monotonic) {
        let Some(state) = self.state_writer.last() else { return };
        self.admin.publish(SetSnapshot::new(now, &self.config, state, &self.prober, &self.restart_stats));
    }

    /// Warns of keys that only systemd can apply, and of what is valid and may surprise.
    pub(crate) fn log_config_warnings(&self) {
        let unsupported = self.config.pools.iter().filter_map(|pool| pool.unsupported_by_run());
        for warning in unsupported.chain(self.config.warnings()) {
            tracing::warn!("{warning}");
        }
    }
}
