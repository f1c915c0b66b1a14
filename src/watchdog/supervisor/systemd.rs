//! The supervisor of a set of systemd units: it finds their processes and kills what is frozen. systemd starts, stops and
//! restarts the units.
//!
//! It is not the parent of the processes and needs no right but CAP_KILL.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Supervisor;
use super::cgroup::UnitCgroups;
use super::systemctl::{UnitQueries, UnitReport};
use super::unit_files::UnitFiles;
use super::unit_processes::UnitProcesses;
use crate::config::{Config, Loaded};
use crate::ids::{Monotonic, WorkerId};
use crate::ipc::ObservedWorker;
use crate::status::{PROBE_TIMEOUT, SavedState};
use crate::watchdog::applied_config::{drain_timeouts, plan_limits};
use crate::watchdog::config_reader::ConfigRead;
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::evidence::ProcessScope;
use crate::watchdog::plan::{Absence, KillSignal, Part, Plan, PlanEvent, UnitEvent, UnitSet};
use crate::watchdog::prober::{self, ProbeSocket};
use crate::watchdog::restart_stats::RestartCause;
use crate::watchdog::set_signals::StopSignal;
use crate::watchdog::watched_set::WatchedSet;
use crate::{clock, sys};

/// Shortest time between two queries for the last error of a worker.
const FAULT_QUERY_INTERVAL: Duration = Duration::from_secs(5);

/// The units of a set and what is known of them.
pub(crate) struct UnitSupervisor {
    processes: UnitProcesses,
    queries: UnitQueries,
    /// The epoch of each part's last incarnation that has ended.
    ended_epochs: BTreeMap<Part, u32>,
    /// Where the state file is written for `patou status`.
    state_dir: PathBuf,
    files: UnitFiles,
    /// The statuses of workers that systemd was asked for.
    statuses: BTreeMap<WorkerId, String>,
    /// When it was asked for them last because their pools fail.
    asked: BTreeMap<WorkerId, Monotonic>,
}

/// What the supervisor waits for.
pub(crate) enum UnitNotice {
    Ended(Part, u32),
    /// systemd's response to a query.
    Reports(Vec<UnitReport>),
}

impl UnitSupervisor {
    /// Takes the admin sockets that systemd has passed. No process is known yet. The state file is written to
    /// `state_dir`.
    pub(crate) fn open(loaded: Loaded, state_dir: PathBuf) -> Result<(WatchedSet<UnitSet>, Self), WatchdogError> {
        let Loaded { config, origin, .. } = loaded;
        let cgroups = UnitCgroups::of_own_slice();
        let cgroups = cgroups.ok_or(WatchdogError::Environment(
            "this process has no control group of version 2: boot with the unified hierarchy",
        ))?;
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let passed = sys::listen_fds().map_err(system("LISTEN_FDS"))?;
        let admin_sockets = passed.into_iter().filter(|(_, name)| name == "admin").map(|(fd, _)| fd).collect();
        let now = clock::now();
        let supervisor = Self {
            processes: UnitProcesses::new(cgroups),
            queries: UnitQueries::new(),
            ended_epochs: BTreeMap::new(),
            state_dir,
            files: UnitFiles::new(now),
            statuses: BTreeMap::new(),
            asked: BTreeMap::new(),
        };
        let plan = Plan::for_units(&drain_timeouts(&config), plan_limits(&config), now);
        let probe_socket = ProbeSocket::new(config.set.runtime_dir.join("probe.sock"));
        let mut set = WatchedSet::new(config, origin, plan, probe_socket);
        set.unserved_admin = Some((now + PROBE_TIMEOUT, admin_sockets));
        Ok((set, supervisor))
    }

    /// Searches for the processes of parts that have none, and queries systemd about those that stay without.
    fn find_processes(&mut self, now: Monotonic, set: &mut WatchedSet<UnitSet>) -> Vec<PlanEvent<UnitEvent>> {
        let (mut events, mut unexplained) = (Vec::new(), Vec::new());
        for (part, absence) in set.plan.absent_parts() {
            match self.processes.find(part) {
                Some(pid) => {
                    self.queries.request(part.clone());
                    events.push(UnitEvent::Found(part.clone(), pid).into());
                    if *part == Part::Dispatcher {
                        set.prober.dispatcher_replaced();
                    } else {
                        // Whether a worker is ready is in the dispatcher's report.
                        events.push(PlanEvent::Ready(part.clone()));
                    }
                }
                None if absence == Absence::Gone => unexplained.push(part.clone()),
                None => {}
            }
        }
        self.queries.start(now, unexplained);
        events
    }

    fn on_end(&mut self, set: &mut WatchedSet<UnitSet>, part: Part, pid: u32) -> Vec<PlanEvent<UnitEvent>> {
        if !self.processes.remove(&part, pid) {
            return Vec::new();
        }
        self.queries.expedite();
        set.restart_stats.ended(clock::now(), &part, RestartCause::Ended);
        let last_report = set.prober.last_report();
        let known = last_report.map(|(_, report)| prober::incarnations(report)).into_iter().flatten();
        self.ended_epochs.extend(known.filter(|(of, ..)| *of == part).map(|(of, epoch, _)| (of, epoch)));
        vec![UnitEvent::Ended(part).into()]
    }

    /// Asks systemd for the status of the worker that had the last fault of each failing pool.
    fn ask_for_faults(&mut self, set: &WatchedSet<UnitSet>) {
        let (now, degraded_after) = (clock::now(), set.config.watchdog.degraded_after);
        for (pool, outcomes) in set.prober.outcomes() {
            let Some((fault_at, number)) = outcomes.failing(now, degraded_after) else { continue };
            let id = WorkerId { pool: pool.clone(), number };
            if self.asked.get(&id).is_none_or(|at| *at < fault_at && now.since(*at) >= FAULT_QUERY_INTERVAL) {
                self.queries.request(Part::Worker(id.clone()));
                self.asked.insert(id, now);
            }
        }
    }

    /// The dispatcher and the workers that serve according to its report have recovered.
    fn count_recoveries(&mut self, set: &mut WatchedSet<UnitSet>) {
        let Some((now, report)) = set.prober.last_report().cloned() else { return };
        for (part, epoch, serves) in prober::incarnations(&report) {
            // The report may still describe an incarnation that has ended.
            if serves && self.processes.pid(&part).is_some() && self.ended_epochs.get(&part) != Some(&epoch) {
                set.restart_stats.ready(now, &part);
            }
        }
    }

    fn on_unit_report(&mut self, report: UnitReport) -> Vec<PlanEvent<UnitEvent>> {
        let UnitReport { part, absence, is_active, restarts, cause, status } = report;
        if let Part::Worker(id) = &part {
            self.statuses.insert(id.clone(), status);
        }
        if self.queries.is_requested(&part) {
            return Vec::new(); // about its previous process
        }
        let has_process = self.processes.pid(&part).is_some();
        if !is_active && has_process {
            self.queries.request(part); // between two states: the next query returns the final one
            return Vec::new();
        }
        let mut events = Vec::new();
        if is_active && part == Part::Dispatcher && has_process {
            // It has sent READY=1. Its first answer would prove the same, but if it froze before that, it would count
            // as starting for as long as systemd allows.
            events.push(PlanEvent::Ready(part.clone()));
        }
        events.push(UnitEvent::State { part, absence, restarts, cause }.into());
        events
    }
}

impl Supervisor for UnitSupervisor {
    type Set = UnitSet;
    type Notice = UnitNotice;

    fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)> {
        self.processes.process(part)
    }

    fn scope(&self, part: &Part) -> ProcessScope {
        self.processes.scope(part)
    }

    fn kill(&self, part: &Part, signal: KillSignal) {
        self.processes.kill(part, signal);
    }

    fn perform(&mut self, _: &mut WatchedSet<UnitSet>, action: Infallible) -> Option<UnitEvent> {
        match action {}
    }

    async fn next_notice(&mut self) -> UnitNotice {
        tokio::select! {
            biased;
            Some((part, pid)) = self.processes.next_exit() => UnitNotice::Ended(part, pid),
            Some(reports) = self.queries.result() => UnitNotice::Reports(reports),
            else => std::future::pending().await,
        }
    }

    fn on_notice(&mut self, set: &mut WatchedSet<UnitSet>, notice: UnitNotice) -> Vec<PlanEvent<UnitEvent>> {
        match notice {
            UnitNotice::Ended(part, pid) => self.on_end(set, part, pid),
            UnitNotice::Reports(reports) => {
                reports.into_iter().flat_map(|report| self.on_unit_report(report)).collect()
            }
        }
    }

    fn on_report(&mut self, set: &mut WatchedSet<UnitSet>) -> Vec<PlanEvent<UnitEvent>> {
        self.count_recoveries(set);
        self.ask_for_faults(set);
        // A dispatcher that answers is ready.
        vec![PlanEvent::Ready(Part::Dispatcher)]
    }

    fn inspect(&mut self, now: Monotonic, set: &mut WatchedSet<UnitSet>) -> Vec<PlanEvent<UnitEvent>> {
        let events = self.find_processes(now, set);
        self.files.check(now, &set.config, |part| self.processes.pid(part).is_some());
        events
    }

    fn observe(&self, config: &Config, id: &WorkerId) -> Option<ObservedWorker> {
        ObservedWorker::find(&config.set.runtime_dir, id).ok()
    }

    /// The command that published the configuration has checked it.
    fn read_config(file: &Path, _: &Config) -> ConfigRead {
        Config::load(Some(file)).map(|loaded| Box::new(loaded.config)).map_err(|error| error.to_string())
    }

    fn apply(&mut self, set: &mut WatchedSet<UnitSet>, new: Config) -> Result<(UnitEvent, String), WatchdogError> {
        let workers = drain_timeouts(&new);
        self.processes.retain(|part| part.worker().is_none_or(|id| workers.contains_key(id)));
        self.statuses.retain(|id, _| workers.contains_key(id));
        self.asked.retain(|id, _| workers.contains_key(id));
        let event = UnitEvent::Apply(workers, plan_limits(&new));
        set.config = new.into();
        Ok((event, "systemd starts and stops the units".to_owned()))
    }

    fn complete_state(&self, config: &Config, state: &mut SavedState) -> Option<&Path> {
        state.listeners = config.listeners.iter().map(|listener| listener.address.to_string()).collect();
        state.problems = self.files.missing().to_vec();
        for (id, status) in &self.statuses {
            if let Some(part) = state.workers.get_mut(&id.to_string()) {
                part.status = Some(status.clone());
            }
        }
        Some(&self.state_dir)
    }

    /// The watchdog stops no other unit.
    fn on_stop(&mut self, _: Monotonic, set: &mut WatchedSet<UnitSet>, _: StopSignal) -> Option<UnitEvent> {
        set.is_finished = true;
        None
    }
}
