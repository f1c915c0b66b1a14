//! What an operator is told of the parts.

use super::plan::{Notice, Part};
use crate::log::Event;

/// Tells the operator what became of a part.
pub fn tell(part: &Part, telling: Notice, pid: Option<u32>) {
    let worker = part.worker().map(tracing::field::display);
    match telling {
        Notice::Ready { restarts } => {
            tracing::info!(worker, pid, restarts, %part, event = %Event::PartRecovered, "{part} is back in service");
        }
        Notice::Restart { how, delay } => {
            let delay = match delay.as_millis() {
                0 => "at once".to_owned(),
                ms => format!("in {ms} ms"),
            };
            tracing::warn!(worker, %part, event = %Event::PartRestarted,
                "{part} has ended ({how}): it is started again {delay}");
        }
        Notice::Failed { how } => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed and stays down: it ended too often (watchdog.restarts), last by {how}; \
                 mend the cause, then reload (SIGHUP)");
        }
        Notice::Stopped => {
            tracing::info!(worker, %part, event = %Event::PartStopped,
                "{part} has been stopped, and stays so until it is started (systemctl)");
        }
        Notice::GivenUp => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed and stays down, after too many restarts or at its start: mend the cause, then \
                 systemctl reload patou");
        }
        Notice::Starved { silence } => {
            let silence_ms = silence.as_millis() as u64;
            tracing::warn!(worker, pid, silence_ms, %part, event = %Event::PartStarved,
                "{part} has not answered for {silence_ms} ms because the machine does not run it: it is not killed for \
                 that; see what takes the processors");
        }
        Notice::Suspended { by } => {
            tracing::warn!(worker, pid, %part, event = %Event::PartSuspended,
                "{part} does not answer because {by} holds it: it is not killed for that");
        }
        Notice::Relieved => {
            tracing::info!(worker, pid, %part, event = %Event::PartResumed, "{part} runs again and is judged as before");
        }
        Notice::Overdue => {
            tracing::warn!(worker, pid, %part, event = %Event::PartOverdue,
                "{part} did not stop within drain_timeout: it is killed, its request is cut off");
        }
    }
}
