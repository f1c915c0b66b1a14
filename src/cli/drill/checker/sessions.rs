//! P2: a session continues or ends, and a pool never has more of them than `max_sessions`, so that requests get a worker.

use std::collections::BTreeMap;

use super::context::CheckContext;
use crate::cli::drill::history::{PromiseViolation, SessionSpan};

pub(super) fn check(context: &CheckContext<'_>) -> Vec<PromiseViolation> {
    let violation = |what| PromiseViolation::new("P2", what);
    let faults = context.history.sessions.iter().filter_map(|session| {
        let fault = session.fault?;
        Some(violation(format!("a session at listener {} {fault}, {}", session.listener, context.time(session.opened))))
    });
    let mut violations: Vec<_> = faults.collect();
    let mut by_pool: BTreeMap<usize, Vec<&SessionSpan>> = BTreeMap::new();
    for session in &context.history.sessions {
        by_pool.entry(context.listeners[session.listener].pool).or_default().push(session);
    }
    for sessions in by_pool.values() {
        let max = usize::from(context.listeners[sessions[0].listener].max_sessions);
        // The number of open sessions grows at the start of one.
        for session in sessions {
            let start = session.opened;
            let is_open = |other: &&&SessionSpan| other.opened <= start && start <= other.alive_until;
            let open: Vec<_> = sessions.iter().filter(is_open).collect();
            if open.len() > max {
                let what = format!("{} sessions were open at the same time, max_sessions is {max}", open.len());
                violations.push(PromiseViolation { story: describe(context, &open), ..violation(what) });
                break;
            }
        }
    }
    violations
}

/// The sessions and the faults that were active meanwhile.
fn describe(context: &CheckContext<'_>, sessions: &[&&SessionSpan]) -> Vec<String> {
    let session = |session: &&&SessionSpan| {
        let [from, to] = [session.opened, session.alive_until].map(|time| context.time(time));
        format!("{from}: session at listener index {}, until {to}", session.listener)
    };
    let from = sessions.iter().map(|session| session.opened).min();
    let to = sessions.iter().map(|session| session.alive_until).max();
    let faults = from.zip(to).into_iter().flat_map(|(from, to)| context.timeline.active_between(from, to));
    faults.map(|effect| context.describe_fault(effect)).chain(sessions.iter().map(session)).collect()
}
