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
    /// Those of them on TCP with the delivery handoff.
    pub tcp_handoff_listeners: Vec<usize>,
    /// The last worker of each pool, which a reload can remove.
    pub last_workers: Vec<usize>,
    /// Whether any listener has the delivery handoff.
    pub has_handoff: bool,
    /// Whether a listener or a worker has a Unix address.
    pub has_unix_addresses: bool,
    pub selection: KindSelection,
    pub set_kind: SetKind,
    pub worker_timeout: Duration,
    pub dispatcher_timeout: Duration,
    /// Faults per second, on average.
    pub pace: f64,
}

/// Which kinds are injected.
#[derive(Clone, Debug, Default)]
pub(super) struct KindSelection {
    /// If empty, all.
    pub only: Vec<FaultKind>,
    pub except: Vec<FaultKind>,
}

impl KindSelection {
    fn contains(&self, kind: FaultKind) -> bool {
        (self.only.is_empty() || self.only.contains(&kind)) && !self.except.contains(&kind)
    }
}

#[derive(Clone, Copy)]
enum TargetKind {
    Watchdog,
    Dispatcher,
    Worker,
    LastWorker,
    Parts,
    Slot,
    Listener,
    TcpHandoffListener,
    Set,
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
    (4, FaultKind::KillSeveral, TargetKind::Parts),
    (3, FaultKind::FreezeSeveral, TargetKind::Parts),
    (4, FaultKind::FreezeDrained, TargetKind::Worker),
    (3, FaultKind::FreezeRemoved, TargetKind::LastWorker),
    (3, FaultKind::Debugger, TargetKind::Worker),
    (2, FaultKind::Debugger, TargetKind::Dispatcher),
    (1, FaultKind::Debugger, TargetKind::Watchdog),
    (3, FaultKind::FreezeGroup, TargetKind::Worker),
    (2, FaultKind::FreezeGroup, TargetKind::Dispatcher),
    (1, FaultKind::FreezeGroup, TargetKind::Watchdog),
    (3, FaultKind::UseUpDescriptors, TargetKind::Dispatcher),
    (3, FaultKind::LimitDescriptors, TargetKind::Worker),
    (2, FaultKind::LimitDescriptors, TargetKind::Dispatcher),
    (1, FaultKind::LimitDescriptors, TargetKind::Watchdog),
    (4, FaultKind::ChangeSocketFlags, TargetKind::TcpHandoffListener),
    (3, FaultKind::BlockLog, TargetKind::Worker),
    (2, FaultKind::BlockLog, TargetKind::Dispatcher),
    (4, FaultKind::RemoveSegment, TargetKind::Slot),
    (3, FaultKind::RemoveDoorbells, TargetKind::Slot),
    (3, FaultKind::RemoveHandoffSocket, TargetKind::Slot),
    (3, FaultKind::RemoveProbeSocket, TargetKind::Set),
    (2, FaultKind::RemoveAdminSocket, TargetKind::Set),
    (3, FaultKind::RemoveListenerSockets, TargetKind::Set),
    (3, FaultKind::RemoveState, TargetKind::Set),
    (2, FaultKind::RemoveLock, TargetKind::Set),
    (3, FaultKind::RemoveDirectory, TargetKind::Set),
    (3, FaultKind::RemoveAll, TargetKind::Set),
];

impl FaultGenerator {
    /// Whether such a fault is selected and possible, and this set recovers from it by itself.
    fn allows(&self, kind: FaultKind, target: TargetKind) -> bool {
        use FaultKind as Kind;
        if !self.selection.contains(kind) {
            return false;
        }
        match (kind, target) {
            (_, TargetKind::TcpHandoffListener) => !self.tcp_handoff_listeners.is_empty(),
            (Kind::FreezeRemoved, _) => self.set_kind == SetKind::Private && !self.last_workers.is_empty(),
            // The drill must not trace its own child, which it also waits for; only systemd watches the watchdog.
            (Kind::Debugger | Kind::FreezeGroup, TargetKind::Watchdog) => self.set_kind == SetKind::Units,
            (Kind::BlockLog | Kind::RemoveLock, _) => self.set_kind == SetKind::Private,
            (Kind::RemoveSegment | Kind::RemoveDoorbells, _) => true,
            (Kind::RemoveListenerSockets, _) if !self.has_unix_addresses => false,
            (Kind::RemoveHandoffSocket, _) if !self.has_handoff => false,
            // What systemd has created only systemd repairs.
            (kind, _) if kind.removes_files() => self.set_kind != SetKind::Units,
            (FaultKind::Restart, _) => self.set_kind == SetKind::Units,
            (FaultKind::Kill, TargetKind::Watchdog) => self.set_kind != SetKind::PatouRun,
            (_, TargetKind::Listener) => !self.listeners.is_empty(),
            // Only systemd watches the watchdog.
            (FaultKind::Freeze, TargetKind::Watchdog) => self.set_kind == SetKind::Units,
            _ => true,
        }
    }

    fn allowed(&self) -> impl Iterator<Item = &'static (u64, FaultKind, TargetKind)> {
        WEIGHTED_FAULTS.iter().filter(|(_, kind, target)| self.allows(*kind, *target))
    }

    /// Whether there is any fault to inject.
    pub(super) fn is_empty(&self) -> bool {
        self.allowed().next().is_none()
    }

    /// The infinite list of this seed; it is empty if no fault is possible.
    pub(super) fn faults(&self, seed: u64) -> impl Iterator<Item = DrillFault> + '_ {
        let mut random = SplitMix64::new(seed);
        let allowed: Vec<_> = self.allowed().collect();
        let total: u64 = allowed.iter().map(|(weight, ..)| weight).sum();
        let numbers = if total == 0 { 0..0 } else { 1..u32::MAX };
        numbers.map(move |number| {
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
                TargetKind::LastWorker => FaultTarget::Part(DrillPart::Worker(*random.pick(&self.last_workers))),
                TargetKind::Parts => FaultTarget::Parts(self.several_parts(worker, &mut random)),
                TargetKind::Slot => FaultTarget::Slot(worker),
                TargetKind::TcpHandoffListener => FaultTarget::Listener(*random.pick(&self.tcp_handoff_listeners)),
                TargetKind::Set => FaultTarget::Set,
                TargetKind::Listener => FaultTarget::Listener(self.listeners[listener]),
                TargetKind::Machine => FaultTarget::Machine,
            };
            let pause = random.between(Duration::ZERO, Duration::from_secs_f64(2.0 / self.pace));
            let duration = self.duration(*kind, target, &mut random);
            DrillFault { number, kind: *kind, target, pause, duration, seed: random.next() }
        })
    }

    /// This worker with the dispatcher, with another worker, or with both.
    fn several_parts(&self, worker: usize, random: &mut SplitMix64) -> [DrillPart; 3] {
        let other = random.below(self.workers as u64) as usize;
        let (worker, dispatcher) = (DrillPart::Worker(worker), DrillPart::Dispatcher);
        match (DrillPart::Worker(other), random.below(3)) {
            (other, 0) if other != worker => [worker, other, worker],
            (other, 1) => [dispatcher, worker, other],
            _ => [dispatcher, worker, worker],
        }
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
            // Longer than the timeout, so that only the reason for the silence prevents a kill.
            (FaultKind::Debugger | FaultKind::FreezeGroup, target) => {
                let timeout = match target {
                    FaultTarget::Part(DrillPart::Dispatcher) => self.dispatcher_timeout,
                    _ => self.worker_timeout,
                };
                random.between(timeout, timeout * 3)
            }
            (FaultKind::UseUpDescriptors | FaultKind::LimitDescriptors, _) => {
                random.between(self.dispatcher_timeout * 3 / 2, self.dispatcher_timeout * 5 / 2)
            }
            (FaultKind::BlockLog, _) => random.between(ms(200), ms(1000)),
            (FaultKind::ChangeSocketFlags, _) => random.between(ms(1000), ms(1500)),
            (FaultKind::FreezeDrained | FaultKind::FreezeRemoved, _) => random.between(ms(0), ms(20)),
            (FaultKind::Drain, _) => random.between(ms(20), ms(300)),
            (FaultKind::ZeroSegment, _) => random.between(ms(0), ms(50)),
            _ => random.between(ms(50), ms(1500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use std::collections::BTreeSet;

    fn generator(set_kind: SetKind) -> FaultGenerator {
        let (worker_timeout, dispatcher_timeout) = (Duration::from_millis(200), Duration::from_millis(400));
        FaultGenerator {
            workers: 5,
            listeners: vec![0, 1, 3],
            tcp_handoff_listeners: vec![3],
            last_workers: vec![2, 4],
            has_handoff: true,
            has_unix_addresses: true,
            selection: KindSelection::default(),
            set_kind,
            worker_timeout,
            dispatcher_timeout,
            pace: 5.0,
        }
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
        let list = |set_kind| generator(set_kind).faults(1).take(3000).collect::<Vec<_>>();
        let (all, private) = (list(SetKind::Units), list(SetKind::Private));
        let kinds: BTreeSet<_> = all.iter().chain(&private).map(|fault| fault.kind).collect();
        assert_eq!(kinds, FaultKind::value_variants().iter().copied().collect());
        let hit = |target| all.iter().any(|fault| fault.target == target);
        assert!((0..5).all(|n| hit(FaultTarget::Part(DrillPart::Worker(n))) && hit(FaultTarget::Slot(n))));
        assert!([0, 1, 3].iter().all(|n| hit(FaultTarget::Listener(*n))) && !hit(FaultTarget::Listener(2)));
        let mean = all.iter().map(|fault| fault.pause).sum::<Duration>() / 3000;
        assert!((Duration::from_millis(180)..Duration::from_millis(220)).contains(&mean), "{mean:?}");
    }

    #[test]
    fn only_selected_kinds_occur() {
        let selected = |only: &[FaultKind], except: &[FaultKind]| {
            let selection = KindSelection { only: only.to_vec(), except: except.to_vec() };
            let generator = FaultGenerator { selection, ..generator(SetKind::PatouRun) };
            assert_eq!(generator.is_empty(), generator.faults(1).next().is_none());
            generator.faults(1).take(500).map(|fault| fault.kind).collect::<BTreeSet<_>>()
        };
        let (kill, freeze) = (FaultKind::Kill, FaultKind::Freeze);
        assert_eq!(selected(&[kill, freeze], &[]), BTreeSet::from([kill, freeze]));
        assert_eq!(selected(&[kill, freeze], &[kill]), BTreeSet::from([freeze]));
        assert!(!selected(&[], &[kill]).contains(&kill));
        assert_eq!(selected(&[FaultKind::Restart], &[]), BTreeSet::new(), "only systemd restarts units");
    }

    #[test]
    fn several_parts_are_two_or_three_different_ones() {
        let selection = KindSelection { only: vec![FaultKind::KillSeveral], except: Vec::new() };
        let generator = FaultGenerator { selection, ..generator(SetKind::Private) };
        let mut sizes = BTreeSet::new();
        for fault in generator.faults(4).take(300) {
            let parts = fault.target.parts();
            assert_eq!(parts.iter().collect::<BTreeSet<_>>().len(), parts.len());
            sizes.insert((parts.len(), parts.contains(&DrillPart::Dispatcher)));
        }
        assert_eq!(sizes, BTreeSet::from([(2, false), (2, true), (3, true)]));
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
