//! Faults of what the parts share: files of the set that are removed, and a log that is not read.

use std::path::PathBuf;
use std::process::Child;
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::fault::{DrillFault, DrillPart, FaultKind, FaultTarget};
use nix::sys::signal::Signal;

use super::final_checks::wait_until;
use super::generator::SetKind;
use super::lost_files;
use super::nemesis::Nemesis;
use super::set::DrillSet;
use crate::cli::patou_run::POLL_INTERVAL;
use crate::clock;

/// How long a second `patou run` may take until it is refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Removes files, and waits until the set has repaired them.
pub(super) fn remove<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let (watch, settle, number) = (nemesis.traffic.watch, set.settle_time(), fault.number);
    // Longer than the bound: the report shows how late the repair was.
    let timeout = set.bounds().repair * 2 + set.bounds().restart;
    let index = nemesis.injected(fault);
    if fault.kind.removes_worker_addresses() {
        let has_unix_address = |worker: &DrillPart| set.has_unix_address(*worker);
        set.parts().filter(has_unix_address).for_each(|worker| watch.tracker().allow_replacement(worker));
    }
    if let (SetKind::Units, FaultTarget::Slot(worker)) = (set.kind, fault.target) {
        watch.tracker().files_lost(DrillPart::Worker(worker));
    }
    let lost = lost_files::remove(set, fault).inspect_err(|_| nemesis.abandon(index))?;
    if lost.is_empty() && fault.kind.is_repaired() {
        watch.tracker().exclude(index, "an earlier fault has removed the files");
    }
    let second = if fault.kind == FaultKind::RemoveLock { set.start_second() } else { None };
    scope.spawn(move || {
        let is_repaired = || lost.iter().all(|path: &PathBuf| path.exists());
        if wait_until(timeout, || nemesis.interrupted.is_set() || is_repaired()) && is_repaired() {
            watch.tracker().files_repaired(clock::now(), index);
        }
        if second.is_some_and(|second| !is_refused(second)) {
            let what = format!("fault {number}: a second patou run on the same configuration was not refused");
            nemesis.report_violation("P9", what);
        }
        nemesis.action_ended(index, settle);
    });
    Ok(())
}

/// Whether this `patou run` exits with an error by itself.
fn is_refused(mut run: Child) -> bool {
    let end = Instant::now() + REFUSAL_TIMEOUT;
    while Instant::now() < end {
        if let Ok(Some(status)) = run.try_wait() {
            return !status.success();
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let _ = run.kill().and_then(|()| run.wait()); // it may have ended just now
    false
}

/// Kills a part while the reader of a private set's log is paused and the pipe to it is full, until the part is back.
pub(super) fn block_log<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    part: DrillPart,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let gate = set.log_gate().ok_or("the log has another reader")?;
    let (watch, time, bound) = (nemesis.traffic.watch, fault.duration, set.bounds().restart);
    let process = nemesis.process(part)?;
    gate.block().map_err(|error| format!("the pipe of the log: {error}"))?;
    let index = nemesis.injected(fault);
    nemesis.end(process, Signal::SIGKILL).inspect_err(|_| {
        gate.release();
        nemesis.abandon(index);
    })?;
    scope.spawn(move || {
        nemesis.sleep(time);
        // A set that waits for the reader exceeds its bound.
        wait_until(bound * 2, || nemesis.interrupted.is_set() || watch.tracker().effects[index].ended.is_some());
        gate.release();
    });
    Ok(())
}
