//! The generator: the list of faults of a drill.
//!
//! Pure. The same seed on the same set gives the same kinds, targets, pauses and durations in the same order; when each
//! fault takes effect depends on the machine.

#![forbid(unsafe_code)]

use std::time::Duration;

use super::fault::{DrillFault, DrillPart, FaultKind, FaultTarget};
use super::random::SplitMix64;

/// What supervises the set, and so which faults it recovers from by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetKind {
    /// `patou run`, started by the drill, which also restarts its watchdog.
    Private,
    /// `patou run`, started by an operator: its watchdog is not restarted.
    PatouRun,
    /// systemd.
    Units,
}

/// What the list depends on, apart from the seed.
#[derive(Clone, Debug)]
pub(super) struct FaultGenerator {
    pub workers: usize,
    /// The listeners at which clients may misbehave.
    pub listeners: Vec<usize>,
    pub set_kind: SetKind,
    pub worker_timeout: Duration,
    pub dispatcher_timeout: Duration,
    /// Faults per second, on average.
    pub pace: f64,
}

#[derive(Clone, Copy)]
enum TargetKind {
    Watchdog,
    Dispatcher,
    Worker,
    Slot,
    Listener,
    Machine,
}

/// Every combination with its weight, its relative frequency.
const WEIGHTED_FAULTS: &[(u64, FaultKind, TargetKind)] = &[
    (10, FaultKind::Freeze, TargetKind::Worker),
    (4, FaultKind::Freeze, TargetKind::Dispatcher),
    (1, FaultKind::Freeze, TargetKind::Watchdog),
    (7, FaultKind::Pause, TargetKind::Worker),
    (4, FaultKind::Pause, TargetKind::Dispatcher),
    (2, FaultKind::Pause, TargetKind::Watchdog),
    (12, FaultKind::Kill, TargetKind::Worker),
    (5, FaultKind::Kill, TargetKind::Dispatcher),
    (1, FaultKind::Kill, TargetKind::Watchdog),
    (3, FaultKind::Abort, TargetKind::Worker),
    (1, FaultKind::Abort, TargetKind::Dispatcher),
    (2, FaultKind::Crash, TargetKind::Worker),
    (1, FaultKind::Crash, TargetKind::Dispatcher),
    (5, FaultKind::Terminate, TargetKind::Worker),
    (2, FaultKind::Terminate, TargetKind::Dispatcher),
    (3, FaultKind::Restart, TargetKind::Worker),
    (2, FaultKind::Restart, TargetKind::Dispatcher),
    (1, FaultKind::Restart, TargetKind::Watchdog),
    (2, FaultKind::Reload, TargetKind::Watchdog),
    (3, FaultKind::Drain, TargetKind::Worker),
    (2, FaultKind::Starve, TargetKind::Machine),
    (4, FaultKind::FillDoorbells, TargetKind::Slot),
    (4, FaultKind::EmptyDoorbells, TargetKind::Slot),
    (8, FaultKind::CorruptSlot, TargetKind::Slot),
    (2, FaultKind::TruncateSegment, TargetKind::Slot),
    (2, FaultKind::ZeroSegment, TargetKind::Slot),
    (6, FaultKind::Disconnect, TargetKind::Listener),
    (3, FaultKind::HalfOpen, TargetKind::Listener),
    (3, FaultKind::SlowHead, TargetKind::Listener),
    (4, FaultKind::SlowBody, TargetKind::Listener),
    (4, FaultKind::NotReading, TargetKind::Listener),
    (2, FaultKind::UnusedLease, TargetKind::Listener),
];

impl FaultGenerator {
    /// Whether this set recovers from such a fault by itself.
    fn allows(&self, kind: FaultKind, target: TargetKind) -> bool {
        match (kind, target) {
            (FaultKind::Restart, _) => self.set_kind == SetKind::Units,
            (FaultKind::Kill, TargetKind::Watchdog) => self.set_kind != SetKind::PatouRun,
            (_, TargetKind::Listener) => !self.listeners.is_empty(),
            // Only systemd watches the watchdog.
            (FaultKind::Freeze, TargetKind::Watchdog) => self.set_kind == SetKind::Units,
            _ => true,
        }
    }

    /// The infinite list of this seed.
    pub(super) fn faults(&self, seed: u64) -> impl Iterator<Item = DrillFault> + '_ {
        let mut random = SplitMix64::new(seed);
        let allowed: Vec<_> = WEIGHTED_FAULTS.iter().filter(|(_, kind, target)| self.allows(*kind, *target)).collect();
        let total = allowed.iter().map(|(weight, ..)| weight).sum();
        (1..).map(move |number| {
            let mut remainder = random.below(total);
            let chosen = allowed.iter().find(|(weight, ..)| match remainder.checked_sub(*weight) {
                Some(rest) => {
                    remainder = rest;
                    false
                }
                None => true,
            });
            let (_, kind, target) = chosen.expect("the number is below the sum of the weights");
            let worker = random.below(self.workers as u64) as usize;
            let listener = random.below(self.listeners.len().max(1) as u64) as usize;
            let target = match target {
                TargetKind::Watchdog => FaultTarget::Part(DrillPart::Watchdog),
                TargetKind::Dispatcher => FaultTarget::Part(DrillPart::Dispatcher),
                TargetKind::Worker => FaultTarget::Part(DrillPart::Worker(worker)),
                TargetKind::Slot => FaultTarget::Slot(worker),
                TargetKind::Listener => FaultTarget::Listener(self.listeners[listener]),
                TargetKind::Machine => FaultTarget::Machine,
            };
            let pause = random.between(Duration::ZERO, Duration::from_secs_f64(2.0 / self.pace));
            let duration = self.duration(*kind, target, &mut random);
            DrillFault { number, kind: *kind, target, pause, duration, seed: random.next() }
        })
    }

    fn duration(&self, kind: FaultKind, target: FaultTarget, random: &mut SplitMix64) -> Duration {
        let ms = Duration::from_millis;
        match (kind, target) {
            // A pause of at most half the timeout never justifies a kill; a watchdog is not killed for a pause at all.
            (FaultKind::Pause, FaultTarget::Part(DrillPart::Worker(_))) => {
                random.between(ms(5), self.worker_timeout / 2)
            }
            (FaultKind::Pause, FaultTarget::Part(DrillPart::Dispatcher)) => {
                random.between(ms(5), self.dispatcher_timeout / 2)
            }
            (FaultKind::Pause, _) => random.between(ms(50), ms(1000)),
            (FaultKind::Starve, _) => random.between(ms(300), ms(1000)),
            (FaultKind::Drain, _) => random.between(ms(20), ms(300)),
            (FaultKind::ZeroSegment, _) => random.between(ms(0), ms(50)),
            _ => random.between(ms(50), ms(1500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn generator(set_kind: SetKind) -> FaultGenerator {
        let (worker_timeout, dispatcher_timeout) = (Duration::from_millis(200), Duration::from_millis(400));
        FaultGenerator { workers: 5, listeners: vec![0, 1, 3], set_kind, worker_timeout, dispatcher_timeout, pace: 5.0 }
    }

    #[test]
    fn the_list_follows_from_the_seed_alone() {
        let generator = generator(SetKind::Private);
        let list = |seed| generator.faults(seed).take(200).collect::<Vec<_>>();
        assert_eq!(list(7), list(7));
        assert_ne!(list(7), list(8));
        assert_eq!(list(7)[..50], generator.faults(7).take(50).collect::<Vec<_>>()[..], "a prefix of a longer list");
    }

    #[test]
    fn every_kind_and_every_target_occurs() {
        let generator = generator(SetKind::Units);
        let all: Vec<_> = generator.faults(1).take(2000).collect();
        let kinds: BTreeSet<_> = all.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds.len(), WEIGHTED_FAULTS.iter().map(|(_, kind, _)| kind).collect::<BTreeSet<_>>().len());
        let hit = |target| all.iter().any(|fault| fault.target == target);
        assert!((0..5).all(|n| hit(FaultTarget::Part(DrillPart::Worker(n))) && hit(FaultTarget::Slot(n))));
        assert!([0, 1, 3].iter().all(|n| hit(FaultTarget::Listener(*n))) && !hit(FaultTarget::Listener(2)));
        let mean = all.iter().map(|fault| fault.pause).sum::<Duration>() / 2000;
        assert!((Duration::from_millis(180)..Duration::from_millis(220)).contains(&mean), "{mean:?}");
    }

    #[test]
    fn every_target_can_recover_and_a_pause_stays_below_its_timeout() {
        let mut occurred = [false; 3];
        for fault in generator(SetKind::PatouRun).faults(3).take(5000) {
            assert_ne!(fault.kind, FaultKind::Restart);
            match (fault.kind, fault.target) {
                (FaultKind::Kill | FaultKind::Freeze, FaultTarget::Part(part)) => assert_ne!(part, DrillPart::Watchdog),
                (FaultKind::Pause, FaultTarget::Part(DrillPart::Worker(_))) => {
                    occurred[0] = true;
                    assert!(fault.duration <= Duration::from_millis(100));
                }
                (FaultKind::Pause, FaultTarget::Part(DrillPart::Dispatcher)) => {
                    occurred[1] = true;
                    assert!(fault.duration <= Duration::from_millis(200));
                }
                (FaultKind::Pause, _) => occurred[2] = true,
                _ => {}
            }
        }
        assert_eq!(occurred, [true; 3]);
        let watchdog_killed =
            |fault: DrillFault| fault.target == FaultTarget::Part(DrillPart::Watchdog) && fault.kind == FaultKind::Kill;
        assert!(generator(SetKind::Private).faults(3).take(2000).any(watchdog_killed));
    }
}
