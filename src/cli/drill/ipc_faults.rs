//! Faults in the shared memory and the doorbells of a worker.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::fault::{DrillFault, FaultKind};
use super::lost_files;
use super::random::SplitMix64;
use super::set::DrillSet;
use crate::exchange::LINES;
use crate::ids::WorkerId;
use crate::ipc;
use crate::procfs;

/// Injects a fault into the segment or the doorbells of this worker.
///
/// # Errors
/// They cannot be opened or written.
pub(super) fn inject(set: &DrillSet, worker: &WorkerId, pid: Option<u32>, fault: &DrillFault) -> Result<(), String> {
    let objects = WorkerObjects { set, worker, pid };
    let injected = match fault.kind {
        FaultKind::FillDoorbells | FaultKind::EmptyDoorbells => objects.damage_doorbells(fault.kind),
        _ => objects.segment().and_then(|path| write_damage(&path, fault)),
    };
    injected.map_err(|error| format!("{worker}: {error}"))
}

struct WorkerObjects<'a> {
    set: &'a DrillSet,
    worker: &'a WorkerId,
    /// The process of the worker, which holds objects that no longer have a name.
    pid: Option<u32>,
}

impl WorkerObjects<'_> {
    /// An object with this path, or the open descriptor of the worker's process if the path was removed. `name` is a part
    /// of its name.
    fn find(&self, path: PathBuf, name: &str) -> io::Result<PathBuf> {
        if path.exists() {
            return Ok(path);
        }
        // The segment may still have its name when only the file that records the name was removed.
        let is_object =
            |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains(name));
        let entries = self.pid.and_then(|pid| fs::read_dir(procfs::process_dir(pid).join("fd")).ok());
        let mut paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        paths.find(is_object).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} is gone")))
    }

    fn segment(&self) -> io::Result<PathBuf> {
        let name = ipc::segment_name(self.set.dir(), self.worker).unwrap_or_else(|_| "/removed".into());
        let path = Path::new("/dev/shm").join(name.trim_start_matches('/'));
        self.find(path, &format!(".{}.{}.", self.set.config.set.name, self.worker.instance()))
    }

    fn damage_doorbells(&self, kind: FaultKind) -> io::Result<()> {
        for path in lost_files::doorbells(self.set.dir(), self.worker) {
            let name = path.iter().rev().take(2).collect::<Vec<_>>();
            let name = format!("/{}/{}", name[1].display(), name[0].display());
            let path = self.find(path, &name)?;
            let mut doorbell = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            let mut bytes = [1; 4096];
            if kind == FaultKind::FillDoorbells {
                while doorbell.write(&bytes).is_ok() {}
            } else {
                while doorbell.read(&mut bytes).is_ok_and(|read| read > 0) {}
            }
        }
        Ok(())
    }
}

fn write_damage(path: &Path, fault: &DrillFault) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    match fault.kind {
        FaultKind::TruncateSegment => file.set_len(0)?,
        FaultKind::ZeroSegment => {
            file.set_len(0)?;
            std::thread::sleep(fault.duration);
            file.set_len(size)?;
        }
        _ => {
            let mut random = SplitMix64::new(fault.seed);
            // Line 0 of the file is the header; the slot follows it.
            let line = random.below(LINES as u64 + 1);
            for _ in 0..1 + random.below(8) {
                let value = match random.below(4) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => random.below(256),
                    _ => random.next(),
                };
                let offset = line * 64 + random.below(8) * 8;
                file.write_all_at(&value.to_ne_bytes(), offset.min(size - 8))?;
            }
        }
    }
    Ok(())
}
