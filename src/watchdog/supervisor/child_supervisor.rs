//! The supervisor of `patou run`: the parts are child processes.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::children::Children;
use super::set_files::SetFiles;
use crate::config::{Config, Loaded, Origin};
use crate::ids::{Monotonic, ProcessId, WorkerId};
use crate::ipc::SetLock;
use crate::procfs;
use crate::sd_watchdog::WatchdogTicker;
use crate::signals::STOP_DEBOUNCE;
use crate::watchdog::admin::AdminServer;
use crate::watchdog::applied_config::{self, drain_timeouts, plan_limits};
use crate::watchdog::config_reader::ConfigReader;
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::evidence::{EvidenceRecorder, EvidenceTarget, ProcessScope};
use crate::watchdog::notify::{FdStore, NotifyMessage, NotifySocket};
use crate::watchdog::own_delay::{LATE, SuspendDetector};
use crate::watchdog::part_log::log_notice;
use crate::watchdog::plan::{ChildAction, ChildEvent, ChildSet, Notice, Part, Plan, PlanAction, PlanEvent};
use crate::watchdog::prober::{self, ProbeSocket, Prober};
use crate::watchdog::process_sample;
use crate::watchdog::restart_stats::{RestartCause, RestartStats};
use crate::watchdog::set_signals::SetSignals;
use crate::watchdog::slot_observer::SlotObserver;
use crate::watchdog::sockets::SetSockets;
use crate::watchdog::state::StateWriter;
use crate::watchdog::worker_endpoints::{SegmentNames, WorkerEndpoints};
use crate::{backoff, clock, descriptors, log};

/// More messages than the queue of a datagram socket holds (net.unix.max_dgram_qlen).
const NOTIFY_QUEUE: usize = 1024;

/// A running set and everything that outlives its parts.
pub(crate) struct ChildSupervisor {
    pub config: Arc<Config>,
    pub origin: Origin,
    pub config_reader: ConfigReader,
    pub runtime_dir: PathBuf,
    /// Different for any two sets that used the same directory: the time since boot at the start.
    pub set_epoch: u64,
    pub own_id: ProcessId,
    pub plan: Plan<ChildSet>,
    pub children: Children,
    /// Children that can be reaped.
    exits: mpsc::UnboundedReceiver<(Part, u32)>,
    pub sockets: SetSockets,
    pub fd_store: FdStore,
    pub notify_socket: NotifySocket,
    pub endpoints: BTreeMap<WorkerId, WorkerEndpoints>,
    pub files: SetFiles,
    pub probe_socket: ProbeSocket,
    pub prober: Prober,
    slot_observer: SlotObserver,
    pub restart_stats: RestartStats,
    pub admin: AdminServer,
    evidence: EvidenceRecorder,
    pub state_writer: StateWriter,
    /// The segments that this set has created. The files that name them may be removed by others.
    pub segments: SegmentNames,
    /// Why parts are about to end, as they have reported it.
    failures: BTreeMap<Part, String>,
    /// The last logged cause of each part's restarts.
    logged_causes: BTreeMap<Part, String>,
    /// By when every part should be up; `None` once the result has been logged.
    pub start_deadline: Option<Monotonic>,
    stopping_since: Option<Monotonic>,
    pub(super) is_finished: bool,
}

impl ChildSupervisor {
    /// Creates sockets, segments and doorbells, and starts the dispatcher.
    pub(crate) fn open(loaded: Loaded, segments: SegmentNames, lock: Rc<SetLock>) -> Result<Self, WatchdogError> {
        let Loaded { config, origin, .. } = loaded;
        let runtime_dir = config.set.runtime_dir.clone();
        let sockets = SetSockets::open(&config)?;
        let set_epoch = clock::now().0;
        let mut endpoints = BTreeMap::new();
        for id in config.workers() {
            endpoints.insert(id.clone(), WorkerEndpoints::create(&config, &id, set_epoch, &segments)?);
        }
        let applied = applied_config::write(&config, &runtime_dir)?;
        let notify_path = runtime_dir.join("notify.sock");
        let notify_socket = NotifySocket::bind(&notify_path).map_err(system(notify_path.display().to_string()))?;
        let probe_socket = ProbeSocket::new(runtime_dir.join("probe.sock"));
        probe_socket.hold();
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let (plan, actions) = Plan::new(&drain_timeouts(&config), plan_limits(&config), clock::now());
        let mut supervisor = Self {
            children: Children::new(applied, exit_sender),
            exits,
            sockets,
            fd_store: FdStore::default(),
            notify_socket,
            endpoints,
            files: SetFiles::new(lock),
            prober: Prober::start(probe_socket.clone()),
            probe_socket,
            slot_observer: SlotObserver::default(),
            restart_stats: RestartStats::default(),
            admin: AdminServer::default(),
            evidence: EvidenceRecorder::default(),
            state_writer: StateWriter::default(),
            segments,
            failures: BTreeMap::new(),
            logged_causes: BTreeMap::new(),
            start_deadline: Some(clock::now() + config.watchdog.start_timeout),
            stopping_since: None,
            is_finished: false,
            own_id: procfs::this_process(),
            config: Arc::new(config),
            origin,
            config_reader: ConfigReader::default(),
            runtime_dir,
            set_epoch,
            plan,
        };
        supervisor.log_config_warnings();
        supervisor.perform(actions);
        supervisor.serve_admin()?;
        supervisor.watch_files();
        Ok(supervisor)
    }

    /// Runs the set until all parts have ended after a stop.
    pub(crate) async fn run(mut self, signals: SetSignals) -> Result<(), WatchdogError> {
        let SetSignals { mut stop, mut stop_now, mut reload, mut child } = signals;
        let mut bytes = [[0; 64]; 4];
        let [stops, quits, reloads, children] = &mut bytes;
        let mut next_probe = clock::now() + self.config.watchdog.probe_interval;
        let mut ticker = WatchdogTicker::start();
        let mut suspends = SuspendDetector::new();
        while !self.is_finished {
            let wake_at = [Some(next_probe), self.plan.deadline(), ticker.due_at(), self.files.due_at()];
            let wake_at = wake_at.into_iter().flatten().min().unwrap_or(next_probe);
            let event = tokio::select! {
                biased;
                Ok(_) = stop_now.read(quits) => Some(self.stop_now("SIGQUIT").into()),
                Ok(_) = stop.read(stops) => Some(self.on_stop_signal(clock::now())),
                // Before the events that lead to a verdict.
                report = self.prober.next_report() => report.map(PlanEvent::Report),
                Some((part, pid)) = self.exits.recv() => self.on_exit(part, pid).map(PlanEvent::Set),
                Ok(message) = self.notify_socket.receive() => self.on_notify(message),
                Ok(_) = reload.read(reloads) => { self.reload(); None }
                read = self.config_reader.next() => self.apply_read(read).map(PlanEvent::Set),
                () = self.files.changed() => { self.files.schedule(clock::now()); None }
                Ok(_) = child.read(children) => { self.children.reap_orphans(); None }
                () = sleep(wake_at.since(clock::now())) => None,
            };
            let now = clock::now();
            let late = now.since(wake_at);
            let mut report = None;
            if late > LATE {
                tracing::debug!(
                    late_ms = late.as_millis() as u64,
                    "the watchdog was late: liveness deadlines are extended by as much"
                );
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
                let silence = self.config.watchdog.probe_interval;
                let is_unreported = |id: &WorkerId| !self.prober.is_reported(id, now, silence);
                let open = |id: &WorkerId| self.endpoints.get(id)?.objects.reopen().ok();
                let seen = self.slot_observer.observe(now, &self.plan, is_unreported, open);
                if !seen.is_empty() {
                    self.handle(now, PlanEvent::Observed(seen));
                }
                if self.prober.send_probe(prober::failed_pools(&self.plan)) {
                    self.handle(now, PlanEvent::ProbeSent);
                }
            }
            ticker.tick(now);
            if self.files.is_due(now) {
                self.inspect_files();
            }
            if let Some(workers) = report {
                self.handle(now, PlanEvent::Report(workers));
            }
            if let Some(PlanEvent::Report(_)) = &event {
                self.files.on_report(self.prober.has_free_place(), |id| self.plan.is_up(&Part::Worker(id.clone())));
                self.find_ready_parts().into_iter().for_each(|part| self.handle(now, PlanEvent::Ready(part)));
            }
            self.handle(now, event.unwrap_or(PlanEvent::Tick));
            if self.start_deadline.is_some_and(|deadline| deadline <= now) {
                self.log_start_timeout();
            }
            self.publish_snapshot(now);
        }
        Ok(())
    }

    pub(super) fn handle(&mut self, now: Monotonic, event: PlanEvent<ChildEvent>) {
        let actions = self.plan.handle(now, event);
        self.perform(actions);
    }

    /// SIGTERM or SIGINT. A second one within [`STOP_DEBOUNCE`] counts as the same.
    fn on_stop_signal(&mut self, now: Monotonic) -> PlanEvent<ChildEvent> {
        let set = &self.config.set.name;
        if let Some(first) = self.stopping_since {
            if now.since(first) < STOP_DEBOUNCE {
                return PlanEvent::Tick;
            }
            return self.stop_now("a second signal").into();
        }
        self.stopping_since = Some(now);
        let drain_timeout = drain_timeouts(&self.config).into_values().max().unwrap_or_default();
        let at_most = humantime::format_duration(drain_timeout + plan_limits(&self.config).exit_grace).to_string();
        tracing::info!(%set, at_most, event = %log::Event::SetStopping,
            "stopping, on a signal: no new leases, requests in progress may finish");
        ChildEvent::Stop.into()
    }

    fn stop_now(&mut self, signal: &str) -> ChildEvent {
        self.stopping_since.get_or_insert(clock::now());
        tracing::warn!(set = %self.config.set.name, event = %log::Event::SetStoppingNow,
            "stopping now, on {signal}: requests in progress are cut off");
        ChildEvent::StopNow
    }

    fn on_exit(&mut self, part: Part, pid: u32) -> Option<ChildEvent> {
        // Messages that the part sent before it ended are processed first.
        self.receive_notifications();
        let (mut how, mut cause) = self.children.reap(&part, pid)?;
        if self.plan.status().any(|(of, status)| *of == part && status.state == "starting") {
            how += " before it was ready";
            cause = RestartCause::Start;
        }
        self.restart_stats.ended(clock::now(), &part, cause);
        if let Some(failure) = self.failures.remove(&part) {
            how = format!("{how}: {failure}");
        }
        tracing::debug!(pid, %part, "{part} has ended: {how}");
        Some(ChildEvent::Exited { part, cause: how, jitter: backoff::jitter() })
    }

    /// Processes the messages that parts have already sent.
    pub(super) fn receive_notifications(&mut self) {
        // Others may send without end.
        for message in std::iter::from_fn(|| self.notify_socket.try_receive()).take(NOTIFY_QUEUE).collect::<Vec<_>>() {
            if let Some(event) = self.on_notify(message) {
                self.handle(clock::now(), event);
            }
        }
    }

    fn on_notify(&mut self, message: NotifyMessage) -> Option<PlanEvent<ChildEvent>> {
        let part = self.children.part(message.pid)?.clone();
        if part == Part::Dispatcher {
            let max = self.config.descriptor_needs().connections_within(descriptors::limit());
            self.fd_store.apply(&message.fields, message.fds, max);
        }
        if let Some(failure) = message.fields.failure {
            self.failures.insert(part.clone(), failure);
        }
        if message.fields.ready {
            self.restart_stats.ready(clock::now(), &part);
        }
        message.fields.ready.then_some(PlanEvent::Ready(part))
    }

    /// Performs actions, and those that follow from them, in order.
    fn perform(&mut self, actions: Vec<PlanAction<ChildAction>>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.perform_one(action) {
                queue.extend(self.plan.handle(clock::now(), event));
            }
        }
        self.write_state();
    }

    fn perform_one(&mut self, action: PlanAction<ChildAction>) -> Option<PlanEvent<ChildEvent>> {
        match action {
            PlanAction::Sample(part) => {
                let sample = process_sample::sample(&part, self.children.process(&part));
                return Some(PlanEvent::Sampled(part, sample));
            }
            PlanAction::DeclareFrozen(part, why) => {
                self.restart_stats.declared_frozen(clock::now(), &part, self.prober.silent_since(&part));
                let target = self.children.pid(&part).map(|pid| {
                    EvidenceTarget::of(&part, pid, ProcessScope::Tree, &self.config, self.prober.last_report())
                });
                self.evidence.record(&part, &why, target);
            }
            PlanAction::Kill(part, signal) => self.children.kill(&part, signal),
            PlanAction::Log(part, mut notice) => {
                if let Notice::Restarting { cause, .. } = &mut notice {
                    self.restart_stats.unplanned_restart(&part);
                    self.abbreviate_cause(&part, cause);
                }
                log_notice(&part, notice, self.children.pid(&part));
            }
            PlanAction::Set(action) => return self.perform_own(action).map(PlanEvent::Set),
        }
        None
    }

    /// A cause that repeats is logged without its details.
    fn abbreviate_cause(&mut self, part: &Part, cause: &mut String) {
        if self.logged_causes.insert(part.clone(), cause.clone()).as_ref() == Some(&*cause)
            && let Some((short, _)) = cause.split_once(": ")
        {
            *cause = format!("{short}, as before");
        }
    }
}
