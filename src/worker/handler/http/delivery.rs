//! On which connection a request is sent, and whether it is sent again. Pure.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// A connection is not used for another request after this time: its server may be about to close it.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How often a request is sent of which no byte could be written.
const ATTEMPTS_MAX: u32 = 3;

/// Whether a connection that has been idle since then may carry another request. `is_readable`: the server has closed it,
/// or written without a request.
pub(in super::super) fn may_reuse(idle_since: Instant, now: Instant, is_readable: bool) -> bool {
    !is_readable && now.saturating_duration_since(idle_since) <= IDLE_MAX
}

/// What follows when a connection ends before the head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum AfterFailure {
    /// Send the request on a new connection.
    Resend,
    /// The client may send it again.
    NotStarted,
    /// It may have been executed.
    StartedUnknown,
}

/// What follows after this many attempts, if `is_written` says whether a byte of the request was written.
pub(in super::super) fn after_failure(is_written: bool, attempts: u32) -> AfterFailure {
    match (is_written, attempts) {
        (true, _) => AfterFailure::StartedUnknown,
        (false, ..ATTEMPTS_MAX) => AfterFailure::Resend,
        (false, _) => AfterFailure::NotStarted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_or_readable_connection_is_not_used() {
        let since = Instant::now();
        assert!(may_reuse(since, since + IDLE_MAX, false));
        assert!(!may_reuse(since, since, true));
        assert!(!may_reuse(since, since + IDLE_MAX + Duration::from_millis(1), false));
    }

    #[test]
    fn request_is_sent_again_only_if_no_byte_was_written() {
        for attempts in 1..10 {
            assert_eq!(after_failure(true, attempts), AfterFailure::StartedUnknown);
        }
        assert_eq!(after_failure(false, 1), AfterFailure::Resend);
        assert_eq!(after_failure(false, ATTEMPTS_MAX), AfterFailure::NotStarted);
    }
}
