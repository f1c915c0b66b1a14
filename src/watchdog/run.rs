//! The watchdog's loop: events go to the plan, which decides, and its actions are performed in order.

use std::collections::{BTreeMap, VecDeque};

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::admin::SetSnapshot;
use super::config_reader::{ConfigRead, ConfigReader};
use super::error::{WatchdogError, system};
use super::evidence::{EvidenceRecorder, EvidenceTarget};
use super::own_delay::{LATE, SuspendDetector};
use super::part_log::log_notice;
use super::plan::{Notice, Part, PlanAction, PlanEvent, PlanKind, WorkerLiveness};
use super::set_signals::{SetSignals, StopSignal};
use super::slot_observer::SlotObserver;
use super::state::saved_state;
use super::supervisor::{ActionOf, EventOf, Supervisor};
use super::watched_set::WatchedSet;
use super::{prober, process_sample};
use crate::descriptors::SpareDescriptors;
use crate::ids::{Monotonic, ProcessId, WorkerId};
use crate::log::LogThrottle;
use crate::sd_notification::notify;
use crate::sd_watchdog::WatchdogTicker;
use crate::status::LastRestart;
use crate::{clock, procfs};

/// The watchdog of one set.
pub(super) struct Watchdog<S: Supervisor> {
    pub(super) set: WatchedSet<S::Set>,
    pub(super) supervisor: S,
    pub(super) config_reader: ConfigReader,
    slot_observer: SlotObserver,
    evidence: EvidenceRecorder,
    /// The last logged cause of each part's restarts.
    logged_causes: BTreeMap<Part, String>,
    own_id: ProcessId,
    /// For the files of `/proc`.
    spare: SpareDescriptors,
    failed_samples: LogThrottle,
    /// The last `STATUS=` sent to systemd.
    status: String,
    /// The last unplanned restart.
    last_restart: Option<LastRestart>,
}

/// What ends a wait.
enum Wake<N> {
    Stop(StopSignal),
    /// `None`: a probe could not be sent, or its connection was closed.
    Report(Option<Vec<WorkerLiveness>>),
    Notice(N),
    Reload,
    ConfigRead((ConfigRead, bool)),
    Time,
}

impl<S: Supervisor> Watchdog<S> {
    /// `last_restart` is the one that the previous watchdog of the set knew.
    pub(super) fn new(set: WatchedSet<S::Set>, supervisor: S, last_restart: Option<LastRestart>) -> Self {
        Self {
            set,
            supervisor,
            config_reader: ConfigReader::default(),
            slot_observer: SlotObserver::default(),
            evidence: EvidenceRecorder::default(),
            logged_causes: BTreeMap::new(),
            own_id: procfs::this_process(),
            spare: SpareDescriptors::new(1),
            failed_samples: LogThrottle::default(),
            status: String::new(),
            last_restart,
        }
    }

    /// Runs until the supervisor has nothing left to do after a signal.
    pub(super) async fn run(mut self, signals: SetSignals) -> Result<(), WatchdogError> {
        let SetSignals { mut stop, mut stop_now, mut reload } = signals;
        let mut bytes = [[0; 64]; 3];
        let [stops, quits, reloads] = &mut bytes;
        let mut ticker = WatchdogTicker::start();
        let mut suspends = SuspendDetector::new();
        let now = clock::now();
        self.handle(now, PlanEvent::Tick);
        self.inspect(now);
        self.publish(now)?;
        let mut next_probe = clock::now();
        while !self.set.is_finished {
            let inspection = self.supervisor.inspection_due_at();
            let due = [Some(next_probe), self.set.plan.deadline(), ticker.due_at(), inspection];
            let wake_at = due.into_iter().flatten().min().unwrap_or(next_probe);
            let wake = tokio::select! {
                biased;
                Ok(_) = stop_now.read(quits) => Wake::Stop(StopSignal::Now),
                Ok(_) = stop.read(stops) => Wake::Stop(StopSignal::Drain),
                // Before the events that lead to a verdict.
                report = self.set.prober.next_report() => Wake::Report(report),
                Ok(_) = reload.read(reloads) => Wake::Reload,
                read = self.config_reader.next() => Wake::ConfigRead(read),
                notice = self.supervisor.next_notice() => Wake::Notice(notice), // without end, if parts are hostile
                () = sleep(wake_at.since(clock::now())) => Wake::Time,
            };
            let now = clock::now();
            let late = now.since(wake_at);
            let mut buffered = None;
            if late > LATE {
                tracing::debug!(
                    late_ms = late.as_millis() as u64,
                    "the watchdog was late: liveness deadlines are extended by as much"
                );
                self.evidence.was_late(now, late);
                self.handle(now, PlanEvent::WatchdogLate(late));
                buffered = self.set.prober.take_buffered_report().await;
            }
            if suspends.was_suspended() {
                self.handle(now, PlanEvent::MachineResumed);
            }
            if self.set.prober.take_not_sent(self.set.config.watchdog.dispatcher_timeout) {
                self.handle(now, PlanEvent::ProbeNotSent);
            }
            // A report before the next probe is sent, so that the plan knows which probe it answers.
            if let Some(workers) = buffered {
                self.on_report(now, workers);
            }
            self.on_wake(now, wake);
            let is_probe_due = next_probe <= now;
            if is_probe_due || inspection.is_some_and(|at| at <= now) {
                self.inspect(now);
            }
            if is_probe_due {
                next_probe = now + self.set.config.watchdog.probe_interval;
                self.probe(now);
            }
            ticker.tick(now);
            self.publish(now)?;
        }
        notify(&[NotifyState::Stopping]);
        Ok(())
    }

    fn on_wake(&mut self, now: Monotonic, wake: Wake<S::Notice>) {
        let events = match wake {
            Wake::Report(Some(workers)) => return self.on_report(now, workers),
            Wake::Notice(notice) => self.supervisor.on_notice(&mut self.set, notice),
            Wake::Stop(signal) => {
                let event = self.supervisor.on_stop(now, &mut self.set, signal);
                event.map(PlanEvent::Set).into_iter().collect()
            }
            Wake::ConfigRead(read) => self.on_config_read(read).map(PlanEvent::Set).into_iter().collect(),
            Wake::Reload => {
                self.reload();
                Vec::new()
            }
            Wake::Report(None) | Wake::Time => Vec::new(),
        };
        if events.is_empty() {
            return self.handle(now, PlanEvent::Tick);
        }
        self.handle_all(now, events);
    }

    fn on_report(&mut self, now: Monotonic, workers: Vec<WorkerLiveness>) {
        let events = self.supervisor.on_report(&mut self.set);
        self.handle_all(now, events);
        self.handle(now, PlanEvent::Report(workers));
    }

    fn inspect(&mut self, now: Monotonic) {
        let events = self.supervisor.inspect(now, &mut self.set);
        self.handle_all(now, events);
    }

    fn probe(&mut self, now: Monotonic) {
        self.spare.refill();
        let (set, supervisor) = (&self.set, &self.supervisor);
        let silence = set.config.watchdog.probe_interval;
        let is_unreported = |id: &WorkerId| !set.prober.is_reported(id, now, silence);
        let look = |id: &WorkerId| supervisor.observe(&set.config, id);
        let seen = self.slot_observer.observe(now, &set.plan, is_unreported, look);
        if !seen.is_empty() {
            self.handle(now, PlanEvent::Observed(seen));
        }
        if self.set.prober.send_probe(prober::failed_pools(&self.set.plan)) {
            self.handle(now, PlanEvent::ProbeSent);
        }
    }

    fn handle_all(&mut self, now: Monotonic, events: Vec<PlanEvent<EventOf<S>>>) {
        events.into_iter().for_each(|event| self.handle(now, event));
    }

    /// Passes an event to the plan, and performs the actions and those that follow from them in order.
    fn handle(&mut self, now: Monotonic, event: PlanEvent<EventOf<S>>) {
        let mut queue = VecDeque::from(self.set.plan.handle(now, event));
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.perform(action) {
                queue.extend(self.set.plan.handle(clock::now(), event));
            }
        }
        self.write_state();
    }

    fn perform(&mut self, action: PlanAction<ActionOf<S>>) -> Option<PlanEvent<EventOf<S>>> {
        match action {
            PlanAction::Sample(part) => {
                // One file after the other is open.
                self.spare.release();
                let sample = process_sample::sample(&part, self.supervisor.process(&part));
                self.spare.refill();
                if sample.is_none()
                    && let Some(count) = self.failed_samples.count()
                {
                    tracing::warn!(count, %part, "the watchdog has no descriptor or memory left to see what {part} is doing: \
                        its silence does not count until it has");
                }
                return Some(PlanEvent::Sampled(part, sample));
            }
            PlanAction::DeclareFrozen(part, why) => self.declare_frozen(&part, &why),
            PlanAction::Kill(part, signal) => self.supervisor.kill(&part, signal),
            PlanAction::Log(part, notice) => self.log(&part, notice),
            PlanAction::Set(action) => return self.supervisor.perform(&mut self.set, action).map(PlanEvent::Set),
        }
        None
    }

    fn declare_frozen(&mut self, part: &Part, why: &str) {
        let set = &mut self.set;
        let silent_since = self.slot_observer.silent_since(part).or_else(|| set.prober.silent_since(part));
        set.restart_stats.declared_frozen(clock::now(), part, silent_since);
        let target = self.supervisor.process(part).map(|(pid, _)| {
            EvidenceTarget::of(part, pid, self.supervisor.scope(part), &set.config, set.prober.last_report())
        });
        self.evidence.record(part, why, target);
        // Many parts may have frozen at once, and each record takes time in which no tick is sent.
        notify(&[NotifyState::Watchdog]);
    }

    fn log(&mut self, part: &Part, mut notice: Notice) {
        if let Notice::Restarting { .. } | Notice::UnitRestarted { .. } = &notice {
            self.set.restart_stats.unplanned_restart(part);
            let cause = self.set.plan.status().find(|(of, _)| *of == part).and_then(|(_, status)| status.cause);
            self.last_restart = Some(LastRestart {
                part: part.to_string(),
                cause: cause.unwrap_or_else(|| "its process has ended".to_owned()),
                at: clock::since_boot().as_secs(),
            });
        }
        if let Notice::Restarting { cause, .. } = &mut notice {
            self.abbreviate_cause(part, cause);
        }
        log_notice(part, notice, self.supervisor.process(part).map(|(pid, _)| pid));
    }

    /// A cause that repeats is logged without its details.
    fn abbreviate_cause(&mut self, part: &Part, cause: &mut String) {
        if self.logged_causes.insert(part.clone(), cause.clone()).as_ref() == Some(&*cause)
            && let Some((short, _)) = cause.split_once(": ")
        {
            *cause = format!("{short}, as before");
        }
    }

    /// Writes `watchdog.json`.
    fn write_state(&mut self) {
        let mut state = saved_state(&self.set.plan, &self.set.config.set.name, self.own_id);
        state.reloads.clone_from(&self.set.reloads);
        state.last_restart.clone_from(&self.last_restart);
        let dir = self.supervisor.complete_state(&self.set.config, &mut state);
        state.problems.extend(self.set.failing_pools(clock::now(), &state));
        let Some(state) = self.set.state_writer.write_if_changed(state, dir) else { return };
        let up = state.workers.values().filter(|part| part.state == "up").count();
        let last = self.last_restart.as_ref().map_or(String::new(), |last| format!(", last restart: {last}"));
        let status = format!("dispatcher {}, {up} of {} workers up{last}", state.dispatcher.state, state.workers.len());
        if status != self.status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Leaves the current state for the admin thread.
    fn publish(&mut self, now: Monotonic) -> Result<(), WatchdogError> {
        let set = &mut self.set;
        let Some(state) = set.state_writer.last() else { return Ok(()) };
        set.admin.publish(SetSnapshot::new(now, &set.config, state, &set.prober, &set.restart_stats));
        let has_report = set.prober.last_report().is_some();
        // After the snapshot, so that `/healthz` is right by then. A set of units runs already.
        let is_look_over = set.unserved_admin.as_ref().is_some_and(|(until, _)| *until <= now);
        let is_seen = S::Set::BY_SYSTEMD && (set.prober.has_looked() || is_look_over);
        if !set.is_ready && (set.is_up || is_seen) {
            set.notify_ready();
        }
        match set.unserved_admin.take_if(|(until, _)| has_report || *until <= now) {
            Some((_, sockets)) => set.admin.serve(sockets).map_err(system("admin.sock")),
            None => Ok(()),
        }
    }
}
