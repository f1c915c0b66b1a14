//! `patou systemd reload`: apply a changed configuration to running units, or go back to the previous one.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use super::listening_sockets::tcp_addresses;
use super::publish::{load, load_published, publish, stage};
use super::systemctl::{batches_of, failed_units, is_active, restart_if_running, restart_in_batches, systemctl};
use crate::cli::error::{CommandError, failed};
use crate::cli::poll::poll_until;
use crate::config::{Config, ListenAddress, conflict};
use crate::published::{Publication, PublishedSet};
use crate::units::{DISPATCHER, IPC, ReloadSteps, WATCHDOG, reload_steps, worker_service, worker_socket};

/// How long the dispatcher may take to end the sockets of listeners that are gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// What an operator does about a published configuration that this version cannot read.
pub(super) const UNREADABLE: &str = "the running parts keep the configuration that they have; systemctl restart patou \
                                     applies the file with an interruption";

pub(super) fn run(path: Option<&Path>) -> Result<(), CommandError> {
    let new = load(path).map_err(refused)?.config;
    let old = load_published().map_err(|error| failed(format!("{error}; {UNREADABLE}")))?;
    let old = old.ok_or_else(|| failed("the set does not run: start it with systemctl start patou"))?.config;
    if old.set != new.set {
        return Err(refused(failed("set.name cannot change while the set runs: stop the set and start it again")));
    }
    check_bindable(&old, &new).map_err(refused)?;
    let published = PublishedSet::of_machine();
    let (sockets, before) = (published.listener_sockets(), published.current());
    // A full disk is noticed before any unit is touched.
    let staged = stage(&new, &new.to_copy()).map_err(refused)?;
    apply(&staged, &reload_steps(&old, &new, &sockets)).map_err(|error| {
        let undo = reload_steps(&new, &old, &sockets);
        match before.ok_or_else(|| failed("it was published by another version")).and_then(|old| apply(&old, &undo)) {
            Ok(()) => refused(error),
            Err(second) => {
                failed(format!("{}; restoring the previous configuration failed too: {}", error.text(), second.text()))
            }
        }
    })?;
    restart_failed(&new)
}

fn refused(error: CommandError) -> CommandError {
    match error {
        CommandError::Config(text) => CommandError::Config(format!("{text}\nreload refused, nothing has changed")),
        CommandError::Failed(text) => failed(format!("reload refused, nothing has changed: {text}")),
        CommandError::GivenUp(_) | CommandError::Exited(_) => error,
    }
}

fn apply(new: &Publication, steps: &ReloadSteps) -> Result<(), CommandError> {
    systemctl(&["stop"], &steps.stop)?;
    publish(new)?;
    systemctl(&["reload"], &[IPC.to_owned()])?;
    if steps.release && is_active(DISPATCHER) {
        systemctl(&["reload"], &[DISPATCHER.to_owned()])?;
    }
    wait_until_free(&steps.admin)?;
    for unit in &steps.rebind {
        restart_if_running(unit)?;
    }
    wait_until_free(&steps.bind)?;
    systemctl(&["start"], &steps.start)?;
    for unit in &steps.restart {
        restart_if_running(unit)?;
    }
    restart_in_batches(&batches_of(&steps.restart_workers)?)?;
    // A unit that an operator has stopped reads the configuration when it starts.
    systemctl(&["try-reload-or-restart"], &steps.reload)
}

/// Starts failed units again: any reload, even of the same configuration, retries them. Does not wait for the result.
fn restart_failed(config: &Config) -> Result<(), CommandError> {
    let failed = failed_units()?;
    let is_failed = |unit: &String| failed.contains(unit);
    let services = config.workers().map(|id| worker_service(&id)).chain([DISPATCHER, WATCHDOG].map(str::to_owned));
    let services: Vec<String> = services.filter(is_failed).collect();
    // A socket fails with its service, and starts with it.
    let sockets = config.workers().map(|id| worker_socket(&id)).filter(is_failed);
    let all: Vec<String> = services.iter().cloned().chain(sockets).collect();
    systemctl(&["reset-failed"], &all)?;
    systemctl(&["start", "--no-block"], &services)
}

/// Waits until the sockets that had these addresses, or addresses that conflict with them, are closed.
fn wait_until_free(addresses: &[SocketAddr]) -> Result<(), CommandError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    addresses.iter().try_for_each(|address| {
        let mut result = Ok(());
        poll_until(deadline, || {
            result = TcpListener::bind(address).map(drop);
            result.is_ok()
        });
        result.map_err(|error| failed(format!("{address}: {error}")))
    })
}

/// Binds each new TCP address once, before any unit is touched. One that conflicts with an address of this set is free
/// only during the reload, if no other process listens there.
fn check_bindable(old: &Config, new: &Config) -> Result<(), CommandError> {
    let known: BTreeSet<ListenAddress> = old.addresses().collect();
    let others: Vec<ListenAddress> = tcp_addresses().into_iter().map(ListenAddress::Tcp).collect();
    for address in new.addresses().filter(|address| !known.contains(address)) {
        let Some(tcp) = address.tcp() else { continue };
        if known.iter().any(|own| conflict(own, &address)) {
            if let Some(other) = others.iter().find(|other| conflict(other, &address) && !known.contains(other)) {
                return Err(failed(format!("{tcp}: another process listens on {other} (ss -ltnp shows it)")));
            }
        } else {
            TcpListener::bind(tcp).map_err(|error| failed(format!("{tcp}: {error}")))?;
        }
    }
    Ok(())
}
