//! The supervisor of a set of systemd units: it observes, records evidence and kills what is frozen. systemd starts, stops
//! and restarts the units.
//!
//! It is not the parent of the processes and needs no right but CAP_KILL.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::cgroup::UnitCgroups;
use super::systemctl::{UnitQueries, UnitReport};
use super::unit_files::UnitFiles;
use super::unit_processes::UnitProcesses;
use crate::config::{Config, Loaded, Origin};
use crate::ids::{Monotonic, ProcessId};
use crate::sd_notification::{notify, notify_reloading};
use crate::sd_watchdog::WatchdogTicker;
use crate::signals::Signal;
use crate::status::PROBE_TIMEOUT;
use crate::watchdog::admin::{AdminServer, SetSnapshot};
use crate::watchdog::applied_config::{drain_timeouts, plan_limits};
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::evidence::{EvidenceRecorder, EvidenceTarget};
use crate::watchdog::own_delay::{LATE, SuspendDetector};
use crate::watchdog::part_log::log_notice;
use crate::watchdog::plan::{Absence, Notice, Part, Plan, PlanAction, PlanEvent, UnitEvent, UnitSet, WorkerLiveness};
use crate::watchdog::prober::{self, ProbeSocket, Prober};
use crate::watchdog::process_sample;
use crate::watchdog::restart_stats::{RestartCause, RestartStats};
use crate::watchdog::state::{StateWriter, saved_state};
use crate::{clock, log, procfs, sys};

/// A set of units and what is known of it.
pub(crate) struct UnitSupervisor {
    config: Arc<Config>,
    origin: Origin,
    plan: Plan<UnitSet>,
    processes: UnitProcesses,
    queries: UnitQueries,
    prober: Prober,
    restart_stats: RestartStats,
    /// The epoch of each part's last incarnation that has ended.
    ended_epochs: BTreeMap<Part, u32>,
    admin: AdminServer,
    /// The admin sockets until the first report arrives, at most until this time. Requests wait in the backlog.
    unserved_admin: Option<(Monotonic, Vec<OwnedFd>)>,
    evidence: EvidenceRecorder,
    /// Where the state file is written for `patou status`.
    state_dir: PathBuf,
    state_writer: StateWriter,
    files: UnitFiles,
    /// The last `STATUS=` sent to systemd.
    status: String,
    own_id: ProcessId,
}

impl UnitSupervisor {
    /// Takes the admin sockets that systemd has passed. No process is known yet.
    pub(crate) fn open(loaded: Loaded) -> Result<Self, WatchdogError> {
        let Loaded { config, origin, .. } = loaded;
        let cgroups = UnitCgroups::of_own_slice();
        let cgroups = cgroups.ok_or(WatchdogError::Environment(
            "this process has no control group of version 2: boot with the unified hierarchy",
        ))?;
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let state_dir = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let state_dir = state_dir.ok_or(WatchdogError::Environment(
            "RUNTIME_DIRECTORY is not set: start the watchdog as a unit, with systemctl start patou",
        ))?;
        let passed = sys::listen_fds().map_err(system("LISTEN_FDS"))?;
        let admin_sockets = passed.into_iter().filter(|(_, name)| name == "admin").map(|(fd, _)| fd).collect();
        let now = clock::now();
        Ok(Self {
            plan: Plan::for_units(&drain_timeouts(&config), plan_limits(&config), now),
            processes: UnitProcesses::new(cgroups),
            queries: UnitQueries::new(),
            prober: Prober::start(ProbeSocket::new(config.set.runtime_dir.join("probe.sock"))),
            restart_stats: RestartStats::default(),
            ended_epochs: BTreeMap::new(),
            admin: AdminServer::default(),
            unserved_admin: Some((now + PROBE_TIMEOUT, admin_sockets)),
            evidence: EvidenceRecorder::default(),
            state_dir,
            state_writer: StateWriter::default(),
            files: UnitFiles::new(now),
            status: String::new(),
            own_id: procfs::this_process(),
            config: Arc::new(config),
            origin,
        })
    }

    /// Watches the units until SIGTERM, SIGINT or SIGQUIT.
    pub(crate) async fn run(mut self) -> Result<(), WatchdogError> {
        let mut stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
        let mut reload = Signal::reload().and_then(Signal::into_async).map_err(system("signals"))?;
        let stop_now = Signal::stop_now().and_then(Signal::into_async).map_err(system("signals"))?;
        let (mut stop_bytes, mut reload_bytes) = ([0; 64], [0; 64]);
        let mut next_probe = clock::now();
        let mut ticker = WatchdogTicker::start();
        let mut suspends = SuspendDetector::new();
        self.find_processes();
        notify(&[NotifyState::Ready]);
        loop {
            let wake_at = [Some(next_probe), self.plan.deadline(), ticker.due_at()].into_iter().flatten().min();
            let wake_at = wake_at.unwrap_or(next_probe);
            let event = tokio::select! {
                biased;
                _ = stop.read(&mut stop_bytes) => break,
                _ = stop_now.readable() => break,
                // Before the events that lead to a verdict.
                report = self.prober.next_report() => self.on_report(report),
                Some((part, pid)) = self.processes.next_exit() => self.on_exit(part, pid),
                Some(reports) = self.queries.result() => { self.on_unit_reports(reports); None }
                Ok(_) = reload.read(&mut reload_bytes) => {
                    notify_reloading();
                    let event = self.reload();
                    notify(&[NotifyState::Ready]);
                    event
                }
                () = sleep(wake_at.since(clock::now())) => None,
            };
            let now = clock::now();
            let late = now.since(wake_at);
            let mut report = None;
            if late > LATE {
                self.evidence.was_late(now, late);
                self.handle(now, PlanEvent::WatchdogLate(late));
                report = self.prober.take_buffered_report().await;
            }
            if suspends.was_suspended() {
                self.handle(now, PlanEvent::MachineResumed);
            }
            if self.prober.take_not_sent(self.config.watchdog.dispatcher_timeout) {
                self.handle(now, PlanEvent::ProbeNotSent);
            }
            if next_probe <= now {
                next_probe = now + self.config.watchdog.probe_interval;
                self.find_processes();
                self.files.check(now, &self.config, |part| self.processes.pid(part).is_some());
                if self.prober.send_probe(prober::failed_pools(&self.plan)) {
                    self.handle(now, PlanEvent::ProbeSent);
                }
            }
            ticker.tick(now);
            if let Some(event) = self.on_report(report) {
                self.handle(now, event);
            }
            self.handle(now, event.unwrap_or(PlanEvent::Tick));
            self.publish_snapshot(now)?;
        }
        notify(&[NotifyState::Stopping]);
        Ok(())
    }

    fn handle(&mut self, now: Monotonic, event: PlanEvent<UnitEvent>) {
        let mut queue = VecDeque::from(self.plan.handle(now, event));
        while let Some(action) = queue.pop_front() {
            match action {
                PlanAction::Sample(part) => {
                    let sample = process_sample::sample(&part, self.processes.process(&part));
                    queue.extend(self.plan.handle(clock::now(), PlanEvent::Sampled(part, sample)));
                }
                PlanAction::Kill(part, signal) => self.processes.kill(&part, signal),
                PlanAction::DeclareFrozen(part, why) => {
                    self.restart_stats.declared_frozen(now, &part, self.prober.silent_since(&part));
                    let target = self.processes.pid(&part).map(|pid| {
                        let scope = self.processes.scope(&part);
                        EvidenceTarget::of(&part, pid, scope, &self.config, self.prober.last_report())
                    });
                    self.evidence.record(&part, &why, target);
                    // Many parts may have frozen at once, and each record takes time in which no tick is sent.
                    notify(&[NotifyState::Watchdog]);
                }
                PlanAction::Log(part, notice) => {
                    if matches!(notice, Notice::UnitRestarted { .. }) {
                        self.restart_stats.unplanned_restart(&part);
                    }
                    log_notice(&part, notice, self.processes.pid(&part));
                }
                PlanAction::Set(never) => match never {},
            }
        }
        self.write_state();
    }

    /// Searches for the processes of parts that have none, and queries systemd about those that stay without.
    fn find_processes(&mut self) {
        let now = clock::now();
        let absent: Vec<_> = self.plan.absent_parts().map(|(part, absence)| (part.clone(), absence)).collect();
        let mut unexplained = Vec::new();
        for (part, absence) in absent {
            match self.processes.find(&part) {
                Some(pid) => self.on_found(now, part, pid),
                None if absence == Absence::Gone => unexplained.push(part),
                None => {}
            }
        }
        self.queries.start(now, unexplained);
    }

    fn on_found(&mut self, now: Monotonic, part: Part, pid: u32) {
        self.queries.request(part.clone());
        if part == Part::Dispatcher {
            self.prober.dispatcher_replaced();
        }
        self.handle(now, UnitEvent::Found(part.clone(), pid).into());
        if part != Part::Dispatcher {
            // Whether a worker is ready is in the dispatcher's report.
            self.handle(now, PlanEvent::Ready(part));
        }
    }

    fn on_exit(&mut self, part: Part, pid: u32) -> Option<PlanEvent<UnitEvent>> {
        if !self.processes.remove(&part, pid) {
            return None;
        }
        self.queries.expedite();
        self.restart_stats.ended(clock::now(), &part, RestartCause::Ended);
        let last_report = self.prober.last_report();
        let known = last_report.map(|(_, report)| prober::incarnations(report)).into_iter().flatten();
        self.ended_epochs.extend(known.filter(|(of, ..)| *of == part).map(|(of, epoch, _)| (of, epoch)));
        Some(UnitEvent::Ended(part).into())
    }

    fn on_report(&mut self, report: Option<Vec<WorkerLiveness>>) -> Option<PlanEvent<UnitEvent>> {
        let workers = report?;
        self.count_recoveries();
        // A dispatcher that answers is ready.
        self.handle(clock::now(), PlanEvent::Ready(Part::Dispatcher));
        Some(PlanEvent::Report(workers))
    }

    /// The dispatcher and the workers that serve according to its report have recovered.
    fn count_recoveries(&mut self) {
        let Some((now, report)) = self.prober.last_report().cloned() else { return };
        for (part, epoch, serves) in prober::incarnations(&report) {
            // The report may still describe an incarnation that has ended.
            if serves && self.processes.pid(&part).is_some() && self.ended_epochs.get(&part) != Some(&epoch) {
                self.restart_stats.ready(now, &part);
            }
        }
    }

    fn on_unit_reports(&mut self, reports: Vec<UnitReport>) {
        for UnitReport { part, absence, is_active, restarts } in reports {
            if self.queries.is_requested(&part) {
                continue; // about its previous process
            }
            let has_process = self.processes.pid(&part).is_some();
            if !is_active && has_process {
                self.queries.request(part); // between two states: the next query returns the final one
                continue;
            }
            if is_active && part == Part::Dispatcher && has_process {
                // It has sent READY=1. Its first answer would prove the same, but if it froze before that, it would count
                // as starting for as long as systemd allows.
                self.handle(clock::now(), PlanEvent::Ready(part.clone()));
            }
            self.handle(clock::now(), UnitEvent::State { part, absence, restarts }.into());
        }
    }

    fn reload(&mut self) -> Option<PlanEvent<UnitEvent>> {
        let path = match &self.origin {
            Origin::File(path) => Some(path.as_path()),
            Origin::BuiltIn => None,
        };
        match Config::load(path) {
            Ok(loaded) => {
                self.config = Arc::new(loaded.config);
                let workers = drain_timeouts(&self.config);
                self.processes.retain(|part| part.worker().is_none_or(|id| workers.contains_key(id)));
                tracing::info!(event = %log::Event::ReloadApplied, workers = workers.len(), "configuration applied");
                Some(UnitEvent::Apply(workers, plan_limits(&self.config)).into())
            }
            Err(error) => {
                tracing::error!(event = %log::Event::ReloadRefused,
                    "reload refused, the previous configuration stays in force: {error}");
                None
            }
        }
    }

    fn publish_snapshot(&mut self, now: Monotonic) -> Result<(), WatchdogError> {
        let Some(state) = self.state_writer.last() else { return Ok(()) };
        self.admin.publish(SetSnapshot::new(now, &self.config, state, &self.prober, &self.restart_stats));
        let has_report = self.prober.last_report().is_some();
        match self.unserved_admin.take_if(|(until, _)| has_report || *until <= now) {
            Some((_, sockets)) => self.admin.serve(sockets).map_err(system("admin.sock")),
            None => Ok(()),
        }
    }

    fn write_state(&mut self) {
        let listeners = self.config.listeners.iter().map(|listener| listener.address.to_string()).collect();
        let mut state = saved_state(&self.plan, &self.config.set.name, self.own_id, listeners);
        state.problems = self.files.missing().to_vec();
        let Some(state) = self.state_writer.write_if_changed(state, Some(&self.state_dir)) else { return };
        let up = state.workers.values().filter(|part| part.state == "up").count();
        let status = format!("dispatcher {}, {up} of {} workers up", state.dispatcher.state, state.workers.len());
        if status != self.status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}
