//! The objects of one worker, as the supervisor of a set holds them while the set runs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::directory::create_file;
use super::error::{IpcError, at};
use super::modes::Modes;
use super::observed_worker::ObservedWorker;
use super::passed::WorkerObject;
use super::worker_ipc::WorkerPaths;
use crate::doorbell::Doorbell;
use crate::held_file::HeldFile;
use crate::ids::WorkerId;
use crate::shm::{self, SegmentRole, SlotSnapshot};

/// Segment and doorbells of a worker. The segment is locked: whatever becomes of files and other processes, a set whose
/// supervisor lives is not taken for a dead one.
#[derive(Debug)]
pub(crate) struct HeldWorker {
    name: String,
    record: PathBuf,
    segment: HeldFile<File>,
    to_worker: HeldFile,
    to_dispatcher: HeldFile<Doorbell>,
}

impl HeldWorker {
    /// Opens and locks what [`super::create_worker`] has created.
    pub(crate) fn open(dir: &Path, id: &WorkerId, name: String) -> Result<Self, IpcError> {
        let paths = WorkerPaths::new(dir, id);
        let object = shm::path(&name);
        let segment = File::options().read(true).write(true).open(&object).map_err(at(&object))?;
        shm::try_lock(&segment, SegmentRole::Supervisor.bytes()).map_err(|error| at(&object)(error.into()))?;
        let bell = &paths.to_dispatcher;
        Ok(Self {
            name,
            segment: HeldFile::of(object, segment),
            to_worker: HeldFile::open(&paths.to_worker).map_err(at(&paths.to_worker))?,
            to_dispatcher: HeldFile::of(bell.clone(), Doorbell::open(bell, None).map_err(at(bell))?),
            record: paths.segment,
        })
    }

    /// The name of the segment.
    pub(crate) fn segment_name(&self) -> &str {
        &self.name
    }

    /// The paths of segment and doorbells.
    pub(crate) fn paths(&self) -> [&Path; 3] {
        [self.segment.path(), self.to_worker.path(), self.to_dispatcher.path()]
    }

    /// Whether segment and doorbells can be found by their names.
    pub(crate) fn is_in_place(&self) -> bool {
        self.segment.is_in_place() && self.to_worker.is_in_place() && self.to_dispatcher.is_in_place()
    }

    /// Rings for the worker: the dispatcher reads its slot.
    pub(crate) fn ring(&self) {
        self.to_dispatcher.get().ring();
    }

    /// References to segment, `dw` and `wd`, for another process.
    pub(crate) fn references(&self) -> io::Result<[(WorkerObject, OwnedFd); 3]> {
        Ok([
            (WorkerObject::Segment, self.segment.reference()?),
            (WorkerObject::ToWorker, self.to_worker.reference()?),
            (WorkerObject::ToDispatcher, self.to_dispatcher.reference()?),
        ])
    }

    /// What an observer sees of the worker, whatever became of the names.
    pub(crate) fn observe(&self) -> Result<ObservedWorker, IpcError> {
        let bell = self.to_worker.descriptor_path();
        let to_worker = Doorbell::open_descriptor(&bell, None).map_err(at(&bell))?;
        ObservedWorker::of(self.segment.get(), &self.name, to_worker)
    }

    /// The content of the slot.
    pub(crate) fn slot(&self) -> Result<SlotSnapshot, IpcError> {
        Ok(SlotSnapshot::of(self.segment.get(), &self.name)?)
    }

    /// The number under which readers find the segment in `/proc` of this process.
    pub(crate) fn segment_fd(&self) -> RawFd {
        self.segment.get().as_raw_fd()
    }

    /// Writes the file that names the segment, if it is missing. Returns whether it was.
    pub(crate) fn restore_record(&self) -> Result<bool, IpcError> {
        match create_file(&self.record, &self.name, &Modes::default()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(at(&self.record)(error)),
        }
    }
}
