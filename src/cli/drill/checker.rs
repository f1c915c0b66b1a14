//! The checker: compares what clients sent and received, what handlers recorded and which faults were injected, and
//! reports every promise that did not hold.
//!
//! Pure. `docs/PROMISES.md` lists the promises and what is a violation of each.

#![forbid(unsafe_code)]

mod attempts;
mod bounds;
mod context;
mod handoff;
mod parts;
mod sessions;
mod starts;
#[cfg(test)]
mod tests;
mod timeline;

pub(super) use bounds::{CheckedListener, DrillBounds};
pub(super) use timeline::{FaultScope, FaultTimeline, affects};

use self::context::CheckContext;
use super::history::{DrillHistory, PromiseViolation};

/// All violations in a history. `pool_of` is the pool index of each worker.
pub(super) fn check(
    history: &DrillHistory,
    listeners: &[CheckedListener],
    pool_of: &[usize],
    bounds: &DrillBounds,
) -> Vec<PromiseViolation> {
    let context = CheckContext::new(history, listeners, pool_of, bounds);
    let mut violations = starts::check(&context);
    violations.extend(history.attempts.iter().filter_map(|attempt| attempts::check(&context, attempt)));
    violations.extend(sessions::check(&context));
    violations.extend(history.effects.iter().filter_map(|effect| parts::check_effect(&context, effect)));
    violations.extend(history.unexplained_exits.iter().map(|exit| parts::unexplained_exit(&context, exit)));
    violations
}
