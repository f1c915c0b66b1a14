//! A new configuration of child processes: what changes, and what must be created for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::children::ChildSupervisor;
use super::socket_moves::SocketMoves;
use crate::config::{Config, PoolConfig};
use crate::ids::WorkerId;
use crate::watchdog::applied_config::{self, drain_timeouts, plan_limits};
use crate::watchdog::error::WatchdogError;
use crate::watchdog::plan::{ChildSet, ConfigChange, Plan};
use crate::watchdog::sockets::ListeningSocket;
use crate::watchdog::watched_set::WatchedSet;
use crate::watchdog::worker_endpoints::WorkerEndpoints;
use crate::{clock, ipc, log};

impl ConfigChange {
    /// What the change means for the parts of `plan`, in words.
    pub(super) fn in_words(&self, plan: &Plan<ChildSet>) -> String {
        let current: BTreeSet<&WorkerId> = plan.status().filter_map(|(part, _)| part.worker()).collect();
        let list = |ids: Vec<&WorkerId>| {
            let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
            match names.len() {
                0 => None,
                1..=4 => Some(names.join(", ")),
                n => Some(format!("{n} workers")),
            }
        };
        let added = list(self.workers.keys().filter(|id| !current.contains(id)).collect());
        let removed = list(current.iter().copied().filter(|id| !self.workers.contains_key(id)).collect());
        let effects = [
            added.map(|names| format!("adding {names}")),
            removed.map(|names| format!("removing {names}")),
            list(self.reload.iter().collect()).map(|names| format!("reloading {names}")),
            list(self.restart.iter().collect()).map(|names| format!("restarting {names} (new address or limits)")),
            self.restart_dispatcher.then(|| "restarting the dispatcher (new listeners)".to_owned()),
        ];
        let effects: Vec<_> = effects.into_iter().flatten().collect();
        if effects.is_empty() { "no part is restarted".to_owned() } else { effects.join("; ") }
    }
}

impl ChildSupervisor {
    /// Applies a new configuration, or returns the error and changes nothing.
    pub(super) fn apply_config(
        &mut self,
        set: &mut WatchedSet<ChildSet>,
        new: Config,
    ) -> Result<ConfigChange, WatchdogError> {
        let change = compare(&set.config, &new)?;
        // What was removed a moment ago is restored first: mode and owner of sockets are set by path.
        self.inspect_files(set);
        self.require_directory(set)?;
        // The steps that can fail come first. They only create what is new, or are undone on an error.
        let moves = SocketMoves::open(&self.sockets, &new).inspect_err(|_| self.files.schedule(clock::now()))?;
        let SocketMoves { kept, mut listeners, workers, admin: admin_tcp, replaced } = moves;
        let admin_moves = set.config.admin.address != new.admin.address;
        let stay = kept.iter().enumerate().filter_map(|(index, at)| Some(((*at)?, index)));
        let changed: Vec<_> = stay.filter(|(at, index)| set.config.listeners[*at] != new.listeners[*index]).collect();
        let added: Vec<WorkerId> = new.workers().filter(|id| !self.endpoints.contains_key(id)).collect();
        let sockets = &self.sockets.listeners;
        let access = changed.iter().try_for_each(|(at, index)| sockets[*at].apply_access(&new.listeners[*index]));
        let access = access.and_then(|()| self.sockets.admin.apply_admin_access(&new.admin));
        let created = access.map_err(WatchdogError::from).and_then(|()| self.create_endpoints(&new, &added));
        let published = created
            .and_then(|endpoints| applied_config::write(&new, &self.runtime_dir).map(|applied| (endpoints, applied)));
        let (endpoints, applied) = match published {
            Ok(published) => published,
            Err(error) => {
                // Errors of the undoing are ignored: the first error is the one to report.
                for id in &added {
                    let _ = ipc::retire_worker(&self.runtime_dir, id);
                }
                for (at, _) in changed {
                    let _ = self.sockets.listeners[at].apply_access(&set.config.listeners[at]);
                }
                let _ = self.sockets.admin.apply_admin_access(&set.config.admin);
                // New Unix sockets may have replaced the files of those that stay.
                self.files.schedule(clock::now());
                return Err(error);
            }
        };
        self.processes.set_config(applied);
        self.endpoints.extend(endpoints);
        self.sockets.workers.extend(workers);
        replaced.iter().for_each(|id| drop(self.sockets.workers.remove(id)));
        let old = std::mem::take(&mut self.sockets.listeners);
        let mut old: Vec<Option<ListeningSocket>> = old.into_iter().map(Some).collect();
        let all = kept.iter().enumerate().filter_map(|(index, kept)| match kept {
            Some(at) => old[*at].take(),
            None => listeners.remove(&index),
        });
        self.sockets.listeners = all.collect();
        self.files.renumber(&kept);
        if change.restart_dispatcher {
            self.files.close_channel();
        }
        set.config = Arc::new(new);
        self.watch_files(&set.config);
        if admin_moves {
            self.sockets.admin_tcp = admin_tcp;
            if let Err(error) = self.serve_admin(&mut set.admin) {
                tracing::error!(event = %log::Event::RuntimeDirError,
                    "cannot serve the new admin address: {error}; still serving the previous one");
            }
        }
        Ok(change)
    }

    fn create_endpoints(
        &self,
        new: &Config,
        added: &[WorkerId],
    ) -> Result<BTreeMap<WorkerId, WorkerEndpoints>, WatchdogError> {
        let create =
            |id: &WorkerId| Ok((id.clone(), WorkerEndpoints::create(new, id, self.set_epoch, &self.segments)?));
        added.iter().map(create).collect()
    }
}

/// What a new configuration means for the processes.
fn compare(old: &Config, new: &Config) -> Result<ConfigChange, WatchdogError> {
    if old.set != new.set {
        let what =
            "set.name and set.runtime_dir cannot change while the set is running: stop the set and start it again";
        return Err(WatchdogError::CannotChange(what));
    }
    let (mut reload, mut restart) = (Vec::new(), Vec::new());
    for id in new.workers() {
        let (Some(before), Some(after)) = (old.pool(&id.pool), new.pool(&id.pool)) else { continue };
        if id.number.get() > before.workers {
            continue;
        }
        let moved = before.worker_address(id.number) != after.worker_address(id.number);
        // A process cannot raise its own limits again.
        if moved || before.limits.as_rlimits() != after.limits.as_rlimits() {
            restart.push(id);
        } else if old.front != new.front || !same_for_workers(before, after) {
            reload.push(id);
        }
    }
    let listeners =
        |config: &Config| config.listeners.iter().map(|l| (l.address.clone(), l.delivery)).collect::<Vec<_>>();
    Ok(ConfigChange {
        workers: drain_timeouts(new),
        reload,
        restart,
        restart_dispatcher: listeners(old) != listeners(new),
        limits: plan_limits(new),
    })
}

/// Whether the difference does not concern running workers. The timeouts of a lease are part of the lease.
fn same_for_workers(before: &PoolConfig, after: &PoolConfig) -> bool {
    before.handler == after.handler
        && before.environment == after.environment
        && before.working_dir == after.working_dir
        && before.ready_path == after.ready_path
        && before.ready_frame == after.ready_frame
        && before.ping == after.ping
        && before.replace == after.replace
        && before.request_body == after.request_body
        && before.spool_max == after.spool_max
        && before.spool_dir == after.spool_dir
        && before.authorization == after.authorization
        && before.exit_status == after.exit_status
        && before.background == after.background
        && before.upgrade == after.upgrade
        && before.session_timeout == after.session_timeout
        && (before.upgrade.is_empty() || before.drain_timeout == after.drain_timeout)
        && before.max_requests == after.max_requests
        && before.max_age == after.max_age
        && before.max_memory == after.max_memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HandlerConfig;
    use std::time::Duration;

    fn changed(edit: impl FnOnce(&mut Config)) -> Result<ConfigChange, WatchdogError> {
        let old = Config::default();
        let mut new = old.clone();
        edit(&mut new);
        compare(&old, &new)
    }

    #[test]
    fn each_change_affects_only_the_parts_that_it_concerns() {
        let nothing = changed(|_| {}).unwrap();
        assert!(nothing.reload.is_empty() && nothing.restart.is_empty() && !nothing.restart_dispatcher);
        let timeouts = changed(|c| c.pools[0].request_timeout = Duration::from_secs(1)).unwrap();
        assert!(timeouts.reload.is_empty() && !timeouts.restart_dispatcher);
        assert_eq!(changed(|c| c.pools[0].handler = HandlerConfig::Exec(vec!["x".into()])).unwrap().reload.len(), 2);
        assert_eq!(changed(|c| c.front.max_body = 1).unwrap().reload.len(), 2);
        let more = changed(|c| c.pools[0].workers = 5).unwrap();
        assert_eq!((more.workers.len(), more.reload.len(), more.restart.len()), (5, 0, 0));
        let moved = changed(|c| c.pools[0].address = "127.0.0.1:9000".parse().unwrap()).unwrap();
        assert_eq!((moved.restart.len(), moved.restart_dispatcher), (2, false));
        assert!(changed(|c| c.listeners[0].address = "127.0.0.1:9".parse().unwrap()).unwrap().restart_dispatcher);
        let limits = changed(|c| c.pools[0].limits.open_files = Some("64".into())).unwrap();
        assert_eq!((limits.restart.len(), limits.reload.len()), (2, 0));
        assert!(changed(|c| c.pools[0].limits.cpu_quota = Some("64%".into())).unwrap().restart.is_empty());
        assert!(changed(|c| c.set.name = "other".into()).is_err());
    }
}
