//! How a set is: what its watchdog knows, what the slots say, what the dispatcher answers. Each of them may be
//! frozen; what the others know is still shown.

mod health;
mod state_file;

use std::time::Duration;

use serde::Serialize;

use crate::config::{Config, ListenAddress};
use crate::exchange::{self, Incarnation, SlotCounters};
use crate::ids::{Claim, LeaseId, Lifecycle, Phase, PoolName, WorkerId, WorkerNumber};
use crate::ipc;
use crate::probe::{ProbeReport, WorkerReport};
use crate::process_tree;
use crate::stats::Counters;
pub use health::{Condition, Health, SERVING, health};
pub use state_file::{SavedPart, SavedState};

/// How long the dispatcher may take to answer before it counts as frozen.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// A whole set, as `patou status --json` prints it.
#[derive(Debug, Serialize)]
pub struct StatusView {
    /// Its name.
    pub set: String,
    /// Where clients arrive.
    pub listeners: Vec<String>,
    /// What watches it.
    pub watchdog: WatchdogView,
    /// What gives clients their workers.
    pub dispatcher: DispatcherView,
    /// In the order of the configuration.
    pub pools: Vec<PoolView>,
}

/// The watchdog.
#[derive(Debug, Serialize)]
pub struct WatchdogView {
    /// Its process.
    pub pid: Option<u32>,
    /// `up`, `late`, `frozen`, `stopping` or `gone`.
    pub state: &'static str,
    /// Restarts that nobody wanted.
    pub restarts: u32,
}

/// The dispatcher.
#[derive(Debug, Serialize)]
pub struct DispatcherView {
    /// Its process.
    pub pid: Option<u32>,
    /// In a word of patou(1).
    pub state: String,
    /// Restarts that nobody wanted.
    pub restarts: u32,
    /// Clients that wait for a worker.
    pub queue: usize,
    /// What ended it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// A pool.
#[derive(Debug, Serialize)]
pub struct PoolView {
    /// Its name.
    pub name: PoolName,
    /// Clients that wait for a worker.
    pub queue: usize,
    /// Since when the first of them does, in milliseconds.
    #[serde(skip)]
    pub oldest_ms: u64,
    /// Its workers, from number 1.
    pub workers: Vec<WorkerView>,
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// Its process.
    pub pid: Option<u32>,
    /// In a word of patou(7).
    pub state: String,
    /// Its incarnation, 0 if there has been none.
    pub epoch: u32,
    /// The lease it has.
    pub lease: Option<String>,
    /// Where it listens.
    pub address: String,
    /// Requests answered, by all its incarnations.
    pub served: u64,
    /// Requests that ended otherwise.
    pub failed: u64,
    /// Restarts that nobody wanted.
    pub restarts: u32,
    /// What ended it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What is counted in its slot, if that can be read.
    #[serde(skip)]
    pub counted: Option<Counters>,
}

impl StatusView {
    /// Whether every part is.
    pub fn is_up(&self) -> bool {
        let serves = |worker: &WorkerView| matches!(worker.state.as_str(), "idle" | "leased" | "busy" | "draining");
        self.watchdog.state == "up"
            && self.dispatcher.state == "up"
            && self.pools.iter().all(|pool| pool.workers.iter().all(serves))
    }
}

/// What the dispatcher says.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Its last report, if there has been any.
    pub report: Option<&'a ProbeReport>,
    /// Whether it answers.
    pub answers: bool,
}

/// The set of this configuration, of which the watchdog knows `state` and the dispatcher says `told`.
pub fn collect(config: &Config, state: &SavedState, told: Told<'_>) -> StatusView {
    let Told { report, answers } = told;
    let watchdog = match state.watchdog() {
        None => "gone",
        Some(process) if process.stopped => "frozen",
        Some(_) if state.stopping => "stopping",
        Some(_) => "up",
    };
    let dispatcher = &state.dispatcher;
    let dispatcher_state = match dispatcher.state.as_str() {
        // What the watchdog wrote may be old: the dispatcher's own word counts.
        "up" if !answers
            && dispatcher.pid.and_then(process_tree::read_process).is_none_or(|process| process.zombie) =>
        {
            "gone"
        }
        "up" if !answers => "frozen",
        other => other,
    };
    let pools = config.pools.iter().map(|pool| {
        let of_pool = report.and_then(|report| report.pools.iter().find(|p| p.name == pool.name));
        let workers = WorkerNumber::up_to(pool.workers).map(|number| {
            let id = WorkerId { pool: pool.name.clone(), number };
            let part = state.workers.get(&id.to_string());
            let told = of_pool.and_then(|p| p.workers.get(number.index()));
            look_at_worker(config, id, part, told)
        });
        PoolView {
            name: pool.name.clone(),
            queue: of_pool.map_or(0, |p| p.queue),
            oldest_ms: of_pool.map_or(0, |p| p.oldest_ms),
            workers: workers.collect(),
        }
    });
    let pools: Vec<PoolView> = pools.collect();
    StatusView {
        set: config.set.name.clone(),
        listeners: state.listeners.clone(),
        watchdog: WatchdogView { pid: Some(state.pid), state: watchdog, restarts: 0 },
        dispatcher: DispatcherView {
            pid: dispatcher.pid,
            state: dispatcher_state.to_owned(),
            restarts: dispatcher.restarts,
            queue: pools.iter().map(|pool| pool.queue).sum(),
            cause: dispatcher.cause.clone(),
        },
        pools,
    }
}

fn look_at_worker(config: &Config, id: WorkerId, part: Option<&SavedPart>, told: Option<&WorkerReport>) -> WorkerView {
    // Copied and not mapped: whoever only looks needs no right to write.
    let slot = ipc::snapshot(&config.set.runtime_dir, &id).ok();
    let slot = slot.as_ref();
    let life = slot.and_then(Incarnation::load);
    let claim = slot.and_then(exchange::claim);
    let counted = slot.map(SlotCounters::load_with_times);
    let count = |name| counted.as_ref().map_or(0, |tally: &Counters| tally.get(name));
    let pool = config.pool(&id.pool);
    let mut address = pool.map(|pool| pool.worker_address(id.number));
    if let (Some(ListenAddress::Tcp(tcp)), Some(port)) = (&mut address, life.and_then(|life| life.port)) {
        tcp.set_port(port);
    }
    let lease = match claim {
        Some(Claim::Held(lease, Phase::Offered | Phase::Claimed | Phase::Responding)) => Some(lease),
        _ => None,
    };
    let offer_timeout = pool.map_or(Duration::MAX, |pool| pool.offer_timeout);
    let state = part.map_or("gone", |part| part.state.as_str());
    let state = match state {
        "up" => serving_state(offer_timeout, life, claim, part.and_then(|part| part.pid), told),
        other => other,
    };
    WorkerView {
        pid: part.and_then(|part| part.pid),
        state: state.to_owned(),
        epoch: life.map_or(0, |life| life.epoch.get()),
        lease: lease.map(|lease: LeaseId| lease.to_string()),
        address: address.map_or_else(String::new, |address| address.to_string()),
        served: count("served"),
        failed: count("failed"),
        restarts: part.map_or(0, |part| part.restarts),
        cause: part.and_then(|part| part.cause.clone()),
        id,
        counted,
    }
}

/// The state of a worker whose process runs.
fn serving_state(
    offer_timeout: Duration,
    life: Option<Incarnation>,
    claim: Option<Claim>,
    pid: Option<u32>,
    told: Option<&WorkerReport>,
) -> &'static str {
    let process = pid.and_then(process_tree::read_process);
    if process.is_none_or(|process| process.zombie) {
        return "gone";
    }
    if process.is_some_and(|process| process.stopped) {
        return "frozen";
    }
    let silent = told.and_then(|told| told.silent_ms).map_or(Duration::ZERO, Duration::from_millis);
    // Whether that is its own fault the watchdog decides.
    if told.is_some_and(|told| told.late) || silent >= offer_timeout {
        return "late";
    }
    let Some(life) = life else { return "starting" };
    match (claim, life.state) {
        (Some(Claim::Held(_, Phase::Claimed | Phase::Responding)), _) => "busy",
        (_, Lifecycle::Draining) => "draining",
        (_, Lifecycle::Starting | Lifecycle::Recycling) => "starting",
        _ if told.is_some_and(|told| told.drained) => "draining",
        (Some(Claim::Held(_, Phase::Offered)), _) => "leased",
        _ => "idle",
    }
}
