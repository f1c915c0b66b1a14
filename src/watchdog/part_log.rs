//! Log messages about the parts: what happened, to which part, and what patou does.

use super::plan::{Notice, Part};
use crate::log::Event;
use crate::procfs::ProcessStat;

/// Logs a notice about a part.
pub(super) fn log_notice(part: &Part, notice: Notice, pid: Option<u32>) {
    let worker = part.worker().map(tracing::field::display);
    match notice {
        Notice::Recovered { restarts } | Notice::UnitRestarted { restarts } => {
            tracing::info!(worker, pid, restarts, %part, event = %Event::PartRecovered, "{part} is back in service");
        }
        Notice::Restarting { cause, delay } => {
            let delay = match delay.as_millis() {
                0 => "now".to_owned(),
                ms => format!("in {ms} ms"),
            };
            tracing::warn!(worker, %part, event = %Event::PartRestarted,
                "{part} is down ({cause}): restarting it {delay}");
        }
        Notice::Failed { cause } => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed ({cause}; more restarts than watchdog.restarts allows): it stays down; \
                 fix the cause, then reload (SIGHUP)");
        }
        Notice::Stopped => {
            tracing::info!(worker, %part, event = %Event::PartStopped,
                "{part} was stopped: it stays down until it is started (systemctl start)");
        }
        Notice::UnitFailed { cause } => {
            tracing::error!(worker, %part, event = %Event::PartFailed,
                "{part} has failed ({cause}): it stays down; fix the cause, then run systemctl reload patou");
        }
        Notice::Starved { silence } => {
            let silence_ms = silence.as_millis() as u64;
            tracing::warn!(worker, pid, silence_ms, %part, event = %Event::PartStarved,
                "{part} is starved (no answer for {silence_ms} ms because the machine does not run it): \
                 not killing it; find out what uses the processors");
        }
        Notice::Suspended { by } => {
            tracing::warn!(worker, pid, %part, event = %Event::PartSuspended,
                "{part} is suspended (held by {by}): not killing it");
        }
        Notice::Resumed => {
            tracing::info!(worker, pid, %part, event = %Event::PartResumed,
                "{part} is no longer starved or suspended: its timeouts apply again");
        }
        Notice::Overdue => {
            tracing::warn!(worker, pid, %part, event = %Event::PartOverdue,
                "{part} did not stop within drain_timeout: cutting off its request and killing it");
        }
    }
}

/// Logs a process that a part has left behind, before it is killed.
pub(super) fn log_killed(process: &ProcessStat, name: &str) {
    tracing::info!(
        pid = process.pid.as_raw(),
        "process {} ({name}) was started by a part that has ended: killing it",
        process.pid
    );
}
