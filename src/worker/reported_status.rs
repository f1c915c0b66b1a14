//! What the supervisor knows of a worker by `STATUS=` (sd_notify(3)), and when it is told more. Pure.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::ids::Monotonic;
use crate::sd_notification::FAULT_STATUS;

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
    /// Why the previous incarnation ended, if that was not planned; the outer `None`: it was not looked up yet.
    last_end: Option<Option<String>>,
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

    /// Looks up why the previous incarnation ended, once.
    pub(super) fn find_last_end(&mut self, look_up: impl FnOnce() -> Option<String>) {
        self.last_end.get_or_insert_with(look_up);
    }

    /// What went wrong, in words that follow others: how often in a row the worker has failed, why it ended last, and why a
    /// request failed last.
    pub(super) fn troubles(&self, failures: u32) -> String {
        let failures = match failures {
            0 => String::new(),
            1 => ", restarted after a failure".to_owned(),
            failures => format!(", restarted after {failures} failures in a row"),
        };
        let after =
            |text: &str, reason: Option<&String>| reason.map_or(String::new(), |reason| format!("{text}{reason}"));
        let last_end = after(", last end: ", self.last_end.as_ref().and_then(Option::as_ref));
        format!("{failures}{last_end}{}", after(FAULT_STATUS, self.last_fault.as_ref()))
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
        assert_eq!(status.troubles(0), "; last error: it exited with status 7");
        assert!(status.is_due(at(10_001)) && status.tell(at(10_001), "idle; it exited"));
        assert!(!status.is_due(at(11_000)));
        status.note_fault("again");
        assert!(!status.is_due(at(11_000)) && status.is_due(at(11_001)));
        status.tell(at(11_001), "idle; again");
        assert!(!status.is_due(at(21_000)) && status.is_due(at(21_001)));
    }

    #[test]
    fn last_end_is_looked_up_once_and_told_with_the_failures() {
        let mut status = ReportedStatus::default();
        assert_eq!(status.troubles(0), "");
        status.find_last_end(|| Some("killed by SIGSEGV".to_owned()));
        status.find_last_end(|| panic!("it is known"));
        assert_eq!(status.troubles(1), ", restarted after a failure, last end: killed by SIGSEGV");
        assert_eq!(status.troubles(3), ", restarted after 3 failures in a row, last end: killed by SIGSEGV");
    }
}
