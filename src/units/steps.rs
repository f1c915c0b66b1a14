//! What a new configuration means for running units.

use super::render::users;
use super::{ADMIN, DISPATCHER, DROP_IN, WATCHDOG, listener_socket, render, worker_service, worker_socket};
use crate::config::Config;

/// Units to act upon, in this order. What is not named runs on untouched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Stopped before the new configuration is published: surplus, or with another address.
    pub stop: Vec<String>,
    /// Started after it.
    pub start: Vec<String>,
    /// Restarted after it, one by one.
    pub restart: Vec<String>,
    /// Told to read it.
    pub reload: Vec<String>,
}

/// From one configuration to the other.
pub fn steps(old: &Config, new: &Config) -> Steps {
    let mut steps = Steps::default();
    if old == new {
        return steps;
    }
    // A group is its user's: here it is enough to compare the users.
    let (before, after) = (render(old, |_| None), render(new, |_| None));
    let file = |unit: &str| format!("{unit}.d/{DROP_IN}");
    let same = |unit: &str| before.get(&file(unit)) == after.get(&file(unit));
    for id in old.workers().filter(|id| !after.contains_key(&file(&worker_service(id)))) {
        steps.stop.push(worker_service(&id));
    }
    for id in new.workers() {
        let (service, socket) = (worker_service(&id), worker_socket(&id));
        if !before.contains_key(&file(&service)) {
            steps.start.push(service);
        } else if !same(&socket) {
            // Its socket goes with it and comes back with it, at the new address.
            steps.stop.push(service.clone());
            steps.start.push(service);
        } else if !same(&service) {
            steps.restart.push(service);
        } else if old.front != new.front || old.pool(&id.pool) != new.pool(&id.pool) {
            steps.reload.push(service);
        }
    }
    let listeners = old.listeners.len().max(new.listeners.len());
    for socket in (0..listeners).map(listener_socket) {
        if before.contains_key(&file(&socket)) && !same(&socket) {
            steps.stop.push(socket);
        }
    }
    // The sockets that are new to it come with its start.
    let deliveries = |config: &Config| config.listeners.iter().map(|listener| listener.delivery).collect::<Vec<_>>();
    let as_before = same(DISPATCHER) && deliveries(old) == deliveries(new);
    let dispatcher = if as_before && (0..listeners).all(|index| same(&listener_socket(index))) {
        &mut steps.reload
    } else {
        &mut steps.restart
    };
    dispatcher.insert(0, DISPATCHER.to_owned());
    if !same(ADMIN) {
        steps.stop.push(ADMIN.to_owned());
    }
    // A process has the groups and the sockets that it was started with.
    let goes_on = users(old) == users(new) && same(ADMIN);
    let watchdog = if goes_on { &mut steps.reload } else { &mut steps.restart };
    watchdog.push(WATCHDOG.to_owned());
    steps
}
