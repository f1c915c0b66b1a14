//! The one clock: `CLOCK_MONOTONIC`, the same for every process of the machine. For shells only.

use nix::time::{ClockId, clock_gettime};

use crate::ids::Time;

/// Now.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
    Time(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
