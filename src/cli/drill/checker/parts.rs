//! P2, P5 and P9: whether each part recovered in time, whether only those ended that a fault could end, and whether lost
//! files were repaired.

use std::time::Duration;

use super::context::CheckContext;
use super::timeline::FaultScope;
use crate::cli::drill::fault::{DrillPart, ExpectedEffect};
use crate::cli::drill::fault_tracker::{FaultEffect, UnexplainedExit};
use crate::cli::drill::history::PromiseViolation;
use crate::ids::Monotonic;

/// How far back the faults reach that are listed with an unexplained exit.
const EARLIER_FAULTS: Duration = Duration::from_secs(2);

/// What one fault did to its part.
pub(super) fn check_effect(context: &CheckContext<'_>, effect: &FaultEffect) -> Option<PromiseViolation> {
    if effect.excluded.is_some() {
        return None;
    }
    let violation =
        |promise, what| Some(PromiseViolation { promise, what, story: vec![context.describe_fault(effect)] });
    if effect.kind.removes_files() {
        let Some(repaired) = effect.repaired else {
            return violation("P9", format!("fault {}: the removed files were not repaired", effect.number));
        };
        let scope = FaultScope { pool: None, listener: None };
        let other_faults = context.extension(effect.injected, repaired, scope, Some(effect));
        let (took, bound) = (repaired.since(effect.injected), context.bounds.repair + other_faults);
        if took > bound {
            let (took, bound) = (took.as_millis(), bound.as_millis());
            return violation(
                "P9",
                format!("the removed files were repaired after {took} ms; the bound is {bound} ms"),
            );
        }
    }
    let part = effect.part?;
    if let Some(cause) = &effect.kill_cause {
        return violation("P5", format!("{part} was killed after a harmless fault: {cause}"));
    }
    if effect.expected != ExpectedEffect::Ends && effect.detected.is_none() {
        return None;
    }
    let Some(recovered) = effect.recovered else {
        return violation("P2", format!("{part} had not recovered at the end of the drill"));
    };
    let pool = match part {
        DrillPart::Worker(worker) => Some(context.pool_of[worker]),
        _ => None,
    };
    let scope = FaultScope { pool, listener: None };
    if let (Some(bound), Some(detected)) = (context.bounds.detection_of(effect), effect.detected) {
        // Time in which the watchdog or the dispatcher does not run is no silence of the worker (P5): on a machine that
        // delays the drill, each of them is delayed as well.
        let exclusions = context.delay(effect.injected, detected) * 2;
        let other_faults = context.extension(effect.injected, detected, scope, Some(effect)) + exclusions;
        let (took, bound) = (detected.since(effect.injected), bound + other_faults);
        if took > bound {
            let (took, bound) = (took.as_millis(), bound.as_millis());
            return violation("P2", format!("{part} was found frozen after {took} ms; its bound is {bound} ms"));
        }
    }
    let other_faults = context.extension(effect.injected, recovered, scope, Some(effect));
    let (took, bound) = (recovered.since(effect.injected), context.bounds.of(effect) + other_faults);
    if took > bound {
        let (took, bound) = (took.as_millis(), bound.as_millis());
        return violation("P2", format!("{part} recovered after {took} ms; its bound is {bound} ms"));
    }
    None
}

/// A process ended without a fault.
pub(super) fn unexplained_exit(context: &CheckContext<'_>, exit: &UnexplainedExit) -> PromiseViolation {
    let from = Monotonic(exit.at.0.saturating_sub(EARLIER_FAULTS.as_nanos() as u64));
    let active = context.timeline.active_between(from, exit.at);
    let story = active.map(|effect| context.describe_fault(effect)).collect();
    let UnexplainedExit { part, pid, cause, at } = exit;
    let what = format!("{part} (pid {pid}) ended without a fault at {}: {cause}", context.time(*at));
    PromiseViolation { promise: "P5", what, story }
}
