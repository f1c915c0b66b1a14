//! Collects the state of a set from the watchdog's state file, the slots and the dispatcher's report.

use std::time::Duration;

use super::foreign_set::ForeignSet;
use super::state_file::SavedState;
use super::view::{DispatcherView, PoolView, StatusView, WatchdogView, WorkerView};
use crate::config::{Config, HandlerConfig, ListenAddress};
use crate::exchange::{self, Incarnation, SlotCounters};
use crate::ids::{Claim, LeaseId, Lifecycle, Phase, ProgramVersion, WorkerId, WorkerNumber};
use crate::probe::{ProbeReport, WorkerReport};
use crate::procfs::ProcessStat;
use crate::stats::Counters;

/// How long the dispatcher may take to answer a probe before `status` shows it as frozen.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_millis(250);

/// The result of probing the dispatcher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeResult<'a> {
    /// Its last report, if there is one. A responsive dispatcher reports nothing to a user without permission.
    pub report: Option<&'a ProbeReport>,
    /// False if it has not answered the last probe in time.
    pub responsive: bool,
}

/// Combines what the watchdog and the dispatcher have reported with what the slots contain now.
pub(crate) fn collect(config: &Config, state: &SavedState, probe: ProbeResult<'_>) -> StatusView {
    let ProbeResult { report, responsive } = probe;
    let may_look = report.is_some() || !responsive;
    let foreign = (!state.has_local_pids()).then(|| ForeignSet::read(&config.set.runtime_dir, PROBE_TIMEOUT));
    let watchdog = match &foreign {
        Some(set) => set.watchdog(responsive),
        None => match state.watchdog() {
            None => "gone",
            Some(process) if process.is_stopped() => "frozen",
            Some(_) => "up",
        },
    };
    let is_stopping = state.stopping || report.is_some_and(|report| report.stopping);
    let watchdog = if watchdog == "up" && is_stopping { "stopping" } else { watchdog };
    let dispatcher = &state.dispatcher;
    let dispatcher_lives = || match &foreign {
        Some(set) => set.has_dispatcher(),
        None => observe(dispatcher.pid) != PartProcessState::Gone,
    };
    let dispatcher_state = match dispatcher.state.as_str() {
        // The state file may be old: the dispatcher's own answer decides.
        "up" if !responsive && !dispatcher_lives() => "gone",
        "up" if !responsive => "frozen",
        other => other,
    };
    let pools = config.pools.iter().map(|pool| {
        let pool_report = report.and_then(|report| report.pools.iter().find(|p| p.name == pool.name));
        let workers = WorkerNumber::up_to(pool.workers).map(|number| {
            let id = WorkerId { pool: pool.name.clone(), number };
            let report = pool_report.and_then(|p| p.workers.get(number.index()));
            let process = match &foreign {
                Some(set) if set.has_ended(&id) => PartProcessState::Gone,
                Some(_) => PartProcessState::Runs,
                None => observe(state.workers.get(&id.to_string()).and_then(|part| part.pid)),
            };
            worker_view(config, id, state, process, report, may_look)
        });
        PoolView {
            name: pool.name.clone(),
            queue: pool_report.map_or(0, |p| p.queue),
            oldest_ms: pool_report.map_or(0, |p| p.oldest_ms),
            was_in_service: false,
            workers: workers.collect(),
        }
    });
    let pools: Vec<PoolView> = pools.collect();
    let lost = state.workers.iter().filter(|(_, part)| part.segment_fd.is_some());
    let lost: Vec<_> = lost.map(|(worker, _)| worker.as_str()).collect();
    let lost = (!lost.is_empty()).then(|| {
        format!(
            "files of {} were removed from the runtime directory or /dev/shm: requests continue, and a worker gets new \
             ones at its next start",
            lost.join(", ")
        )
    });
    let version = report.filter(|_| responsive).and_then(|report| report.version.clone());
    StatusView {
        set: config.set.name.clone(),
        listeners: state.listeners.clone(),
        problems: state.problems.iter().cloned().chain(lost).collect(),
        other_versions: other_versions(config, state.version.as_deref(), version.as_deref(), &pools),
        watchdog: WatchdogView { pid: Some(state.pid), state: watchdog, version: state.version.clone(), restarts: 0 },
        dispatcher: DispatcherView {
            pid: dispatcher.pid,
            state: dispatcher_state.to_owned(),
            version,
            restarts: dispatcher.restarts,
            queue: pools.iter().map(|pool| pool.queue).sum(),
            cause: dispatcher.cause.clone(),
            was_up: false,
        },
        pools,
    }
}

/// The parts whose version is known and is not that of this program. A worker with a program of its own has the version
/// of the library that it was built with, which may differ.
fn other_versions(
    config: &Config,
    watchdog: Option<&str>,
    dispatcher: Option<&str>,
    pools: &[PoolView],
) -> Vec<(String, String)> {
    let own = ProgramVersion::own().to_string();
    let is_ours = |worker: &&WorkerView| {
        config.pool(&worker.id.pool).is_some_and(|pool| !matches!(pool.handler, HandlerConfig::Program(_)))
    };
    let workers = pools.iter().flat_map(|pool| &pool.workers).filter(is_ours);
    let workers = workers.filter_map(|worker| Some((worker.id.to_string(), worker.version.as_deref()?)));
    let parts = [("watchdog", watchdog), ("dispatcher", dispatcher)];
    let parts = parts.into_iter().filter_map(|(name, version)| Some((name.to_owned(), version?)));
    let others = parts.chain(workers).filter(|(_, version)| *version != own);
    others.map(|(name, version)| (name, version.to_owned())).collect()
}

/// A process of a part at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartProcessState {
    Gone,
    Stopped,
    Runs,
}

/// Process `pid` of this pid namespace.
fn observe(pid: Option<u32>) -> PartProcessState {
    match pid.and_then(ProcessStat::of) {
        None => PartProcessState::Gone,
        Some(process) if process.is_zombie() => PartProcessState::Gone,
        Some(process) if process.is_stopped() => PartProcessState::Stopped,
        Some(_) => PartProcessState::Runs,
    }
}

fn worker_view(
    config: &Config,
    id: WorkerId,
    saved: &SavedState,
    process: PartProcessState,
    report: Option<&WorkerReport>,
    may_look: bool,
) -> WorkerView {
    let part = saved.workers.get(&id.to_string());
    // Copied, not mapped: a reader needs no write permission.
    let slot = saved.slot(&config.set.runtime_dir, &id);
    let slot = slot.as_ref();
    let incarnation = slot.and_then(Incarnation::load);
    let claim = slot.and_then(exchange::claim);
    let counters = slot.map(SlotCounters::load_with_times);
    let count = |name| counters.as_ref().map_or(0, |counters: &Counters| counters.get(name));
    let pool = config.pool(&id.pool);
    let mut address = pool.map(|pool| pool.worker_address(id.number));
    if let (Some(ListenAddress::Tcp(tcp)), Some(port)) = (&mut address, incarnation.and_then(|it| it.port)) {
        tcp.set_port(port);
    }
    let lease = claim.and_then(Claim::open);
    let offer_timeout = pool.map_or(Duration::MAX, |pool| pool.offer_timeout);
    let state = part.map_or("gone", |part| part.state.as_str());
    let state = match state {
        "up" => match (running_state(offer_timeout, incarnation, claim, process, report), report) {
            // The segment was removed, and this process does not hold it. The dispatcher does.
            ("starting", Some(report)) if slot.is_none() && report.serves && report.drained => "draining",
            ("starting", Some(report)) if slot.is_none() && report.serves => "idle",
            ("starting", None) if slot.is_none() && !may_look => "up",
            (state, _) => state,
        },
        other => other,
    };
    WorkerView {
        pid: part.and_then(|part| part.pid),
        state: state.to_owned(),
        epoch: incarnation.map_or(0, |it| it.epoch.get()),
        version: incarnation.and_then(|it| it.version).map(|version| version.to_string()),
        lease: lease.map(|lease: LeaseId| lease.to_string()),
        address: address.map_or_else(String::new, |address| address.to_string()),
        served: count("served"),
        failed: count("failed"),
        restarts: part.map_or(0, |part| part.restarts),
        cause: part.and_then(|part| part.cause.clone()),
        drained: report.is_some_and(|report| report.drained),
        id,
        counters,
    }
}

/// The state of a worker that the watchdog counts as up.
fn running_state(
    offer_timeout: Duration,
    incarnation: Option<Incarnation>,
    claim: Option<Claim>,
    process: PartProcessState,
    report: Option<&WorkerReport>,
) -> &'static str {
    match process {
        PartProcessState::Gone => return "gone",
        PartProcessState::Stopped => return "frozen",
        PartProcessState::Runs => {}
    }
    let silent = report.and_then(|report| report.silent_ms).map_or(Duration::ZERO, Duration::from_millis);
    // Late, not frozen: the watchdog decides about the cause.
    if report.is_some_and(|report| report.late) || silent >= offer_timeout {
        return "late";
    }
    let Some(incarnation) = incarnation else { return "starting" };
    match (claim, incarnation.state) {
        (Some(claim), _) if claim.in_service().is_some() => "busy",
        (_, Lifecycle::Draining) => "draining",
        (_, Lifecycle::Starting | Lifecycle::Recycling) => "starting",
        _ if report.is_some_and(|report| report.drained) => "draining",
        (Some(Claim::Held(_, Phase::Offered)), _) => "leased",
        _ => "idle",
    }
}
