//! What is found out about a process before it is killed. A missing value could not be read, or not in time.

use std::time::Duration;

use crate::exchange::RequestNote;
use crate::ids::{Claim, Epoch, Monotonic};

/// How long the watchdog remembers that it was late.
pub(super) const LATENESS_KEPT: Duration = Duration::from_secs(60);

/// Everything about one process.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Evidence {
    /// How long it has been running.
    pub age: Option<Duration>,
    /// How many descriptors it has open, and its limit.
    pub descriptors: Option<(u64, u64)>,
    /// The first of its threads.
    pub threads: Vec<ThreadEvidence>,
    pub thread_count: usize,
    /// The first of the processes it has started.
    pub children: Vec<ChildEvidence>,
    pub child_count: usize,
    /// What the kernel does not show to this user.
    pub denied: Vec<&'static str>,
    pub held: Option<HeldWork>,
    pub machine: MachineEvidence,
    /// Something was not read in time.
    pub is_cut_short: bool,
}

/// One thread, as `/proc/PID/task/TID` shows it (proc(5)).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ThreadEvidence {
    pub name: String,
    /// The letter of its state.
    pub state: Option<char>,
    /// The kernel function that it sleeps in.
    pub wait_channel: Option<String>,
    /// The number of the system call that it is in.
    pub system_call: Option<i64>,
    /// Kernel functions, innermost first.
    pub stack: Vec<String>,
    /// How long it has run on a processor, and how long it has waited for one.
    pub run_times: Option<(Duration, Duration)>,
}

/// A process that the part has started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ChildEvidence {
    pub pid: u32,
    /// The letter of its state.
    pub state: Option<char>,
    pub name: String,
    pub command: Option<String>,
    pub age: Option<Duration>,
}

/// The work that the part held.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum HeldWork {
    /// From a worker's slot. `claim` is `None` if the claim word is corrupt.
    Lease { epoch: Option<Epoch>, claim: Option<Claim>, request: Option<RequestNote> },
    /// A dispatcher's clients: the queue from its last report, the number of leases from the slots.
    Clients { queue: Option<QueueReport>, leases: usize },
}

/// The clients waiting for a worker, as the dispatcher has reported them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct QueueReport {
    pub clients: usize,
    /// How long the first of them had waited.
    pub oldest: Duration,
    /// When the report arrived.
    pub at: Monotonic,
}

/// The load of the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MachineEvidence {
    /// Runnable processes over 1, 5 and 15 minutes.
    pub load: Option<String>,
    /// Pressure of processor, memory and devices: percent of the last ten seconds.
    pub pressure: [Option<f64>; 3],
    /// Available and total memory in bytes.
    pub memory: Option<(u64, u64)>,
    /// The longest delay of the watchdog itself within [`LATENESS_KEPT`].
    pub watchdog_late: Duration,
}
