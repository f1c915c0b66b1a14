//! How long a lingering close waits for its client. Pure: takes `now`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Within a lingering close the send queue is looked at this often per [`LingerBounds::silence`].
const LOOKS: u32 = 4;

/// How many bytes a client must receive per second to be waited for longer than [`LingerBounds::total`]. A slow modem is
/// faster.
const RATE_MIN: u64 = 1024;

/// Longer bounds are the same as none, and must not exceed the range of an [`Instant`].
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The bounds of a lingering close.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LingerBounds {
    /// How long a client may neither receive nor send a byte (`linger_timeout`); zero: there is no lingering close.
    pub silence: Duration,
    /// How long a client may take for all of it, and one second more for each [`RATE_MIN`] bytes that it has received
    /// (`body_timeout`).
    pub total: Duration,
}

/// The progress of one client.
#[derive(Debug)]
pub(super) struct Linger {
    bounds: LingerBounds,
    /// When the wait ends, unless the client receives more.
    end: Instant,
    progress_at: Instant,
    look_at: Instant,
    /// The bytes in the send queue at the last look.
    queued: Option<usize>,
}

impl Linger {
    pub(super) fn new(now: Instant, bounds: LingerBounds) -> Self {
        let [silence, total] = [bounds.silence, bounds.total].map(|bound| bound.min(LONGEST));
        let bounds = LingerBounds { silence, total };
        let mut linger = Self { bounds, end: now + total, progress_at: now, look_at: now, queued: None };
        linger.look_again(now);
        linger
    }

    /// When [`Linger::look`] is due.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// The client has sent bytes, or room for bytes to it has become free.
    pub(super) fn note_progress(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// A look at the send queue. Returns whether the wait continues.
    pub(super) fn look(&mut self, now: Instant, queued: usize) -> bool {
        let received = self.queued.replace(queued).map_or(0, |before| before.saturating_sub(queued));
        if received > 0 {
            self.progress_at = now;
            self.end += Duration::from_micros(received as u64 * 1_000_000 / RATE_MIN);
        }
        self.look_again(now);
        now < self.progress_at + self.bounds.silence && now < self.end
    }

    fn look_again(&mut self, now: Instant) {
        self.look_at = now + self.bounds.silence / LOOKS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: LingerBounds = LingerBounds { silence: Duration::from_secs(1), total: Duration::from_secs(30) };

    /// Looks at the queue until the wait ends; the seconds that it took. `client` returns the queue and whether the client
    /// sends, after so many milliseconds.
    fn wait(client: impl Fn(u64) -> (usize, bool)) -> f64 {
        let start = Instant::now();
        let mut linger = Linger::new(start, BOUNDS);
        let mut now = start;
        for _ in 0..1_000_000 {
            now = linger.look_at().max(now);
            let (queued, sends) = client((now - start).as_millis() as u64);
            if sends {
                linger.note_progress(now);
            }
            if !linger.look(now, queued) {
                return (now - start).as_secs_f64();
            }
        }
        panic!("the wait has no end");
    }

    #[test]
    fn client_without_progress_is_waited_for_linger_timeout() {
        assert_eq!(wait(|_| (1000, false)), 1.0);
        assert_eq!(wait(|_| (0, false)), 1.0);
    }

    #[test]
    fn client_that_receives_is_waited_for_until_it_has_received_everything() {
        // 10 kB/s: 1 MB takes 100 s.
        let waited = wait(|ms| (1_000_000_usize.saturating_sub(ms as usize * 10), false));
        assert!((101.0..102.0).contains(&waited), "{waited}");
        // In steps of 0.9 s.
        let waited = wait(|ms| (100_000_usize.saturating_sub(ms as usize / 900 * 5000), false));
        assert!((18.0..20.0).contains(&waited), "{waited}");
    }

    #[test]
    fn client_that_trickles_is_waited_for_the_total_bound() {
        assert_eq!(wait(|_| (0, true)), 30.0, "it sends for ever");
        let waited = wait(|ms| (1_000_000 - ms as usize / 1000, true));
        assert!((30.0..31.0).contains(&waited), "a byte per second: {waited}");
        // 512 bytes/s for 1 MB: each second buys half a second.
        let waited = wait(|ms| (1_000_000_usize.saturating_sub(ms as usize * 512 / 1000), true));
        assert!((58.0..61.0).contains(&waited), "{waited}");
    }
}
