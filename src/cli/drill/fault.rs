//! The faults that a drill can inject: their kinds, their targets, and the effect that each is expected to have.
//!
//! Pure.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

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
    /// Two or three parts; of two, one is listed twice.
    Parts([DrillPart; 3]),
    /// What the parts share: the files and the log of the set.
    Set,
    Machine,
}

/// What is injected. The names of the variants are the values of `--only` and `--except`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum FaultKind {
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
    /// SIGKILL to two or three parts at once.
    KillSeveral,
    /// SIGSTOP to two or three parts at once, never continued.
    FreezeSeveral,
    /// `patou drain`, and SIGSTOP before the worker is resumed.
    FreezeDrained,
    /// A reload removes the worker while it is stopped by SIGSTOP; the next one adds it again.
    FreezeRemoved,
    /// A debugger holds every thread for longer than the part's timeout.
    Debugger,
    /// The control group of the part is frozen for longer than the part's timeout.
    FreezeGroup,
    /// Idle clients take every descriptor that the dispatcher may still open.
    UseUpDescriptors,
    /// The part cannot open a descriptor for a while.
    LimitDescriptors,
    /// A worker makes the socket of a client that does not read blocking, fills it, and ends by SIGKILL or SIGSTOP.
    ChangeSocketFlags,
    /// SIGKILL while the reader of the set's log does not read and the pipe is full.
    BlockLog,
    /// The segment is unlinked.
    RemoveSegment,
    /// Both doorbells of a worker are unlinked.
    RemoveDoorbells,
    /// The socket on which a worker receives connections is unlinked.
    RemoveHandoffSocket,
    /// `probe.sock` is unlinked.
    RemoveProbeSocket,
    /// `admin.sock` is unlinked.
    RemoveAdminSocket,
    /// The files of all Unix listeners and Unix addresses of workers are unlinked.
    RemoveListenerSockets,
    /// `applied.toml` and `watchdog.json` are removed.
    RemoveState,
    /// `set.lock` is removed, and a second `patou run` starts on the same configuration.
    RemoveLock,
    /// The runtime directory is removed, or moved away and then removed.
    RemoveDirectory,
    /// The runtime directory, all segments and all Unix sockets are removed at once.
    RemoveAll,
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
            FaultTarget::Listener(_) | FaultTarget::Parts(_) | FaultTarget::Set | FaultTarget::Machine => None,
        }
    }

    /// All parts that are affected by the fault.
    pub(super) fn parts(self) -> Vec<DrillPart> {
        match self {
            FaultTarget::Parts([a, b, c]) if c == a || c == b => vec![a, b],
            FaultTarget::Parts(parts) => parts.to_vec(),
            target => target.part().into_iter().collect(),
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
            FaultTarget::Parts(_) => {
                f.write_str(&self.parts().iter().map(DrillPart::to_string).collect::<Vec<_>>().join(", "))
            }
            FaultTarget::Set => f.write_str("the set"),
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
            FaultKind::KillSeveral => "several killed",
            FaultKind::FreezeSeveral => "several frozen",
            FaultKind::FreezeDrained => "drain, SIGSTOP",
            FaultKind::FreezeRemoved => "removed, SIGSTOP",
            FaultKind::Debugger => "debugger attached",
            FaultKind::FreezeGroup => "control group frozen",
            FaultKind::UseUpDescriptors => "descriptors used up",
            FaultKind::LimitDescriptors => "descriptors limited",
            FaultKind::ChangeSocketFlags => "socket made blocking",
            FaultKind::BlockLog => "log blocked, SIGKILL",
            FaultKind::RemoveSegment => "segment removed",
            FaultKind::RemoveDoorbells => "doorbells removed",
            FaultKind::RemoveHandoffSocket => "n.sock removed",
            FaultKind::RemoveProbeSocket => "probe.sock removed",
            FaultKind::RemoveAdminSocket => "admin.sock removed",
            FaultKind::RemoveListenerSockets => "listener file removed",
            FaultKind::RemoveState => "state files removed",
            FaultKind::RemoveLock => "set.lock removed",
            FaultKind::RemoveDirectory => "directory removed",
            FaultKind::RemoveAll => "all files removed",
        }
    }

    /// Whether the fault removes files that a running set needs.
    pub(super) fn removes_files(self) -> bool {
        use FaultKind::*;
        let of_worker = matches!(self, RemoveSegment | RemoveDoorbells | RemoveHandoffSocket);
        let sockets = matches!(self, RemoveProbeSocket | RemoveAdminSocket | RemoveListenerSockets);
        of_worker || sockets || matches!(self, RemoveState | RemoveLock | RemoveDirectory | RemoveAll)
    }

    /// Whether the fault removes the Unix address of a worker, which is replaced for that when it is idle.
    pub(super) fn removes_worker_addresses(self) -> bool {
        matches!(self, FaultKind::RemoveListenerSockets | FaultKind::RemoveAll)
    }

    /// Whether the set creates the removed files again without the restart of a part.
    pub(super) fn is_repaired(self) -> bool {
        use FaultKind::*;
        // What two processes share by name is replaced at the next start of the worker.
        let at_next_start = matches!(self, RemoveSegment | RemoveDoorbells | RemoveHandoffSocket);
        self.removes_files() && !at_next_start && self != RemoveLock
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
            | FaultKind::ZeroSegment
            | FaultKind::KillSeveral
            | FaultKind::FreezeSeveral
            | FaultKind::FreezeDrained
            | FaultKind::FreezeRemoved
            | FaultKind::ChangeSocketFlags
            | FaultKind::BlockLog => ExpectedEffect::Ends,
            // A corrupt word may be overwritten before the worker or the dispatcher reads it.
            FaultKind::CorruptSlot => ExpectedEffect::MayEnd,
            _ => ExpectedEffect::Survives,
        }
    }
}
