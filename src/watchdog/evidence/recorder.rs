//! Logs the evidence: one record for each kill.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::findings::{Evidence, HeldWork, LATENESS_KEPT};
use super::format;
use super::gather::{self, EvidenceTarget};
use crate::clock;
use crate::ids::{Claim, Monotonic};
use crate::log::Event;
use crate::sync;
use crate::watchdog::plan::Part;

/// How long a kill may wait for its evidence. Gathering usually takes a few milliseconds.
const GATHER_TIMEOUT: Duration = Duration::from_millis(100);
/// The same within [`TIMEOUT_KEPT`] after a timeout: many parts may freeze at once, for the same reason.
const GATHER_TIMEOUT_NEXT: Duration = Duration::from_millis(10);
/// How long a timeout shortens the next ones.
const TIMEOUT_KEPT: Duration = Duration::from_secs(60);

/// Gathers and logs evidence.
#[derive(Debug, Default)]
pub(crate) struct EvidenceRecorder {
    /// When this process was late, and by how much, without those that a later one exceeds.
    late: VecDeque<(Monotonic, Duration)>,
    timed_out: Option<Monotonic>,
}

impl EvidenceRecorder {
    /// Notes that this process ran late by `late`.
    pub(crate) fn was_late(&mut self, now: Monotonic, late: Duration) {
        while self.late.back().is_some_and(|(_, before)| *before <= late) {
            self.late.pop_back();
        }
        while self.late.front().is_some_and(|(at, _)| now.since(*at) >= LATENESS_KEPT) {
            self.late.pop_front();
        }
        self.late.push_back((now, late));
    }

    fn recent_lateness(&self, now: Monotonic) -> Duration {
        let recent = self.late.iter().find(|(at, _)| now.since(*at) < LATENESS_KEPT);
        recent.map(|(_, late)| *late).unwrap_or_default()
    }

    /// Logs the record of `part`, which is about to be killed for the reason `why`.
    pub(crate) fn record(&mut self, part: &Part, why: &str, target: Option<EvidenceTarget>) {
        let worker = part.worker().map(tracing::field::display);
        let Some(target) = target else {
            return tracing::error!(worker, %part, event = %Event::PartKilled, "{part} {why}: killing it");
        };
        let now = clock::now();
        let recently_timed_out = self.timed_out.is_some_and(|at| now.since(at) < TIMEOUT_KEPT);
        let timeout = if recently_timed_out { GATHER_TIMEOUT_NEXT } else { GATHER_TIMEOUT };
        let pid = target.pid;
        let mut evidence = within(timeout, move |found| gather::gather(target, found));
        if evidence.is_cut_short {
            self.timed_out = Some(now);
        }
        evidence.machine.watchdog_late = self.recent_lateness(now);
        let (held, machine) = (evidence.held.as_ref(), &evidence.machine);
        let (epoch, lease, phase, request) = match held {
            Some(HeldWork::Lease { epoch, claim: Some(Claim::Held(lease, phase)), request }) => {
                (*epoch, Some(*lease), Some(format::phase(*phase)), request.as_ref())
            }
            Some(HeldWork::Lease { epoch, .. }) => (*epoch, None, None, None),
            _ => (None, None, None, None),
        };
        let (queue, leases) = match held {
            Some(HeldWork::Clients { queue, leases }) => (*queue, Some(*leases)),
            _ => (None, None),
        };
        let main_thread = evidence.threads.first();
        let [cpu, memory, io] = machine.pressure;
        tracing::error!(
            worker,
            epoch = epoch.map(tracing::field::display),
            lease = lease.map(tracing::field::display),
            pid,
            why,
            state = main_thread.and_then(|thread| thread.state).map(format::state),
            threads = evidence.thread_count,
            wchan = main_thread.and_then(|thread| thread.wait_channel.as_deref()),
            doing = format::threads(&evidence),
            children = format::children(&evidence),
            descriptors = format::descriptors(&evidence),
            phase,
            claim_age_ms = request.map(|request| now.since(request.claimed_at).as_millis() as u64),
            request = request.map(|request| format::request_text(&request.text)),
            queue = queue.map(|queue| queue.clients),
            leases,
            load = machine.load.as_deref(),
            pressure_cpu = cpu,
            pressure_memory = memory,
            pressure_io = io,
            memory_available = machine.memory.map(|(available, _)| available),
            late_ms = machine.watchdog_late.as_millis() as u64,
            %part,
            event = %Event::PartKilled,
            "{part} {why}: killing it\n{}",
            format::summary(pid, &evidence, now)
        );
    }
}

/// What `gather` has found when it returns, or after `timeout`. A late thread continues, and its findings are dropped.
fn within(timeout: Duration, gather: impl FnOnce(&Mutex<Evidence>) + Send + 'static) -> Evidence {
    let found = Arc::new(Mutex::new(Evidence::default()));
    let (running, end) = channel::<()>();
    let shared = found.clone();
    let thread = std::thread::Builder::new().name("evidence".into()).spawn(move || {
        gather(&shared);
        drop(running);
    });
    let is_complete = thread.is_ok() && end.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected);
    let mut evidence = sync::lock(&found).clone();
    evidence.is_cut_short = !is_complete;
    evidence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn a_gathering_thread_that_blocks_is_not_waited_for() {
        let found = within(Duration::from_secs(60), |found| sync::lock(found).thread_count = 1);
        assert_eq!((found.thread_count, found.is_cut_short), (1, false));
        let (release, released) = channel::<()>();
        let (blocking, blocked) = channel();
        let found = within(ms(20), move |found| {
            sync::lock(found).thread_count = 2;
            let _ = blocking.send(());
            let _ = released.recv();
            sync::lock(found).thread_count = 3;
        });
        blocked.recv().unwrap();
        assert!(found.is_cut_short && found.thread_count < 3, "{found:?}");
        drop(release);
    }

    #[test]
    fn the_longest_recent_lateness_is_remembered() {
        let mut recorder = EvidenceRecorder::default();
        assert_eq!(recorder.recent_lateness(at(0)), Duration::ZERO);
        for (when, late) in [(0, 30), (1_000, 500), (2_000, 40), (50_000, 100)] {
            recorder.was_late(at(when), ms(late));
        }
        assert_eq!(recorder.recent_lateness(at(60_999)), ms(500));
        assert_eq!(recorder.recent_lateness(at(61_000)), ms(100), "the longest of the later ones");
        assert_eq!(recorder.recent_lateness(at(110_000)), Duration::ZERO);
        assert_eq!(recorder.late.len(), 2, "only those are kept that can still be the longest");
    }
}
