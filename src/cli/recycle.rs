//! `patou recycle`: replaces the workers of pools by new processes, which run new code.
//!
//! The dispatcher replaces them, one of a pool at a time; this command requests it, and reads the results from the slots.
//! A dispatcher that dies forgets the request, so each dispatcher gets it.

mod roll;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::completions;
use super::config_source::load_applied;
use super::dispatcher_error::{dispatcher_error, is_running};
use super::duration_arg::duration;
use super::error::{CommandError, failed, ignore_broken_pipe, no_set};
use super::poll::POLL_INTERVAL;
use super::systemd::systemctl_output;
use crate::config::{Config, PoolConfig, nearest};
use crate::exchange::{self, Incarnation};
use crate::ids::{Claim, PoolName, WorkerId, WorkerNumber};
use crate::ipc;
use crate::probe::{self, ProbeCommand, ProbeReport};
use crate::status::SavedState;
use crate::units;
use roll::{RollSummary, Rollout, WorkerSample};

/// How long the dispatcher may take to answer, before it is asked again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the dispatcher is asked whether it still has the request.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// How long the status of a worker may take to reach its supervisor.
const STATUS_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct RecycleArgs {
    /// The pool
    #[arg(value_name = "POOL", value_parser = PoolName::new, required_unless_present = "all",
        add = ArgValueCandidates::new(completions::pools))]
    pool: Option<PoolName>,
    /// Recycle every pool, all at the same time
    #[arg(long, conflicts_with = "pool")]
    all: bool,
    /// Wait at most this long; exit code 1 if not all workers are recycled by then [default: as long as the timeouts
    /// of the pool allow]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

/// Requests the recycling of one pool or all, waits for the end, and prints the result of each pool.
pub(super) fn run(path: Option<&Path>, args: &RecycleArgs) -> Result<(), CommandError> {
    let config = load_applied(path)?;
    let pools = chosen_pools(&config, args)?;
    let since = Instant::now();
    let allowed = pools.iter().map(|pool| longest_rollout(&config, pool)).max().unwrap_or_default();
    let deadline = since + args.wait.unwrap_or(allowed);
    let observer = SetObserver { config: &config, deadline };
    let state = observer.state()?;
    let rollout = |pool: &&PoolConfig| Rollout::new(pool.name.clone(), observer.sample(&state, pool, None));
    let mut rollouts: Vec<_> = pools.iter().map(rollout).collect();
    let (mut faults, mut asked_at, mut requested_of, mut report) = (Vec::new(), None::<Instant>, None, None);
    while !rollouts.is_empty() {
        if asked_at.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL) {
            asked_at = Some(Instant::now());
            report = observer.report(None)?;
            let dispatcher = report.as_ref().map(|report: &ProbeReport| report.epoch);
            if dispatcher.is_some() && dispatcher != requested_of {
                // What the report says is older than the request.
                report = None;
                let is_requested = rollouts.iter().map(|rollout| observer.request(rollout));
                let is_requested = is_requested.collect::<Result<Vec<_>, _>>()?.into_iter().all(|done| done);
                requested_of = dispatcher.filter(|_| is_requested);
            }
        }
        let state = observer.state()?;
        let is_late = Instant::now() >= deadline;
        let mut rest = Vec::new();
        for mut rollout in rollouts {
            let pool = config.pool(rollout.pool()).expect("it was chosen from this configuration");
            let is_over = rollout.observe(observer.sample(&state, pool, report.as_ref()));
            if !is_over && !is_late {
                rest.push(rollout);
                continue;
            }
            let why = |id: &WorkerId, prefix: &str| observer.failure(id, prefix);
            match rollout.summary(since.elapsed(), why) {
                RollSummary::Done(text) => {
                    ignore_broken_pipe(writeln!(io::stdout(), "{text}"))?;
                }
                RollSummary::Incomplete(text) => faults.push(text),
            }
        }
        rollouts = rest;
        std::thread::sleep(POLL_INTERVAL);
    }
    if faults.is_empty() { Ok(()) } else { Err(failed(faults.join("\n"))) }
}

fn chosen_pools<'c>(config: &'c Config, args: &RecycleArgs) -> Result<Vec<&'c PoolConfig>, CommandError> {
    let Some(name) = &args.pool else { return Ok(config.pools.iter().collect()) };
    if let Some(pool) = config.pool(name) {
        return Ok(vec![pool]);
    }
    let known = config.pools.iter().map(|pool| pool.name.as_str());
    let hint = match nearest(name.as_str(), known.clone()) {
        Some(near) => format!("the nearest is {near}"),
        None => format!("it has {}", known.collect::<Vec<_>>().join(", ")),
    };
    Err(failed(format!("the configuration has no pool {name}: {hint}")))
}

/// All workers are busy at first, and each takes as long as it may.
fn longest_rollout(config: &Config, pool: &PoolConfig) -> Duration {
    let request = pool.request_timeout.max(pool.sessions().map_or(Duration::ZERO, |bounds| bounds.drain));
    request.saturating_add(config.recycle_timeout(pool).saturating_mul(pool.workers.into()))
}

/// What the command sees of the set.
struct SetObserver<'c> {
    config: &'c Config,
    /// When the command gives up.
    deadline: Instant,
}

impl SetObserver<'_> {
    fn dir(&self) -> &Path {
        &self.config.set.runtime_dir
    }

    /// The state of the watchdog. Its file may be missing for a moment.
    fn state(&self) -> Result<SavedState, CommandError> {
        loop {
            match SavedState::read(self.dir()) {
                Ok(state) if state.stopping => return Err(failed("the set is stopping")),
                Ok(state) => return Ok(state),
                Err(_) if !is_running(self.dir()) => return Err(no_set(self.dir())),
                Err(error) if Instant::now() >= self.deadline => return Err(failed(format!("watchdog.json: {error}"))),
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// The report of the dispatcher; `None` while there is none that answers.
    fn report(&self, command: Option<ProbeCommand>) -> Result<Option<ProbeReport>, CommandError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = left.clamp(PROBE_INTERVAL, PROBE_TIMEOUT);
        match probe::query(&self.dir().join("probe.sock"), command, timeout) {
            Ok(report) => Ok(Some(report)),
            // The watchdog replaces a dispatcher that is frozen or dead.
            Err(error) if error.kind() != ErrorKind::PermissionDenied && is_running(self.dir()) => Ok(None),
            Err(error) => Err(dispatcher_error(self.dir(), &error)),
        }
    }

    /// Requests what is left of a rollout. Returns whether a dispatcher has the request.
    fn request(&self, rollout: &Rollout) -> Result<bool, CommandError> {
        let command = ProbeCommand::Recycle { pool: rollout.pool().clone(), workers: rollout.pending().collect() };
        match self.report(Some(command))?.map(|report| report.refused) {
            Some(Some(reason)) => Err(failed(reason)),
            accepted => Ok(accepted.is_some()),
        }
    }

    /// The workers of a pool, by number.
    fn sample(&self, state: &SavedState, pool: &PoolConfig, report: Option<&ProbeReport>) -> Vec<WorkerSample> {
        let report = report.and_then(|report| report.pools.iter().find(|report| report.name == pool.name));
        let sample = |number: WorkerNumber| {
            let id = WorkerId { pool: pool.name.clone(), number };
            let slot = state.slot(self.dir(), &id);
            let part = state.workers.get(&id.to_string());
            let claim = slot.as_ref().and_then(exchange::claim);
            WorkerSample {
                life: slot.as_ref().and_then(Incarnation::load),
                is_busy: claim.and_then(Claim::in_service).is_some(),
                part: part.map(|part| part.state.clone()).unwrap_or_default(),
                restarts: part.map_or(0, |part| part.restarts),
                cause: part.and_then(|part| part.cause.clone()),
                is_requested: report.and_then(|report| report.workers.get(number.index())).map(|w| w.recycle_requested),
            }
        };
        WorkerNumber::up_to(pool.workers).map(sample).collect()
    }

    /// Why a worker has kept what it had: its status, which begins with `prefix`.
    fn failure(&self, id: &WorkerId, prefix: &str) -> String {
        let until = Instant::now() + STATUS_WAIT;
        loop {
            let status = if ipc::is_run_by_systemd(self.dir()) {
                systemctl_output(&["show", "-P", "StatusText", &units::worker_service(id)]).ok()
            } else {
                let state = SavedState::read(self.dir()).ok();
                state.and_then(|state| state.workers.get(&id.to_string())?.status.clone())
            };
            if let Some(reason) = status.as_deref().and_then(|status| status.trim_end().strip_prefix(prefix)) {
                return reason.replace(char::is_control, " "); // the worker may be hostile
            }
            if Instant::now() >= until {
                return "its log has the reason".to_owned();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
