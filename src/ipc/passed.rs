//! A worker's objects as a supervisor passes them to a new incarnation of the worker or the dispatcher, for the case
//! that their names were removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::stat::fstat;

use crate::ids::{ProcessId, WorkerId};

/// The environment variable that holds the numbers of a worker's descriptors: segment, `dw`, `wd`. They stay open and
/// are passed on when the worker executes itself again. They only refer to the files (`O_PATH`).
pub(crate) const PASSED_TO_WORKER: &str = "PATOU_IPC_FDS";

/// The environment variable that tells which runtime directory a process of `patou run` belongs to. Parts leave it to what
/// they start, except to the programs of handlers.
pub(crate) const RUNTIME_DIR: &str = "PATOU_RUNTIME_DIR";

/// The environment variable that tells which watchdog has started a process of `patou run`: pid and start time. It is left
/// to the same processes.
pub(crate) const WATCHDOG: &str = "PATOU_WATCHDOG";

/// The value of [`WATCHDOG`].
pub(crate) fn watchdog_mark(id: ProcessId) -> String {
    format!("{}.{}", id.pid, id.start_time)
}

/// Parses such a value.
pub(crate) fn parse_watchdog_mark(mark: &[u8]) -> Option<ProcessId> {
    let (pid, start_time) = std::str::from_utf8(mark).ok()?.split_once('.')?;
    Some(ProcessId { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
}

/// How the names of such descriptors start where a list holds those of many workers.
const PREFIX: &str = "ipc.";

/// One object of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WorkerObject {
    /// The segment.
    Segment,
    /// The doorbell that the dispatcher rings.
    ToWorker,
    /// The doorbell that the worker rings.
    ToDispatcher,
    /// The socket on which the worker receives connections.
    Handoff,
}

impl WorkerObject {
    const ALL: [(WorkerObject, &str); 4] = [
        (WorkerObject::Segment, "segment"),
        (WorkerObject::ToWorker, "dw"),
        (WorkerObject::ToDispatcher, "wd"),
        (WorkerObject::Handoff, "sock"),
    ];

    /// The name of its descriptor in `LISTEN_FDNAMES` and in the descriptor store.
    pub(crate) fn descriptor_name(self, id: &WorkerId) -> String {
        let kind = Self::ALL.iter().find(|(object, _)| *object == self).map_or("", |(_, kind)| *kind);
        format!("{PREFIX}{kind}.{}", id.instance())
    }

    /// Parses such a name.
    fn parse(name: &str) -> Option<(Self, WorkerId)> {
        let (kind, id) = name.strip_prefix(PREFIX)?.split_once('.')?;
        let (object, _) = Self::ALL.into_iter().find(|(_, name)| *name == kind)?;
        Some((object, id.parse().ok()?))
    }
}

/// The descriptors of one worker.
#[derive(Debug, Default)]
pub(crate) struct PassedObjects {
    paths: BTreeMap<WorkerObject, PathBuf>,
    /// Those that are closed when they have been used.
    _owned: Vec<OwnedFd>,
}

impl PassedObjects {
    /// Those that this worker process has inherited, if any.
    pub(crate) fn of_this_worker() -> Option<Self> {
        let numbers = std::env::var(PASSED_TO_WORKER).ok()?;
        let objects = [WorkerObject::Segment, WorkerObject::ToWorker, WorkerObject::ToDispatcher];
        let path = |number: &str| Some(descriptor_path(number.parse().ok()?));
        let paths: Option<Vec<_>> = numbers.split(':').map(path).collect();
        let paths = objects.into_iter().zip(paths.filter(|paths| paths.len() == objects.len())?).collect();
        Some(Self { paths, _owned: Vec::new() })
    }

    /// Adds a descriptor to those of its worker; returns it if its name is not one of [`WorkerObject::descriptor_name`].
    pub(crate) fn collect(all: &mut BTreeMap<WorkerId, Self>, name: &str, fd: OwnedFd) -> Option<OwnedFd> {
        let Some((object, id)) = WorkerObject::parse(name) else { return Some(fd) };
        let passed = all.entry(id).or_default();
        passed.paths.insert(object, descriptor_path(fd.as_raw_fd()));
        passed._owned.push(fd);
        None
    }

    /// Whether the segment is this one.
    pub(crate) fn has_segment(&self, segment: BorrowedFd<'_>) -> bool {
        let passed = self.path(WorkerObject::Segment).map(fs::metadata);
        let other = fstat(segment);
        passed
            .is_some_and(|passed| passed.is_ok_and(|a| other.is_ok_and(|b| (a.dev(), a.ino()) == (b.st_dev, b.st_ino))))
    }

    /// A path to one object, while these descriptors are open.
    pub(crate) fn path(&self, object: WorkerObject) -> Option<&PathBuf> {
        self.paths.get(&object)
    }
}

fn descriptor_path(number: i32) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_a_watchdog_can_be_parsed() {
        let id = ProcessId { pid: 4711, start_time: 1 << 40 };
        assert_eq!(parse_watchdog_mark(watchdog_mark(id).as_bytes()), Some(id));
        for other in ["", "4711", "4711.", ".1", "-1.1"] {
            assert_eq!(parse_watchdog_mark(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn name_of_a_passed_descriptor_can_be_parsed() {
        let id: WorkerId = "some_pool-12".parse().unwrap();
        for (object, _) in WorkerObject::ALL {
            let name = object.descriptor_name(&id);
            assert!(!name.contains(':'), "{name}");
            assert_eq!(WorkerObject::parse(&name), Some((object, id.clone())));
        }
        for other in ["ipc.segment", "ipc.other.default-1", "ipc.dw.default", "handed-1", "listener-0"] {
            assert_eq!(WorkerObject::parse(other), None, "{other}");
        }
    }
}
