//! When a worker is old, and how it is replaced by its own next incarnation.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::config::PoolConfig;
use crate::ids::Monotonic;
use crate::process_tree;
use crate::signals::{BlockSighup, SignalFlag};
use crate::sync;
use crate::sys::DefaultSignalActions;

/// The bounds of one worker, each 20 % more or less than the pool's, so that a pool does not age at once.
pub struct Lifespan {
    max_requests: Option<u64>,
    max_age: Option<Duration>,
    max_memory: Option<u64>,
    served: AtomicU64,
    born: Mutex<Monotonic>,
}

impl Lifespan {
    pub fn new(pool: &PoolConfig, now: Monotonic) -> Self {
        // Without randomness all workers age alike: no reason not to start.
        let jitter = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
        let factor = 0.8 + 0.4 * jitter;
        let some = |value: u64| (value > 0).then_some(((value as f64 * factor).round() as u64).max(1));
        Self {
            max_requests: some(pool.max_requests),
            max_age: (!pool.max_age.is_zero()).then(|| pool.max_age.mul_f64(factor)),
            max_memory: some(pool.max_memory),
            served: AtomicU64::new(0),
            born: Mutex::new(now),
        }
    }

    /// Counts a request; how many there have been.
    pub fn served_one(&self) -> u64 {
        self.served.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether a bound is reached. `handler_memory`: resident bytes of the handler's own processes, if it has any.
    pub fn is_over(&self, served: u64, now: Monotonic, handler_memory: impl FnOnce() -> Option<u64>) -> bool {
        self.max_requests.is_some_and(|max| served >= max)
            || self.old_at().is_some_and(|at| at <= now)
            || self.max_memory.is_some_and(|max| handler_memory().or_else(own_memory).is_some_and(|m| m > max))
    }

    pub fn old_at(&self) -> Option<Monotonic> {
        let born = *sync::lock(&self.born);
        self.max_age.map(|age| born + age)
    }

    pub fn renew(&self, now: Monotonic) {
        self.served.store(0, Ordering::Relaxed);
        *sync::lock(&self.born) = now;
    }
}

fn own_memory() -> Option<u64> {
    process_tree::resident_alone(std::process::id())
}

/// Replaces this process by its next incarnation: same pid, same sockets, new program image.
///
/// A `program` goes through `patou worker` again (named by `PATOU_BIN`), which reads the configuration anew
/// and may find another program there; patou itself executes itself.
///
/// Only returns if that failed, or with `None` if the process has been told to stop: `stop` is asked once a signal
/// that comes later ends the process by itself, so that none is lost between two images.
pub fn reexec(sockets: &[BorrowedFd<'_>], instance: &str, stop: &SignalFlag) -> Option<io::Error> {
    let _undefended = match DefaultSignalActions::set() {
        Ok(undefended) => undefended,
        Err(error) => return Some(error),
    };
    if stop.is_set() {
        return None;
    }
    // The numbers in LISTEN_FDS hold: the sockets have kept their own.
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
    let _held = match BlockSighup::new() {
        Ok(held) => held,
        Err(error) => return Some(error),
    };
    let error = command.args(["worker", instance]).exec();
    for socket in sockets {
        let _ = fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    Some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifespan(change: impl FnOnce(&mut PoolConfig)) -> Lifespan {
        let mut pool = PoolConfig::default();
        change(&mut pool);
        Lifespan::new(&pool, Monotonic(0))
    }

    #[test]
    fn each_bound_ends_a_life_within_its_jitter() {
        for _ in 0..50 {
            let eternal = lifespan(|_| {});
            assert!(!eternal.is_over(u64::MAX, Monotonic(u64::MAX), || Some(u64::MAX)));
            let busy = lifespan(|pool| pool.max_requests = 10);
            assert!(!busy.is_over(7, Monotonic(0), || None) && busy.is_over(12, Monotonic(0), || None));
            let old = lifespan(|pool| pool.max_age = Duration::from_secs(10));
            assert!((8_000_000_000..=12_000_000_000).contains(&old.old_at().unwrap().0));
            let fat = lifespan(|pool| pool.max_memory = 1000);
            assert!(!fat.is_over(0, Monotonic(0), || Some(799)) && fat.is_over(0, Monotonic(0), || Some(1201)));
        }
        assert!(lifespan(|pool| pool.max_memory = 1).is_over(0, Monotonic(0), || None), "our own memory counts");
    }
}
