//! Follows every fault: when the watchdog detected it, when the part recovered, and which processes ended without a fault.
//!
//! Pure. The shell reports each injected fault and what the watchdog's state file shows of each part.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::fault::{DrillFault, DrillPart, ExpectedEffect, FaultKind, FaultTarget};
use crate::ids::Monotonic;

/// A fault that was injected, and what followed.
#[derive(Clone, Debug)]
pub(super) struct FaultEffect {
    pub number: u32,
    pub kind: FaultKind,
    pub target: FaultTarget,
    /// The part that loses its process if the fault ends one.
    pub part: Option<DrillPart>,
    pub expected: ExpectedEffect,
    pub injected: Monotonic,
    /// When the watchdog declared the process frozen, or the process was seen to have ended.
    pub detected: Option<Monotonic>,
    /// When another process of the part was up.
    pub recovered: Option<Monotonic>,
    /// When every removed file that is repaired at once existed again.
    pub repaired: Option<Monotonic>,
    /// When it ceased to have an effect; `None` while it has one.
    pub ended: Option<Monotonic>,
    /// How the process ended, though the fault should have been harmless.
    pub kill_cause: Option<String>,
    /// Why it is not judged.
    pub excluded: Option<&'static str>,
}

/// A process that ended although no fault had been injected into its part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnexplainedExit {
    pub part: DrillPart,
    pub pid: u32,
    pub cause: String,
    pub at: Monotonic,
}

/// What the watchdog's state file shows of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartObservation {
    pub pid: Option<u32>,
    /// The watchdog has declared it frozen and is about to kill it.
    pub frozen: bool,
    /// It is serving.
    pub up: bool,
    pub cause: String,
}

#[derive(Debug, Default)]
struct PartTrack {
    pid: Option<u32>,
    /// The last process that was reported as ended or frozen.
    ended: Option<u32>,
    open: Option<OpenFault>,
    up: bool,
    /// How often the set may replace its process, to repair the part's address.
    replacements: u32,
    /// A set of units may replace it: its segment or doorbells were removed.
    lost: bool,
}

/// A fault that still has an effect on its part.
#[derive(Debug)]
struct OpenFault {
    /// Its index in `effects`.
    effect: usize,
    /// The process into which it was injected.
    pid: Option<u32>,
}

/// A fault with an action that is over and consequences that may still follow.
#[derive(Debug)]
struct SettlingFault {
    /// Its index in `effects`.
    effect: usize,
    /// From then on it can have no consequence.
    deadline: Monotonic,
    /// How long that is after the end of its action.
    settle: Duration,
}

/// All parts and all faults of one drill.
#[derive(Debug, Default)]
pub(super) struct FaultTracker {
    tracks: BTreeMap<DrillPart, PartTrack>,
    pub effects: Vec<FaultEffect>,
    pub unexplained_exits: Vec<UnexplainedExit>,
    settling: Vec<SettlingFault>,
}

impl FaultTracker {
    /// A fault is being injected. Returns its index in `effects`.
    pub(super) fn fault_injected(&mut self, now: Monotonic, fault: &DrillFault) -> usize {
        let index = self.effects.len();
        let part = fault.target.part();
        self.effects.push(FaultEffect {
            number: fault.number,
            kind: fault.kind,
            target: fault.target,
            part,
            expected: fault.kind.expected_effect(),
            injected: now,
            detected: None,
            recovered: None,
            repaired: None,
            ended: None,
            kill_cause: None,
            excluded: None,
        });
        if let Some(part) = part {
            let track = self.tracks.entry(part).or_default();
            // The watchdog may be killed while another fault is open: what follows is attributed to the later fault.
            if let Some(earlier) = track.open.replace(OpenFault { effect: index, pid: track.pid }) {
                let earlier = &mut self.effects[earlier.effect];
                earlier.ended = Some(now);
                earlier.excluded = Some("another fault was injected into the part meanwhile");
            }
        }
        index
    }

    /// The fault's action is over. If its part is unchanged after `settle`, the fault had no effect.
    pub(super) fn action_ended(&mut self, now: Monotonic, index: usize, settle: Duration) {
        self.settling.push(SettlingFault { effect: index, deadline: now + settle, settle });
    }

    /// The machine delayed the drill, and probably the set as well: consequences may take longer by as much.
    pub(super) fn extend_settling(&mut self, by: Duration) {
        for fault in &mut self.settling {
            fault.deadline = fault.deadline + by;
        }
    }

    /// The process of the fault's part was seen to have ended.
    pub(super) fn process_ended(&mut self, now: Monotonic, index: usize) {
        self.effects[index].detected.get_or_insert(now);
    }

    /// The files that the fault removed exist again.
    pub(super) fn files_repaired(&mut self, now: Monotonic, index: usize) {
        self.effects[index].repaired.get_or_insert(now);
    }

    /// The set may replace the process of this part once, without a fault of the part.
    pub(super) fn allow_replacement(&mut self, part: DrillPart) {
        self.tracks.entry(part).or_default().replacements += 1;
    }

    /// A set of units may replace the present process of this part, because the next dispatcher cannot reach it.
    pub(super) fn files_lost(&mut self, part: DrillPart) {
        self.tracks.entry(part).or_default().lost = true;
    }

    /// Whether removed files are still missing.
    pub(super) fn has_missing_files(&self) -> bool {
        let is_missing = |effect: &FaultEffect| effect.repaired.is_none() && effect.ended.is_none();
        self.effects.iter().any(|effect| effect.kind.is_repaired() && is_missing(effect))
    }

    /// The fault did not happen as intended, so its consequences are not judged.
    pub(super) fn exclude(&mut self, index: usize, reason: &'static str) {
        self.effects[index].excluded = Some(reason);
    }

    /// The fault did not happen at all.
    pub(super) fn withdraw(&mut self, now: Monotonic, index: usize, reason: &'static str) {
        let effect = &mut self.effects[index];
        effect.excluded = Some(reason);
        effect.ended = Some(now);
        if let Some(track) = effect.part.and_then(|part| self.tracks.get_mut(&part))
            && track.open.as_ref().is_some_and(|open| open.effect == index)
        {
            track.open = None;
        }
    }

    /// A new watchdog is running, and may not know all processes yet: an unknown process has not ended.
    pub(super) fn watchdog_changed(&mut self) {
        for track in self.tracks.values_mut() {
            track.pid = None;
        }
    }

    /// The watchdog was killed, and its parts exit: every open fault of a part has ended.
    pub(super) fn watchdog_killed(&mut self, now: Monotonic) {
        let removals = self.effects.iter_mut().filter(|effect| effect.kind.removes_files() && effect.ended.is_none());
        removals.for_each(|effect| effect.excluded = Some("the watchdog was killed meanwhile"));
        for (_, track) in self.tracks.iter_mut().filter(|(part, _)| **part != DrillPart::Watchdog) {
            if let Some(open) = track.open.take() {
                let effect = &mut self.effects[open.effect];
                effect.ended = Some(now);
                effect.excluded = Some("the watchdog was killed meanwhile");
            }
            *track = PartTrack::default();
        }
    }

    /// Whether this part is up and has no open fault.
    pub(super) fn is_available(&self, part: DrillPart) -> bool {
        self.tracks.get(&part).is_some_and(|track| track.open.is_none() && track.up)
    }

    /// Whether this part has an open fault.
    pub(super) fn has_open_fault(&self, part: DrillPart) -> bool {
        self.tracks.get(&part).is_some_and(|track| track.open.is_some())
    }

    /// How many parts have an open fault.
    pub(super) fn open_faults(&self) -> usize {
        self.tracks.values().filter(|track| track.open.is_some()).count()
    }

    /// Whether every fault has ended and every known part is up.
    pub(super) fn is_settled(&self) -> bool {
        self.settling.is_empty() && self.tracks.keys().all(|part| self.is_available(*part))
    }

    /// The watchdog's state file shows this now.
    pub(super) fn observe(&mut self, now: Monotonic, part: DrillPart, observation: &PartObservation) {
        let track = self.tracks.entry(part).or_default();
        track.up = observation.up;
        let before = track.pid;
        track.pid = observation.pid;
        let ended = before.filter(|before| observation.frozen || observation.pid != Some(*before));
        let ended = ended.filter(|pid| track.ended != Some(*pid));
        track.ended = ended.or(track.ended);
        let survives = |open: &OpenFault| self.effects[open.effect].expected == ExpectedEffect::Survives;
        let is_lost = ended.is_some() && std::mem::take(&mut track.lost);
        let may_be_replaced = is_lost || track.replacements > 0 && !observation.frozen;
        if ended.is_some() && may_be_replaced && track.open.as_ref().is_none_or(survives) {
            track.replacements -= u32::from(!is_lost);
            if let Some(open) = &track.open {
                self.effects[open.effect].excluded = Some("its process was replaced to repair its address");
            }
        } else if let Some(pid) = ended {
            if let Some(open) = &track.open {
                let effect = &mut self.effects[open.effect];
                effect.detected.get_or_insert(now);
                if effect.expected == ExpectedEffect::Survives {
                    effect.kill_cause.get_or_insert_with(|| observation.cause.clone());
                }
            } else {
                let exit = UnexplainedExit { part, pid, cause: observation.cause.clone(), at: now };
                self.unexplained_exits.push(exit);
            }
        }
        if let Some(open) = &track.open
            && observation.up
            && observation.pid.is_some()
            && observation.pid != open.pid
        {
            let effect = &mut self.effects[open.effect];
            effect.detected.get_or_insert(now);
            effect.recovered = Some(now);
            // The action of a fault that the part should survive may still last.
            if effect.expected != ExpectedEffect::Survives {
                effect.ended = Some(now);
                track.open = None;
            }
        }
    }

    /// Ends the faults that can have no further consequence.
    pub(super) fn tick(&mut self, now: Monotonic) {
        let Self { tracks, effects, settling, .. } = self;
        // No worker is declared frozen while the watchdog or the dispatcher is down.
        let detecting = [DrillPart::Watchdog, DrillPart::Dispatcher]
            .iter()
            .all(|part| tracks.get(part).is_none_or(|track| track.up && track.open.is_none()));
        settling.retain_mut(|fault| {
            let effect = &mut effects[fault.effect];
            if effect.ended.is_some() {
                return false;
            }
            if effect.expected == ExpectedEffect::MayEnd && !detecting {
                fault.deadline = now + fault.settle;
            }
            let must_recover = effect.expected == ExpectedEffect::Ends || effect.detected.is_some();
            if fault.deadline > now || must_recover && effect.recovered.is_none() {
                return true;
            }
            effect.ended = Some(now);
            if let Some(track) = effect.part.and_then(|part| tracks.get_mut(&part))
                && track.open.as_ref().is_some_and(|open| open.effect == fault.effect)
            {
                track.open = None;
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: DrillPart = DrillPart::Worker(0);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn fault(kind: FaultKind) -> DrillFault {
        let (pause, duration) = (Duration::ZERO, Duration::ZERO);
        DrillFault { number: 1, kind, target: FaultTarget::Part(WORKER), pause, duration, seed: 0 }
    }

    fn observation(pid: Option<u32>, up: bool) -> PartObservation {
        PartObservation { pid, frozen: false, up, cause: "cause".into() }
    }

    fn running() -> FaultTracker {
        let mut tracker = FaultTracker::default();
        tracker.observe(at(0), WORKER, &observation(Some(7), true));
        assert!(tracker.is_available(WORKER) && tracker.is_settled());
        tracker
    }

    #[test]
    fn frozen_part_is_detected_when_declared_frozen_and_recovered_when_another_process_is_up() {
        let mut tracker = running();
        tracker.fault_injected(at(10), &fault(FaultKind::Freeze));
        assert_eq!((tracker.open_faults(), tracker.is_available(WORKER)), (1, false));
        tracker.observe(at(250), WORKER, &PartObservation { frozen: true, ..observation(Some(7), false) });
        tracker.observe(at(300), WORKER, &observation(None, false));
        tracker.observe(at(310), WORKER, &observation(Some(8), false));
        assert_eq!(tracker.effects[0].recovered, None);
        tracker.observe(at(330), WORKER, &observation(Some(8), true));
        let effect = &tracker.effects[0];
        assert_eq!((effect.detected, effect.recovered, effect.ended), (Some(at(250)), Some(at(330)), Some(at(330))));
        assert!(tracker.is_settled() && tracker.unexplained_exits.is_empty() && effect.kill_cause.is_none());
    }

    #[test]
    fn exit_without_a_fault_is_reported_once() {
        let mut tracker = running();
        tracker.observe(at(5), WORKER, &PartObservation { frozen: true, ..observation(Some(7), false) });
        tracker.observe(at(6), WORKER, &observation(None, false));
        tracker.observe(at(7), WORKER, &observation(Some(8), true));
        let exit = UnexplainedExit { part: WORKER, pid: 7, cause: "cause".into(), at: at(5) };
        assert_eq!(tracker.unexplained_exits, [exit]);
        assert!(tracker.is_available(WORKER));
    }

    #[test]
    fn kill_after_a_harmless_fault_is_reported_and_a_survivor_becomes_available_after_settling() {
        for killed in [false, true] {
            let mut tracker = running();
            let index = tracker.fault_injected(at(10), &fault(FaultKind::Pause));
            if killed {
                tracker.observe(at(50), WORKER, &observation(None, false));
            }
            tracker.action_ended(at(60), index, Duration::from_millis(100));
            tracker.tick(at(159));
            assert!(!tracker.is_available(WORKER));
            tracker.tick(at(160));
            assert_eq!(tracker.is_available(WORKER), !killed);
            if killed {
                tracker.observe(at(200), WORKER, &observation(Some(8), true));
                tracker.tick(at(201));
            }
            assert!(tracker.is_settled());
            assert_eq!(tracker.effects[0].kill_cause.is_some(), killed);
        }
    }

    #[test]
    fn fault_followed_by_another_on_the_same_part_ends_and_is_excluded() {
        let mut tracker = running();
        tracker.fault_injected(at(10), &fault(FaultKind::Freeze));
        tracker.fault_injected(at(30), &fault(FaultKind::Kill));
        tracker.observe(at(40), WORKER, &observation(None, false));
        tracker.observe(at(50), WORKER, &observation(Some(8), true));
        assert!(tracker.is_settled() && tracker.unexplained_exits.is_empty());
        let [first, second] = &tracker.effects[..] else { panic!("two faults") };
        assert_eq!((first.ended, first.recovered, first.excluded.is_some()), (Some(at(30)), None, true));
        assert_eq!((second.ended, second.recovered, second.excluded), (Some(at(50)), Some(at(50)), None));
    }

    #[test]
    fn fault_that_may_end_a_process_ends_after_settling_or_with_the_replacement() {
        let mut tracker = running();
        let index = tracker.fault_injected(at(10), &fault(FaultKind::CorruptSlot));
        tracker.action_ended(at(10), index, Duration::from_millis(100));
        tracker.extend_settling(Duration::from_millis(30));
        tracker.tick(at(139));
        assert!(!tracker.is_settled());
        tracker.tick(at(140));
        assert!(tracker.is_settled() && tracker.effects[0].detected.is_none());
        let index = tracker.fault_injected(at(200), &fault(FaultKind::CorruptSlot));
        tracker.action_ended(at(200), index, Duration::from_millis(100));
        tracker.observe(at(250), WORKER, &observation(Some(8), true));
        tracker.tick(at(251));
        assert!(tracker.is_settled() && tracker.effects[1].recovered == Some(at(250)));
        assert!(tracker.unexplained_exits.is_empty());
    }

    #[test]
    fn fault_that_must_end_a_process_stays_open_until_the_process_is_replaced() {
        let mut tracker = running();
        let index = tracker.fault_injected(at(10), &fault(FaultKind::TruncateSegment));
        tracker.action_ended(at(10), index, Duration::from_millis(100));
        tracker.tick(at(10_000));
        assert_eq!((tracker.is_settled(), tracker.effects[0].ended), (false, None));
        tracker.observe(at(10_001), WORKER, &observation(Some(8), true));
        tracker.tick(at(10_002));
        assert!(tracker.is_settled());
    }

    #[test]
    fn corrupt_slot_settles_only_while_the_dispatcher_is_up() {
        let mut tracker = running();
        tracker.observe(at(3), DrillPart::Dispatcher, &observation(Some(1), false));
        let index = tracker.fault_injected(at(10), &fault(FaultKind::CorruptSlot));
        tracker.action_ended(at(10), index, Duration::from_millis(100));
        tracker.tick(at(500));
        tracker.observe(at(501), DrillPart::Dispatcher, &observation(Some(1), true));
        tracker.tick(at(599));
        assert!(!tracker.is_available(WORKER));
        tracker.tick(at(600));
        assert!(tracker.is_available(WORKER));
    }

    #[test]
    fn withdrawn_fault_leaves_its_part_available_and_is_excluded() {
        let mut tracker = running();
        let index = tracker.fault_injected(at(10), &fault(FaultKind::FreezeRemoved));
        tracker.withdraw(at(12), index, "not permitted");
        assert!(tracker.is_settled());
        assert_eq!((tracker.effects[0].ended, tracker.effects[0].excluded), (Some(at(12)), Some("not permitted")));
    }

    #[test]
    fn part_may_be_replaced_once_to_repair_its_address_but_not_frozen() {
        let mut tracker = running();
        tracker.allow_replacement(WORKER);
        tracker.observe(at(5), WORKER, &observation(None, false));
        tracker.observe(at(7), WORKER, &observation(Some(8), true));
        assert!(tracker.unexplained_exits.is_empty() && tracker.is_available(WORKER));
        tracker.observe(at(9), WORKER, &observation(Some(9), true));
        assert_eq!(tracker.unexplained_exits.len(), 1, "the second replacement has no reason");
        tracker.allow_replacement(WORKER);
        tracker.observe(at(11), WORKER, &PartObservation { frozen: true, ..observation(Some(9), false) });
        assert_eq!(tracker.unexplained_exits.len(), 2);
    }

    #[test]
    fn files_are_missing_until_they_are_repaired_or_the_fault_ends() {
        let mut tracker = running();
        let index =
            tracker.fault_injected(at(10), &DrillFault { target: FaultTarget::Set, ..fault(FaultKind::RemoveAll) });
        assert!(tracker.has_missing_files());
        tracker.files_repaired(at(20), index);
        assert!(!tracker.has_missing_files());
        tracker.fault_injected(at(30), &fault(FaultKind::RemoveSegment));
        assert!(!tracker.has_missing_files(), "a segment is replaced when its worker starts next");
    }

    #[test]
    fn removal_is_excluded_when_the_watchdog_is_killed_before_it_ends() {
        let mut tracker = running();
        let set = DrillFault { target: FaultTarget::Set, ..fault(FaultKind::RemoveDirectory) };
        let index = tracker.fault_injected(at(10), &set);
        tracker.files_repaired(at(20), index);
        tracker.action_ended(at(20), index, Duration::ZERO);
        tracker.tick(at(21));
        tracker.fault_injected(at(30), &set);
        tracker.watchdog_killed(at(40));
        let excluded: Vec<_> = tracker.effects.iter().map(|effect| effect.excluded.is_some()).collect();
        assert_eq!((tracker.effects[0].repaired, excluded), (Some(at(20)), vec![false, true]));
    }

    #[test]
    fn part_unknown_to_a_new_watchdog_has_not_ended() {
        let mut tracker = running();
        tracker.watchdog_changed();
        tracker.observe(at(5), WORKER, &observation(None, false));
        tracker.observe(at(6), WORKER, &observation(Some(7), true));
        assert!(tracker.unexplained_exits.is_empty());
        tracker.fault_injected(at(10), &fault(FaultKind::Freeze));
        tracker.watchdog_killed(at(20));
        tracker.observe(at(30), WORKER, &observation(Some(9), true));
        assert!(tracker.is_settled() && tracker.unexplained_exits.is_empty());
        assert_eq!((tracker.effects[0].ended, tracker.effects[0].excluded.is_some()), (Some(at(20)), true));
    }
}
