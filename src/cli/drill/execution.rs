//! Executes the generator's list: injects fault after fault while clients send requests.

use std::thread::Scope;
use std::time::{Duration, Instant};

use super::clients;
use super::fault::{DrillFault, DrillPart, ExpectedEffect, FaultKind};
use super::final_checks::{self, descriptors, wait_until};
use super::generator::FaultGenerator;
use super::injection;
use super::nemesis::Nemesis;
use super::options::DrillOptions;
use super::restart_budget::RestartBudget;
use super::set::DrillSet;
use super::watch::SetWatch;
use crate::clock;
use crate::ids::Monotonic;

/// The most parts that may have an open fault at the same time.
const MAX_OPEN_FAULTS: usize = 3;

/// How the faults were injected.
pub(super) struct DrillExecution {
    pub started_at: Monotonic,
    pub injected: usize,
    /// The faults that could not be injected, with the reasons.
    pub skipped: Vec<String>,
    pub took: Duration,
    /// The addresses of the listeners.
    pub listeners: Vec<String>,
}

/// Calls a function when dropped: the threads of a scope also stop if the thread that owns the scope panics.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs the whole drill on this set.
pub(super) fn run(set: &mut DrillSet, nemesis: &Nemesis<'_>, options: &DrillOptions, seed: u64) -> DrillExecution {
    let (traffic, watch) = (nemesis.traffic, nemesis.traffic.watch);
    let config = set.config.clone();
    std::thread::scope(|outer| {
        let _stop_watch = OnDrop(|| watch.stop());
        outer.spawn(|| watch.run(&config));
        wait_until(Duration::from_secs(5), || !watch.listeners().is_empty() && watch.tracker().is_settled());
        let descriptors_before = descriptors(set, watch);
        let mut execution = DrillExecution {
            started_at: clock::now(),
            injected: 0,
            skipped: Vec::new(),
            took: Duration::ZERO,
            listeners: watch.listeners(),
        };
        std::thread::scope(|scope| {
            let _stop_clients = OnDrop(|| traffic.stop());
            clients::start(traffic, scope, seed);
            let started = Instant::now();
            inject_all(set, nemesis, options, seed, &mut execution, scope);
            execution.took = started.elapsed();
            // Parts recover while clients still send requests.
            if !nemesis.interrupted.is_set() {
                wait_until(set.bounds().watchdog * 2, || watch.tracker().is_settled());
            }
        });
        if !nemesis.interrupted.is_set() {
            final_checks::run(nemesis, set, &descriptors_before);
        }
        execution
    })
}

/// The generator of the faults that this set allows.
pub(super) fn generator(set: &DrillSet, nemesis: &Nemesis<'_>, options: &DrillOptions) -> FaultGenerator {
    let listeners: Vec<_> = nemesis.traffic.used_listeners().collect();
    FaultGenerator {
        workers: set.workers.len(),
        tcp_handoff_listeners: listeners.iter().copied().filter(|listener| set.is_tcp_handoff(*listener)).collect(),
        listeners,
        last_workers: set.last_workers(),
        has_handoff: set.has_handoff(),
        has_unix_addresses: set.has_unix_addresses(),
        selection: options.selection(),
        set_kind: set.kind,
        worker_timeout: set.config.watchdog.worker_timeout,
        dispatcher_timeout: set.config.watchdog.dispatcher_timeout,
        pace: options.pace,
    }
}

fn inject_all<'s>(
    set: &mut DrillSet,
    nemesis: &'s Nemesis<'_>,
    options: &DrillOptions,
    seed: u64,
    execution: &mut DrillExecution,
    scope: &'s Scope<'s, '_>,
) {
    let watch = nemesis.traffic.watch;
    let watchdog = set.config.watchdog.clone();
    let generator = generator(set, nemesis, options);
    let mut budget = RestartBudget::new(watchdog.restarts.max, watchdog.restarts.within);
    let end = options.duration.and_then(|duration| Instant::now().checked_add(duration));
    for fault in generator.faults(seed).take(options.faults as usize) {
        nemesis.sleep(fault.pause);
        let may_restart = fault.kind.expected_effect() != ExpectedEffect::Survives;
        let restarted = if may_restart { fault.target.parts() } else { Vec::new() };
        for part in &restarted {
            nemesis.sleep(budget.wait(*part));
        }
        if nemesis.interrupted.is_set() || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        if !wait_until(set.bounds().watchdog * 2, || nemesis.interrupted.is_set() || may_inject(watch, &fault)) {
            let DrillFault { number, target, .. } = fault;
            let what = format!("fault {number} cannot be injected: {target} has not recovered");
            return nemesis.report_violation("P2", what);
        }
        execution.injected += 1;
        restarted.into_iter().for_each(|part| budget.spend(part));
        if let Err(reason) = injection::inject(nemesis, set, &fault, scope) {
            let DrillFault { number, kind, target, .. } = fault;
            execution.skipped.push(format!("fault {number}, {} of {target}: {reason}", kind.as_str()));
        }
    }
    if let Some(end) = end {
        nemesis.sleep(end.saturating_duration_since(Instant::now()));
    }
}

/// Whether the target is available, and few enough parts have an open fault.
fn may_inject(watch: &SetWatch, fault: &DrillFault) -> bool {
    let tracker = watch.tracker();
    if fault.kind.removes_files() && tracker.has_missing_files() {
        return false;
    }
    match (fault.kind, fault.target.parts().as_slice()) {
        // The watchdog is killed at any time.
        (FaultKind::Kill, [DrillPart::Watchdog]) | (_, []) => true,
        (_, parts) => {
            let all_available = parts.iter().all(|part| tracker.is_available(*part));
            all_available && tracker.open_faults() < MAX_OPEN_FAULTS
        }
    }
}
