//! The actions on running units that apply a changed configuration.

use std::collections::BTreeMap;

use super::names::{ADMIN, DISPATCHER, DROP_IN, ListenerSockets, WATCHDOG, worker_service, worker_socket};
use super::render::{render, worker_users};
use crate::config::{Config, Delivery};

/// Actions on units, in this order. Other units keep running untouched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReloadSteps {
    /// Stopped before the new configuration is published: removed units, and units whose address changes.
    pub stop: Vec<String>,
    /// Started afterwards.
    pub start: Vec<String>,
    /// Restarted afterwards, one by one.
    pub restart: Vec<String>,
    /// Reloaded afterwards.
    pub reload: Vec<String>,
}

/// The steps from one configuration to another. `sockets` names the sockets of listeners in both.
pub(crate) fn reload_steps(old: &Config, new: &Config, sockets: &ListenerSockets) -> ReloadSteps {
    let mut steps = ReloadSteps::default();
    if old == new {
        return steps;
    }
    // Without the groups: each follows from its user, and the users are compared below.
    let (before, after) = (render(old, sockets, |_| None), render(new, sockets, |_| None));
    let file = |unit: &str| format!("{unit}.d/{DROP_IN}");
    let is_same = |unit: &str| before.get(&file(unit)) == after.get(&file(unit));
    for id in old.workers().filter(|id| !after.contains_key(&file(&worker_service(id)))) {
        steps.stop.push(worker_service(&id));
    }
    for id in new.workers() {
        let (service, socket) = (worker_service(&id), worker_socket(&id));
        if !before.contains_key(&file(&service)) {
            steps.start.push(service);
        } else if !is_same(&socket) {
            // The socket stops and starts with its service.
            steps.stop.push(service.clone());
            steps.start.push(service);
        } else if !is_same(&service) {
            steps.restart.push(service);
        } else if old.front != new.front || old.pool(&id.pool) != new.pool(&id.pool) {
            steps.reload.push(service);
        }
    }
    let listeners = |config: &Config| -> BTreeMap<String, Delivery> {
        config.listeners.iter().map(|listener| (sockets.unit(&listener.address), listener.delivery)).collect()
    };
    let (old_listeners, new_listeners) = (listeners(old), listeners(new));
    steps.stop.extend(old_listeners.keys().filter(|socket| !is_same(socket)).cloned());
    // New listening sockets start with the dispatcher.
    let dispatcher_can_reload =
        is_same(DISPATCHER) && old_listeners == new_listeners && new_listeners.keys().all(|socket| is_same(socket));
    let dispatcher = if dispatcher_can_reload { &mut steps.reload } else { &mut steps.restart };
    dispatcher.insert(0, DISPATCHER.to_owned());
    if !is_same(ADMIN) {
        steps.stop.push(ADMIN.to_owned());
    }
    // Groups and passed sockets of a process are fixed at its start.
    let watchdog_can_reload = worker_users(old) == worker_users(new) && is_same(ADMIN);
    let watchdog = if watchdog_can_reload { &mut steps.reload } else { &mut steps.restart };
    watchdog.push(WATCHDOG.to_owned());
    steps
}
