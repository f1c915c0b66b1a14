//! The watchdog: starts the set, notices what died and what froze, and stops everything in order.
//!
//! One loop: an event in, the plan's actions out. It owns what must outlive the others: the lock of the set, the
//! listening sockets, the waiting connections. It asks nobody over the bells (a frozen process reads no pipe) and
//! believes no heartbeat: the dispatcher is asked over a socket of its own and answers from its serving loop, and
//! brings the workers' answers along. Who asks on the admin socket is answered by a thread that decides nothing.

mod admin;
mod evidence;
pub mod notify;
mod part_log;
pub mod plan;
mod prober;
mod process_sample;
mod reload;
mod restart_stats;
mod sockets;
mod stale_processes;
mod startup_message;
mod state;
mod supervisor;
mod worker_endpoints;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::clock;
use crate::config::{Config, Loaded, Origin};
use crate::ids::{Monotonic, WorkerId};
use crate::ipc::{self, IpcError, Modes, SetOwner};
use crate::signals::{STOP_DEBOUNCE, Signal};
use crate::{backoff, log, process_tree};
use admin::{Admin, Snapshot};
use evidence::{EvidenceRecorder, ProcessScope, Target};
use notify::{FdStore, NotifySocket};
use part_log::log_notice;
use plan::{Notice, Part, Plan, PlanAction, PlanEvent, PlanLimits};
use prober::Prober;
use process_sample::SuspendDetector;
use restart_stats::{RestartCause, RestartStats};
use sockets::{SetSockets, SocketError};
use state::StateWriter;
use supervisor::children::Children;
pub use supervisor::systemd::watch;
use worker_endpoints::WorkerEndpoints;

/// Why a set cannot be started or go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// Segments, bells, or another set in the same place.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// An address is taken, or not ours.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Processes of a former life do not go.
    #[error("processes of the former set do not end: {0}")]
    Leftover(String),
    /// A reload asks for what cannot change.
    #[error("{0}")]
    Changed(&'static str),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(String, io::Error),
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> WatchdogError {
    move |error| WatchdogError::System(what.into(), error)
}

/// A woken loop that is later than this was not run by the machine.
const LATE: Duration = Duration::from_millis(20);

/// Runs a whole set in the foreground until it is told to stop (SIGTERM, SIGINT; a second one stops at once).
///
/// # Errors
/// See [`WatchdogError`]. Whatever was made is removed again.
pub async fn run(loaded: Loaded) -> Result<(), WatchdogError> {
    log::init(log::LogContext::part("watchdog", &loaded.config.set.name));
    log::abort_on_panic();
    tokio::task::LocalSet::new().run_until(hold(loaded)).await
}

/// Takes the set's place, runs it, and leaves nothing behind.
async fn hold(loaded: Loaded) -> Result<(), WatchdogError> {
    // Whoever became this program may have had children: they are not ours to kill.
    let strangers: Rc<[(Pid, u64)]> =
        process_tree::descendants(Pid::this()).iter().map(|p| (p.pid, p.started)).collect();
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| system("prctl")(e.into()))?;
    // From here on a signal is an event: it must not kill us between two steps of the start.
    let stop = Signal::stop().map_err(system("signals"))?;
    let reload = Signal::reload().map_err(system("signals"))?;
    let dir = loaded.config.set.runtime_dir.clone();
    let name = loaded.config.set.name.clone();
    if ipc::is_run_by_systemd(&dir) {
        return Err(IpcError::RunBySystemd(dir).into());
    }
    ipc::prepare(&loaded.config, &Modes::default())?;
    let lock = ipc::lock_set(&dir, SetOwner::Process)?;
    let mut waived = false;
    let segments = Segments::default();
    let result = async {
        let stop = stop.into_async().map_err(system("signals"))?;
        let ended = tokio::select! {
            // Who cannot be ended keeps what it has.
            ended = stale_processes::terminate(&dir, &loaded.config) => ended.inspect_err(|_| waived = true)?,
            _ = stop.readable() => {
                // What is left goes on by itself, as it did; the next start clears it.
                waived = true;
                return Ok(());
            }
        };
        stale_processes::remove_files(&loaded.config, &ended)?;
        Watch::open(loaded, strangers.clone(), segments.clone())?.run(stop, reload).await
    }
    .await;
    if waived && result.is_err() {
        return result;
    }
    if waived {
        tracing::info!(set = %name, event = %log::Event::SetNotStarted,
            "told to stop while the former set was ending: nothing was started");
        return result;
    }
    // Whatever still runs is an orphan that no part answers for any more.
    let survivors = process_tree::kill(|p| !strangers.contains(&(p.pid, p.started)))
        .await
        .err()
        .map(|error| WatchdogError::Leftover(error.to_string()));
    // Somebody may have removed the directory, and another set may be in its place.
    let mut removed = if lock.is_in_place(&dir) { ipc::remove(&dir) } else { Ok(()) };
    for segment in segments.take().values() {
        removed = removed.and(ipc::remove_segment(segment));
    }
    let removed = removed.map_err(WatchdogError::from);
    lock.remove(&dir);
    if result.is_ok() && survivors.is_none() && removed.is_ok() {
        tracing::info!(set = %name, event = %log::Event::SetStopped,
            "the set has stopped, and nothing of it is left");
    }
    result.and(survivors.map_or(Ok(()), Err)).and(removed)
}

/// Everything of a running set.
struct Watch {
    config: Arc<Config>,
    origin: Origin,
    dir: PathBuf,
    set_epoch: u64,
    process: (u32, u64),
    plan: Plan,
    children: Children,
    exits: mpsc::UnboundedReceiver<(Part, u32)>,
    sockets: SetSockets,
    store: FdStore,
    notify: NotifySocket,
    reaches: BTreeMap<WorkerId, WorkerEndpoints>,
    prober: Prober,
    account: RestartStats,
    admin: Admin,
    witness: EvidenceRecorder,
    written: StateWriter,
    /// Children that this process had before it was the watchdog.
    strangers: Rc<[(Pid, u64)]>,
    /// The segments that are there because of us: their names are kept in files that others may remove.
    segments: Segments,
    /// Why parts have ended, in their own words.
    last_words: BTreeMap<Part, String>,
    /// Why each was started again, as the operator was told last.
    said: BTreeMap<Part, String>,
    /// Until when every part should be up; `None` once that has been judged.
    up_by: Option<Monotonic>,
    stopping_since: Option<Monotonic>,
    finished: bool,
}

/// Names of segments by worker, shared with whoever clears up in the end.
type Segments = Rc<RefCell<BTreeMap<WorkerId, String>>>;

impl Watch {
    fn open(loaded: Loaded, strangers: Rc<[(Pid, u64)]>, segments: Segments) -> Result<Self, WatchdogError> {
        let Loaded { config, origin, .. } = loaded;
        let dir = config.set.runtime_dir.clone();
        let sockets = SetSockets::open(&config)?;
        // Time since boot: no two lives of a set in one directory have the same.
        let set_epoch = clock::now().0;
        let mut reaches = BTreeMap::new();
        for id in config.workers() {
            reaches.insert(id.clone(), WorkerEndpoints::create(&config, &id, set_epoch, &segments)?);
        }
        publish(&config, &dir)?;
        let notify = dir.join("notify.sock");
        let (sender, exits) = mpsc::unbounded_channel();
        let pid = std::process::id();
        let (plan, actions) = Plan::new(&drains(&config), bounds(&config), clock::now());
        let mut watch = Self {
            children: Children::new(&dir, sender),
            exits,
            sockets,
            store: FdStore::default(),
            notify: NotifySocket::bind(&notify).map_err(system(notify.display().to_string()))?,
            reaches,
            prober: Prober::start(dir.join("probe.sock")),
            account: RestartStats::default(),
            admin: Admin::default(),
            witness: EvidenceRecorder::default(),
            written: StateWriter::default(),
            strangers,
            segments,
            last_words: BTreeMap::new(),
            said: BTreeMap::new(),
            up_by: Some(clock::now() + config.watchdog.start_timeout),
            stopping_since: None,
            finished: false,
            process: (pid, process_tree::read_process(pid).map_or(0, |process| process.started)),
            config: Arc::new(config),
            origin,
            dir,
            set_epoch,
            plan,
        };
        watch.remark();
        watch.perform(actions);
        watch.serve_admin()?;
        Ok(watch)
    }

    async fn run(mut self, mut stop: UnixStream, reload: Signal) -> Result<(), WatchdogError> {
        let mut reload = reload.into_async().map_err(system("signals"))?;
        let (mut stops, mut reloads) = ([0; 64], [0; 64]);
        let mut next_probe = clock::now() + self.config.watchdog.probe_interval;
        let beat = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        let mut next_beat = beat.map(|every| clock::now() + every);
        let mut naps = SuspendDetector::new();
        while !self.finished {
            let wake_at = [Some(next_probe), self.plan.deadline(), next_beat].into_iter().flatten().min();
            let wake_at = wake_at.unwrap_or(next_probe);
            let mut event = tokio::select! {
                biased;
                Ok(_) = stop.read(&mut stops) => Some(self.told_to_stop(clock::now())),
                // Before anything upon which somebody could be judged.
                signs = self.prober.next_report() => signs.map(PlanEvent::Report),
                Some((part, pid)) = self.exits.recv() => self.exited(part, pid),
                Ok(message) = self.notify.receive() => self.notified(message),
                Ok(_) = reload.read(&mut reloads) => self.reload(),
                () = sleep(wake_at.since(clock::now())) => None,
            };
            let now = clock::now();
            let late = now.since(wake_at);
            if late > LATE {
                tracing::debug!(
                    late_ms = late.as_millis() as u64,
                    "the watchdog was late: everybody is excused for as long"
                );
                self.witness.was_late(now, late);
                self.handle(now, PlanEvent::WatchdogLate(late));
            }
            let answer = if late > LATE { self.prober.take_buffered_report().await } else { None };
            if naps.over() {
                self.handle(now, PlanEvent::MachineResumed);
            }
            if next_probe <= now {
                next_probe = now + self.config.watchdog.probe_interval;
                if self.prober.send_probe(prober::failed_pools(&self.plan)) {
                    self.handle(now, PlanEvent::ProbeSent);
                }
            }
            if let Some(every) = beat
                && next_beat.is_some_and(|at| at <= now)
            {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                next_beat = Some(now + every);
            }
            if let Some(signs) = answer {
                self.handle(now, PlanEvent::Report(signs));
            }
            self.handle(now, event.take().unwrap_or(PlanEvent::Tick));
            if self.up_by.is_some_and(|by| by <= now) {
                self.log_start_timeout();
            }
            self.publish(now);
        }
        Ok(())
    }

    fn handle(&mut self, now: Monotonic, event: PlanEvent) {
        let actions = self.plan.handle(now, event);
        self.perform(actions);
    }

    /// SIGTERM or SIGINT has come.
    fn told_to_stop(&mut self, now: Monotonic) -> PlanEvent {
        let set = &self.config.set.name;
        if let Some(first) = self.stopping_since {
            if now.since(first) < STOP_DEBOUNCE {
                return PlanEvent::Tick;
            }
            tracing::warn!(%set, event = %log::Event::SetStoppingNow,
                    "stopping at once, on a second signal: requests in hand are cut off");
            return PlanEvent::StopNow;
        }
        self.stopping_since = Some(now);
        let at_most = drains(&self.config).into_values().max().unwrap_or_default() + bounds(&self.config).exit_grace;
        let at_most = humantime::format_duration(at_most).to_string();
        tracing::info!(%set, at_most, event = %log::Event::SetStopping,
            "stopping, on a signal: no new leases, requests in hand may finish");
        PlanEvent::Stop
    }

    fn exited(&mut self, part: Part, pid: u32) -> Option<PlanEvent> {
        // What it said comes before its end.
        while let Some(message) = self.notify.try_receive() {
            if let Some(event) = self.notified(message) {
                self.handle(clock::now(), event);
            }
        }
        let (mut how, mut cause) = self.children.reap(&part, pid)?;
        if self.plan.status().any(|(of, status)| *of == part && status.state == "starting") {
            how += " before it was ready";
            cause = RestartCause::Start;
        }
        self.account.ended(clock::now(), &part, cause);
        if let Some(words) = self.last_words.remove(&part) {
            how = format!("{how}: {words}");
        }
        tracing::debug!(pid, %part, "{part} has ended: {how}");
        Some(PlanEvent::Exited { part, cause: how, jitter: backoff::jitter() })
    }

    /// Why a part does not start is said in full once, not at every attempt.
    fn shorten(&mut self, part: &Part, telling: &mut Notice) {
        if let Notice::Restarting { cause: how, .. } = telling
            && self.said.insert(part.clone(), how.clone()).as_ref() == Some(&*how)
            && let Some((short, _)) = how.split_once(": ")
        {
            *how = format!("{short}, as before");
        }
    }

    fn notified(&mut self, message: notify::NotifyMessage) -> Option<PlanEvent> {
        let part = self.children.part(message.pid)?.clone();
        if part == Part::Dispatcher {
            self.store.apply(&message.fields, message.fds, self.config.front.connections);
        }
        if let Some(words) = message.fields.failure {
            self.last_words.insert(part.clone(), words);
        }
        if message.fields.ready {
            self.account.ready(clock::now(), &part);
        }
        message.fields.ready.then_some(PlanEvent::Ready(part))
    }

    /// Performs actions, and what follows from them, in order.
    fn perform(&mut self, actions: Vec<PlanAction>) {
        let mut queue = std::collections::VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            if let Some(event) = self.act(action) {
                queue.extend(self.plan.handle(clock::now(), event));
            }
        }
        self.write_state();
    }

    fn act(&mut self, action: PlanAction) -> Option<PlanEvent> {
        match action {
            PlanAction::Start(part) => return Some(self.start(part)),
            PlanAction::Sample(part) => {
                let look = process_sample::sample(&part, self.children.process(&part));
                return Some(PlanEvent::Sampled(part, look));
            }
            PlanAction::Signal(part, order) => self.children.order(&part, order),
            PlanAction::DeclareFrozen(part, why) => {
                self.account.declared_frozen(clock::now(), &part, self.prober.silent_since(&part));
                let pid = self.children.pid(&part);
                let subject =
                    pid.map(|pid| Target::of(&part, pid, ProcessScope::Tree, &self.config, self.prober.last_report()));
                self.witness.record(&part, &why, subject);
            }
            PlanAction::KillOrphans(id) => {
                let (known, strangers) = (self.children.pids(), self.strangers.clone());
                tokio::task::spawn_local(async move {
                    // What a dead worker had started has become a child of ours (PR_SET_CHILD_SUBREAPER).
                    let spared = |process: &process_tree::Process| {
                        known.borrow().contains(&(process.pid.as_raw() as u32))
                            || strangers.contains(&(process.pid, process.started))
                    };
                    if let Err(error) = process_tree::kill(|process| !spared(process)).await {
                        tracing::error!(event = %log::Event::ProcessSurvived,
                            "what a worker left behind cannot be killed: {error}");
                    }
                });
                if let Some(reach) = self.reaches.get(&id) {
                    reach.doorbell.ring();
                }
            }
            PlanAction::Quiesce => prober::send_quiesce(self.dir.join("probe.sock")),
            PlanAction::RemoveWorker(id) => {
                self.sockets.workers.remove(&id);
                self.reaches.remove(&id);
                let segment = self.segments.borrow_mut().remove(&id);
                let removed = ipc::retire_worker(&self.dir, &id);
                if let Err(error) = removed.and(segment.map_or(Ok(()), |name| ipc::remove_segment(&name))) {
                    tracing::error!(worker = %id, event = %log::Event::RuntimeDirError,
                        "cannot remove its segment and bells: {error}");
                }
                tracing::info!(worker = %id, event = %log::Event::WorkerRemoved, "worker has left the set");
            }
            PlanAction::Log(part, mut telling) => {
                if matches!(telling, Notice::Restarting { .. }) {
                    self.account.unplanned_restart(&part);
                }
                self.shorten(&part, &mut telling);
                log_notice(&part, telling, self.children.pid(&part));
            }
            PlanAction::AllUp => self.log_set_up(),
            PlanAction::Finish => self.finished = true,
        }
        None
    }

    fn write_state(&mut self) {
        let listeners = self.sockets.listeners.iter().map(|socket| socket.address.to_string()).collect();
        let state = state::saved_state(&self.plan, &self.config.set.name, self.process, listeners);
        self.written.write_if_changed(state, &self.dir);
    }

    /// Lets the admin thread serve on the sockets there are, by the configuration in force.
    fn serve_admin(&mut self) -> Result<(), WatchdogError> {
        self.publish(clock::now());
        let served = self.sockets.clone_admin().and_then(|sockets| self.admin.serve(sockets));
        if let Some(address) = &self.sockets.admin_tcp {
            tracing::info!("figures of the set: curl http://{}/metrics", address.address);
        }
        served.map_err(system("admin.sock"))
    }

    /// Leaves what is known for whoever asks on the admin socket.
    fn publish(&self, now: Monotonic) {
        let Some(state) = self.written.last() else { return };
        self.admin.publish(Snapshot::new(now, &self.config, state, &self.prober, &self.account));
    }

    /// Says what of the configuration only systemd can do, and what it opens.
    fn remark(&self) {
        let beyond = self.config.pools.iter().filter_map(|pool| pool.unsupported_by_run());
        for remark in beyond.chain(self.config.admin.exposure_warning()) {
            tracing::warn!("{remark}");
        }
    }
}

/// Writes the configuration in force where the parts read it: what is in the file may change at any time.
fn publish(config: &Config, dir: &Path) -> Result<(), WatchdogError> {
    let path = dir.join("applied.toml");
    let new = dir.join("applied.toml.new");
    fs::write(&new, config.to_toml()).and_then(|()| fs::rename(&new, &path)).map_err(system(path.display().to_string()))
}

fn drains(config: &Config) -> BTreeMap<WorkerId, Duration> {
    let drain = |id: &WorkerId| config.pool(&id.pool).map_or(Duration::ZERO, |pool| pool.drain_timeout);
    config.workers().map(|id| (id.clone(), drain(&id))).collect()
}

fn bounds(config: &Config) -> PlanLimits {
    let watchdog = &config.watchdog;
    PlanLimits {
        worker_timeout: watchdog.worker_timeout,
        dispatcher_timeout: watchdog.dispatcher_timeout,
        start_timeout: watchdog.start_timeout,
        abort_grace: watchdog.abort_grace,
        // The last answers linger, and a co-process gets a second to leave.
        exit_grace: config.front.linger_timeout + Duration::from_secs(1),
        restarts: backoff::limits(config),
    }
}
