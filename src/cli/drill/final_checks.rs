//! What must hold once the clients have stopped: no lease and no place for a session is held (P2), and no part leaks descriptors or zombies (P6).

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::fault::DrillPart;
use super::generator::SetKind;
use super::nemesis::Nemesis;
use super::session_clients;
use super::set::DrillSet;
use super::watch::SetWatch;
use crate::cli::patou_run::POLL_INTERVAL;
use crate::exchange;
use crate::ids::{Claim, ProcessId, WorkerId};
use crate::ipc;
use crate::process_tree;

/// How many more descriptors a part may have at the end: those that it opens once.
const DESCRIPTOR_ALLOWANCE: usize = 4;

/// How long ending requests and processes may still take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports what is wrong to the nemesis. `before` are the [`descriptors`] at the start of the drill.
pub(super) fn run(nemesis: &Nemesis<'_>, set: &DrillSet, before: &HashMap<DrillPart, usize>) {
    let watch = nemesis.traffic.watch;
    // Other clients may use a set that is not private.
    if set.kind == SetKind::Private {
        let longest = set.config.pools.iter().map(|pool| pool.claim_timeout + pool.request_timeout).max();
        let timeout = longest.unwrap_or_default() + SETTLE_TIMEOUT;
        check_session_places(nemesis, timeout);
        require_none(nemesis, "P2", timeout, || held_leases(set));
    }
    require_none(nemesis, "P6", SETTLE_TIMEOUT, || leaked_descriptors(set, watch, before));
    require_none(nemesis, "P6", SETTLE_TIMEOUT, || zombies(set, watch));
}

/// Reports what `find` still finds after `timeout`.
fn require_none(nemesis: &Nemesis<'_>, promise: &'static str, timeout: Duration, find: impl Fn() -> Vec<String>) {
    if !wait_until(timeout, || find().is_empty()) {
        find().into_iter().for_each(|what| nemesis.report_violation(promise, what));
    }
}

/// Waits until the condition holds. Returns whether it does.
pub(super) fn wait_until(timeout: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Whether every place for a session is free again: as many can be open at once as the pool may have.
fn check_session_places(nemesis: &Nemesis<'_>, timeout: Duration) {
    let listeners = &nemesis.traffic.listeners;
    let Some(listener) = listeners.iter().position(|listener| listener.max_sessions > 0) else { return };
    let (max, open) = (usize::from(listeners[listener].max_sessions), RefCell::new(Vec::new()));
    let are_open = || {
        let mut open = open.borrow_mut();
        open.extend(session_clients::open(nemesis.traffic, listener));
        open.len() >= max
    };
    if !wait_until(timeout, are_open) {
        let open = open.borrow().len();
        let what = format!("a pool opens {open} sessions at the end, and max_sessions is {max}");
        nemesis.report_violation("P2", what);
    }
}

fn held_leases(set: &DrillSet) -> Vec<String> {
    let held = |id: &WorkerId| match exchange::claim(&*ipc::open(&set.config, id).ok()?.segment)? {
        Claim::Free => None,
        claim => Some(format!("worker {id} has a lease although no client uses it: {claim:?}")),
    };
    set.workers.iter().filter_map(held).collect()
}

/// How many descriptors each part has.
pub(super) fn descriptors(set: &DrillSet, watch: &SetWatch) -> HashMap<DrillPart, usize> {
    let count = |part| Some((part, std::fs::read_dir(format!("/proc/{}/fd", watch.process(part)?.pid)).ok()?.count()));
    set.parts().filter_map(count).collect()
}

fn leaked_descriptors(set: &DrillSet, watch: &SetWatch, before: &HashMap<DrillPart, usize>) -> Vec<String> {
    // For handoff the dispatcher opens a socket to each worker when it first needs it.
    let allowance = DESCRIPTOR_ALLOWANCE + if set.has_handoff() { set.workers.len() } else { 0 };
    // systemd passes the removed segment and doorbells of a worker to the next dispatcher.
    let allowance = allowance + if set.kind == SetKind::Units { 3 * set.workers.len() } else { 0 };
    let after = descriptors(set, watch);
    let leaked = |(part, before): (&DrillPart, &usize)| {
        let now = *after.get(part)?;
        (now > before + allowance).then(|| format!("{part} has {now} descriptors, and had {before} at the start"))
    };
    before.iter().filter_map(leaked).collect()
}

fn zombies(set: &DrillSet, watch: &SetWatch) -> Vec<String> {
    // systemd reaps the processes of units.
    let Some(ProcessId { pid, .. }) = watch.process(DrillPart::Watchdog).filter(|_| set.kind != SetKind::Units) else {
        return Vec::new();
    };
    let all = process_tree::descendants(Pid::from_raw(pid as i32)).into_iter();
    all.filter(|process| process.is_zombie()).map(|process| format!("process {} is a zombie", process.pid)).collect()
}
