//! When a co-process that died is started again. Pure.
//!
//! The first time at once: an accident should cost as little as it can. If the new one dies within a second
//! as well, after a growing delay: a program that cannot live must not keep a processor busy.

use std::time::Duration;

use tokio::time::Instant;

/// A process that lives shorter died of its start.
const SHORT: Duration = Duration::from_secs(1);
/// The first delay; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(5);

/// The memory of the last deaths.
#[derive(Debug, Default)]
pub struct Restart {
    short_lives: u32,
    not_before: Option<Instant>,
}

impl Restart {
    /// A process that was started at `started` has failed.
    pub fn fault(&mut self, now: Instant, started: Instant) {
        self.short_lives = if now - started < SHORT { self.short_lives + 1 } else { 0 };
        let delay = match self.short_lives {
            0 | 1 => Duration::ZERO,
            lives => FIRST.saturating_mul(1 << (lives - 2).min(16)).min(LONGEST),
        };
        self.not_before = Some(now + delay);
    }

    /// The earliest start of the next one.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_while_lives_are_short() {
        let mut restart = Restart::default();
        let start = Instant::now();
        let mut delay = |now, started| {
            restart.fault(now, started);
            (restart.not_before().unwrap() - now).as_millis()
        };
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(expected.map(|_| delay(start, start)), expected);
        for _ in 0..100 {
            assert_eq!(delay(start, start), 5000);
        }
        assert_eq!(delay(start + SHORT, start), 0);
        assert_eq!(delay(start, start), 0);
        assert_eq!(delay(start, start), 100);
    }
}
