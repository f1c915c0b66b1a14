//! When a worker has reached a limit of its pool, and how its next incarnation replaces it.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::config::PoolConfig;
use crate::ids::Monotonic;
use crate::log;
use crate::signals::{BlockSighup, SignalFlag};
use crate::sync;
use crate::sys::DefaultSignalActions;

/// The limits of one worker: the pool's, each with 20 % jitter, so that the workers of a pool do not recycle at once.
pub(super) struct RecycleLimits {
    max_requests: Option<u64>,
    max_age: Option<Duration>,
    max_memory: Option<u64>,
    usage: Mutex<LimitUsage>,
}

/// What has been used of the limits.
struct LimitUsage {
    served: u64,
    started: Monotonic,
    /// When the memory was last measured.
    measured: Option<Monotonic>,
}

impl LimitUsage {
    fn none(now: Monotonic) -> Self {
        Self { served: 0, started: now, measured: None }
    }
}

/// The shortest time between two measurements of the memory, which may read many files of `/proc`.
const MEASURE_INTERVAL: Duration = Duration::from_millis(200);

/// Why a worker recycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReachedLimit {
    /// `max_requests` or `max_age`.
    Planned,
    /// `max_memory` with its jitter, and what is used, in bytes.
    Memory { used: u64, max: u64 },
}

impl RecycleLimits {
    pub(super) fn new(pool: &PoolConfig, now: Monotonic) -> Self {
        // Without random numbers all workers get the same limits, which is no reason not to start.
        let jitter = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
        let factor = 0.8 + 0.4 * jitter;
        let limit = |value: u64| (value > 0).then_some(((value as f64 * factor).round() as u64).max(1));
        Self {
            max_requests: limit(pool.max_requests),
            max_age: (!pool.max_age.is_zero()).then(|| pool.max_age.mul_f64(factor)),
            max_memory: limit(pool.max_memory),
            usage: Mutex::new(LimitUsage::none(now)),
        }
    }

    /// Counts a request. Returns how many there were since the last reset.
    pub(super) fn count_request(&self) -> u64 {
        let mut usage = sync::lock(&self.usage);
        usage.served += 1;
        usage.served
    }

    /// The limit that is reached after `served` requests. `memory_above` returns the bytes that the worker and its processes
    /// use, if they are more than its argument.
    pub(super) fn reached(
        &self,
        served: u64,
        now: Monotonic,
        memory_above: impl FnOnce(u64) -> Option<u64>,
    ) -> Option<ReachedLimit> {
        if self.max_requests.is_some_and(|max| served >= max) || self.max_age_at().is_some_and(|at| at <= now) {
            return Some(ReachedLimit::Planned);
        }
        let max = self.max_memory?;
        {
            let mut usage = sync::lock(&self.usage);
            if usage.measured.is_some_and(|at| now.since(at) < MEASURE_INTERVAL) {
                return None;
            }
            usage.measured = Some(now);
        }
        memory_above(max).map(|used| ReachedLimit::Memory { used, max })
    }

    /// When `max_age` is reached.
    pub(super) fn max_age_at(&self) -> Option<Monotonic> {
        self.max_age.map(|age| sync::lock(&self.usage).started + age)
    }

    /// Counts requests and age from now on.
    pub(super) fn reset(&self, now: Monotonic) {
        *sync::lock(&self.usage) = LimitUsage::none(now);
    }
}

/// Replaces this process by its next incarnation: same pid, same sockets, new program image.
///
/// A `program` executes `patou worker` (named by `PATOU_BIN`), which reads the configuration again and may find another
/// program there; patou itself executes its own file.
///
/// Returns only the error if that failed, or `None` if `stop` is set. `stop` is read after the default signal actions
/// are in force: a later signal ends the process, so no stop signal is lost between two images.
pub(super) fn reexec(sockets: &[BorrowedFd<'_>], instance: &str, stop: &SignalFlag) -> Option<io::Error> {
    let _default_actions = match DefaultSignalActions::set() {
        Ok(actions) => actions,
        Err(error) => return Some(error),
    };
    if stop.is_set() {
        return None;
    }
    // The numbers in LISTEN_FDS stay valid: the sockets have kept theirs.
    for socket in sockets {
        if let Err(error) = fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())) {
            return Some(error.into());
        }
    }
    let mut command = match std::env::var_os("PATOU_BIN") {
        Some(patou) => Command::new(patou),
        None => Command::new("/proc/self/exe"),
    };
    command.arg0("patou");
    let _sighup_blocked = match BlockSighup::new() {
        Ok(blocked) => blocked,
        Err(error) => return Some(error),
    };
    log::flush(); // execve(2) ends the thread that writes
    let error = command.args(["worker", instance]).exec();
    for socket in sockets {
        let _ = fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    Some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut PoolConfig)) -> RecycleLimits {
        let mut pool = PoolConfig::default();
        change(&mut pool);
        RecycleLimits::new(&pool, Monotonic(0))
    }

    #[test]
    fn each_limit_is_reached_within_its_jitter() {
        for _ in 0..50 {
            let requests = limits(|pool| pool.max_requests = 10);
            let reached = |served| requests.reached(served, Monotonic(0), |_| None).is_some();
            assert!(!reached(7) && reached(12));
            let age = limits(|pool| pool.max_age = Duration::from_secs(10));
            assert!((8_000_000_000..=12_000_000_000).contains(&age.max_age_at().unwrap().0));
            let memory = limits(|pool| pool.max_memory = 1000);
            let Some(ReachedLimit::Memory { used, max }) = memory.reached(0, Monotonic(0), |max| Some(max + 1)) else {
                panic!("the limit is reached");
            };
            assert!((800..=1200).contains(&max) && used == max + 1);
        }
    }

    #[test]
    fn no_limit_is_reached_by_default() {
        assert_eq!(limits(|_| {}).reached(u64::MAX, Monotonic(u64::MAX), |_| Some(u64::MAX)), None);
    }

    #[test]
    fn memory_is_not_measured_more_often_than_needed() {
        let limits = limits(|pool| pool.max_memory = 1000);
        let at = |ms: u64| Monotonic(ms * 1_000_000);
        assert_eq!(limits.reached(1, at(0), |_| None), None);
        assert_eq!(limits.reached(2, at(199), |_| panic!("measured too early")), None);
        assert!(limits.reached(3, at(200), |_| Some(5000)).is_some());
        limits.reset(at(201));
        assert!(limits.reached(1, at(202), |_| Some(5000)).is_some(), "a new process is measured at once");
    }
}
