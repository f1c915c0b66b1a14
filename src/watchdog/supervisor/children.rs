//! The supervisor of `patou run`: the parts are child processes. It owns what must outlive them: the lock of the set, the
//! listening sockets, the stored connections.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Supervisor;
use super::child_processes::ChildProcesses;
use super::set_files::SetFiles;
use crate::config::{Config, Loaded};
use crate::ids::{Monotonic, WorkerId};
use crate::ipc::{ObservedWorker, SetLock};
use crate::signals::{STOP_DEBOUNCE, Signal};
use crate::status::SavedState;
use crate::watchdog::admin::AdminServer;
use crate::watchdog::applied_config::{self, drain_timeouts, plan_limits};
use crate::watchdog::config_reader::{self, ConfigRead};
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::evidence::ProcessScope;
use crate::watchdog::notify::{FdStore, NotifyMessage, NotifySocket};
use crate::watchdog::plan::{ChildAction, ChildEvent, ChildSet, KillSignal, Part, Plan, PlanEvent};
use crate::watchdog::prober::{self, ProbeSocket};
use crate::watchdog::restart_stats::RestartCause;
use crate::watchdog::set_signals::StopSignal;
use crate::watchdog::sockets::SetSockets;
use crate::watchdog::watched_set::WatchedSet;
use crate::watchdog::worker_endpoints::{SegmentNames, WorkerEndpoints};
use crate::{backoff, clock, descriptors, log};

/// More messages than the queue of a datagram socket holds (net.unix.max_dgram_qlen).
const NOTIFY_QUEUE: usize = 1024;

/// The child processes of a set, and everything that outlives them.
pub(crate) struct ChildSupervisor {
    pub(crate) runtime_dir: PathBuf,
    /// Different for any two sets that used the same directory: the time since boot at the start.
    pub(super) set_epoch: u64,
    pub(super) processes: ChildProcesses,
    /// Children that can be reaped.
    exits: mpsc::UnboundedReceiver<(Part, u32)>,
    /// SIGCHLD: a part or an orphan has ended.
    child_signals: UnixStream,
    pub(crate) sockets: SetSockets,
    pub(super) fd_store: FdStore,
    pub(super) notify_socket: NotifySocket,
    pub(super) endpoints: BTreeMap<WorkerId, WorkerEndpoints>,
    pub(super) files: SetFiles,
    pub(super) probe_socket: ProbeSocket,
    /// The segments that this set has created. The files that name them may be removed by others.
    pub(super) segments: SegmentNames,
    /// Events that an inspection of the files has caused.
    pub(super) found: Vec<PlanEvent<ChildEvent>>,
    /// Why parts are about to end, as they have reported it.
    failures: BTreeMap<Part, String>,
    /// The last status of each worker.
    statuses: BTreeMap<WorkerId, String>,
    /// By when every part should be up; `None` once the result has been logged.
    pub(crate) start_deadline: Option<Monotonic>,
    stopping_since: Option<Monotonic>,
}

/// What the supervisor waits for.
pub(crate) enum ChildNotice {
    Exited(Part, u32),
    Message(NotifyMessage),
    FilesChanged,
    ChildSignal,
    /// See [`ChildSupervisor::found`].
    Found,
}

impl ChildSupervisor {
    /// Creates sockets, segments and doorbells. No part is started yet.
    pub(crate) fn open(
        loaded: Loaded,
        segments: SegmentNames,
        lock: Rc<SetLock>,
    ) -> Result<(WatchedSet<ChildSet>, Self), WatchdogError> {
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
        let now = clock::now();
        let mut supervisor = Self {
            processes: ChildProcesses::new(applied, exit_sender),
            exits,
            child_signals: Signal::child().and_then(Signal::into_async).map_err(system("signals"))?,
            fd_store: FdStore::default(),
            notify_socket,
            endpoints,
            files: SetFiles::new(lock),
            probe_socket: probe_socket.clone(),
            segments,
            found: Vec::new(),
            failures: BTreeMap::new(),
            statuses: BTreeMap::new(),
            start_deadline: Some(now + config.watchdog.start_timeout),
            stopping_since: None,
            runtime_dir,
            set_epoch,
            sockets,
        };
        log_config_warnings(&config);
        supervisor.watch_files(&config);
        let plan = Plan::for_children(&drain_timeouts(&config), plan_limits(&config), now);
        let mut set = WatchedSet::new(config, origin, plan, probe_socket);
        set.unserved_admin = Some((now, supervisor.sockets.clone_admin().map_err(system("admin.sock"))?));
        supervisor.log_admin_address();
        Ok((set, supervisor))
    }

    /// Serves on the admin sockets of the configuration in force.
    pub(super) fn serve_admin(&self, admin: &mut AdminServer) -> Result<(), WatchdogError> {
        let served = self.sockets.clone_admin().and_then(|sockets| admin.serve(sockets));
        self.log_admin_address();
        served.map_err(system("admin.sock"))
    }

    fn log_admin_address(&self) {
        if let Some(socket) = &self.sockets.admin_tcp {
            tracing::info!("metrics of the set: curl http://{}/metrics", socket.address);
        }
    }

    fn on_exit(&mut self, set: &mut WatchedSet<ChildSet>, part: Part, pid: u32) -> Vec<PlanEvent<ChildEvent>> {
        // Messages that the part sent before it ended are processed first.
        let mut events = self.receive_notifications(set);
        let Some((mut how, mut cause)) = self.processes.reap(&part, pid) else { return events };
        let was_starting = set.plan.status().any(|(of, status)| *of == part && status.state == "starting");
        if was_starting && !events.iter().any(|event| matches!(event, PlanEvent::Ready(of) if *of == part)) {
            how += " before it was ready";
            cause = RestartCause::Start;
        }
        set.restart_stats.ended(clock::now(), &part, cause);
        if let Some(failure) = self.failures.remove(&part) {
            how = format!("{how}: {failure}");
        }
        tracing::debug!(pid, %part, "{part} has ended: {how}");
        events.push(ChildEvent::Exited { part, cause: how, jitter: backoff::jitter() }.into());
        events
    }

    /// What the messages mean that parts have already sent.
    pub(super) fn receive_notifications(&mut self, set: &mut WatchedSet<ChildSet>) -> Vec<PlanEvent<ChildEvent>> {
        // Others may send without end.
        let messages: Vec<_> = std::iter::from_fn(|| self.notify_socket.try_receive()).take(NOTIFY_QUEUE).collect();
        messages.into_iter().filter_map(|message| self.on_message(set, message)).collect()
    }

    fn on_message(&mut self, set: &mut WatchedSet<ChildSet>, message: NotifyMessage) -> Option<PlanEvent<ChildEvent>> {
        let part = self.processes.part(message.pid)?.clone();
        if part == Part::Dispatcher {
            let max = set.config.descriptor_needs().connections_within(descriptors::limit());
            self.fd_store.apply(&message.fields, message.fds, max);
        }
        if let Some(failure) = message.fields.failure {
            self.failures.insert(part.clone(), failure);
        }
        if let (Part::Worker(id), Some(status)) = (&part, message.fields.status) {
            self.statuses.insert(id.clone(), status);
        }
        if message.fields.ready {
            set.restart_stats.ready(clock::now(), &part);
            if let Part::Worker(id) = &part {
                set.prober.worker_ready(clock::now(), &id.pool);
            }
        }
        message.fields.ready.then_some(PlanEvent::Ready(part))
    }

    fn stop_now(&mut self, now: Monotonic, set: &WatchedSet<ChildSet>, signal: &str) -> ChildEvent {
        self.stopping_since.get_or_insert(now);
        tracing::warn!(set = %set.config.set.name, event = %log::Event::SetStoppingNow,
            "stopping now, on {signal}: requests in progress are cut off");
        ChildEvent::StopNow
    }
}

impl Supervisor for ChildSupervisor {
    type Set = ChildSet;
    type Notice = ChildNotice;

    fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)> {
        self.processes.process(part)
    }

    fn scope(&self, _: &Part) -> ProcessScope {
        ProcessScope::Tree
    }

    fn kill(&self, part: &Part, signal: KillSignal) {
        self.processes.kill(part, signal);
    }

    fn perform(&mut self, set: &mut WatchedSet<ChildSet>, action: ChildAction) -> Option<ChildEvent> {
        match action {
            ChildAction::Start(part) => return Some(self.start(set, part)),
            ChildAction::Signal(part, signal) => self.processes.signal(&part, signal),
            ChildAction::KillOrphans(id) => {
                self.processes.kill_orphans();
                if let Some(endpoints) = self.endpoints.get(&id) {
                    endpoints.objects.ring();
                }
            }
            ChildAction::CloseAddress(id) => drop(self.sockets.workers.remove(&id)),
            ChildAction::Quiesce => prober::send_quiesce(self.probe_socket.clone()),
            ChildAction::RemoveWorker(id) => self.remove_worker(&id),
            ChildAction::AllUp => {
                set.is_up = true;
                self.log_set_up(set);
            }
            ChildAction::Finish => set.is_finished = true,
        }
        None
    }

    async fn next_notice(&mut self) -> ChildNotice {
        if !self.found.is_empty() {
            return ChildNotice::Found;
        }
        let mut bytes = [0; 64];
        tokio::select! {
            biased;
            Some((part, pid)) = self.exits.recv() => ChildNotice::Exited(part, pid),
            Ok(message) = self.notify_socket.receive() => ChildNotice::Message(message),
            () = self.files.changed() => ChildNotice::FilesChanged,
            Ok(_) = self.child_signals.read(&mut bytes) => ChildNotice::ChildSignal,
            else => std::future::pending().await,
        }
    }

    fn on_notice(&mut self, set: &mut WatchedSet<ChildSet>, notice: ChildNotice) -> Vec<PlanEvent<ChildEvent>> {
        match notice {
            ChildNotice::Exited(part, pid) => return self.on_exit(set, part, pid),
            ChildNotice::Message(message) => return self.on_message(set, message).into_iter().collect(),
            ChildNotice::FilesChanged => self.files.schedule(clock::now()),
            ChildNotice::ChildSignal => self.processes.reap_orphans(),
            ChildNotice::Found => {}
        }
        std::mem::take(&mut self.found)
    }

    fn on_report(&mut self, set: &mut WatchedSet<ChildSet>) -> Vec<PlanEvent<ChildEvent>> {
        self.files.on_report(set.prober.has_free_place(), |id| set.plan.is_up(&Part::Worker(id.clone())));
        self.find_ready_parts(set).into_iter().map(PlanEvent::Ready).collect()
    }

    fn inspection_due_at(&self) -> Option<Monotonic> {
        self.files.due_at()
    }

    fn inspect(&mut self, now: Monotonic, set: &mut WatchedSet<ChildSet>) -> Vec<PlanEvent<ChildEvent>> {
        if self.files.is_due(now) {
            self.inspect_files(set);
        }
        if self.start_deadline.is_some_and(|deadline| deadline <= now) {
            self.log_start_timeout(set);
        }
        std::mem::take(&mut self.found)
    }

    fn observe(&self, _: &Config, id: &WorkerId) -> Option<ObservedWorker> {
        self.endpoints.get(id)?.objects.observe().ok()
    }

    fn read_config(file: &Path, in_force: &Config) -> ConfigRead {
        config_reader::read_checked(file, in_force)
    }

    fn apply(&mut self, set: &mut WatchedSet<ChildSet>, new: Config) -> Result<(ChildEvent, String), WatchdogError> {
        let change = self.apply_config(set, new)?;
        log_config_warnings(&set.config);
        let effect = change.in_words(&set.plan);
        Ok((ChildEvent::Apply(change), effect))
    }

    fn complete_state(&self, _: &Config, state: &mut SavedState) -> Option<&Path> {
        state.listeners = self.sockets.listeners.iter().map(|socket| socket.address.to_string()).collect();
        state.problems = self.files.problems().to_vec();
        for (id, status) in &self.statuses {
            if let Some(part) = state.workers.get_mut(&id.to_string()) {
                part.status = Some(status.clone());
            }
        }
        for id in self.files.lost() {
            let endpoints = self.endpoints.get(id);
            if let (Some(part), Some(endpoints)) = (state.workers.get_mut(&id.to_string()), endpoints) {
                part.segment_fd = Some(endpoints.objects.segment_fd());
            }
        }
        self.files.lock.is_in_place(&self.runtime_dir).then_some(&*self.runtime_dir)
    }

    /// A second SIGTERM or SIGINT within [`STOP_DEBOUNCE`] counts as the same.
    fn on_stop(&mut self, now: Monotonic, set: &mut WatchedSet<ChildSet>, signal: StopSignal) -> Option<ChildEvent> {
        match (signal, self.stopping_since) {
            (StopSignal::Now, _) => return Some(self.stop_now(now, set, "SIGQUIT")),
            (StopSignal::Drain, Some(first)) if now.since(first) < STOP_DEBOUNCE => return None,
            (StopSignal::Drain, Some(_)) => return Some(self.stop_now(now, set, "a second signal")),
            (StopSignal::Drain, None) => self.stopping_since = Some(now),
        }
        let drain_timeout = drain_timeouts(&set.config).into_values().max().unwrap_or_default();
        let at_most = humantime::format_duration(drain_timeout + plan_limits(&set.config).exit_grace).to_string();
        tracing::info!(set = %set.config.set.name, at_most, event = %log::Event::SetStopping,
            "stopping, on a signal: no new leases, requests in progress may finish");
        Some(ChildEvent::Stop)
    }
}

/// Warns of keys that only systemd can apply, and of what is valid and may surprise.
fn log_config_warnings(config: &Config) {
    let unsupported = config.pools.iter().filter_map(|pool| pool.unsupported_by_run());
    for warning in unsupported.chain(config.warnings()) {
        tracing::warn!("{warning}");
    }
}
