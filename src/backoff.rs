//! Growing restart delays for parts that systemd restarts: a part that keeps failing waits before it is ready, as
//! `watchdog.restarts` configures.
//!
//! systemd 252 has no growing delay (`RestartSteps=` is new in 254), and a connection that waits in the part's socket
//! starts the part at once, whatever `RestartSec=` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::exchange::{self, SlotMemory, Word};
use crate::ids::Monotonic;
use crate::liveness::{self, RestartLimits};
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

/// The part keeps failing and is not restarted any more.
#[derive(Debug, thiserror::Error)]
#[error("it failed {failures} times in a row and was never ready for {} (watchdog.restarts)",
    humantime::format_duration(*within))]
pub(crate) struct GivenUp {
    failures: u32,
    within: Duration,
}

/// In place of the time since when a part has been ready, until it is.
const NOT_READY: Monotonic = Monotonic(1_000_000);

/// Counts this start in the slots. Returns how long a part that follows failures must wait before it is ready, if at all.
///
/// The dispatcher counts in every slot and uses the median: a worker that forges its own slot cannot delay the
/// dispatcher, and a new slot does not erase the history.
///
/// # Errors
/// If the part is given up. The next start is the first of a new series.
pub(crate) fn record_start(
    slots: &[&impl SlotMemory],
    word: Word,
    config: &Config,
) -> Result<Option<Duration>, GivenUp> {
    let limits = limits(config);
    let failures = |slot: &&_| failures_before(exchange::load_start(*slot, word), clock::now(), &limits);
    let mut all: Vec<u32> = slots.iter().map(failures).collect();
    all.sort_unstable();
    let failures = all.get(all.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let wait = delay_after(failures, &limits);
    let record = wait.as_ref().ok().map(|_| (NOT_READY, failures));
    slots.iter().for_each(|slot| exchange::store_start(*slot, word, record));
    wait
}

/// How long the start after so many failures waits before the part is ready, if at all.
fn delay_after(failures: u32, limits: &RestartLimits) -> Result<Option<Duration>, GivenUp> {
    let wait = liveness::start_delay(failures, limits, jitter());
    let wait = wait.ok_or(GivenUp { failures, within: limits.within })?;
    if wait.is_zero() {
        return Ok(None);
    }
    let wait_ms = wait.as_millis() as u64;
    tracing::info!(failures, wait_ms, event = %Event::PartHeldBack,
        "restarted after failures: waiting before it is ready");
    Ok(Some(wait))
}

/// How often a part has failed in a row when it starts. `last`: since when its previous incarnation has been ready, and
/// how often it had failed before; `None` after a planned end.
fn failures_before(last: Option<(Monotonic, u32)>, now: Monotonic, limits: &RestartLimits) -> u32 {
    match last {
        Some((ready_at, _)) if ready_at != NOT_READY && now.since(ready_at) >= limits.within => 0,
        Some((_, failures)) => failures.saturating_add(1),
        None => 0,
    }
}

/// How often the part has failed in a row before its present incarnation.
pub(crate) fn failures(memory: &impl SlotMemory, word: Word) -> u32 {
    exchange::load_start(memory, word).map_or(0, |(_, failures)| failures)
}

/// Notes that the part is ready. An incarnation that replaces itself in place continues the life of its process.
pub(crate) fn note_ready(memory: &impl SlotMemory, word: Word) {
    if let Some((NOT_READY, failures)) = exchange::load_start(memory, word) {
        exchange::store_start(memory, word, Some((clock::now(), failures)));
    }
}

/// Counts the start of a part that systemd runs, and waits as [`record_start`] says.
///
/// # Errors
/// If the part is given up.
pub(crate) fn delay_start(slots: &[&impl SlotMemory], word: Word, config: &Config) -> Result<(), GivenUp> {
    if is_started_by_systemd()
        && let Some(wait) = record_start(slots, word, config)?
    {
        std::thread::sleep(wait);
    }
    Ok(())
}

/// Clears the record at a planned end, so that the next start does not wait.
pub(crate) fn clear_failures(memory: &impl SlotMemory, word: Word) {
    exchange::store_start(memory, word, None);
}

/// The record of a part without a slot: a file in a directory that outlives its restarts, and not a stop.
pub(crate) struct StartFile(PathBuf);

impl StartFile {
    /// In this directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.join("starts"))
    }

    /// Counts this start, and returns how long it must wait before the part is ready, if at all. Without a readable file
    /// it is the first one.
    ///
    /// # Errors
    /// If the part is given up.
    pub(crate) fn record_start(&self, config: &Config) -> Result<Option<Duration>, GivenUp> {
        let limits = limits(config);
        let failures = failures_before(self.load(), clock::now(), &limits);
        let wait = delay_after(failures, &limits);
        self.store(wait.as_ref().ok().map(|_| (NOT_READY, failures)));
        wait
    }

    /// Notes that the part is ready.
    pub(crate) fn note_ready(&self) {
        if let Some((NOT_READY, failures)) = self.load() {
            self.store(Some((clock::now(), failures)));
        }
    }

    /// Clears the record at a planned end.
    pub(crate) fn clear(&self) {
        self.store(None);
    }

    fn load(&self) -> Option<(Monotonic, u32)> {
        let text = fs::read_to_string(&self.0).ok()?;
        let (ready_at, failures) = text.split_once(' ')?;
        Some((Monotonic(ready_at.parse().ok()?), failures.parse().ok()?))
    }

    /// A file that cannot be written counts as absent: the part starts without a delay.
    fn store(&self, record: Option<(Monotonic, u32)>) {
        let _ = match record {
            Some((ready_at, failures)) => fs::write(&self.0, format!("{} {failures}", ready_at.0)),
            None => fs::remove_file(&self.0),
        };
    }
}

/// A random number from 0 to 1.
pub(crate) fn jitter() -> f64 {
    // Without randomness all parts wait equally long.
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::PlainSlot;

    const WORD: Word = Word::WORKER_LAST_START;

    fn config() -> Config {
        let mut config = Config::default();
        let restarts = &mut config.watchdog.restarts;
        (restarts.max, restarts.within) = (2, Duration::from_secs(3600));
        (restarts.delay, restarts.delay_max) = (Duration::from_millis(100), Duration::from_millis(200));
        config
    }

    /// Whether the start waits; `None`: it is given up.
    fn start(slot: &PlainSlot) -> Option<bool> {
        record_start(&[slot], WORD, &config()).ok().map(|wait| wait.is_some())
    }

    #[test]
    fn start_waits_after_failures_until_it_is_given_up_and_then_a_new_series_begins() {
        let slot = PlainSlot::default();
        for expected in [Some(false), Some(false), Some(true), Some(true), None, Some(false)] {
            assert_eq!(start(&slot), expected);
        }
    }

    #[test]
    fn only_a_life_of_the_configured_time_or_a_planned_end_clears_the_failures() {
        let limits = limits(&config());
        let at = |s: u64| Monotonic(s * 1_000_000_000);
        assert_eq!(failures_before(Some((at(100), 7)), at(3699), &limits), 8);
        assert_eq!(failures_before(Some((at(100), 7)), at(3700), &limits), 0);
        // A start that fails after hours has not been ready.
        assert_eq!(failures_before(Some((NOT_READY, 7)), at(1_000_000), &limits), 8);

        let slot = PlainSlot::default();
        start(&slot);
        note_ready(&slot, WORD);
        let ready = exchange::load_start(&slot, WORD).unwrap();
        assert!(ready.0 > NOT_READY && ready.1 == 0, "{ready:?}");
        note_ready(&slot, WORD); // the next incarnation in the same process
        assert_eq!(exchange::load_start(&slot, WORD), Some(ready));
        clear_failures(&slot, WORD);
        note_ready(&slot, WORD);
        assert_eq!(exchange::load_start(&slot, WORD), None);
    }

    #[test]
    fn record_in_a_file_is_kept_in_the_same_way() {
        let dir = std::env::temp_dir().join(format!("patou-start-file-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let file = StartFile::new(&dir);
        let start = || file.record_start(&config()).ok().map(|wait| wait.is_some());
        assert_eq!(
            [start(), start(), start(), start(), start()],
            [Some(false), Some(false), Some(true), Some(true), None]
        );
        assert_eq!([start(), start(), start()], [Some(false), Some(false), Some(true)]);
        file.note_ready();
        assert!(file.load().unwrap().0 > NOT_READY);
        file.clear();
        assert_eq!(start(), Some(false));
        fs::remove_dir_all(dir).unwrap();
    }
}
