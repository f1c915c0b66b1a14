//! What the plan is told, and what it says.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::ids::{Monotonic, WorkerId, WorkerNumber};
use crate::liveness::{HeldBy, ProcessSample, RestartLimits};
use crate::probe::ProbeReport;

/// A part of the set that has a process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The dispatcher.
    Dispatcher,
    /// A worker.
    Worker(WorkerId),
}

impl Part {
    /// The worker it is, if it is one.
    pub fn worker(&self) -> Option<&WorkerId> {
        match self {
            Part::Dispatcher => None,
            Part::Worker(id) => Some(id),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Dispatcher => f.write_str("dispatcher"),
            Part::Worker(id) => write!(f, "worker {id}"),
        }
    }
}

/// The bounds it decides by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a worker may owe an answer.
    pub worker_timeout: Duration,
    /// The same for the dispatcher.
    pub dispatcher_timeout: Duration,
    /// How long a part may take to be ready.
    pub start_timeout: Duration,
    /// How long a frozen part has between SIGABRT and SIGKILL.
    pub abort_grace: Duration,
    /// How long the dispatcher may take to answer its last clients.
    pub parting: Duration,
    /// When a part is started again, and when no more.
    pub restarts: RestartLimits,
}

/// A sign of life of one worker, out of the dispatcher's report.
#[derive(Clone, Debug)]
pub struct Sign {
    /// Whose.
    pub worker: WorkerId,
    /// Since when it owes an answer.
    pub silent_since: Option<Monotonic>,
    /// Since when nobody has been in its slot who is through with his start: its process may be between two incarnations.
    pub starting_since: Option<Monotonic>,
    /// The turns of its control loop, where it owes an answer.
    pub ticks: Option<u64>,
    /// Nobody can tell what it is doing: its slot holds nonsense.
    pub corrupt: bool,
}

impl Sign {
    /// Those in a report that came just now.
    pub fn all(report: &ProbeReport, now: Monotonic) -> Vec<Sign> {
        let mut signs = Vec::new();
        let before = |ms: u64| Monotonic(now.0.saturating_sub(ms.saturating_mul(1_000_000)));
        for pool in &report.pools {
            for (worker, number) in pool.workers.iter().zip(WorkerNumber::up_to(u16::MAX)) {
                signs.push(Sign {
                    worker: WorkerId { pool: pool.name.clone(), number },
                    silent_since: worker.silent_ms.map(before),
                    starting_since: worker.starting_ms.map(before),
                    ticks: worker.ticks,
                    corrupt: worker.corrupt,
                });
            }
        }
        signs
    }
}

/// What systemd says of a unit without a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Not known yet, or about to be started again.
    Gone,
    /// Somebody has stopped it.
    Stopped,
    /// It is given up.
    Failed,
}

impl Absence {
    /// The word of `patou status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Absence::Gone => "gone",
            Absence::Stopped => "stopped",
            Absence::Failed => "failed",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The part has this process now.
    Started(Part, u32),
    /// It could not be started.
    StartFailed(Part, String),
    /// It says that it can serve.
    Ready(Part),
    /// Its process ended, like this; `chance` from 0 to 1 varies the delay of its restart.
    Exited {
        /// Which.
        part: Part,
        /// In words.
        how: String,
        /// From 0 to 1.
        chance: f64,
    },
    /// systemd says this of a part, should it have no process, and how often it has started it again by itself.
    Told {
        /// Which.
        part: Part,
        /// What it says.
        absence: Absence,
        /// How often.
        restarts: u32,
    },
    /// The dispatcher has been asked. What was heard before, or [`Event::Tick`], is told next; the same after the next two.
    Probed,
    /// The dispatcher has answered.
    Report(Vec<Sign>),
    /// The shell has looked at the part's process, as [`Action::Observe`] asks.
    Observed(Part, ProcessSample),
    /// This process itself did not run for so long.
    Lost(Duration),
    /// The machine was suspended, and the clock stood still.
    Resumed,
    /// Time has passed.
    Tick,
    /// Stop, everybody finishing what he has.
    Stop,
    /// Stop at once.
    StopNow,
    /// A new configuration.
    Apply(Change),
}

/// What a new configuration means for the processes.
#[derive(Debug)]
pub struct Change {
    /// The workers from now on, with their drain_timeout.
    pub workers: BTreeMap<WorkerId, Duration>,
    /// Those that must read their configuration anew.
    pub reload: Vec<WorkerId>,
    /// Those that need other sockets or other limits.
    pub restart: Vec<WorkerId>,
    /// Whether the dispatcher needs other sockets.
    pub restart_dispatcher: bool,
    /// The bounds from now on.
    pub bounds: Bounds,
}

/// A signal to a part, by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// SIGTERM: finish and leave.
    Leave,
    /// SIGHUP: read the configuration.
    Reload,
    /// SIGABRT, and SIGCONT so that a stopped process takes it.
    Abort,
    /// SIGKILL.
    Kill,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start its process, then report [`Event::Started`] or [`Event::StartFailed`].
    Start(Part),
    /// Look at its process, and report [`Event::Observed`] before anything else happens.
    Observe(Part),
    /// Signal its process.
    Order(Part, Order),
    /// Say why it is about to be killed.
    Accuse(Part, String),
    /// Kill what the worker left behind and have the dispatcher look at its slot.
    Sweep(WorkerId),
    /// Tell the dispatcher that nobody gets a worker any more.
    Quiesce,
    /// Remove the worker's segment, bells and socket: it is not coming back.
    Remove(WorkerId),
    /// Tell the operator.
    Tell(Part, Notice),
    /// Every part is up for the first time.
    AllUp,
    /// Everybody is gone.
    Finish,
}

/// What an operator is told of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // of the fields: the lines above have them
pub enum Notice {
    /// It is back.
    Ready { restarts: u32 },
    /// It ended and is started again after this time.
    Restart { how: String, delay: Duration },
    /// It ended so often that it is given up.
    Failed { how: String },
    /// It did not go in time.
    Overdue,
    /// It owes an answer for so long, and the machine does not run it.
    Starved { silence: Duration },
    /// It owes an answer, and this holds it.
    Suspended { by: HeldBy },
    /// It is starved or suspended no more.
    Relieved,
    /// An administrator has stopped it.
    Stopped,
    /// systemd has given it up.
    GivenUp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{PoolReport, WorkerReport};

    fn report(count: usize, silent_ms: u64) -> ProbeReport {
        let silent_ms = Some(silent_ms);
        let worker = WorkerReport {
            epoch: 1,
            serves: false,
            late: false,
            drained: false,
            corrupt: false,
            silent_ms,
            starting_ms: None,
            ticks: None,
        };
        let name = "web".to_owned().try_into().unwrap();
        let pool = PoolReport { name, queue: 0, oldest_ms: 0, workers: vec![worker; count], tally: Default::default() };
        ProbeReport { nonce: 1, pid: 1, epoch: 1, pools: vec![pool], refused: None }
    }

    #[test]
    fn a_report_may_say_more_than_there_can_be() {
        // As many as fit in a line.
        let signs = Sign::all(&report(70_000, 1), Monotonic(5_000_000));
        assert_eq!(signs.last().unwrap().worker.number, WorkerNumber::of(u16::MAX));
        assert_eq!(signs[0].silent_since, Some(Monotonic(4_000_000)));
        for ever in [6, 18_446_744_073_710, u64::MAX] {
            assert_eq!(Sign::all(&report(1, ever), Monotonic(5_000_000))[0].silent_since, Some(Monotonic(0)), "{ever}");
        }
    }
}
