//! The identity of a process.

/// One process of this machine. The start time distinguishes it from later processes with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22); 0 if it could not be read.
    pub start_time: u64,
}
