//! A set in one line, for `systemctl status patou`. Pure.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::state_file::LastRestart;
use super::view::StatusView;

/// How many parts that are not up are named.
const NAMED_PARTS: usize = 3;
/// How much of the cause of a restart is told.
const CAUSE_CHARS: usize = 200;

/// The states that are counted first, in this order.
const FIRST: [&str; 2] = ["busy", "idle"];

/// What the workers do, how many clients wait, what is not up, and the last unplanned restart. `since_boot` is the time
/// now.
///
/// For example `4 workers: 1 busy, 3 idle; no client waits; last restart: worker default/2 5m ago (killed by SIGSEGV)`.
pub(crate) fn summary(view: &StatusView, last_restart: Option<&LastRestart>, since_boot: Duration) -> String {
    let workers: Vec<_> = view.pools.iter().flat_map(|pool| &pool.workers).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for worker in &workers {
        let state = if worker.state == "leased" { "busy" } else { &worker.state };
        *counts.entry(state).or_default() += 1;
    }
    let first = FIRST.map(|state| (state, counts.remove(state).unwrap_or(0)));
    let counts = first.into_iter().chain(counts).map(|(state, count)| format!("{count} {state}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    let queue = match view.dispatcher.queue {
        0 => "no client waits".to_owned(),
        1 => "1 client waits".to_owned(),
        waiting => format!("{waiting} clients wait"),
    };
    let plural = if workers.len() == 1 { "" } else { "s" };
    let mut parts = vec![format!("{} worker{plural}: {counts}", workers.len()), queue];
    let down = view.not_up();
    let more = down.len().saturating_sub(NAMED_PARTS);
    parts.extend(down.into_iter().take(NAMED_PARTS));
    if more > 0 {
        parts.push(format!("{more} more parts are not up"));
    }
    parts.extend(view.problems.iter().cloned());
    if let Some(LastRestart { part, cause, at }) = last_restart {
        let ago = age(since_boot.saturating_sub(Duration::from_secs(*at)));
        let cause: String = cause.chars().take(CAUSE_CHARS).collect();
        parts.push(format!("last restart: {part} {ago} ago ({cause})"));
    }
    parts.join("; ").replace(char::is_control, " ")
}

/// An age in its largest unit, so that the line changes rarely.
fn age(age: Duration) -> String {
    match age.as_secs() {
        0..60 => "less than a minute".to_owned(),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dispatcher: &str, queue: usize, states: &[&str]) -> StatusView {
        let mut view = StatusView::of_states("up", dispatcher, &[states]);
        view.dispatcher.queue = queue;
        view
    }

    fn line(view: &StatusView) -> String {
        summary(view, None, Duration::ZERO)
    }

    #[test]
    fn workers_are_counted_by_state_and_clients_that_wait_are_counted() {
        assert_eq!(line(&view("up", 0, &["idle", "busy", "idle"])), "3 workers: 1 busy, 2 idle; no client waits");
        assert_eq!(line(&view("up", 7, &["leased"])), "1 worker: 1 busy, 0 idle; 7 clients wait");
        let draining = line(&view("up", 1, &["draining", "idle"]));
        assert_eq!(draining, "2 workers: 0 busy, 1 idle, 1 draining; 1 client waits");
    }

    #[test]
    fn parts_that_are_not_up_are_named() {
        let down = line(&view("stopped", 0, &["failed", "failed", "failed", "idle"]));
        assert!(
            down.ends_with(
                "; dispatcher is stopped; worker a/1 is failed; worker a/2 is failed; 1 more parts are not up"
            ),
            "{down}"
        );
    }

    #[test]
    fn last_restart_is_told_with_its_cause_and_age() {
        let last = |at| LastRestart { part: "worker default/1".to_owned(), cause: "exit\ncode 1".to_owned(), at };
        let at = |seconds, at| summary(&view("up", 0, &["idle"]), Some(&last(at)), Duration::from_secs(seconds));
        assert!(at(1000, 990).ends_with("; last restart: worker default/1 less than a minute ago (exit code 1)"));
        assert!(at(1000, 1001).contains("less than a minute"));
        for (seconds, text) in [(60, "1 min ago"), (7199, "1 h ago"), (172_800, "2 days ago")] {
            assert!(at(10 + seconds, 10).contains(text), "{}", at(10 + seconds, 10));
        }
    }
}
