//! What the supervisor knows of a worker by `STATUS=` (sd_notify(3)), and when it is told more. Pure.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::ids::Monotonic;

/// The shortest time between two statuses. systemd handles each of them.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same between two that tell why a request has failed.
const FAULT_INTERVAL: Duration = Duration::from_secs(1);
/// How much of a reason is told.
const FAULT_CHARS: usize = 300;

/// The last status, and what has happened since.
#[derive(Debug, Default)]
pub(super) struct ReportedStatus {
    at: Option<Monotonic>,
    text: String,
    /// Why the last request failed that failed through a fault of the handler.
    last_fault: Option<String>,
    has_new_fault: bool,
    fault_told_at: Option<Monotonic>,
}

impl ReportedStatus {
    /// A request has failed for this reason.
    pub(super) fn note_fault(&mut self, reason: &str) {
        let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(FAULT_CHARS).collect();
        (self.last_fault, self.has_new_fault) = (Some(reason), true);
    }

    /// Why a request failed last.
    pub(super) fn last_fault(&self) -> Option<&str> {
        self.last_fault.as_deref()
    }

    /// Whether the supervisor may be told again.
    pub(super) fn is_due(&self, now: Monotonic) -> bool {
        let (told_at, interval) =
            if self.has_new_fault { (self.fault_told_at, FAULT_INTERVAL) } else { (self.at, INTERVAL) };
        told_at.is_none_or(|at| now.since(at) >= interval)
    }

    /// The supervisor is told `text` now. Returns whether it does not know that.
    pub(super) fn tell(&mut self, now: Monotonic, text: &str) -> bool {
        self.at = Some(now);
        if std::mem::take(&mut self.has_new_fault) {
            self.fault_told_at = Some(now);
        }
        let is_new = self.text != text;
        text.clone_into(&mut self.text);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn status_is_told_rarely_and_a_fault_at_once_but_not_each_of_many() {
        let mut status = ReportedStatus::default();
        assert!(status.is_due(at(0)) && status.tell(at(0), "idle"));
        assert!(!status.is_due(at(9_999)) && status.is_due(at(10_000)));
        assert!(!status.tell(at(10_000), "idle"), "known");
        status.note_fault("it exited\nwith status 7");
        assert_eq!(status.last_fault(), Some("it exited with status 7"));
        assert!(status.is_due(at(10_001)) && status.tell(at(10_001), "idle; it exited"));
        assert!(!status.is_due(at(11_000)));
        status.note_fault("again");
        assert!(!status.is_due(at(11_000)) && status.is_due(at(11_001)));
        status.tell(at(11_001), "idle; again");
        assert!(!status.is_due(at(21_000)) && status.is_due(at(21_001)));
    }
}
