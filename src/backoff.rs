//! A part that systemd starts again and again waits longer each time before it is ready, as
//! `watchdog.restarts` says: systemd 252 knows no growing delay (`RestartSteps=` came with 254), and a connection
//! that waits in the part's socket starts it at once whatever `RestartSec=` says.

use crate::clock;
use crate::config::Config;
use crate::exchange::{self, SlotMemory, Word};
use crate::liveness::{RestartLimits, StartRecord};
use crate::log::Event;

/// The bounds of restarts.
pub fn limits(config: &Config) -> RestartLimits {
    let restarts = &config.watchdog.restarts;
    RestartLimits { max: restarts.max, within: restarts.within, delay: restarts.delay, delay_max: restarts.delay_max }
}

/// Takes note of this start in the slots and waits if too many went wrong before. Nothing to do for a process that
/// somebody else than systemd has started, and who has the growing delay.
///
/// The dispatcher notes it in every slot and believes the one in the middle: a worker that lies in its own does not
/// keep it from starting, and a slot that is new lets nothing be forgotten.
pub fn delay_start(slots: &[&impl SlotMemory], word: Word, config: &Config) {
    let by_systemd = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !by_systemd {
        return;
    }
    let mut starts: Vec<_> = slots.iter().map(|slot| exchange::load_start(*slot, word)).collect();
    starts.sort_by_key(|start| start.map_or(0, |(_, failures)| failures));
    let middle = starts.get(starts.len().saturating_sub(1) / 2).copied().flatten();
    let last = middle.map(|(at, failures)| StartRecord { at, failures });
    let (start, wait) = StartRecord::after(last, clock::now(), &limits(config), jitter());
    for slot in slots {
        exchange::store_start(*slot, word, Some((start.at, start.failures)));
    }
    if !wait.is_zero() {
        let failures = start.failures;
        let wait_ms = wait.as_millis() as u64;
        tracing::info!(failures, wait_ms, event = %Event::PartHeldBack, "started again after failures: waiting first");
        std::thread::sleep(wait);
    }
}

/// The end of this life is wanted: the next one does not wait.
pub fn clear_failures(memory: &impl SlotMemory, word: Word) {
    exchange::store_start(memory, word, None);
}

/// From 0 to 1.
pub fn jitter() -> f64 {
    // Without randomness all wait alike, which is no reason not to restart.
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}
