//! Limits how often a part is restarted: the supervisor must not declare a part failed because of the drill.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::fault::DrillPart;

pub(super) struct RestartBudget {
    max: usize,
    within: Duration,
    recent: HashMap<DrillPart, VecDeque<Instant>>,
}

impl RestartBudget {
    /// Allows three quarters of the `max` restarts `within` a time; the rest is for restarts by other causes.
    pub(super) fn new(max: u32, within: Duration) -> Self {
        Self { max: (max as usize * 3 / 4).max(1), within, recent: HashMap::new() }
    }

    /// How long to wait until the part may be restarted.
    pub(super) fn wait(&mut self, part: DrillPart) -> Duration {
        let recent = self.recent.entry(part).or_default();
        while recent.front().is_some_and(|at| at.elapsed() >= self.within) {
            recent.pop_front();
        }
        match (recent.len() + 1).saturating_sub(self.max) {
            0 => Duration::ZERO,
            excess => self.within.saturating_sub(recent[excess - 1].elapsed()),
        }
    }

    /// The part is about to be restarted.
    pub(super) fn spend(&mut self, part: DrillPart) {
        self.recent.entry(part).or_default().push_back(Instant::now());
    }
}
