//! The rules for connections that are handed over, on which one address does everything.
//!
//! A client there cannot tell by itself who ended its connection without a byte of response. Whether the request had
//! started is on record; when, and what was done to whom then, tells whether it was allowed to end so.

use std::time::Duration;

use super::{Attempt, Doubt, Effect, Judge, Kind, Part, Target, concerns, ends};

impl Judge<'_> {
    /// P3, P4: what is wrong with an attempt of which its client does not know whether it started.
    pub(super) fn handed(&self, attempt: &Attempt, doubt: Doubt) -> Option<(&'static str, String)> {
        let pool = self.doors[attempt.door].pool;
        let felt = || self.calendar.between(attempt.begun, attempt.ended);
        let with_worker = |effect: &Effect| match effect.part {
            Some(Part::Worker(worker)) => self.pool_of[worker] == pool && ends(effect, Part::Worker(worker)),
            _ => self.ends_set(effect),
        };
        if felt().any(with_worker) {
            return None;
        }
        if doubt != Doubt::Lost {
            return Some(("P3", format!("was lost without a fault of its pool: {}", attempt.end)));
        }
        let has_started = self.recorded.contains(&(attempt.request, attempt.number));
        // A connection that rests, or that a worker lets go of, has gone with a dispatcher that died since its last request.
        let since = attempt.kept.unwrap_or(attempt.begun);
        let died = |effect: &&Effect| ends(effect, Part::Dispatcher) || self.ends_set(effect);
        let mut died = self.calendar.between(since, attempt.ended).filter(died).peekable();
        if let Some(after) = self.doors[attempt.door].mute_after.filter(|_| !has_started) {
            // Where HTTP would have had a 503: nobody came free in time, or all are drained.
            let is_door = |effect: &Effect| matches!(effect.target, Target::Door(n) if self.doors[n].pool == pool);
            let concerns = |effect: &Effect| is_door(effect) || concerns(effect, pool, attempt.door, self.pool_of);
            let is_drained =
                |n: usize| felt().any(|effect| effect.kind == Kind::Drain && effect.part == Some(Part::Worker(n)));
            let mut workers = (0..self.pool_of.len()).filter(|n| self.pool_of[*n] == pool);
            let is_late = attempt.ended.since(attempt.begun) >= after;
            if is_late && felt().any(concerns) || workers.all(is_drained) {
                return None;
            }
        }
        if died.peek().is_none() {
            return Some((
                "P3",
                "got no byte of response, and nothing had been done to its pool or the dispatcher".into(),
            ));
        }
        if has_started {
            return Some(("P4", "had started, and was ended without a byte when the dispatcher died".into()));
        }
        // One that rests on its connection may go with the dispatcher, and so may one that had come only just before.
        let fresh = |effect: &Effect| attempt.begun + self.in_passing(attempt, effect) >= effect.from;
        if attempt.kept.is_some() || died.any(fresh) {
            return None;
        }
        Some(("P4", "had waited longer than store_after, and was not kept when the dispatcher died".into()))
    }

    /// How long a request may take until it is in the store, the dispatcher being what it was before this effect.
    fn in_passing(&self, attempt: &Attempt, died: &Effect) -> Duration {
        let slows = |effect: &&Effect| {
            let whom = effect.part == Some(Part::Dispatcher) || effect.target == Target::Machine;
            effect.number != died.number && (whom || self.ends_set(effect))
        };
        let slowed = self.calendar.between(attempt.begun, died.from).filter(slows);
        let slowed: Duration = slowed.map(|effect| self.bounds.of(effect)).sum();
        self.bounds.store_after + self.bounds.slack + self.late(attempt.begun, attempt.ended) + slowed
    }
}
