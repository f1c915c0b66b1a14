//! The faults in order of time: which had an effect when, and on which requests.

use std::time::Duration;

use crate::cli::drill::fault::{DrillPart, ExpectedEffect, FaultTarget};
use crate::cli::drill::fault_tracker::FaultEffect;
use crate::cli::drill::history::DrillHistory;
use crate::ids::Monotonic;

/// How long the consequences of a fault may outlast it.
const AFTER_EFFECT: Duration = Duration::from_millis(100);

/// All faults, sorted by the time of injection.
pub(crate) struct FaultTimeline<'a> {
    effects: Vec<&'a FaultEffect>,
    longest: Duration,
    /// The end of the faults that never ended.
    end: Monotonic,
}

/// What a wait depended on; `None` where it depended on no particular one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultScope {
    pub pool: Option<usize>,
    pub listener: Option<usize>,
}

impl<'a> FaultTimeline<'a> {
    pub(crate) fn new(history: &'a DrillHistory) -> Self {
        let mut effects: Vec<_> = history.effects.iter().collect();
        effects.sort_by_key(|effect| effect.injected);
        let last = history.attempts.iter().map(|attempt| attempt.ended).max().unwrap_or(history.started_at);
        let end = last + Duration::from_secs(3600);
        let length = |effect: &&FaultEffect| effect.ended.unwrap_or(end).since(effect.injected) + AFTER_EFFECT;
        let longest = effects.iter().map(length).max().unwrap_or_default();
        Self { effects, longest, end }
    }

    /// The faults that had an effect at some time from `from` to `to`.
    pub(crate) fn active_between(&self, from: Monotonic, to: Monotonic) -> impl Iterator<Item = &'a FaultEffect> + '_ {
        let first = self.effects.partition_point(|effect| effect.injected + self.longest < from);
        self.effects[first..]
            .iter()
            .take_while(move |effect| effect.injected <= to)
            .filter(move |effect| effect.ended.unwrap_or(self.end) + AFTER_EFFECT >= from)
            .copied()
    }
}

/// Whether clients in this scope could notice the fault. `pool_of` is the pool index of each worker.
pub(crate) fn affects(effect: &FaultEffect, scope: FaultScope, pool_of: &[usize]) -> bool {
    match (effect.part, effect.target) {
        (Some(DrillPart::Worker(worker)), _) | (None, FaultTarget::Slot(worker)) => scope.pool == Some(pool_of[worker]),
        (_, FaultTarget::Listener(listener)) => scope.listener == Some(listener),
        _ => true,
    }
}

/// Whether the fault ends, or may end, the process of this part.
pub(super) fn may_end(effect: &FaultEffect, part: DrillPart) -> bool {
    effect.part == Some(part) && (effect.expected != ExpectedEffect::Survives || effect.kill_cause.is_some())
}
