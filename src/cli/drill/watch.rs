//! Watches the set during a drill: reads the watchdog's state file whenever it changes, and notices when the machine
//! delays the drill itself.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::fault::DrillPart;
use super::fault_tracker::{FaultTracker, PartObservation};
use crate::cli::patou_run::all_parts_up;
use crate::clock;
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::{Lifecycle, Monotonic, ProcessId, WorkerId};
use crate::ipc;
use crate::procfs::ProcessStat;
use crate::status::{SavedPart, SavedState};
use crate::sync::lock;

/// How often the state file is checked.
const INTERVAL: Duration = Duration::from_millis(1);
/// A check that is later than this was delayed by the machine.
const MAX_DELAY: Duration = Duration::from_millis(10);

/// What is known of the parts, shared by all threads of the drill.
#[derive(Debug, Default)]
pub(super) struct SetWatch {
    tracker: Mutex<FaultTracker>,
    processes: Mutex<HashMap<DrillPart, ProcessId>>,
    delays: Mutex<Vec<(Monotonic, Duration)>>,
    listeners: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

impl SetWatch {
    pub(super) fn tracker(&self) -> MutexGuard<'_, FaultTracker> {
        lock(&self.tracker)
    }

    /// The process of a part.
    pub(super) fn process(&self, part: DrillPart) -> Option<ProcessId> {
        lock(&self.processes).get(&part).copied()
    }

    /// The current addresses of the listeners, in the order of the configuration.
    pub(super) fn listeners(&self) -> Vec<String> {
        lock(&self.listeners).clone()
    }

    /// When the machine delayed the drill, and by how much.
    pub(super) fn delays(&self) -> Vec<(Monotonic, Duration)> {
        lock(&self.delays).clone()
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Watches until [`SetWatch::stop`].
    pub(super) fn run(&self, config: &Config) {
        let dir = &config.set.runtime_dir;
        let file = if ipc::is_run_by_systemd(dir) { Path::new(ipc::WATCHDOG_DIR) } else { dir }.join("watchdog.json");
        let workers: Vec<WorkerId> = config.workers().collect();
        let (mut version_read, mut state): (_, Option<SavedState>) = (None, None);
        while !self.stopped.load(Ordering::Relaxed) {
            self.sleep();
            let version = fs::metadata(&file).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec()));
            let changed = version != version_read;
            if changed {
                let new = SavedState::read(dir).ok();
                version_read = version.filter(|_| new.is_some());
                if let (Some(old), Some(new)) = (&state, &new)
                    && old.pid != new.pid
                {
                    self.tracker().watchdog_changed();
                }
                state = new.or(state);
            }
            let Some(state) = &state else { continue };
            // The state file of a dead watchdog is out of date.
            if state.watchdog().is_none() {
                let gone = PartObservation { cause: "gone".into(), ..PartObservation::default() };
                self.tracker().observe(clock::now(), DrillPart::Watchdog, &gone);
                continue;
            }
            if changed {
                self.update_processes(state, &workers);
            }
            self.observe(config, state, &workers);
        }
    }

    fn sleep(&self) {
        let before = Instant::now();
        std::thread::sleep(INTERVAL);
        let delay = before.elapsed().saturating_sub(INTERVAL);
        if delay > MAX_DELAY {
            lock(&self.delays).push((clock::now(), delay));
            self.tracker().extend_settling(delay);
        }
    }

    fn update_processes(&self, state: &SavedState, workers: &[WorkerId]) {
        *lock(&self.listeners) = state.listeners.clone();
        let mut processes = lock(&self.processes);
        processes.insert(DrillPart::Watchdog, ProcessId { pid: state.pid, start_time: state.started });
        for (part, saved) in parts(state, workers) {
            match saved.pid.and_then(ProcessStat::of).map(|stat| stat.id()) {
                Some(process) => drop(processes.insert(part, process)),
                None => drop(processes.remove(&part)),
            }
        }
    }

    fn observe(&self, config: &Config, state: &SavedState, workers: &[WorkerId]) {
        let mut tracker = self.tracker();
        let now = clock::now();
        for (part, saved) in parts(state, workers) {
            let mut up = saved.state == "up";
            // The slot of a worker must agree; it is read only while a fault of the worker is open.
            if let DrillPart::Worker(index) = part
                && up
                && !tracker.is_available(part)
            {
                up = is_ready_in_slot(config, &workers[index], saved.pid);
            }
            let cause = saved.cause.clone().unwrap_or_default();
            tracker.observe(now, part, &PartObservation { pid: saved.pid, frozen: saved.state == "frozen", up, cause });
        }
        // A watchdog that was killed has recovered when all parts are up.
        let up = !tracker.has_open_fault(DrillPart::Watchdog) || all_parts_up(state);
        let watchdog = PartObservation { pid: Some(state.pid), frozen: false, up, cause: String::new() };
        tracker.observe(now, DrillPart::Watchdog, &watchdog);
        tracker.tick(now);
    }
}

fn parts<'a>(state: &'a SavedState, workers: &'a [WorkerId]) -> impl Iterator<Item = (DrillPart, &'a SavedPart)> {
    let worker =
        |(index, id): (usize, &WorkerId)| Some((DrillPart::Worker(index), state.workers.get(&id.to_string())?));
    std::iter::once((DrillPart::Dispatcher, &state.dispatcher)).chain(workers.iter().enumerate().filter_map(worker))
}

/// Whether the slot names this process as ready.
fn is_ready_in_slot(config: &Config, id: &WorkerId, pid: Option<u32>) -> bool {
    let incarnation = match ipc::open(config, id) {
        Ok(parts) => Incarnation::load(&parts.segment),
        // A worker keeps its segment and its doorbells although their files are removed.
        Err(error) => return error.damage().is_none(),
    };
    incarnation.is_some_and(|incarnation| Some(incarnation.pid) == pid && incarnation.state == Lifecycle::Ready)
}
