//! The one clock: `CLOCK_MONOTONIC`, the same for every process of the machine. For shells only.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::ids::Monotonic;

/// Now.
pub fn now() -> Monotonic {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
    Monotonic(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// How long the machine has been suspended since it was started: for so long this clock stood still
/// (`CLOCK_BOOTTIME` did not).
pub fn suspended_for() -> Duration {
    // In this order: a pause between the two must not look like a suspend.
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    Duration::from(boot).saturating_sub(now().since(Monotonic(0)))
}
