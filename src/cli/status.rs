//! `patou status`: what the watchdog wrote, what the slots say, what the dispatcher answers. Each of them may
//! be frozen; what the others know is still shown.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{Failure, duration, failed, load_applied, no_set, written};
use crate::config::{Address, Config};
use crate::exchange::{self, Counters, Life};
use crate::ids::{Claim, LeaseId, Phase, PoolName, WorkerId, WorkerState};
use crate::ipc;
use crate::probe::{self, Report, WorkerReport};
use crate::shm::Segment;
use crate::tree;
use crate::watchdog::{PartState, State};

#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait for so long until every part is up; exit code 1 if it is not by then
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

/// How long the dispatcher may take to answer before it counts as frozen.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug, Serialize)]
struct View {
    set: String,
    listeners: Vec<String>,
    watchdog: RoleView,
    dispatcher: DispatcherView,
    pools: Vec<PoolView>,
}

#[derive(Debug, Serialize)]
struct RoleView {
    pid: Option<u32>,
    state: &'static str,
    restarts: u32,
}

#[derive(Debug, Serialize)]
struct DispatcherView {
    pid: Option<u32>,
    state: String,
    restarts: u32,
    queue: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

#[derive(Debug, Serialize)]
struct PoolView {
    name: PoolName,
    queue: usize,
    workers: Vec<WorkerView>,
}

#[derive(Debug, Serialize)]
struct WorkerView {
    id: WorkerId,
    pid: Option<u32>,
    state: String,
    epoch: u32,
    lease: Option<String>,
    address: String,
    served: u64,
    failed: u64,
    restarts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl View {
    fn is_up(&self) -> bool {
        let serves = |worker: &WorkerView| matches!(worker.state.as_str(), "idle" | "leased" | "busy" | "draining");
        self.watchdog.state == "up"
            && self.dispatcher.state == "up"
            && self.pools.iter().all(|pool| pool.workers.iter().all(serves))
    }
}

pub fn run(path: Option<&Path>, status: &Status) -> Result<(), Failure> {
    let give_up = status.wait.map(|wait| Instant::now() + wait);
    loop {
        let config = load_applied(path)?;
        let view = look(&config);
        let up = view.as_ref().is_ok_and(View::is_up);
        let late = give_up.is_none_or(|at| Instant::now() >= at);
        if up || late {
            let view = view?;
            written(print(&view, status.json))?;
            return match give_up {
                _ if view.watchdog.state == "gone" => Err(failed(
                    "the watchdog is gone: what still runs finishes and leaves, and nobody replaces it; start the set again",
                )),
                Some(_) if !up => Err(failed("not every part is up")),
                _ => Ok(()),
            };
        }
        std::thread::sleep(LOOK);
    }
}

fn look(config: &Config) -> Result<View, Failure> {
    let dir = &config.set.runtime_dir;
    let state = State::read(dir).map_err(|_| no_set(dir))?;
    let report = probe::ask(&dir.join("probe.sock"), None, PATIENCE);
    // Who may not ask learns nothing about the dispatcher, least of all that it is frozen.
    let answers = !matches!(&report, Err(error) if error.kind() != io::ErrorKind::PermissionDenied);
    let report = report.ok();
    let watchdog = match state.watchdog() {
        None => "gone",
        Some(process) if process.stopped => "frozen",
        Some(_) if state.stopping => "stopping",
        Some(_) => "up",
    };
    let dispatcher = &state.dispatcher;
    let dispatcher_state = match dispatcher.state.as_str() {
        // What the watchdog wrote may be old: the dispatcher's own word counts.
        "up" if !answers && dispatcher.pid.and_then(tree::look).is_none_or(|process| process.zombie) => "gone",
        "up" if !answers => "frozen",
        other => other,
    };
    let pools = config.pools.iter().map(|pool| {
        let of_pool = report.as_ref().and_then(|report: &Report| report.pools.iter().find(|p| p.name == pool.name));
        let workers = (1..=pool.workers).map(|number| {
            let id = WorkerId { pool: pool.name.clone(), number };
            let part = state.workers.get(&id.to_string());
            let told = of_pool.and_then(|p| p.workers.get(usize::from(number) - 1));
            look_at_worker(config, id, part, told)
        });
        PoolView { name: pool.name.clone(), queue: of_pool.map_or(0, |p| p.queue), workers: workers.collect() }
    });
    let pools: Vec<PoolView> = pools.collect();
    Ok(View {
        set: config.set.name.clone(),
        listeners: state.listeners.clone(),
        watchdog: RoleView { pid: Some(state.pid), state: watchdog, restarts: 0 },
        dispatcher: DispatcherView {
            pid: dispatcher.pid,
            state: dispatcher_state.to_owned(),
            restarts: dispatcher.restarts,
            queue: pools.iter().map(|pool| pool.queue).sum(),
            cause: dispatcher.cause.clone(),
        },
        pools,
    })
}

fn look_at_worker(config: &Config, id: WorkerId, part: Option<&PartState>, told: Option<&WorkerReport>) -> WorkerView {
    let segment = ipc::open(config, &id).ok().map(|parts| parts.segment);
    let segment = segment.as_deref();
    let life = segment.and_then(Life::load);
    let claim = segment.and_then(|segment: &Segment| exchange::claim(segment));
    let counters = segment.map(Counters::load).unwrap_or_default();
    let pool = config.pool(&id.pool);
    let mut address = pool.map(|pool| pool.worker_address(id.number));
    if let (Some(Address::Tcp(tcp)), Some(port)) = (&mut address, life.and_then(|life| life.port)) {
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
        served: counters.served,
        failed: counters.failed,
        restarts: part.map_or(0, |part| part.restarts),
        cause: part.and_then(|part| part.cause.clone()),
        id,
    }
}

/// The state of a worker whose process runs.
fn serving_state(
    offer_timeout: Duration,
    life: Option<Life>,
    claim: Option<Claim>,
    pid: Option<u32>,
    told: Option<&WorkerReport>,
) -> &'static str {
    let process = pid.and_then(tree::look);
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
        (_, WorkerState::Draining) => "draining",
        (_, WorkerState::Starting | WorkerState::Recycling) => "starting",
        _ if told.is_some_and(|told| told.drained) => "draining",
        (Some(Claim::Held(_, Phase::Offered)), _) => "leased",
        _ => "idle",
    }
}

fn print(view: &View, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(view)?);
    }
    let pid = |pid: Option<u32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
    writeln!(out, "set {}  at {}", view.set, view.listeners.join(", "))?;
    writeln!(out)?;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}", "PART", "STATE", "PID", "RESTARTS")?;
    let watchdog = &view.watchdog;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}", "watchdog", watchdog.state, pid(watchdog.pid), watchdog.restarts)?;
    let d = &view.dispatcher;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}  {} waiting", "dispatcher", d.state, pid(d.pid), d.restarts, d.queue)?;
    for pool in &view.pools {
        writeln!(out)?;
        writeln!(
            out,
            "{:<18} {:<9} {:>8} {:>9} {:>9} {:>7} {:>6}  {:<16} LEASE",
            "WORKER", "STATE", "PID", "RESTARTS", "SERVED", "FAILED", "EPOCH", "ADDRESS"
        )?;
        for w in &pool.workers {
            let line = format!(
                "{:<18} {:<9} {:>8} {:>9} {:>9} {:>7} {:>6}  {:<16} {:<10} {}",
                w.id.to_string(),
                w.state,
                pid(w.pid),
                w.restarts,
                w.served,
                w.failed,
                w.epoch,
                w.address,
                w.lease.as_deref().unwrap_or("-"),
                w.cause.as_ref().map_or(String::new(), |cause| format!("(last end: {cause})")),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out, "{} waiting in pool {}", pool.queue, pool.name)?;
    }
    Ok(())
}
