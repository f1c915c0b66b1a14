//! `CLOCK_MONOTONIC`, which is the same for every process of the machine. For shells only: deciding code takes the time
//! as an argument.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::ids::Monotonic;

/// The time now.
pub(crate) fn now() -> Monotonic {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC");
    Monotonic(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The time since the boot of the machine, suspended times included: `CLOCK_BOOTTIME`.
pub(crate) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME").into()
}

/// How long the machine has been suspended since its boot: `CLOCK_BOOTTIME` counts that time, `CLOCK_MONOTONIC` does
/// not.
pub(crate) fn suspended_for() -> Duration {
    // In this order: a pause between the two calls does not look like a suspend.
    since_boot().saturating_sub(now().since(Monotonic(0)))
}
