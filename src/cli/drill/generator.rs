//! What a drill does: a list of faults that follows from the seed and the shape of the set alone.
//!
//! Pure. The same seed on the same set gives the same kinds, targets, pauses and amounts in the same order; only when
//! each of them takes effect is the machine's business.

use std::time::Duration;

/// splitmix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0. For the small ends of a drill the bias is nothing.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A duration from `low` to `high`, in whole microseconds.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_micros() as u64;
        low + Duration::from_micros(self.below(span + 1))
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// A part of the set that has a process. Workers are counted from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Watchdog,
    Dispatcher,
    Worker(usize),
}

/// What a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Part(Part),
    /// The segment and the bells of this worker.
    Slot(usize),
    /// A listener, by its place in the configuration.
    Door(usize),
    Machine,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SIGSTOP, and left so.
    Freeze,
    /// SIGSTOP, and SIGCONT before the bound.
    Pause,
    /// SIGKILL.
    Kill,
    /// SIGABRT.
    Abort,
    /// SIGILL: an end that leaves a core (the first SIGSEGV sent to a Rust program is swallowed by its handler).
    Crash,
    /// SIGTERM: a restart that lets it finish what it has in hand.
    Leave,
    /// `systemctl restart`.
    Restart,
    /// SIGHUP to who reads the configuration.
    Reload,
    /// `patou net::discard_until_closed`, and after a while `patou resume`.
    Drain,
    /// More runnable processes than cores.
    Starve,
    /// Both bells of a worker filled until EAGAIN.
    FillBells,
    /// Both bells emptied: rings are lost.
    EmptyBells,
    /// Random words in a random line of the slot.
    Scribble,
    /// The segment is cut to nothing.
    Cut,
    /// The segment is cut and brought back, empty.
    CutAndMend,
    /// A client that leaves within its request.
    Hangup,
    /// A client that connects and sends nothing.
    HalfOpen,
    /// A client that sends its head a byte at a time.
    SlowHead,
    /// A client that sends its body a byte at a time.
    SlowBody,
    /// A client that does not read its response.
    Deaf,
    /// A client that is given a worker and never comes to it.
    NoShow,
}

impl Kind {
    /// The word of the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Freeze => "SIGSTOP",
            Kind::Pause => "SIGSTOP, SIGCONT",
            Kind::Kill => "SIGKILL",
            Kind::Abort => "SIGABRT",
            Kind::Crash => "SIGILL",
            Kind::Leave => "SIGTERM",
            Kind::Restart => "systemctl restart",
            Kind::Reload => "SIGHUP",
            Kind::Drain => "drain, resume",
            Kind::Starve => "CPU starvation",
            Kind::FillBells => "bells filled",
            Kind::EmptyBells => "bells emptied",
            Kind::Scribble => "garbage in slot",
            Kind::Cut => "segment cut",
            Kind::CutAndMend => "segment cut, mended",
            Kind::Hangup => "client leaves",
            Kind::HalfOpen => "half-open client",
            Kind::SlowHead => "slow head",
            Kind::SlowBody => "slow body",
            Kind::Deaf => "client does not read",
            Kind::NoShow => "lease not used",
        }
    }

    /// What becomes of the process that it hits.
    pub fn expect(self) -> Expect {
        match self {
            Kind::Freeze | Kind::Kill | Kind::Abort | Kind::Crash | Kind::Leave | Kind::Restart => Expect::Ends,
            Kind::Cut | Kind::CutAndMend => Expect::Ends,
            // A word that nobody reads as long as it is there may be overwritten before anybody does.
            Kind::Scribble => Expect::MayEnd,
            _ => Expect::Stays,
        }
    }
}

/// What becomes of the process of a part after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is replaced, within a bound.
    Ends,
    /// Perhaps.
    MayEnd,
    /// It must not be killed.
    Stays,
}

/// Who starts the parts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// `patou run`, started by the drill, which also starts it again.
    Own,
    /// `patou run`, started by somebody else: nobody starts it again.
    Run,
    /// systemd.
    Units,
}

/// What of a set the list depends on.
#[derive(Clone, Debug)]
pub struct Shape {
    pub workers: usize,
    /// The listeners at which clients may be rude.
    pub doors: Vec<usize>,
    pub keeper: Keeper,
    pub worker_timeout: Duration,
    pub dispatcher_timeout: Duration,
    /// Faults per second, on average.
    pub pace: f64,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub number: u32,
    pub kind: Kind,
    pub target: Target,
    /// How long the drill waits before it.
    pub pause: Duration,
    /// How long it lasts, where it lasts.
    pub amount: Duration,
    /// For what else it has to choose.
    pub seed: u64,
}

#[derive(Clone, Copy)]
enum Whom {
    Watchdog,
    Dispatcher,
    Worker,
    Slot,
    Door,
    Machine,
}

/// Each with its weight: how often of all it comes.
const MENU: &[(u64, Kind, Whom)] = &[
    (10, Kind::Freeze, Whom::Worker),
    (4, Kind::Freeze, Whom::Dispatcher),
    (1, Kind::Freeze, Whom::Watchdog),
    (7, Kind::Pause, Whom::Worker),
    (4, Kind::Pause, Whom::Dispatcher),
    (2, Kind::Pause, Whom::Watchdog),
    (12, Kind::Kill, Whom::Worker),
    (5, Kind::Kill, Whom::Dispatcher),
    (1, Kind::Kill, Whom::Watchdog),
    (3, Kind::Abort, Whom::Worker),
    (1, Kind::Abort, Whom::Dispatcher),
    (2, Kind::Crash, Whom::Worker),
    (1, Kind::Crash, Whom::Dispatcher),
    (5, Kind::Leave, Whom::Worker),
    (2, Kind::Leave, Whom::Dispatcher),
    (3, Kind::Restart, Whom::Worker),
    (2, Kind::Restart, Whom::Dispatcher),
    (1, Kind::Restart, Whom::Watchdog),
    (2, Kind::Reload, Whom::Watchdog),
    (3, Kind::Drain, Whom::Worker),
    (2, Kind::Starve, Whom::Machine),
    (4, Kind::FillBells, Whom::Slot),
    (4, Kind::EmptyBells, Whom::Slot),
    (8, Kind::Scribble, Whom::Slot),
    (2, Kind::Cut, Whom::Slot),
    (2, Kind::CutAndMend, Whom::Slot),
    (6, Kind::Hangup, Whom::Door),
    (3, Kind::HalfOpen, Whom::Door),
    (3, Kind::SlowHead, Whom::Door),
    (4, Kind::SlowBody, Whom::Door),
    (4, Kind::Deaf, Whom::Door),
    (2, Kind::NoShow, Whom::Door),
];

impl Shape {
    /// Whether this set can take such a fault and come back by itself.
    fn can(&self, kind: Kind, whom: Whom) -> bool {
        match (kind, whom, self.keeper) {
            (Kind::Restart, _, keeper) => keeper == Keeper::Units,
            (Kind::Kill, Whom::Watchdog, keeper) => keeper != Keeper::Run,
            (_, Whom::Door, _) => !self.doors.is_empty(),
            // Without systemd nobody watches the watchdog.
            (Kind::Freeze, Whom::Watchdog, keeper) => keeper == Keeper::Units,
            _ => true,
        }
    }

    /// The list of this seed. It has no end.
    pub fn faults(&self, seed: u64) -> impl Iterator<Item = Fault> + '_ {
        let mut random = Random::new(seed);
        let menu: Vec<_> = MENU.iter().filter(|(_, kind, whom)| self.can(*kind, *whom)).collect();
        let total = menu.iter().map(|(weight, ..)| weight).sum();
        (1..).map(move |number| {
            let mut left = random.below(total);
            let chosen = menu.iter().find(|(weight, ..)| match left.checked_sub(*weight) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            let (_, kind, whom) = chosen.expect("the number is below the sum of the weights");
            let worker = random.below(self.workers as u64) as usize;
            let door = random.below(self.doors.len().max(1) as u64) as usize;
            let target = match whom {
                Whom::Watchdog => Target::Part(Part::Watchdog),
                Whom::Dispatcher => Target::Part(Part::Dispatcher),
                Whom::Worker => Target::Part(Part::Worker(worker)),
                Whom::Slot => Target::Slot(worker),
                Whom::Door => Target::Door(self.doors[door]),
                Whom::Machine => Target::Machine,
            };
            let pause = random.between(Duration::ZERO, Duration::from_secs_f64(2.0 / self.pace));
            let amount = self.amount(*kind, target, &mut random);
            Fault { number, kind: *kind, target, pause, amount, seed: random.next() }
        })
    }

    fn amount(&self, kind: Kind, target: Target, random: &mut Random) -> Duration {
        let ms = Duration::from_millis;
        match (kind, target) {
            // Who pauses for half of his bound is excused whatever the machine does; a watchdog is never accused.
            (Kind::Pause, Target::Part(Part::Worker(_))) => random.between(ms(5), self.worker_timeout / 2),
            (Kind::Pause, Target::Part(Part::Dispatcher)) => random.between(ms(5), self.dispatcher_timeout / 2),
            (Kind::Pause, _) => random.between(ms(50), ms(1000)),
            (Kind::Starve, _) => random.between(ms(300), ms(1000)),
            (Kind::Drain, _) => random.between(ms(20), ms(300)),
            (Kind::CutAndMend, _) => random.between(ms(0), ms(50)),
            _ => random.between(ms(50), ms(1500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn shape(keeper: Keeper) -> Shape {
        let (worker_timeout, dispatcher_timeout) = (Duration::from_millis(200), Duration::from_millis(400));
        Shape { workers: 5, doors: vec![0, 1, 3], keeper, worker_timeout, dispatcher_timeout, pace: 5.0 }
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first numbers of the reference implementation from the seed 1234567.
        let mut random = Random::new(1234567);
        let first: Vec<_> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn the_list_follows_from_the_seed_alone() {
        let shape = shape(Keeper::Own);
        let list = |seed| shape.faults(seed).take(200).collect::<Vec<_>>();
        assert_eq!(list(7), list(7));
        assert_ne!(list(7), list(8));
        assert_eq!(list(7)[..50], shape.faults(7).take(50).collect::<Vec<_>>()[..], "a longer list begins alike");
    }

    #[test]
    fn every_kind_comes_and_every_part_is_hit() {
        let shape = shape(Keeper::Units);
        let all: Vec<_> = shape.faults(1).take(2000).collect();
        let kinds: BTreeSet<_> = all.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds.len(), MENU.iter().map(|(_, kind, _)| kind).collect::<BTreeSet<_>>().len());
        let hit = |target| all.iter().any(|fault| fault.target == target);
        assert!((0..5).all(|n| hit(Target::Part(Part::Worker(n))) && hit(Target::Slot(n))));
        assert!([0, 1, 3].iter().all(|n| hit(Target::Door(*n))) && !hit(Target::Door(2)));
        let mean = all.iter().map(|fault| fault.pause).sum::<Duration>() / 2000;
        assert!((Duration::from_millis(180)..Duration::from_millis(220)).contains(&mean), "{mean:?}");
    }

    #[test]
    fn nobody_is_hit_who_could_not_come_back_and_a_pause_stays_below_its_bound() {
        let mut saw = [false; 3];
        for fault in shape(Keeper::Run).faults(3).take(5000) {
            assert_ne!(fault.kind, Kind::Restart);
            match (fault.kind, fault.target) {
                (Kind::Kill | Kind::Freeze, Target::Part(part)) => assert_ne!(part, Part::Watchdog),
                (Kind::Pause, Target::Part(Part::Worker(_))) => {
                    saw[0] = true;
                    assert!(fault.amount <= Duration::from_millis(100));
                }
                (Kind::Pause, Target::Part(Part::Dispatcher)) => {
                    saw[1] = true;
                    assert!(fault.amount <= Duration::from_millis(200));
                }
                (Kind::Pause, _) => saw[2] = true,
                _ => {}
            }
        }
        assert_eq!(saw, [true; 3]);
        assert!(
            shape(Keeper::Own)
                .faults(3)
                .take(2000)
                .any(|f| f.target == Target::Part(Part::Watchdog) && f.kind == Kind::Kill)
        );
    }
}
