//! The worker's endpoints that outlive its incarnations.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use super::error::{WatchdogError, system};
use crate::config::Config;
use crate::handoff;
use crate::held_file::HeldFile;
use crate::ids::WorkerId;
use crate::ipc::{self, HeldWorker, Modes, WorkerObject};

/// The names of the set's segments by worker, shared with the code that removes them at the end.
pub(super) type SegmentNames = Rc<RefCell<BTreeMap<WorkerId, String>>>;

/// What the watchdog keeps open for a worker.
pub(super) struct WorkerEndpoints {
    /// Its segment and doorbells.
    pub objects: HeldWorker,
    /// The socket through which connections are passed to the worker: those in its queue outlive an incarnation.
    pub handoff: OwnedFd,
    handoff_file: HeldFile,
}

impl WorkerEndpoints {
    /// Creates the worker's segment, doorbells and handoff socket.
    pub(super) fn create(
        config: &Config,
        id: &WorkerId,
        set_epoch: u64,
        segments: &SegmentNames,
    ) -> Result<Self, WatchdogError> {
        Self::create_with(config, id, set_epoch, segments, &[])
    }

    /// Creates them again, after files of these were removed, with the content of the slot. No incarnation of the worker
    /// lives; the dispatcher uses the old ones until it has read what they contain.
    pub(super) fn recreate(
        &self,
        config: &Config,
        id: &WorkerId,
        set_epoch: u64,
        segments: &SegmentNames,
    ) -> Result<Self, WatchdogError> {
        // A damaged slot has no content to keep.
        let content = self.objects.slot().map(|slot| slot.words()).unwrap_or_default();
        ipc::remove_segment(self.objects.segment_name())?;
        Self::create_with(config, id, set_epoch, segments, &content)
    }

    fn create_with(
        config: &Config,
        id: &WorkerId,
        set_epoch: u64,
        segments: &SegmentNames,
        content: &[u64],
    ) -> Result<Self, WatchdogError> {
        let dir = &config.set.runtime_dir;
        let name = ipc::recreate_worker(config, id, set_epoch, &Modes::default(), content)?;
        segments.borrow_mut().insert(id.clone(), name.clone());
        let opened = (|| {
            let path = ipc::handoff_path(dir, id);
            let bound = handoff::bind_handoff_socket(&path).and_then(|socket| Ok((socket, HeldFile::open(&path)?)));
            let (handoff, handoff_file) = bound.map_err(system(path.display().to_string()))?;
            Ok(Self { objects: HeldWorker::open(dir, id, name.clone())?, handoff, handoff_file })
        })();
        if opened.is_err() {
            let _ = ipc::remove_segment(&name); // the next attempt records another name
        }
        opened
    }

    /// Whether all of them can be found by their names.
    pub(super) fn is_in_place(&self) -> bool {
        self.objects.is_in_place() && self.handoff_file.is_in_place()
    }

    /// Their files.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.objects.paths().into_iter().chain([self.handoff_file.path()]).map(PathBuf::from).collect()
    }

    /// References to them, by which a dispatcher finds them without their names.
    pub(super) fn references(&self) -> io::Result<Vec<(WorkerObject, OwnedFd)>> {
        let objects = self.objects.references()?;
        Ok(objects.into_iter().chain([(WorkerObject::Handoff, self.handoff_file.reference()?)]).collect())
    }
}
