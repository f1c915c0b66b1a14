//! Faults of workers that drain: by `patou drain`, or because a reload removes them.

use std::path::Path;
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fault::{DrillFault, DrillPart};
use super::final_checks::wait_until;
use super::nemesis::{Nemesis, has_ended, send};
use super::set::DrillSet;
use crate::clock;
use crate::ids::WorkerId;
use crate::probe::{self, ProbeCommand};
use crate::status::SavedState;

/// How long the dispatcher may take to execute a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// How long `resume` is repeated: a drained worker must not stay out of service.
const RESUME_TIMEOUT: Duration = Duration::from_secs(20);

/// Drains a worker for a while.
pub(super) fn drain<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    worker: usize,
    scope: &'s Scope<'s, '_>,
) {
    let (worker, socket) = (set.workers[worker].clone(), set.dir().join("probe.sock"));
    let (index, time, settle) = (nemesis.injected(fault), fault.duration, set.settle_time());
    scope.spawn(move || {
        if !send_drain(&socket, &worker) {
            nemesis.traffic.watch.tracker().exclude(index, "the dispatcher did not execute the drain command");
        }
        nemesis.sleep(time);
        resume(&socket, &worker);
        nemesis.action_ended(index, settle);
    });
}

/// Whether the dispatcher executed the command.
fn send_drain(socket: &Path, worker: &WorkerId) -> bool {
    probe::query(socket, Some(ProbeCommand::Drain(worker.clone())), COMMAND_TIMEOUT).is_ok()
}

fn resume(socket: &Path, worker: &WorkerId) {
    let deadline = Instant::now() + RESUME_TIMEOUT;
    let resume = || probe::query(socket, Some(ProbeCommand::Resume(worker.clone())), COMMAND_TIMEOUT);
    // The dispatcher may be down now.
    while resume().is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Drains a worker, and stops its process before it is resumed.
pub(super) fn freeze_drained<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    worker: usize,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let (id, socket) = (set.workers[worker].clone(), set.dir().join("probe.sock"));
    let (process, watched) = (nemesis.process(DrillPart::Worker(worker))?, nemesis.process(DrillPart::Worker(worker))?);
    send_drain(&socket, &id); // without it the worker is frozen all the same
    std::thread::sleep(fault.duration);
    let index = nemesis.injected(fault);
    nemesis.end(process, Signal::SIGSTOP).inspect_err(|_| nemesis.abandon(index))?;
    let timeout = set.bounds().watchdog;
    scope.spawn(move || {
        let is_over = || nemesis.interrupted.is_set() || has_ended(&watched);
        if wait_until(timeout, is_over) && has_ended(&watched) {
            nemesis.traffic.watch.tracker().process_ended(clock::now(), index);
        }
        resume(&socket, &id);
    });
    Ok(())
}

/// Removes a worker by a reload while its process is stopped, before or after the reload, and adds it again.
pub(super) fn freeze_removed(
    nemesis: &Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    worker: usize,
) -> Result<(), String> {
    let (tracker, part) = (|| nemesis.traffic.watch.tracker(), DrillPart::Worker(worker));
    let (process, watched) = (nemesis.process(part)?, nemesis.process(part)?);
    let watchdog = nemesis.process(DrillPart::Watchdog)?;
    let (id, bounds) = (&set.workers[worker], set.bounds());
    let reload = |smaller| {
        set.configure(smaller).map_err(|_| "the configuration cannot be written")?;
        send(&watchdog, Signal::SIGHUP)
    };
    let index = nemesis.injected(fault);
    let stop = || {
        // A worker without a request may have ended already.
        if has_ended(&watched) { Ok(()) } else { nemesis.end(process, Signal::SIGSTOP).or(Ok(())) }
    };
    let removed = if fault.seed & 1 == 0 {
        stop().and_then(|()| reload(Some(&id.pool)))
    } else {
        reload(Some(&id.pool)).and_then(|()| {
            std::thread::sleep(fault.duration);
            stop()
        })
    };
    removed.inspect_err(|_: &String| nemesis.abandon(index))?;
    // The watchdog lets a process that it tells to end continue (SIGCONT): it is stopped again.
    let has_ended_frozen = || has_ended(&watched) || send(&watched, Signal::SIGSTOP).is_err();
    if wait_until(bounds.worker * 2 + bounds.drain * 2, has_ended_frozen) {
        tracker().process_ended(clock::now(), index);
    } else {
        nemesis.report_violation(
            "P2",
            format!("fault {}: {part} froze while it was being removed, and runs still", fault.number),
        );
        let _ = send(&watched, Signal::SIGKILL); // it may have ended just now
    }
    // A worker that is added again before it is gone is not added.
    let is_listed = || SavedState::read(set.dir()).is_ok_and(|state| state.workers.contains_key(&id.to_string()));
    wait_until(bounds.restart, || !is_listed());
    reload(None)
}
