//! SIGHUP: takes over a new configuration, or says why not and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::plan::{Change, Event};
use super::sockets::{Socket, open_admin_tcp, open_listener, open_worker};
use super::{Watch, WatchdogError, WorkerEndpoints, bounds, drains, publish};
use crate::config::{Config, ListenerConfig, Origin, PoolConfig};
use crate::ids::WorkerId;
use crate::ipc;
use crate::{executable, log};

impl Watch {
    /// Reads the file again. What comes of it for the processes, if anything.
    pub(super) fn reload(&mut self) -> Option<Event> {
        let Origin::File(path) = &self.origin else {
            tracing::warn!(
                event = %log::Event::ReloadRefused,
                "nothing to reload: the set runs on the built-in configuration (start it with --config FILE)"
            );
            return None;
        };
        if self.plan.is_stopping() {
            return None;
        }
        let file = path.display().to_string();
        let new = match Config::load(Some(path)).and_then(|loaded| {
            loaded.check(|pool| self.missing(pool))?;
            Ok(loaded.config)
        }) {
            Ok(config) => config,
            Err(error) => {
                let text = error.to_string();
                let lines: Vec<_> = text.lines().collect();
                match lines[..] {
                    [line] => {
                        tracing::error!(file, event = %log::Event::ReloadRefused,
                            "reload refused, nothing has changed: {line}");
                    }
                    _ => {
                        tracing::error!(file, event = %log::Event::ReloadRefused,
                            "reload refused, nothing has changed: {} faults follow", lines.len());
                        for line in lines {
                            tracing::error!(event = %log::Event::ReloadRefused, "{line}");
                        }
                    }
                }
                return None;
            }
        };
        match self.take_over(new) {
            Ok(change) => {
                let (workers, pools) = (change.workers.len(), self.config.pools.len());
                let what = self.what_changes(&change);
                tracing::info!(file, set = %self.config.set.name, workers, pools, event = %log::Event::ReloadApplied,
                    "configuration applied: {what}");
                self.remark();
                Some(Event::Apply(change))
            }
            Err(error) => {
                tracing::error!(file, event = %log::Event::ReloadRefused,
                    "reload refused, nothing has changed: {error}");
                None
            }
        }
    }

    /// What a change means for the parts, in words.
    fn what_changes(&self, change: &Change) -> String {
        let there: Vec<&WorkerId> = self.plan.status().filter_map(|(part, _)| part.worker()).collect();
        let list = |ids: Vec<&WorkerId>, what: &str| {
            let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
            match names.len() {
                0 => None,
                1..=4 => Some(format!("{} {what}", names.join(", "))),
                n => Some(format!("{n} workers {what}")),
            }
        };
        let words = [
            list(change.workers.keys().filter(|id| !there.contains(id)).collect(), "join"),
            list(there.iter().copied().filter(|id| !change.workers.contains_key(id)).collect(), "leave"),
            list(change.reload.iter().collect(), "renew themselves"),
            list(change.restart.iter().collect(), "are restarted for their sockets"),
            change.restart_dispatcher.then(|| "the dispatcher is restarted for its sockets".to_owned()),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        if words.is_empty() { "no part is restarted".to_owned() } else { words.join("; ") }
    }

    /// What a handler that is new would have to be, if its program is not there. One that runs is left alone.
    fn missing(&self, pool: &PoolConfig) -> Option<String> {
        let runs = |now: &PoolConfig| now.handler == pool.handler && now.environment == pool.environment;
        if self.config.pool(&pool.name).is_some_and(runs) { None } else { executable::missing_program(pool) }
    }

    fn take_over(&mut self, new: Config) -> Result<Change, WatchdogError> {
        let change = compare(&self.config, &new)?;
        // Everything that can fail comes first, and makes only what is new.
        let kept = keep(&self.sockets.listeners, &new.listeners);
        let mut listeners = BTreeMap::new();
        for (index, listener) in new.listeners.iter().enumerate() {
            if kept[index].is_none() {
                listeners.insert(index, open_listener(listener)?);
            }
        }
        let mut workers = BTreeMap::new();
        for id in new.workers() {
            let wanted = new.pool(&id.pool).map(|pool| pool.worker_address(id.number));
            if self.sockets.workers.get(&id).map(|socket| &socket.wanted) != wanted.as_ref() {
                workers.insert(id.clone(), open_worker(&new, &id)?);
            }
        }
        let admin_moves = self.config.admin.address != new.admin.address;
        let admin = match &new.admin.address {
            Some(address) if admin_moves => Some(open_admin_tcp(address)?),
            _ => None,
        };
        let stay = kept.iter().enumerate().filter_map(|(index, at)| Some(((*at)?, index)));
        let changed: Vec<_> = stay.filter(|(at, index)| self.config.listeners[*at] != new.listeners[*index]).collect();
        let fresh: Vec<WorkerId> = new.workers().filter(|id| !self.reaches.contains_key(id)).collect();
        let sockets = &self.sockets.listeners;
        let owned = changed.iter().try_for_each(|(at, index)| sockets[*at].own(&new.listeners[*index]));
        let owned = owned.and_then(|()| self.sockets.admin.0.own_as_admin(&new.admin));
        let made = owned.map_err(WatchdogError::from).and_then(|()| self.make_parts(&new, &fresh));
        let made = made.and_then(|reaches| publish(&new, &self.dir).map(|()| reaches));
        let reaches = match made {
            Ok(reaches) => reaches,
            Err(error) => {
                for id in &fresh {
                    let _ = ipc::retire_worker(&self.dir, id); // the first error is the one to tell
                }
                for (at, _) in changed {
                    let _ = self.sockets.listeners[at].own(&self.config.listeners[at]); // likewise
                }
                let _ = self.sockets.admin.0.own_as_admin(&self.config.admin);
                return Err(error);
            }
        };
        self.reaches.extend(reaches);
        self.sockets.workers.extend(workers);
        let mut old: Vec<Option<Socket>> = std::mem::take(&mut self.sockets.listeners).into_iter().map(Some).collect();
        let taken = kept.iter().enumerate().filter_map(|(index, kept)| match kept {
            Some(at) => old[*at].take(),
            None => listeners.remove(&index),
        });
        self.sockets.listeners = taken.collect();
        self.config = Arc::new(new);
        if admin_moves {
            self.sockets.admin.1 = admin;
            if let Err(error) = self.serve_admin() {
                tracing::error!(event = %log::Event::RuntimeDirError, "{error}: the address of before stays");
            }
        }
        Ok(change)
    }

    fn make_parts(
        &self,
        new: &Config,
        fresh: &[WorkerId],
    ) -> Result<BTreeMap<WorkerId, WorkerEndpoints>, WatchdogError> {
        let make = |id: &WorkerId| Ok((id.clone(), WorkerEndpoints::make(new, id, self.set_epoch, &self.segments)?));
        fresh.iter().map(make).collect()
    }
}

/// Which of the sockets each listener keeps, each socket at most once: two listeners may both want port 0.
fn keep(sockets: &[Socket], listeners: &[ListenerConfig]) -> Vec<Option<usize>> {
    let mut free: Vec<usize> = (0..sockets.len()).collect();
    let mut find = |listener: &ListenerConfig| {
        let at = free.iter().position(|index| sockets[*index].wanted == listener.address)?;
        Some(free.remove(at))
    };
    listeners.iter().map(&mut find).collect()
}

/// What a new configuration means for the processes. Pure.
fn compare(old: &Config, new: &Config) -> Result<Change, WatchdogError> {
    if old.set != new.set {
        let what = "set.name and set.runtime_dir cannot change while the set runs: stop it and start it again";
        return Err(WatchdogError::Changed(what));
    }
    let (mut reload, mut restart) = (Vec::new(), Vec::new());
    for id in new.workers() {
        let (Some(before), Some(after)) = (old.pool(&id.pool), new.pool(&id.pool)) else { continue };
        if id.number > before.workers {
            continue;
        }
        let moved = before.worker_address(id.number) != after.worker_address(id.number);
        // A process cannot take its own limits back.
        if moved || before.limits.as_rlimits() != after.limits.as_rlimits() {
            restart.push(id);
        } else if old.front != new.front || !same_for_workers(before, after) {
            reload.push(id);
        }
    }
    let entrances =
        |config: &Config| config.listeners.iter().map(|l| (l.address.clone(), l.delivery)).collect::<Vec<_>>();
    Ok(Change {
        workers: drains(new),
        reload,
        restart,
        restart_dispatcher: entrances(old) != entrances(new),
        bounds: bounds(new),
    })
}

/// Whether a running worker need not know of the difference: timeouts of the lease come with the lease.
fn same_for_workers(before: &crate::config::PoolConfig, after: &crate::config::PoolConfig) -> bool {
    before.handler == after.handler
        && before.environment == after.environment
        && before.max_requests == after.max_requests
        && before.max_age == after.max_age
        && before.max_memory == after.max_memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HandlerConfig;
    use std::time::Duration;

    fn changed(how: impl FnOnce(&mut Config)) -> Result<Change, WatchdogError> {
        let old = Config::default();
        let mut new = old.clone();
        how(&mut new);
        compare(&old, &new)
    }

    #[test]
    fn each_change_reaches_those_it_concerns() {
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
        let bound = changed(|c| c.pools[0].limits.open_files = Some("64".into())).unwrap();
        assert_eq!((bound.restart.len(), bound.reload.len()), (2, 0));
        assert!(changed(|c| c.pools[0].limits.cpu_quota = Some("64%".into())).unwrap().restart.is_empty());
        assert!(changed(|c| c.set.name = "other".into()).is_err());
    }
}
