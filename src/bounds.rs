//! The deadlines of a request that several parts hold, in the order in which they must pass: each part acts only after the
//! one that knows more about the request has had its chance. Pure.
//!
//! ```text
//! claim    request_timeout     HANDLER_ABORT_GRACE     BLOCKED_GRACE               DISPATCHER_GRACE
//! |--------|-------------------|-----------------------|---------------------------|
//!          serving task: 504   serving task: cut       control loop: 504, exit     dispatcher: 504
//! ```
//!
//! In a session `session_timeout` takes the place of `request_timeout`, from the response that starts it: the serving task
//! closes the connection, the control loop ends the worker, and the dispatcher may not respond any more.

#![forbid(unsafe_code)]

use std::time::Duration;

/// From a request's deadline until the serving task cuts a connection for which it has no response: the time to clear the
/// handler away and to send 504.
pub(crate) const HANDLER_ABORT_GRACE: Duration = Duration::from_millis(750);

/// How long a program that is interrupted may take from SIGTERM to SIGKILL, however long `abort_grace` is: its client waits
/// for the response meanwhile.
pub(crate) const TERMINATE_GRACE_MAX: Duration = Duration::from_millis(500);

/// From a request's deadline, or the limit of a ping, until the control loop concludes that the thread of the serving task
/// is blocked, and ends the worker.
pub(crate) const BLOCKED_GRACE: Duration = Duration::from_secs(1);

/// From a request's deadline until the dispatcher aborts the claimed request and responds in the place of its worker.
pub(crate) const DISPATCHER_GRACE: Duration = Duration::from_secs(2);

/// How long a worker waits for the dispatcher's decision about a session: a dispatcher that has died or frozen is replaced
/// within the default `dispatcher_timeout`.
pub(crate) const SESSION_DECISION_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a ping of the serving task may be pending before the worker refuses clients.
pub(crate) const PING_LATE: Duration = Duration::from_millis(250);

/// The smallest distance between two of them: a thread that the machine lets wait this long still keeps the order.
const DISTANCE: Duration = Duration::from_millis(250);

const fn are_apart(earlier: Duration, later: Duration) -> bool {
    earlier.as_millis() + DISTANCE.as_millis() <= later.as_millis()
}

const _: () = assert!(are_apart(Duration::ZERO, HANDLER_ABORT_GRACE));
const _: () = assert!(are_apart(TERMINATE_GRACE_MAX, HANDLER_ABORT_GRACE));
const _: () = assert!(are_apart(HANDLER_ABORT_GRACE, BLOCKED_GRACE));
const _: () = assert!(are_apart(BLOCKED_GRACE, DISPATCHER_GRACE));
const _: () = assert!(are_apart(PING_LATE, BLOCKED_GRACE));

/// How long a client may take for a request head, and the key of the configuration that says so. A client without a
/// request holds a worker no longer than one with a request may; the handler is not to blame for it.
pub(crate) fn head_bound(head_timeout: Duration, request_timeout: Duration) -> (Duration, &'static str) {
    if request_timeout < head_timeout { (request_timeout, "request_timeout") } else { (head_timeout, "head_timeout") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_has_the_shorter_of_its_bounds() {
        let [short, long] = [1, 2].map(Duration::from_secs);
        assert_eq!(head_bound(long, short), (short, "request_timeout"));
        assert_eq!(head_bound(short, long), (short, "head_timeout"));
        assert_eq!(head_bound(short, short), (short, "head_timeout"));
    }
}
