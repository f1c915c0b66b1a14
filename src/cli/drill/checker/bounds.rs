//! What the checker knows of the set: its listeners, and how long each step may take by the configuration.

use std::time::Duration;

use crate::cli::drill::fault::{DrillPart, FaultKind};
use crate::cli::drill::fault_tracker::FaultEffect;

/// A listener as the checker needs to know it.
#[derive(Clone, Debug)]
pub(crate) struct CheckedListener {
    pub pool: usize,
    /// Its handler records each start.
    pub records: bool,
    /// Its delivery is handoff.
    pub handoff: bool,
    /// The most sessions of its pool.
    pub max_sessions: u16,
    /// An `inetd` pool, which refuses by closing the connection: after this time in the queue.
    pub refuses_silently_after: Option<Duration>,
}

/// How long each step may take.
#[derive(Clone, Debug)]
pub(crate) struct DrillBounds {
    /// One attempt without faults, by pool.
    pub attempt: Vec<Duration>,
    /// Until a frozen worker is killed.
    pub worker: Duration,
    /// Until a frozen dispatcher is killed.
    pub dispatcher: Duration,
    /// Until a watchdog that was killed or froze is running again.
    pub watchdog: Duration,
    /// For a part to finish its requests after SIGTERM.
    pub drain: Duration,
    /// Until a part that exited is up again.
    pub restart: Duration,
    /// Until removed files exist again.
    pub repair: Duration,
    /// Until a queued connection is in the descriptor store.
    pub store_after: Duration,
    /// For the scheduling of the machine.
    pub slack: Duration,
    /// Whether the parts exit when the watchdog is killed.
    pub parts_follow_watchdog: bool,
}

impl DrillBounds {
    /// How long clients may notice this fault.
    pub(crate) fn of(&self, effect: &FaultEffect) -> Duration {
        use FaultKind as Kind;
        // No client may notice the loss, not even by a longer wait.
        if effect.kind.removes_files() {
            return Duration::ZERO;
        }
        let lasted = effect.ended.unwrap_or(effect.injected).since(effect.injected);
        let part = match (effect.part, effect.kind) {
            (Some(DrillPart::Watchdog), Kind::Kill | Kind::Freeze | Kind::Restart | Kind::Abort) => {
                return self.watchdog;
            }
            (None | Some(DrillPart::Watchdog), _) => return lasted,
            (Some(part), _) => part,
        };
        let detection = if part == DrillPart::Dispatcher { self.dispatcher } else { self.worker };
        match effect.kind {
            Kind::Kill | Kind::Abort | Kind::Crash | Kind::KillSeveral | Kind::BlockLog => self.restart,
            Kind::Terminate | Kind::Restart => self.drain + self.restart,
            Kind::Freeze | Kind::FreezeSeveral | Kind::ChangeSocketFlags => detection + self.restart,
            Kind::TruncateSegment | Kind::ZeroSegment | Kind::CorruptSlot => detection + self.restart,
            // Two reloads, and a drained worker is announced at a probe.
            Kind::FreezeDrained | Kind::FreezeRemoved => detection + self.drain + self.restart,
            _ => lasted,
        }
    }

    /// How soon the process must have ended after this fault, where that is not part of the recovery.
    pub(crate) fn detection_of(&self, effect: &FaultEffect) -> Option<Duration> {
        matches!(effect.kind, FaultKind::FreezeDrained | FaultKind::FreezeRemoved).then_some(self.worker)
    }
}
