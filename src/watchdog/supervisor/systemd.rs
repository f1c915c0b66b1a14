//! The watchdog of a set of systemd units: it watches, says why, and kills what is frozen. systemd does the rest.
//!
//! It is no parent of what it watches and needs no right but CAP_KILL: the processes of a unit are found by its
//! control group, their end is seen through pidfds, and why a unit has no process any more is what
//! `systemctl show` tells anybody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal as Kill;
use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::clock;
use crate::config::{Config, Loaded, Origin};
use crate::ids::Monotonic;
use crate::signals::Signal;
use crate::status::PROBE_TIMEOUT;
use crate::watchdog::admin::{Admin, Snapshot};
use crate::watchdog::evidence::{EvidenceRecorder, ProcessScope, Target};
use crate::watchdog::plan::{Absence, Notice, Part, PartSignal, Plan, PlanAction, PlanEvent, WorkerLiveness};
use crate::watchdog::prober::{self, Prober};
use crate::watchdog::restart_stats::{RestartCause, RestartStats};
use crate::watchdog::state::saved_state;
use crate::watchdog::supervisor::cgroup::Slice;
use crate::watchdog::{StateWriter, WatchdogError, bounds, drains, part_log, process_sample, system};
use crate::{log, process_tree, sys, units};

/// How often systemd is asked about parts that are gone and neither stopped nor failed.
const ASK: Duration = Duration::from_millis(500);

/// Watches the units of a set until it is told to stop, which stops nobody else.
///
/// # Errors
/// When the control groups cannot be found, and see [`WatchdogError`].
pub async fn watch(loaded: Loaded) -> Result<(), WatchdogError> {
    log::init(log::LogContext::part("watchdog", &loaded.config.set.name));
    log::abort_on_panic();
    tokio::task::LocalSet::new().run_until(async { Watch::open(loaded)?.run().await }).await
}

struct Watch {
    config: Arc<Config>,
    origin: Origin,
    plan: Plan,
    slice: Slice,
    /// The main processes that are watched.
    mains: BTreeMap<Part, (u32, OwnedFd)>,
    ended: Channel<(Part, u32)>,
    told: Channel<Vec<Told>>,
    /// Parts of which systemd is to be asked how often it has started them.
    unasked: BTreeSet<Part>,
    asking: bool,
    next_ask: Monotonic,
    prober: Prober,
    account: RestartStats,
    /// The incarnation of each part that was over last.
    over: BTreeMap<Part, u32>,
    admin: Admin,
    /// Its sockets, until the dispatcher has been heard, or at most until then: who asks meanwhile waits.
    unserved: Option<(Monotonic, Vec<OwnedFd>)>,
    witness: EvidenceRecorder,
    /// Where the state is written for `patou status`.
    state_dir: PathBuf,
    written: StateWriter,
    status: String,
    process: (u32, u64),
}

type Channel<T> = (mpsc::UnboundedSender<T>, mpsc::UnboundedReceiver<T>);

/// What systemd says of a part.
struct Told {
    part: Part,
    absence: Absence,
    active: bool,
    restarts: u32,
}

fn unit(part: &Part) -> String {
    match part {
        Part::Dispatcher => units::DISPATCHER.to_owned(),
        Part::Worker(id) => units::worker_service(id),
    }
}

impl Watch {
    fn open(loaded: Loaded) -> Result<Self, WatchdogError> {
        let Loaded { config, origin, .. } = loaded;
        let missing = |what: &'static str| WatchdogError::Changed(what);
        let slice = Slice::own().ok_or_else(|| missing("this process has no cgroup: cgroup v2 is needed"))?;
        let state_dir = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let state_dir =
            state_dir.ok_or_else(|| missing("RUNTIME_DIRECTORY is not set: systemctl start patou starts it"))?;
        let passed = sys::listen_fds().map_err(system("LISTEN_FDS"))?;
        let sockets: Vec<OwnedFd> = passed.into_iter().filter(|(_, name)| name == "admin").map(|(fd, _)| fd).collect();
        let pid = std::process::id();
        let now = clock::now();
        Ok(Self {
            plan: Plan::for_units(&drains(&config), bounds(&config), now),
            slice,
            mains: BTreeMap::new(),
            ended: mpsc::unbounded_channel(),
            told: mpsc::unbounded_channel(),
            unasked: BTreeSet::new(),
            asking: false,
            next_ask: now,
            prober: Prober::start(config.set.runtime_dir.join("probe.sock")),
            account: RestartStats::default(),
            over: BTreeMap::new(),
            admin: Admin::default(),
            unserved: Some((now + PROBE_TIMEOUT, sockets)),
            witness: EvidenceRecorder::default(),
            state_dir,
            written: StateWriter::default(),
            status: String::new(),
            process: (pid, process_tree::read_process(pid).map_or(0, |process| process.started)),
            config: Arc::new(config),
            origin,
        })
    }

    async fn run(mut self) -> Result<(), WatchdogError> {
        let mut stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
        let mut reload = Signal::reload().and_then(Signal::into_async).map_err(system("signals"))?;
        let (mut stops, mut reloads) = ([0; 64], [0; 64]);
        let mut next_probe = clock::now();
        let beat = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        let mut next_beat = beat.map(|every| clock::now() + every);
        let mut naps = process_sample::SuspendDetector::new();
        self.look();
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        loop {
            let wake_at = [Some(next_probe), self.plan.deadline(), next_beat].into_iter().flatten().min();
            let wake_at = wake_at.unwrap_or(next_probe);
            let event = tokio::select! {
                biased;
                _ = stop.read(&mut stops) => break,
                // Before anything upon which somebody could be judged.
                signs = self.prober.next_report() => self.report(signs),
                Some((part, pid)) = self.ended.1.recv() => self.exited(part, pid),
                Some(told) = self.told.1.recv() => { self.take(told); None }
                Ok(_) = reload.read(&mut reloads) => {
                    let _ = NotifyState::monotonic_usec_now()
                        .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
                    let event = self.reload();
                    let _ = sd_notify::notify(&[NotifyState::Ready]);
                    event
                }
                () = sleep(wake_at.since(clock::now())) => None,
            };
            let now = clock::now();
            let late = now.since(wake_at);
            if late > crate::watchdog::LATE {
                self.witness.was_late(now, late);
                self.handle(now, PlanEvent::WatchdogLate(late));
            }
            let answer = if late > crate::watchdog::LATE { self.prober.take_buffered_report().await } else { None };
            if naps.over() {
                self.handle(now, PlanEvent::MachineResumed);
            }
            if next_probe <= now {
                next_probe = now + self.config.watchdog.probe_interval;
                self.look();
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
            if let Some(event) = self.report(answer) {
                self.handle(now, event);
            }
            self.handle(now, event.unwrap_or(PlanEvent::Tick));
            self.publish(now)?;
        }
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        Ok(())
    }

    fn handle(&mut self, now: Monotonic, event: PlanEvent) {
        let mut queue = VecDeque::from(self.plan.handle(now, event));
        while let Some(action) = queue.pop_front() {
            match action {
                PlanAction::Sample(part) => {
                    let main = self.mains.get(&part).map(|(pid, pidfd)| (*pid, pidfd.as_fd()));
                    let look = process_sample::sample(&part, main);
                    queue.extend(self.plan.handle(clock::now(), PlanEvent::Sampled(part, look)));
                }
                PlanAction::Signal(part, order) => self.order(&part, order),
                PlanAction::DeclareFrozen(part, why) => {
                    self.account.declared_frozen(now, &part, self.prober.silent_since(&part));
                    let family = ProcessScope::Unit(self.slice.clone(), unit(&part));
                    let pid = self.pid(&part);
                    let subject =
                        pid.map(|pid| Target::of(&part, pid, family, &self.config, self.prober.last_report()));
                    self.witness.record(&part, &why, subject);
                    // Many may have frozen at once, and each record takes its time: this loop is at work.
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                }
                PlanAction::Log(part, telling) => {
                    if matches!(telling, Notice::Recovered { .. }) {
                        self.account.unplanned_restart(&part);
                    }
                    part_log::log_notice(&part, telling, self.pid(&part));
                }
                // Starting, stopping and clearing up are systemd's.
                PlanAction::Start(_)
                | PlanAction::KillOrphans(_)
                | PlanAction::Quiesce
                | PlanAction::RemoveWorker(_)
                | PlanAction::AllUp
                | PlanAction::Finish => {}
            }
        }
        self.write_state();
    }

    fn pid(&self, part: &Part) -> Option<u32> {
        self.mains.get(part).map(|(pid, _)| *pid)
    }

    fn order(&self, part: &Part, order: PartSignal) {
        let Some((_, main)) = self.mains.get(part) else { return };
        match order {
            PartSignal::Abort => {
                for signal in [Kill::SIGABRT, Kill::SIGCONT] {
                    if let Err(error) = sys::pidfd_send_signal(main.as_fd(), signal)
                        && error.raw_os_error() != Some(nix::libc::ESRCH)
                    {
                        tracing::error!(%part, event = %log::Event::ProcessSurvived,
                            "{part} cannot be killed: {error} (the watchdog needs CAP_KILL)");
                    }
                }
            }
            PartSignal::Kill => self.slice.kill(&unit(part)),
            PartSignal::Terminate | PartSignal::Reload => {}
        }
    }

    /// Finds the processes of parts that have none, and asks systemd about those that stay without.
    fn look(&mut self) {
        let now = clock::now();
        let absent: Vec<_> = self.plan.absent_parts().map(|(part, absence)| (part.clone(), absence)).collect();
        let mut unexplained = Vec::new();
        for (part, absence) in absent {
            match self.slice.main(&unit(&part)) {
                Some(main) => self.found(now, part, main.pid, main.pidfd),
                None if absence == Absence::Gone => unexplained.push(part),
                None => {}
            }
        }
        let wanted: Vec<Part> = unexplained.into_iter().chain(self.unasked.iter().cloned()).collect();
        if !wanted.is_empty() && !self.asking && self.next_ask <= now {
            self.asking = true;
            self.next_ask = now + ASK;
            self.unasked.clear();
            let answer = self.told.0.clone();
            tokio::task::spawn_local(async move { drop(answer.send(ask(wanted).await)) });
        }
    }

    fn found(&mut self, now: Monotonic, part: Part, pid: u32, pidfd: OwnedFd) {
        let watch = pidfd.try_clone().and_then(sys::when_readable);
        let (ended, of) = (self.ended.0.clone(), part.clone());
        tokio::task::spawn_local(async move {
            if let Ok(watch) = watch {
                let _ = watch.readable().await;
            }
            let _ = ended.send((of, pid)); // the watchdog itself is ending
        });
        self.mains.insert(part.clone(), (pid, pidfd));
        self.unasked.insert(part.clone());
        self.handle(now, PlanEvent::Started(part.clone(), pid));
        if part != Part::Dispatcher {
            // Whether a worker is ready the dispatcher knows, which asks nobody else.
            self.handle(now, PlanEvent::Ready(part));
        }
    }

    fn exited(&mut self, part: Part, pid: u32) -> Option<PlanEvent> {
        if self.pid(&part) != Some(pid) {
            return None;
        }
        self.mains.remove(&part);
        self.next_ask = clock::now();
        self.account.ended(self.next_ask, &part, RestartCause::Ended);
        let known = self.prober.last_report().map(|(_, report)| prober::incarnations(report)).into_iter().flatten();
        self.over.extend(known.filter(|(of, ..)| *of == part).map(|(of, epoch, _)| (of, epoch)));
        Some(PlanEvent::Exited { part, cause: "its process has ended".to_owned(), jitter: 0.5 })
    }

    fn report(&mut self, signs: Option<Vec<WorkerLiveness>>) -> Option<PlanEvent> {
        let signs = signs?;
        self.settle_recoveries();
        // It answers: so it is ready, whoever has started it.
        self.handle(clock::now(), PlanEvent::Ready(Part::Dispatcher));
        Some(PlanEvent::Report(signs))
    }

    /// Parts that are ready as far as the dispatcher knows, which is ready itself.
    fn settle_recoveries(&mut self) {
        let Some((now, report)) = self.prober.last_report().cloned() else { return };
        for (part, epoch, serves) in prober::incarnations(&report) {
            // Of an end that the dispatcher has not seen yet it says nothing new.
            if serves && self.mains.contains_key(&part) && self.over.get(&part) != Some(&epoch) {
                self.account.ready(now, &part);
            }
        }
    }

    fn take(&mut self, told: Vec<Told>) {
        self.asking = false;
        for Told { part, absence, active, restarts } in told {
            if self.unasked.contains(&part) {
                continue; // said of its former life
            }
            if !active && self.mains.contains_key(&part) {
                self.unasked.insert(part); // on its way: what became of it is to be told then
                continue;
            }
            if active && part == Part::Dispatcher && self.mains.contains_key(&part) {
                // It has told systemd that it is ready. Its first answer would say so too, but who freezes before it
                // would be taken for one that starts for as long as systemd lets it live.
                self.handle(clock::now(), PlanEvent::Ready(part.clone()));
            }
            self.handle(clock::now(), PlanEvent::UnitState { part, absence, restarts });
        }
    }

    fn reload(&mut self) -> Option<PlanEvent> {
        let path = match &self.origin {
            Origin::File(path) => Some(path.as_path()),
            Origin::BuiltIn => None,
        };
        match Config::load(path) {
            Ok(loaded) => {
                self.config = Arc::new(loaded.config);
                let (workers, bounds) = (drains(&self.config), bounds(&self.config));
                self.mains.retain(|part, _| part.worker().is_none_or(|id| workers.contains_key(id)));
                let change = crate::watchdog::plan::ConfigChange {
                    workers,
                    reload: Vec::new(),
                    restart: Vec::new(),
                    restart_dispatcher: false,
                    limits: bounds,
                };
                tracing::info!(event = %log::Event::ReloadApplied, workers = change.workers.len(), "configuration applied");
                Some(PlanEvent::Apply(change))
            }
            Err(error) => {
                tracing::error!(event = %log::Event::ReloadRefused, "reload refused, the configuration in force stays: {error}");
                None
            }
        }
    }

    fn publish(&mut self, now: Monotonic) -> Result<(), WatchdogError> {
        let Some(state) = self.written.last() else { return Ok(()) };
        self.admin.publish(Snapshot::new(now, &self.config, state, &self.prober, &self.account));
        let heard = self.prober.last_report().is_some();
        match self.unserved.take_if(|(at_most, _)| heard || *at_most <= now) {
            Some((_, sockets)) => self.admin.serve(sockets).map_err(system("admin.sock")),
            None => Ok(()),
        }
    }

    fn write_state(&mut self) {
        let listeners = self.config.listeners.iter().map(|listener| listener.address.to_string()).collect();
        let state = saved_state(&self.plan, &self.config.set.name, self.process, listeners);
        let Some(state) = self.written.write_if_changed(state, &self.state_dir) else { return };
        let up = state.workers.values().filter(|part| part.state == "up").count();
        let status = format!("dispatcher {}, {up} of {} workers up", state.dispatcher.state, state.workers.len());
        if status != self.status {
            let _ = sd_notify::notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

/// Asks systemd, which tells everybody. Without an answer nothing is known, and it is asked again.
async fn ask(parts: Vec<Part>) -> Vec<Told> {
    let units: Vec<_> = parts.iter().map(unit).collect();
    let show = ["show", "--property=Id,ActiveState,NRestarts"];
    let output = Command::new("systemctl").args(show).args(&units).kill_on_drop(true).output().await;
    let Ok(output) = output else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks = text.split("\n\n").filter_map(|block| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let part = parts.iter().zip(&units).find(|(_, unit)| Some(unit.as_str()) == value("Id"))?.0.clone();
        let active = value("ActiveState")?;
        let absence = match active {
            "inactive" => Absence::Stopped,
            "failed" => Absence::Failed,
            _ => Absence::Gone,
        };
        let restarts = value("NRestarts").and_then(|n| n.parse().ok()).unwrap_or(0);
        Some(Told { part, absence, active: active == "active", restarts })
    });
    blocks.collect()
}
