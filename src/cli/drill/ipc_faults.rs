//! Faults in the shared memory and the doorbells of a worker.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::write;

use super::fault::{DrillFault, FaultKind};
use super::random::SplitMix64;
use super::set::DrillSet;
use crate::exchange::LINES;
use crate::ids::WorkerId;
use crate::ipc;

/// Injects a fault into the segment or the doorbells of this worker.
///
/// # Errors
/// They cannot be opened or written.
pub(super) fn inject(set: &DrillSet, worker: &WorkerId, fault: &DrillFault) -> Result<(), String> {
    let injected = match fault.kind {
        FaultKind::FillDoorbells | FaultKind::EmptyDoorbells => damage_doorbells(set, worker, fault.kind),
        _ => damage_segment(set, worker, fault),
    };
    injected.map_err(|error| format!("{worker}: {error}"))
}

fn damage_doorbells(set: &DrillSet, worker: &WorkerId, kind: FaultKind) -> Result<(), String> {
    let parts = ipc::open_unchecked(&set.config, worker, None).map_err(|error| error.to_string())?;
    for doorbell in [&parts.to_worker, &parts.to_dispatcher] {
        if kind == FaultKind::FillDoorbells {
            while write(doorbell, &[1; 4096]).is_ok() {}
        } else {
            while doorbell.clear() {}
        }
    }
    Ok(())
}

fn damage_segment(set: &DrillSet, worker: &WorkerId, fault: &DrillFault) -> Result<(), String> {
    let name = ipc::segment_name(set.dir(), worker).map_err(|error| error.to_string())?;
    let path = Path::new("/dev/shm").join(name.trim_start_matches('/'));
    write_damage(&path, fault).map_err(|error| error.to_string())
}

fn write_damage(path: &Path, fault: &DrillFault) -> std::io::Result<()> {
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
