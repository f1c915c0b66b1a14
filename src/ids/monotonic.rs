//! Points in time.

use std::ops::Add;
use std::time::Duration;

/// A point on `CLOCK_MONOTONIC` in nanoseconds: the same for every process of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Monotonic(pub u64);

impl Monotonic {
    /// The time since `earlier`; zero if that is not earlier.
    pub(crate) fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point `time` earlier.
    pub(crate) fn before(self, time: Duration) -> Monotonic {
        Monotonic(self.0.saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Monotonic;
    fn add(self, time: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}
