//! P1: what the handlers recorded, compared with what the clients received.

use std::collections::{BTreeMap, HashMap};

use super::context::CheckContext;
use crate::cli::drill::history::{AttemptOutcome, PromiseViolation, RequestAttempt};

pub(super) fn check(context: &CheckContext<'_>) -> Vec<PromiseViolation> {
    let mut requests: BTreeMap<u64, Vec<&RequestAttempt>> = BTreeMap::new();
    for attempt in &context.history.attempts {
        requests.entry(attempt.request).or_default().push(attempt);
    }
    let mut starts: HashMap<u64, Vec<u32>> = HashMap::new();
    for (request, attempt) in &context.history.recorded_starts {
        starts.entry(*request).or_default().push(*attempt);
    }
    let mut violations = Vec::new();
    for (request, attempts) in &requests {
        let started = starts.remove(request).unwrap_or_default();
        if !context.listeners[attempts[0].listener].records {
            continue;
        }
        let violation = |what: String| {
            let mut story = context.describe_attempts(attempts);
            story.push(format!("recorded starts: attempts {started:?}"));
            PromiseViolation { promise: "P1", what: format!("request {request} {what}"), story }
        };
        if started.len() > 1 {
            violations.push(violation(format!("was started {} times", started.len())));
        }
        for attempt in attempts {
            let recorded = started.contains(&attempt.number);
            match &attempt.outcome {
                AttemptOutcome::NotStarted(reason) if recorded => {
                    violations.push(violation(format!("was started although its client saw: {reason}")));
                }
                AttemptOutcome::Served | AttemptOutcome::WrongResponse(_) if !recorded => {
                    violations.push(violation("got a response, but its start is not recorded".into()));
                }
                _ => {}
            }
        }
    }
    let mut unknown: Vec<_> = starts.into_keys().collect();
    unknown.sort_unstable();
    let unsent = |request| PromiseViolation::new("P1", format!("request {request} was started, but no client sent it"));
    violations.extend(unknown.into_iter().map(unsent));
    violations
}
