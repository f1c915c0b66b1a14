//! Why the objects of a set cannot be created, opened or removed.

use std::io;
use std::path::{Path, PathBuf};

use crate::ids::WorkerId;
use crate::shm::{Damage, SegmentError};

/// Why the objects of a set cannot be created, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// A file or directory.
    #[error("{}: {cause}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A process runs a set in this directory.
    #[error(
        "a set is running in {}{}: stop it first, or give this one another set.runtime_dir",
        dir.display(), if *pid == 0 { String::new() } else { format!(" (pid {pid})") }
    )]
    AlreadyRunning {
        /// The directory.
        dir: PathBuf,
        /// The process; 0 if it is unknown.
        pid: u32,
    },
    /// Processes of another version run. This version cannot read their segments.
    #[error(
        "a set of another version of patou (segment layout {layout}) still runs in {}: \
         stop it with that version, or end its processes",
        dir.display()
    )]
    OtherVersion {
        /// The directory.
        dir: PathBuf,
        /// The layout of their segments.
        layout: u64,
    },
    /// systemd runs the set in this directory.
    #[error(
        "the set in {} is run by systemd: \
         stop it first (systemctl stop patou), or give this one another set.runtime_dir",
        .0.display()
    )]
    RunBySystemd(PathBuf),
    /// The objects of this worker do not exist.
    #[error("{} has no worker {worker}: is the set running?", dir.display())]
    NoWorker {
        /// The directory.
        dir: PathBuf,
        /// The worker.
        worker: WorkerId,
    },
}

impl IpcError {
    /// The damage of a segment, if that is the cause.
    pub fn damage(&self) -> Option<Damage> {
        match self {
            IpcError::Segment(SegmentError::Damaged { damage, .. }) => Some(*damage),
            _ => None,
        }
    }
}

/// Names the path of an I/O error.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> IpcError + '_ {
    move |cause| IpcError::Path { path: path.to_owned(), cause }
}
