//! Growing restart delays for parts that systemd restarts: a part that keeps failing waits before it is ready, as
//! `watchdog.restarts` configures.
//!
//! systemd 252 has no growing delay (`RestartSteps=` is new in 254), and a connection that waits in the part's socket
//! starts the part at once, whatever `RestartSec=` says.

use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::exchange::{self, SlotMemory, Word};
use crate::liveness::{RestartLimits, StartRecord};
use crate::log::Event;

/// The restart limits of a configuration.
pub(crate) fn limits(config: &Config) -> RestartLimits {
    let restarts = &config.watchdog.restarts;
    RestartLimits { max: restarts.max, within: restarts.within, delay: restarts.delay, delay_max: restarts.delay_max }
}

/// Whether systemd has started this process. Under `patou run` the watchdog delays restarts.
pub(crate) fn is_started_by_systemd() -> bool {
    std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Records this start in the slots. Returns how long a part that follows repeated failures must wait before it is ready.
///
/// The dispatcher records its start in every slot and uses the median: a worker that forges its own slot cannot delay
/// the dispatcher, and a new slot does not erase the history.
pub(crate) fn record_start(slots: &[&impl SlotMemory], word: Word, config: &Config) -> Option<Duration> {
    let mut starts: Vec<_> = slots.iter().map(|slot| exchange::load_start(*slot, word)).collect();
    starts.sort_by_key(|start| start.map_or(0, |(_, failures)| failures));
    let median = starts.get(starts.len().saturating_sub(1) / 2).copied().flatten();
    let last = median.map(|(at, failures)| StartRecord { at, failures });
    let (start, wait) = StartRecord::after(last, clock::now(), &limits(config), jitter());
    for slot in slots {
        exchange::store_start(*slot, word, Some((start.at, start.failures)));
    }
    if wait.is_zero() {
        return None;
    }
    let failures = start.failures;
    let wait_ms = wait.as_millis() as u64;
    tracing::info!(failures, wait_ms, event = %Event::PartHeldBack,
        "restarted after failures: waiting before it is ready");
    Some(wait)
}

/// Records the start of a part that systemd runs, and waits as [`record_start`] says.
pub(crate) fn delay_start(slots: &[&impl SlotMemory], word: Word, config: &Config) {
    if is_started_by_systemd()
        && let Some(wait) = record_start(slots, word, config)
    {
        std::thread::sleep(wait);
    }
}

/// Clears the record at a planned end, so that the next start does not wait.
pub(crate) fn clear_failures(memory: &impl SlotMemory, word: Word) {
    exchange::store_start(memory, word, None);
}

/// A random number from 0 to 1.
pub(crate) fn jitter() -> f64 {
    // Without randomness all parts wait equally long.
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}
