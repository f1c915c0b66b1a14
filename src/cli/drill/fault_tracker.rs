//! What became of each fault: who noticed it when, and when the part was back. Also who ended without a fault.
//!
//! Pure: the shell tells it what was struck and what the watchdog's file says of each part.

use std::collections::BTreeMap;
use std::time::Duration;

use super::generator::{Expect, Fault, Kind, Part, Target};
use crate::ids::Monotonic;

/// A fault that was injected.
#[derive(Clone, Debug)]
pub struct Effect {
    pub number: u32,
    pub kind: Kind,
    pub target: Target,
    /// Whose process it may end.
    pub part: Option<Part>,
    pub expect: Expect,
    pub from: Monotonic,
    /// When the watchdog knew, or the process was seen to have ended.
    pub detected: Option<Monotonic>,
    /// When another process of the part was up.
    pub back: Option<Monotonic>,
    /// Since when it has had no effect any more; `None` while it has.
    pub over: Option<Monotonic>,
    /// It should have done no harm, and this is how the process ended.
    pub killed: Option<String>,
    /// Why it is not judged.
    pub excused: Option<&'static str>,
}

/// A process that ended without any fault of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    pub part: Part,
    pub pid: u32,
    pub cause: String,
    pub at: Monotonic,
}

/// What is seen of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    pub pid: Option<u32>,
    /// The watchdog has declared it frozen, and is about to kill it.
    pub accused: bool,
    /// It serves.
    pub up: bool,
    pub cause: String,
}

#[derive(Debug, Default)]
struct Track {
    pid: Option<u32>,
    /// The process that was told of as ended or accused.
    ended: Option<u32>,
    /// The effect that holds it, and the process that it hit.
    open: Option<(usize, Option<u32>)>,
    up: bool,
}

/// All parts and all faults of one drill.
#[derive(Debug, Default)]
pub struct Tracker {
    tracks: BTreeMap<Part, Track>,
    pub effects: Vec<Effect>,
    pub strays: Vec<Stray>,
    /// What lasts a while and has ended, with the time when it can have no consequence any more,
    /// and how long that is after its end.
    settling: Vec<(usize, Monotonic, Duration)>,
}

impl Tracker {
    /// A fault is being injected: `part` is whose process it may harm. Returns its place in `effects`.
    pub fn strike(&mut self, now: Monotonic, fault: &Fault, part: Option<Part>) -> usize {
        let index = self.effects.len();
        let expect = fault.kind.expect();
        self.effects.push(Effect {
            number: fault.number,
            kind: fault.kind,
            target: fault.target,
            part,
            expect,
            from: now,
            detected: None,
            back: None,
            over: None,
            killed: None,
            excused: None,
        });
        if let Some(part) = part {
            let track = self.tracks.entry(part).or_default();
            // A watchdog may be killed while another fault holds it: what becomes of it is the later one's doing.
            if let Some((before, _)) = track.open.replace((index, track.pid)) {
                let before = &mut self.effects[before];
                before.over = Some(now);
                before.excused = Some("another fault hit the part meanwhile");
            }
        }
        index
    }

    /// The fault lasts no longer. If its part is still there after `settle`, nothing has happened to it.
    pub fn relax(&mut self, now: Monotonic, index: usize, settle: Duration) {
        self.settling.push((index, now + settle, settle));
    }

    /// The machine ran the drill too late by so much, and the set hardly any sooner: consequences may take longer.
    pub fn postpone(&mut self, by: Duration) {
        for (_, at, _) in &mut self.settling {
            *at = *at + by;
        }
    }

    /// It did not happen as meant, or longer than meant: nobody is blamed for what follows.
    pub fn excuse(&mut self, index: usize, why: &'static str) {
        self.effects[index].excused = Some(why);
    }

    /// Another watchdog is there: what it does not know yet is not gone.
    pub fn forget(&mut self) {
        for track in self.tracks.values_mut() {
            track.pid = None;
        }
    }

    /// The watchdog was killed and its parts leave: whatever was under way with them is over.
    pub fn sweep(&mut self, now: Monotonic) {
        for (_, track) in self.tracks.iter_mut().filter(|(part, _)| **part != Part::Watchdog) {
            if let Some((index, _)) = track.open.take() {
                let effect = &mut self.effects[index];
                effect.over = Some(now);
                effect.excused = Some("the watchdog was killed meanwhile");
            }
            *track = Track::default();
        }
    }

    /// Nothing holds this part, and it serves.
    pub fn is_free(&self, part: Part) -> bool {
        self.tracks.get(&part).is_some_and(|track| track.open.is_none() && track.up)
    }

    /// A fault holds this part.
    pub fn is_held(&self, part: Part) -> bool {
        self.tracks.get(&part).is_some_and(|track| track.open.is_some())
    }

    /// How many parts are held by a fault.
    pub fn held(&self) -> usize {
        self.tracks.values().filter(|track| track.open.is_some()).count()
    }

    /// Whether everything is over and every part that was ever seen serves.
    pub fn is_quiet(&self) -> bool {
        self.settling.is_empty() && self.tracks.keys().all(|part| self.is_free(*part))
    }

    /// What the watchdog's file says now.
    pub fn see(&mut self, now: Monotonic, part: Part, sight: &Sight) {
        let track = self.tracks.entry(part).or_default();
        track.up = sight.up;
        let before = track.pid;
        track.pid = sight.pid;
        let gone = before.filter(|before| sight.accused || sight.pid != Some(*before));
        if let Some(pid) = gone.filter(|pid| track.ended != Some(*pid)) {
            track.ended = Some(pid);
            match track.open {
                Some((index, _)) => {
                    let effect = &mut self.effects[index];
                    effect.detected.get_or_insert(now);
                    if effect.expect == Expect::Stays {
                        effect.killed.get_or_insert_with(|| sight.cause.clone());
                    }
                }
                None => self.strays.push(Stray { part, pid, cause: sight.cause.clone(), at: now }),
            }
        }
        if let Some((index, old)) = track.open
            && sight.up
            && sight.pid.is_some()
            && sight.pid != old
        {
            let effect = &mut self.effects[index];
            effect.detected.get_or_insert(now);
            effect.back = Some(now);
            // One that is still being done to it goes on.
            if effect.expect != Expect::Stays {
                effect.over = Some(now);
                track.open = None;
            }
        }
    }

    /// Time has passed: what had no consequence is over.
    pub fn tick(&mut self, now: Monotonic) {
        let Self { tracks, effects, settling, .. } = self;
        // Nobody is accused while one of these two is away.
        let judged = [Part::Watchdog, Part::Dispatcher]
            .iter()
            .all(|part| tracks.get(part).is_none_or(|track| track.up && track.open.is_none()));
        settling.retain_mut(|(index, at, settle)| {
            let effect = &mut effects[*index];
            if effect.over.is_some() {
                return false;
            }
            if effect.expect == Expect::MayEnd && !judged {
                *at = now + *settle;
            }
            // Who is to end, or was ended by it, is waited for.
            let awaited = effect.expect == Expect::Ends || effect.detected.is_some();
            if *at > now || awaited && effect.back.is_none() {
                return true;
            }
            effect.over = Some(now);
            if let Some(track) = effect.part.and_then(|part| tracks.get_mut(&part))
                && track.open.is_some_and(|(open, _)| open == *index)
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

    const W: Part = Part::Worker(0);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn fault(kind: Kind) -> Fault {
        let (pause, amount) = (Duration::ZERO, Duration::ZERO);
        Fault { number: 1, kind, target: Target::Part(W), pause, amount, seed: 0 }
    }

    fn sight(pid: Option<u32>, up: bool) -> Sight {
        Sight { pid, accused: false, up, cause: "why".into() }
    }

    fn running() -> Tracker {
        let mut tracker = Tracker::default();
        tracker.see(at(0), W, &sight(Some(7), true));
        assert!(tracker.is_free(W) && tracker.is_quiet());
        tracker
    }

    #[test]
    fn a_frozen_part_is_detected_when_accused_and_back_when_another_is_up() {
        let mut tracker = running();
        tracker.strike(at(10), &fault(Kind::Freeze), Some(W));
        assert_eq!((tracker.held(), tracker.is_free(W)), (1, false));
        tracker.see(at(250), W, &Sight { accused: true, ..sight(Some(7), false) });
        tracker.see(at(300), W, &sight(None, false));
        tracker.see(at(310), W, &sight(Some(8), false));
        assert_eq!(tracker.effects[0].back, None);
        tracker.see(at(330), W, &sight(Some(8), true));
        let effect = &tracker.effects[0];
        assert_eq!((effect.detected, effect.back, effect.over), (Some(at(250)), Some(at(330)), Some(at(330))));
        assert!(tracker.is_quiet() && tracker.strays.is_empty() && effect.killed.is_none());
    }

    #[test]
    fn who_ends_without_a_fault_is_a_stray_and_told_once() {
        let mut tracker = running();
        tracker.see(at(5), W, &Sight { accused: true, ..sight(Some(7), false) });
        tracker.see(at(6), W, &sight(None, false));
        tracker.see(at(7), W, &sight(Some(8), true));
        assert_eq!(tracker.strays, [Stray { part: W, pid: 7, cause: "why".into(), at: at(5) }]);
        assert!(tracker.is_free(W));
    }

    #[test]
    fn who_must_stay_is_reported_when_killed_and_free_when_nothing_came_of_it() {
        for killed in [false, true] {
            let mut tracker = running();
            let index = tracker.strike(at(10), &fault(Kind::Pause), Some(W));
            if killed {
                tracker.see(at(50), W, &sight(None, false));
            }
            tracker.relax(at(60), index, Duration::from_millis(100));
            tracker.tick(at(159));
            assert!(!tracker.is_free(W));
            tracker.tick(at(160));
            assert_eq!(tracker.is_free(W), !killed);
            if killed {
                tracker.see(at(200), W, &sight(Some(8), true));
                tracker.tick(at(201));
            }
            assert!(tracker.is_quiet());
            assert_eq!(tracker.effects[0].killed.is_some(), killed);
        }
    }

    #[test]
    fn a_fault_that_another_one_overtakes_is_over_and_not_judged() {
        let mut tracker = running();
        tracker.strike(at(10), &fault(Kind::Freeze), Some(W));
        tracker.strike(at(30), &fault(Kind::Kill), Some(W));
        tracker.see(at(40), W, &sight(None, false));
        tracker.see(at(50), W, &sight(Some(8), true));
        assert!(tracker.is_quiet() && tracker.strays.is_empty());
        let [frozen, killed] = &tracker.effects[..] else { panic!("two faults") };
        assert_eq!((frozen.over, frozen.back, frozen.excused.is_some()), (Some(at(30)), None, true));
        assert_eq!((killed.over, killed.back, killed.excused), (Some(at(50)), Some(at(50)), None));
    }

    #[test]
    fn what_may_end_is_over_when_replaced_or_when_nothing_came_of_it() {
        let mut tracker = running();
        let index = tracker.strike(at(10), &fault(Kind::Scribble), Some(W));
        tracker.relax(at(10), index, Duration::from_millis(100));
        tracker.postpone(Duration::from_millis(30));
        tracker.tick(at(139));
        assert!(!tracker.is_quiet());
        tracker.tick(at(140));
        assert!(tracker.is_quiet() && tracker.effects[0].detected.is_none());
        let index = tracker.strike(at(200), &fault(Kind::Scribble), Some(W));
        tracker.relax(at(200), index, Duration::from_millis(100));
        tracker.see(at(250), W, &sight(Some(8), true));
        tracker.tick(at(251));
        assert!(tracker.is_quiet() && tracker.effects[1].back == Some(at(250)) && tracker.strays.is_empty());
    }

    #[test]
    fn what_must_end_is_never_over_before_it_has_and_what_may_end_waits_for_a_dispatcher_that_sees_it() {
        let settle = Duration::from_millis(100);
        let mut tracker = running();
        let index = tracker.strike(at(10), &fault(Kind::Cut), Some(W));
        tracker.relax(at(10), index, settle);
        tracker.tick(at(10_000));
        assert_eq!((tracker.is_quiet(), tracker.effects[0].over), (false, None));
        tracker.see(at(10_001), W, &sight(Some(8), true));
        tracker.tick(at(10_002));
        assert!(tracker.is_quiet());

        tracker.see(at(10_003), Part::Dispatcher, &sight(Some(1), false));
        let index = tracker.strike(at(10_010), &fault(Kind::Scribble), Some(W));
        tracker.relax(at(10_010), index, settle);
        tracker.tick(at(10_500));
        tracker.see(at(10_501), Part::Dispatcher, &sight(Some(1), true));
        tracker.tick(at(10_599));
        assert!(!tracker.is_free(W));
        tracker.tick(at(10_600));
        assert!(tracker.is_free(W));
    }

    #[test]
    fn a_new_watchdog_that_does_not_know_a_part_yet_has_not_killed_it() {
        let mut tracker = running();
        tracker.forget();
        tracker.see(at(5), W, &sight(None, false));
        tracker.see(at(6), W, &sight(Some(7), true));
        assert!(tracker.strays.is_empty());
        tracker.strike(at(10), &fault(Kind::Freeze), Some(W));
        tracker.sweep(at(20));
        tracker.see(at(30), W, &sight(Some(9), true));
        assert!(tracker.is_quiet() && tracker.strays.is_empty());
        assert_eq!((tracker.effects[0].over, tracker.effects[0].excused.is_some()), (Some(at(20)), true));
    }
}
