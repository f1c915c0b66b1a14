//! Why a process is about to be killed, for whoever asks afterwards.

use std::fs;

use super::plan::Part;
use crate::log::Event;

/// One record: the reason and what the process was doing.
pub fn record(part: &Part, why: &str, pid: Option<u32>) {
    let worker = part.worker().map(tracing::field::display);
    let Some(pid) = pid else {
        return tracing::error!(worker, %part, event = %Event::PartKilled, "{part} is killed and replaced: {why}");
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("?".to_owned(), |value| value.trim().replace('\t', " "))
    };
    let waits_in = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    tracing::error!(
        worker,
        pid,
        state = field("State"),
        threads = field("Threads"),
        wchan = waits_in.trim(),
        %part,
        event = %Event::PartKilled,
        "{part} is killed and replaced: {why}"
    );
}
