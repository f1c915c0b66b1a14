//! Whether the thread of the serving task is silent by its own fault: time in which it was ready to run and got no
//! processor does not count.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::gettid;

use crate::ids::Monotonic;
use crate::procfs::{ProcessStatus, RunTimes};

/// The thread, and what is known of its silence.
pub(super) struct ServingThread {
    /// Its directory in `/proc`.
    dir: PathBuf,
    /// Since when it is silent, and the first sample of that silence.
    silence: Option<(Monotonic, Sample)>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Monotonic,
    times: RunTimes,
    /// It runs, or waits for a processor.
    is_runnable: bool,
}

impl ServingThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        Self { dir: format!("/proc/self/task/{}", gettid()).into(), silence: None }
    }

    /// For how long, until `now`, the thread has been silent by its own fault, if it is silent since `since`. The first call
    /// for a silence takes a sample; time before it counts in full.
    pub(super) fn own_silence(&mut self, since: Monotonic, now: Monotonic) -> Duration {
        let silent = now.since(since);
        let Some(sample) = self.sample(now) else { return silent };
        let first = match self.silence {
            Some((known, first)) if known == since => first,
            _ => self.silence.insert((since, sample)).1,
        };
        silent.saturating_sub(waited(first, sample))
    }

    fn sample(&self, at: Monotonic) -> Option<Sample> {
        let times = RunTimes::read(&self.dir).filter(|times| times.timeslices != 0)?;
        Some(Sample { at, times, is_runnable: ProcessStatus::read(&self.dir).state == Some('R') })
    }
}

/// How long a thread has waited for a processor between two samples. The kernel counts a wait when it is over, so a thread
/// that is ready to run has waited for as long as it has not run.
fn waited(first: Sample, last: Sample) -> Duration {
    let between = last.at.since(first.at);
    let counted = last.times.waited.saturating_sub(first.times.waited);
    if last.is_runnable {
        between.saturating_sub(last.times.ran.saturating_sub(first.times.ran))
    } else {
        counted.min(between)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, ran_ms: u64, waited_ms: u64, is_runnable: bool) -> Sample {
        let [ran, waited] = [ran_ms, waited_ms].map(Duration::from_millis);
        Sample { at: Monotonic(at_ms * 1_000_000), times: RunTimes { ran, waited, timeslices: 1 }, is_runnable }
    }

    #[test]
    fn only_the_wait_for_a_processor_is_excluded() {
        let first = sample(1000, 70, 30, false);
        for (last, excluded_ms) in [
            (sample(3000, 70, 30, false), 0),      // sleeps: blocked
            (sample(3000, 2070, 30, true), 0),     // runs all the time: an endless loop
            (sample(3000, 70, 30, true), 2000),    // has waited from the first sample on
            (sample(3000, 570, 30, true), 1500),   // has run for a quarter of the time
            (sample(3000, 71, 1530, false), 1500), // sleeps after it has waited
            (sample(1000, 70, 900, false), 0),
        ] {
            assert_eq!(waited(first, last), Duration::from_millis(excluded_ms), "{last:?}");
        }
    }

    #[test]
    fn silence_of_a_sleeping_thread_is_its_own() {
        let mut thread = ServingThread::current();
        thread.dir = "/proc/self/task/0".into();
        let at = |ms: u64| Monotonic(ms * 1_000_000);
        assert_eq!(thread.own_silence(at(5), at(1005)), Duration::from_secs(1), "nothing is known of the thread");
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            ready.send(ServingThread::current()).unwrap();
            let _ = ended.recv();
        });
        let mut thread = is_ready.recv().unwrap();
        while ProcessStatus::read(&thread.dir).state != Some('S') {
            std::thread::yield_now();
        }
        assert_eq!(thread.own_silence(at(0), at(1000)), Duration::from_secs(1));
        assert_eq!(thread.own_silence(at(0), at(3000)), Duration::from_secs(3));
        drop(end);
        sleeper.join().unwrap();
    }
}
