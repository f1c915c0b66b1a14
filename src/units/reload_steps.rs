//! The actions on running units that apply a changed configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::names::{ADMIN, DISPATCHER, DROP_IN, ListenerSockets, WATCHDOG, worker_service, worker_socket};
use super::render::{render, worker_users};
use crate::config::{Config, Delivery, ListenAddress};
use crate::ids::WorkerId;

/// Actions on units, in this order. Other units keep running untouched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReloadSteps {
    /// Stopped before the new configuration is published: removed units, and units whose address changes.
    pub stop: Vec<String>,
    /// Whether the dispatcher then has to end sockets of listeners that are gone, so that others can bind the addresses.
    pub release: bool,
    /// The TCP addresses that the admin socket binds.
    pub admin: Vec<SocketAddr>,
    /// Restarted then with its socket, whose previous address others may bind.
    pub rebind: Vec<String>,
    /// The TCP addresses that other new sockets bind.
    pub bind: Vec<SocketAddr>,
    /// Started afterwards.
    pub start: Vec<String>,
    /// Restarted afterwards, one by one.
    pub restart: Vec<String>,
    /// Restarted afterwards, in batches.
    pub restart_workers: Vec<WorkerId>,
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
        if !is_same(&socket) {
            // The socket stops and starts with its service.
            steps.stop.extend(before.contains_key(&file(&service)).then(|| service.clone()));
            steps.start.push(service);
            steps.bind.extend(new.pool(&id.pool).and_then(|pool| pool.worker_address(id.number).tcp()));
        } else if !is_same(&service) {
            steps.restart_workers.push(id);
        } else if old.front != new.front || old.pool(&id.pool) != new.pool(&id.pool) {
            steps.reload.push(service);
        }
    }
    let listeners = |config: &Config| -> BTreeMap<String, Delivery> {
        config.listeners.iter().map(|listener| (sockets.unit(&listener.address), listener.delivery)).collect()
    };
    let (old_listeners, new_listeners) = (listeners(old), listeners(new));
    let gone = old_listeners.keys().filter(|socket| !is_same(socket)).cloned();
    steps.stop.extend(gone);
    let added = new.listeners.iter().filter(|listener| !is_same(&sockets.unit(&listener.address)));
    steps.bind.extend(added.filter_map(|listener| listener.address.tcp()));
    steps.release = old_listeners.keys().any(|socket| !new_listeners.contains_key(socket));
    // New listening sockets start with the dispatcher. It ends its use of others when it reloads.
    let dispatcher_can_reload = other_settings(&before, DISPATCHER) == other_settings(&after, DISPATCHER)
        && new_listeners
            .iter()
            .all(|(socket, delivery)| old_listeners.get(socket) == Some(delivery) && is_same(socket));
    let dispatcher = if dispatcher_can_reload { &mut steps.reload } else { &mut steps.restart };
    dispatcher.insert(0, DISPATCHER.to_owned());
    // Groups and passed sockets of a process are fixed at its start.
    let watchdog = if !is_same(ADMIN) {
        steps.stop.push(ADMIN.to_owned());
        steps.admin.extend(new.admin.address.as_ref().and_then(ListenAddress::tcp));
        &mut steps.rebind
    } else if worker_users(old) != worker_users(new) {
        &mut steps.restart
    } else {
        &mut steps.reload
    };
    watchdog.push(WATCHDOG.to_owned());
    steps
}

/// The settings of a service without the names of its sockets.
fn other_settings<'t>(drop_ins: &'t BTreeMap<String, String>, unit: &str) -> Vec<&'t str> {
    let text = drop_ins.get(&format!("{unit}.d/{DROP_IN}"));
    text.into_iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with("Sockets=")).collect()
}
