//! The faults that a drill can inject: their kinds, their targets, and the effect that each is expected to have.
//!
//! Pure.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

/// A part of the set that has a process. Workers are counted from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum DrillPart {
    Watchdog,
    Dispatcher,
    Worker(usize),
}

/// Where a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultTarget {
    Part(DrillPart),
    /// The segment and the doorbells of this worker.
    Slot(usize),
    /// A listener, by its index in the configuration.
    Listener(usize),
    Machine,
}

/// What is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum FaultKind {
    /// SIGSTOP, never continued.
    Freeze,
    /// SIGSTOP, and SIGCONT before the part's timeout.
    Pause,
    /// SIGKILL.
    Kill,
    /// SIGABRT.
    Abort,
    /// SIGILL: ends the process with a core dump (Rust's handler discards the first SIGSEGV that is sent by kill(2)).
    Crash,
    /// SIGTERM: the part finishes its requests and is restarted.
    Terminate,
    /// `systemctl restart`.
    Restart,
    /// SIGHUP: reloads the configuration.
    Reload,
    /// `patou drain`, and later `patou resume`.
    Drain,
    /// More runnable processes than cores.
    Starve,
    /// Both doorbells of a worker are filled until EAGAIN.
    FillDoorbells,
    /// Both doorbells are emptied, so that wake-ups are lost.
    EmptyDoorbells,
    /// Random words are written to a random line of the segment.
    CorruptSlot,
    /// The segment is truncated to size 0.
    TruncateSegment,
    /// The segment is truncated and then extended again, which leaves only zeros.
    ZeroSegment,
    /// A client disconnects within its request.
    Disconnect,
    /// A client connects and sends nothing.
    HalfOpen,
    /// A client sends its head a byte at a time.
    SlowHead,
    /// A client sends its body a byte at a time.
    SlowBody,
    /// A client does not read its response.
    NotReading,
    /// A client obtains a lease and does not use it.
    UnusedLease,
}

/// What becomes of the process of a part after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpectedEffect {
    /// It is replaced within a bound.
    Ends,
    /// It may be replaced.
    MayEnd,
    /// It must not be killed.
    Survives,
}

/// One fault of the generator's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DrillFault {
    /// From 1.
    pub number: u32,
    pub kind: FaultKind,
    pub target: FaultTarget,
    /// How long the drill waits before it injects the fault.
    pub pause: Duration,
    /// How long the fault lasts, if its kind lasts.
    pub duration: Duration,
    /// For the random choices within the fault.
    pub seed: u64,
}

impl FaultTarget {
    /// The part that is affected by the fault.
    pub(super) fn part(self) -> Option<DrillPart> {
        match self {
            FaultTarget::Part(part) => Some(part),
            FaultTarget::Slot(worker) => Some(DrillPart::Worker(worker)),
            FaultTarget::Listener(_) | FaultTarget::Machine => None,
        }
    }
}

impl fmt::Display for DrillPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DrillPart::Watchdog => f.write_str("the watchdog"),
            DrillPart::Dispatcher => f.write_str("the dispatcher"),
            DrillPart::Worker(index) => write!(f, "worker index {index}"),
        }
    }
}

impl fmt::Display for FaultTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultTarget::Part(part) => part.fmt(f),
            FaultTarget::Slot(index) => write!(f, "the slot of worker index {index}"),
            FaultTarget::Listener(index) => write!(f, "listener index {index}"),
            FaultTarget::Machine => f.write_str("the machine"),
        }
    }
}

impl FaultKind {
    /// The name in the report.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            FaultKind::Freeze => "SIGSTOP",
            FaultKind::Pause => "SIGSTOP, SIGCONT",
            FaultKind::Kill => "SIGKILL",
            FaultKind::Abort => "SIGABRT",
            FaultKind::Crash => "SIGILL",
            FaultKind::Terminate => "SIGTERM",
            FaultKind::Restart => "systemctl restart",
            FaultKind::Reload => "SIGHUP",
            FaultKind::Drain => "drain, resume",
            FaultKind::Starve => "CPU starvation",
            FaultKind::FillDoorbells => "doorbells filled",
            FaultKind::EmptyDoorbells => "doorbells emptied",
            FaultKind::CorruptSlot => "slot corrupted",
            FaultKind::TruncateSegment => "segment truncated",
            FaultKind::ZeroSegment => "segment zeroed",
            FaultKind::Disconnect => "client disconnects",
            FaultKind::HalfOpen => "half-open client",
            FaultKind::SlowHead => "slow head",
            FaultKind::SlowBody => "slow body",
            FaultKind::NotReading => "client does not read",
            FaultKind::UnusedLease => "lease not used",
        }
    }

    /// What becomes of the process of its target.
    pub(super) fn expected_effect(self) -> ExpectedEffect {
        match self {
            FaultKind::Freeze
            | FaultKind::Kill
            | FaultKind::Abort
            | FaultKind::Crash
            | FaultKind::Terminate
            | FaultKind::Restart
            | FaultKind::TruncateSegment
            | FaultKind::ZeroSegment => ExpectedEffect::Ends,
            // A corrupt word may be overwritten before the worker or the dispatcher reads it.
            FaultKind::CorruptSlot => ExpectedEffect::MayEnd,
            _ => ExpectedEffect::Survives,
        }
    }
}
