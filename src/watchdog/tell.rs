//! What an operator is told of the parts.

use super::plan::{Part, Telling};
use crate::log::Event;

/// Tells the operator what became of a part.
pub fn tell(part: &Part, telling: Telling, pid: Option<u32>) {
    let worker = part.worker().map(tracing::field::display);
    match telling {
        Telling::Ready { restarts } => {
            tracing::info!(worker, pid, restarts, %part, event = %Event::PartBack, "{part} is back in service");
        }
        Telling::Restart { how, delay } => {
            let delay = match delay.as_millis() {
                0 => "at once".to_owned(),
                ms => format!("in {ms} ms"),
            };
            tracing::warn!(worker, %part, event = %Event::PartRestarted,
                "{part} has ended ({how}): it is started again {delay}");
        }
        Telling::Failed { how } => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed and stays down: it ended too often (watchdog.restarts), last by {how}; \
                 mend the cause, then reload (SIGHUP)");
        }
        Telling::Stopped => {
            tracing::info!(worker, %part, event = %Event::PartStopped,
                "{part} has been stopped, and stays so until it is started (systemctl)");
        }
        Telling::GivenUp => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed and stays down, after too many restarts or at its start: mend the cause, then \
                 systemctl reload patou");
        }
        Telling::Overdue => {
            tracing::warn!(worker, pid, %part, event = %Event::PartOverdue,
                "{part} did not stop within drain_timeout: it is killed, its request is cut off");
        }
    }
}
