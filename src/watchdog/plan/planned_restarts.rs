//! Planned restarts of workers: at least half of each pool serves meanwhile. The clients of a pool with one worker wait.

use super::part::{PartState, StopReason};
use super::{ChildSet, Part, Plan};
use crate::ids::{Monotonic, PoolName, WorkerId};

impl Plan<ChildSet> {
    /// Has a worker restart: at once if it does not serve, otherwise when enough others of its pool serve.
    pub(super) fn plan_restart(&mut self, now: Monotonic, id: &WorkerId) {
        let part = Part::Worker(id.clone());
        match self.parts.get(&part).filter(|record| record.is_up()).and_then(|record| record.pid) {
            Some(pid) => drop(self.kind.awaited_restarts.insert(id.clone(), pid)),
            None => self.stop_part(now, &part, StopReason::PlannedRestart),
        }
    }

    /// Restarts those of which enough others serve.
    pub(super) fn perform_restarts(&mut self, now: Monotonic) {
        for (id, pid) in self.kind.awaited_restarts.clone() {
            let part = Part::Worker(id.clone());
            let record = self.parts.get(&part);
            let still_runs = |state: &PartState| matches!(state, PartState::Running(_));
            let is_up = match record.filter(|record| record.pid == Some(pid) && still_runs(&record.state)) {
                Some(record) => record.is_up(),
                None => {
                    // Its next process has started with what has changed, or will.
                    self.kind.awaited_restarts.remove(&id);
                    continue;
                }
            };
            if !is_up || self.may_restart_one(&id.pool) {
                self.kind.awaited_restarts.remove(&id);
                self.stop_part(now, &part, StopReason::PlannedRestart);
            }
        }
    }

    /// Whether at least half of the pool serves without one of the workers that serve now. Workers that have failed or
    /// leave the set do not count.
    fn may_restart_one(&self, pool: &PoolName) -> bool {
        let of_pool = self.parts.iter().filter(|(part, _)| part.worker().is_some_and(|id| id.pool == *pool));
        let (mut all, mut serving) = (0, 0);
        for (_, record) in of_pool.filter(|(part, _)| !part.is_stand_in()) {
            let is_leaving = matches!(record.state, PartState::Stopping { reason: StopReason::Final, .. });
            all += usize::from(!record.is_down() && !is_leaving);
            serving += usize::from(record.is_up());
        }
        all <= 1 || 2 * (serving - 1) >= all
    }
}
