//! The segments and doorbells of workers that have no open slot, and those that the supervisor holds because their names
//! were removed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::clock;
use crate::ids::{Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::ipc::{PassedObjects, WorkerObject};
use crate::shm::Segment;

/// The interval between two looks for objects whose names were removed: a system call for each worker.
const NAMES_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of them.
pub(super) struct UnopenedObjects {
    /// Passed by the supervisor, for slots that are not open yet.
    passed: BTreeMap<WorkerId, PassedObjects>,
    /// New objects of workers of which some have not arrived yet.
    arriving: BTreeMap<WorkerId, PassedObjects>,
    /// The workers whose objects cannot be opened, and since when files of them are missing.
    unopened: BTreeMap<WorkerId, Option<Monotonic>>,
    /// When the slots were last checked for lost names.
    names_checked: Monotonic,
}

impl UnopenedObjects {
    /// `passed` are the objects that the supervisor passed at the start.
    pub(super) fn new(passed: BTreeMap<WorkerId, PassedObjects>) -> Self {
        let (arriving, unopened) = (BTreeMap::new(), BTreeMap::new());
        Self { passed, arriving, unopened, names_checked: clock::now() }
    }

    /// What the supervisor has passed for this worker.
    pub(super) fn passed(&self, id: &WorkerId) -> Option<&PassedObjects> {
        self.passed.get(id)
    }

    /// Takes an object of a worker that has new ones. With the last of them, returns the worker and all its objects.
    pub(super) fn receive(&mut self, name: &str, fd: OwnedFd) -> Option<(WorkerId, PassedObjects)> {
        PassedObjects::collect(&mut self.arriving, name, fd);
        let is_complete = |passed: &PassedObjects| passed.path(WorkerObject::Handoff).is_some();
        let id = self.arriving.iter().find_map(|(id, passed)| is_complete(passed).then(|| id.clone()))?;
        self.arriving.remove_entry(&id)
    }

    /// The next slot of this worker is opened from these objects: their names may have been removed again.
    pub(super) fn pass(&mut self, id: WorkerId, objects: PassedObjects) {
        self.passed.insert(id, objects);
    }

    /// Whether the supervisor has passed another segment than the slot's. Objects of the slot itself are closed.
    pub(super) fn has_passed_another(&mut self, id: &WorkerId, held: &Segment) -> bool {
        if self.passed.get(id).is_some_and(|passed| passed.has_segment(held.as_fd())) {
            self.passed.remove(id);
        }
        self.passed.contains_key(id)
    }

    /// The slot of this worker is open; it has opened the passed objects once more.
    pub(super) fn set_opened(&mut self, id: &WorkerId) {
        self.unopened.remove(id);
        self.passed.remove(id);
    }

    /// The objects of this worker cannot be opened; whether this is new. `is_lost`: files of them are missing.
    pub(super) fn set_unopened(&mut self, id: WorkerId, is_lost: bool) -> bool {
        let is_new = !self.unopened.contains_key(&id);
        let since = self.unopened.entry(id).or_default();
        *since = is_lost.then(|| since.unwrap_or(clock::now()));
        is_new
    }

    /// Since when files of this worker have been missing. It lives, and gets no clients; its next start creates them
    /// again.
    pub(super) fn lost_since(&self, pool: &PoolName, n: WorkerNumber) -> Option<Monotonic> {
        let is_worker = |id: &WorkerId| id.pool == *pool && id.number == n;
        self.unopened.iter().find(|(id, _)| is_worker(id)).and_then(|(_, since)| *since)
    }

    /// Whether the slots must be checked for lost names, once per [`NAMES_CHECK_INTERVAL`].
    pub(super) fn is_check_due(&mut self) -> bool {
        let now = clock::now();
        let is_due = now.since(self.names_checked) >= NAMES_CHECK_INTERVAL;
        if is_due {
            self.names_checked = now;
        }
        is_due
    }
}
