//! Input and output of the plan.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::ids::{Monotonic, WorkerId, WorkerNumber};
use crate::liveness::{HeldBy, ProcessSample, RestartLimits};
use crate::probe::ProbeReport;

/// A part of the set, each a separate process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The dispatcher.
    Dispatcher,
    /// A worker.
    Worker(WorkerId),
    /// The stand-in of a worker that is down: it sends the worker's clients back to the dispatcher.
    StandIn(WorkerId),
}

impl Part {
    /// The worker's id; `None` for another part.
    pub(crate) fn worker(&self) -> Option<&WorkerId> {
        match self {
            Part::Worker(id) => Some(id),
            Part::Dispatcher | Part::StandIn(_) => None,
        }
    }

    /// Whether this is a stand-in.
    pub(crate) fn is_stand_in(&self) -> bool {
        matches!(self, Part::StandIn(_))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Dispatcher => f.write_str("dispatcher"),
            Part::Worker(id) => write!(f, "worker {id}"),
            Part::StandIn(id) => write!(f, "the stand-in of worker {id}"),
        }
    }
}

/// Time limits, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanLimits {
    /// How long a worker may leave a probe unanswered.
    pub worker_timeout: Duration,
    /// The same for the dispatcher.
    pub dispatcher_timeout: Duration,
    /// How long a part may take to become ready.
    pub start_timeout: Duration,
    /// Time between SIGABRT and SIGKILL for a frozen part.
    pub abort_grace: Duration,
    /// Time after its drain_timeout in which a stopping part sends its last responses and exits.
    pub exit_grace: Duration,
    /// When a part is restarted, and when it is given up.
    pub restarts: RestartLimits,
}

/// The liveness of one worker, from the dispatcher's report.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLiveness {
    /// The worker.
    pub worker: WorkerId,
    /// Since when it has left a probe unanswered.
    pub silent_since: Option<Monotonic>,
    /// Since when its slot has had no incarnation that finished starting: the process may be between two incarnations.
    pub starting_since: Option<Monotonic>,
    /// Progress counter of its control loop, while a probe is unanswered.
    pub ticks: Option<u64>,
    /// Its slot is corrupt, so its state is unknown.
    pub corrupt: bool,
}

impl WorkerLiveness {
    /// All workers of a report that arrived at `now`.
    pub(crate) fn from_report(report: &ProbeReport, now: Monotonic) -> Vec<WorkerLiveness> {
        let mut all = Vec::new();
        let before = |ms: u64| Monotonic(now.0.saturating_sub(ms.saturating_mul(1_000_000)));
        for pool in &report.pools {
            for (worker, number) in pool.workers.iter().zip(WorkerNumber::up_to(u16::MAX)) {
                all.push(WorkerLiveness {
                    worker: WorkerId { pool: pool.name.clone(), number },
                    silent_since: worker.silent_ms.map(before),
                    starting_since: worker.starting_ms.map(before),
                    ticks: worker.ticks,
                    corrupt: worker.corrupt,
                });
            }
        }
        all
    }
}

/// Why a unit has no process, as systemd reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Unknown, or systemd is about to restart it.
    Gone,
    /// Stopped by an operator.
    Stopped,
    /// systemd has given it up.
    Failed,
}

impl Absence {
    /// The state that `patou status` shows.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Absence::Gone => "gone",
            Absence::Stopped => "stopped",
            Absence::Failed => "failed",
        }
    }
}

/// What happened. `E`: what happens in one kind of set only, [`ChildEvent`] or [`UnitEvent`].
#[derive(Debug)]
pub(crate) enum PlanEvent<E> {
    /// The part reported that it can serve.
    Ready(Part),
    /// A probe was sent to the dispatcher. Evaluation waits for the next event, because an answer may already be
    /// buffered; the same holds for `WatchdogLate` and `MachineResumed`.
    ProbeSent,
    /// The last probe did not leave the watchdog: `probe.sock` does not exist, or there is no descriptor or memory for it.
    /// That is no silence of the dispatcher.
    ProbeNotSent,
    /// The dispatcher answered a probe.
    Report(Vec<WorkerLiveness>),
    /// What the watchdog has seen in the slots of workers that the dispatcher does not report.
    Observed(Vec<WorkerLiveness>),
    /// The sample that [`PlanAction::Sample`] requested; `None` if it could not be taken for lack of a resource.
    Sampled(Part, Option<ProcessSample>),
    /// The watchdog itself was not run for so long.
    WatchdogLate(Duration),
    /// The machine was suspended; the clock did not advance meanwhile.
    MachineResumed,
    /// Time has passed.
    Tick,
    /// An event of this kind of set.
    Set(E),
}

impl<E> From<E> for PlanEvent<E> {
    fn from(event: E) -> Self {
        PlanEvent::Set(event)
    }
}

/// What happens in a set of child processes.
#[derive(Debug)]
pub(crate) enum ChildEvent {
    /// The part was started as this process.
    Started(Part, u32),
    /// The part could not be started, for this reason.
    StartFailed(Part, String),
    /// The part could not be started because a resource is used up, which is no fault of the part.
    StartPostponed(Part, String),
    /// The part's process ended.
    Exited {
        /// The part.
        part: Part,
        /// How it ended, in words.
        cause: String,
        /// From 0 to 1: varies the delay of the restart.
        jitter: f64,
    },
    /// Stop the set; requests in progress may finish.
    Stop,
    /// Kill every part now.
    StopNow,
    /// A new configuration is in force.
    Apply(ConfigChange),
    /// These workers and stand-ins run with sockets that were replaced.
    SocketsReplaced(Vec<Part>),
}

/// What happens in a set of systemd units.
#[derive(Debug)]
pub(crate) enum UnitEvent {
    /// The part runs as this process.
    Found(Part, u32),
    /// The part's process ended.
    Ended(Part),
    /// systemd's state of a unit.
    State {
        /// The part.
        part: Part,
        /// Why it has no process, if it has none.
        absence: Absence,
        /// How often systemd has restarted it.
        restarts: u32,
        /// How it ended, if it has failed.
        cause: Option<String>,
    },
    /// A new configuration is in force: all workers with their drain_timeout, and the new limits.
    Apply(BTreeMap<WorkerId, Duration>, PlanLimits),
}

/// What a new configuration means for the processes.
#[derive(Debug)]
pub(crate) struct ConfigChange {
    /// All workers, with their drain_timeout.
    pub workers: BTreeMap<WorkerId, Duration>,
    /// Workers that must reload their configuration.
    pub reload: Vec<WorkerId>,
    /// Workers that need other sockets or other resource limits.
    pub restart: Vec<WorkerId>,
    /// Whether the dispatcher needs other sockets.
    pub restart_dispatcher: bool,
    /// The new limits.
    pub limits: PlanLimits,
}

/// A signal to a part that works, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartSignal {
    /// SIGTERM: finish the current requests and exit.
    Terminate,
    /// SIGHUP: reload the configuration.
    Reload,
}

/// A signal that ends a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillSignal {
    /// SIGABRT, and SIGCONT so that a stopped process receives it.
    Abort,
    /// SIGKILL.
    Kill,
}

/// What the shell has to do. `A`: what it has to do in one kind of set only: [`ChildAction`], or nothing in a set of
/// units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlanAction<A> {
    /// Sample the part's process and report [`PlanEvent::Sampled`] before any other event.
    Sample(Part),
    /// Record evidence: a kill follows. The text completes the sentence "PART ...": "is frozen (...)".
    DeclareFrozen(Part, String),
    /// End the part's process.
    Kill(Part, KillSignal),
    /// Log a notice about the part.
    Log(Part, Notice),
    /// An action of this kind of set.
    Set(A),
}

impl<A> From<A> for PlanAction<A> {
    fn from(action: A) -> Self {
        PlanAction::Set(action)
    }
}

/// What the shell has to do in a set of child processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChildAction {
    /// Start the part, then report [`ChildEvent::Started`], [`ChildEvent::StartFailed`] or
    /// [`ChildEvent::StartPostponed`].
    Start(Part),
    /// Signal the part's process.
    Signal(Part, PartSignal),
    /// Kill the processes that the worker left behind and have the dispatcher read its slot.
    KillOrphans(WorkerId),
    /// Have the dispatcher stop granting leases.
    Quiesce,
    /// Close the worker's listening socket, so that waiting clients are reset and others refused: the set is stopping.
    CloseAddress(WorkerId),
    /// Remove the worker's segment, doorbells and socket: it left the configuration.
    RemoveWorker(WorkerId),
    /// Every part is up for the first time.
    AllUp,
    /// All parts have ended: exit.
    Finish,
}

/// A notice to the operator about one part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the variants' comments describe the fields
pub(crate) enum Notice {
    /// It serves again after `restarts` restarts.
    Recovered { restarts: u32 },
    /// It runs again: systemd has restarted it, `restarts` times so far.
    UnitRestarted { restarts: u32 },
    /// It ended and is restarted after `delay`.
    Restarting { cause: String, delay: Duration },
    /// It ended too often and is given up.
    Failed { cause: String },
    /// It did not stop in time.
    Overdue,
    /// A probe is unanswered for `silence` because the machine does not run it.
    Starved { silence: Duration },
    /// A probe is unanswered because the process is held.
    Suspended { by: HeldBy },
    /// No longer starved or suspended.
    Resumed,
    /// Its unit was stopped by an operator.
    Stopped,
    /// Its unit is not restarted any more.
    UnitFailed { cause: String },
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
            recycle_requested: false,
            silent_ms,
            starting_ms: None,
            ticks: None,
            handler_faults: 0,
        };
        let name = "web".to_owned().try_into().unwrap();
        let pool = PoolReport {
            name,
            queue: 0,
            oldest_ms: 0,
            workers: vec![worker; count],
            served: 0,
            counters: Default::default(),
        };
        ProbeReport {
            nonce: 1,
            pid: 1,
            epoch: 1,
            pools: vec![pool],
            connections: None,
            refused: None,
            stopping: false,
            version: None,
        }
    }

    #[test]
    fn excess_workers_and_overflowing_times_of_a_report_are_clamped() {
        // As many workers as fit in a line.
        let all = WorkerLiveness::from_report(&report(70_000, 1), Monotonic(5_000_000));
        assert_eq!(all.last().unwrap().worker.number, WorkerNumber::of(u16::MAX));
        assert_eq!(all[0].silent_since, Some(Monotonic(4_000_000)));
        for ms in [6, 18_446_744_073_710, u64::MAX] {
            let all = WorkerLiveness::from_report(&report(1, ms), Monotonic(5_000_000));
            assert_eq!(all[0].silent_since, Some(Monotonic(0)), "{ms}");
        }
    }
}
