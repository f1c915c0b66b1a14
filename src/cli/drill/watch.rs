//! Watches the set while it is drilled: reads what the watchdog writes as soon as it is written, and notices when
//! the drill itself is run too late.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::fault_tracker::{Sight, Tracker};
use super::generator::Part;
use super::set::is_up;
use crate::clock;
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::{Lifecycle, Monotonic, WorkerId};
use crate::ipc;
use crate::process_tree;
use crate::status::{SavedPart, SavedState};
use crate::units;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(1);
/// A look that is later than this was not run by the machine.
const LATE: Duration = Duration::from_millis(10);

/// What is known of the parts, shared by all threads of the drill.
#[derive(Debug, Default)]
pub struct Watch {
    tracker: Mutex<Tracker>,
    /// Process and start time of each part.
    identities: Mutex<HashMap<Part, (u32, u64)>>,
    late: Mutex<Vec<(Monotonic, Duration)>>,
    listeners: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// A lock that is held by a thread that panicked is no worse than before.
pub fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    pub fn tracker(&self) -> MutexGuard<'_, Tracker> {
        held(&self.tracker)
    }

    /// The process of a part, with its start time.
    pub fn identity(&self, part: Part) -> Option<(u32, u64)> {
        held(&self.identities).get(&part).copied()
    }

    /// Where the listeners are now, in the order of the configuration.
    pub fn listeners(&self) -> Vec<String> {
        held(&self.listeners).clone()
    }

    /// When the drill was run too late, and by how much.
    pub fn late(&self) -> Vec<(Monotonic, Duration)> {
        held(&self.late).clone()
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Watches until [`Watch::end`].
    pub fn run(&self, config: &Config) {
        let dir = &config.set.runtime_dir;
        let file = if ipc::is_run_by_systemd(dir) { Path::new(units::WATCHDOG_DIR) } else { dir }.join("watchdog.json");
        let workers: Vec<WorkerId> = config.workers().collect();
        let (mut read, mut state): (_, Option<SavedState>) = (None, None);
        while !self.over.load(Ordering::Relaxed) {
            let before = Instant::now();
            std::thread::sleep(LOOK);
            let late = before.elapsed().saturating_sub(LOOK);
            if late > LATE {
                held(&self.late).push((clock::now(), late));
                self.tracker().postpone(late);
            }
            let now_there = fs::metadata(&file).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec()));
            let changed = now_there != read;
            if changed {
                let new = SavedState::read(dir).ok();
                read = now_there.filter(|_| new.is_some());
                if let (Some(old), Some(new)) = (&state, &new)
                    && old.pid != new.pid
                {
                    self.tracker().forget();
                }
                state = new.or(state);
            }
            let Some(state) = &state else { continue };
            // What a watchdog wrote that is dead says nothing about now.
            if state.watchdog().is_none() {
                self.tracker().see(clock::now(), Part::Watchdog, &Sight { cause: "gone".into(), ..Sight::default() });
                continue;
            }
            if changed {
                self.identify(state, &workers);
            }
            self.look(config, state, &workers);
        }
    }

    fn identify(&self, state: &SavedState, workers: &[WorkerId]) {
        *held(&self.listeners) = state.listeners.clone();
        let mut identities = held(&self.identities);
        identities.insert(Part::Watchdog, (state.pid, state.started));
        for (part, of) in parts(state, workers) {
            match of.pid.and_then(|pid| Some((pid, process_tree::read_process(pid)?.started))) {
                Some(identity) => drop(identities.insert(part, identity)),
                None => drop(identities.remove(&part)),
            }
        }
    }

    fn look(&self, config: &Config, state: &SavedState, workers: &[WorkerId]) {
        let mut tracker = self.tracker();
        let now = clock::now();
        for (part, of) in parts(state, workers) {
            let mut up = of.state == "up";
            // Up is who says so in the slot too; looked at only where somebody waits for it.
            if let (true, false, Part::Worker(index)) = (up, tracker.is_free(part), part) {
                up = serves(config, &workers[index], of.pid);
            }
            let cause = of.cause.clone().unwrap_or_default();
            tracker.see(now, part, &Sight { pid: of.pid, accused: of.state == "frozen", up, cause });
        }
        // One that was killed is back when everybody is.
        let up = !tracker.is_held(Part::Watchdog) || is_up(state);
        let watchdog = Sight { pid: Some(state.pid), accused: false, up, cause: String::new() };
        tracker.see(now, Part::Watchdog, &watchdog);
        tracker.tick(now);
    }
}

fn parts<'a>(state: &'a SavedState, workers: &'a [WorkerId]) -> impl Iterator<Item = (Part, &'a SavedPart)> {
    let worker = |(index, id): (usize, &WorkerId)| Some((Part::Worker(index), state.workers.get(&id.to_string())?));
    std::iter::once((Part::Dispatcher, &state.dispatcher)).chain(workers.iter().enumerate().filter_map(worker))
}

/// Whether the slot says that this process serves.
fn serves(config: &Config, id: &WorkerId, pid: Option<u32>) -> bool {
    let life = ipc::open(config, id).ok().and_then(|parts| Incarnation::load(&parts.segment));
    life.is_some_and(|life| Some(life.pid) == pid && life.state == Lifecycle::Ready)
}
