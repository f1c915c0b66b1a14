//! What an observer sees of a worker: it copies the slot, and neither maps nor writes it.

use std::fs::File;
use std::path::Path;

use super::directory::owner_of;
use super::error::{IpcError, at};
use super::worker_ipc::{WorkerPaths, segment_name};
use crate::doorbell::Doorbell;
use crate::ids::WorkerId;
use crate::shm::{self, SegmentRole, SlotSnapshot};

/// A worker at one moment.
#[derive(Debug)]
pub(crate) struct ObservedWorker {
    /// A copy of its slot.
    pub slot: SlotSnapshot,
    /// Whether an incarnation has attached and lives.
    pub has_incarnation: bool,
    /// Rung by the dispatcher; a byte in it carries nothing, so an observer may ring as well.
    pub to_worker: Doorbell,
}

impl ObservedWorker {
    /// Finds the worker by the names of its segment and doorbell, which must belong to this user, to root, or to the
    /// owner of the runtime directory.
    pub(crate) fn find(dir: &Path, id: &WorkerId) -> Result<Self, IpcError> {
        let (paths, owner) = (WorkerPaths::new(dir, id), owner_of(dir));
        let name = segment_name(dir, id)?;
        let to_worker = Doorbell::open(&paths.to_worker, owner).map_err(at(&paths.to_worker))?;
        Self::of(&SlotSnapshot::open(&name, owner)?, &name, to_worker)
    }

    pub(super) fn of(segment: &File, name: &str, to_worker: Doorbell) -> Result<Self, IpcError> {
        let has_incarnation = shm::is_locked(segment, SegmentRole::Worker.bytes()).unwrap_or(false);
        Ok(Self { slot: SlotSnapshot::of(segment, name)?, has_incarnation, to_worker })
    }
}
