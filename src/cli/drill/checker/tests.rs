//! Each rule with a history that violates it, and the same history without the violation.

use std::time::Duration;

use super::*;
use crate::cli::drill::fault::{DrillPart, FaultKind, FaultTarget};
use crate::cli::drill::fault_tracker::{FaultEffect, UnexplainedExit};
use crate::cli::drill::history::{AttemptOutcome, NotStartedReason, RequestAttempt, SessionSpan, UnknownReason};
use crate::ids::Monotonic;

// Listeners by their index. Pool 0 has worker index 0 and a handler that records; pool 1 has worker index 1 and another
// handler.
const RECORDING: usize = 0;
const ECHO: usize = 1;
const HANDOFF: usize = 2;
const INETD: usize = 3;

const WORKER_0: DrillPart = DrillPart::Worker(0);
const WORKER_1: DrillPart = DrillPart::Worker(1);

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn violations(history: &DrillHistory) -> Vec<(&'static str, String)> {
    let listener = |pool, handoff, refuses_silently_after| CheckedListener {
        pool,
        records: pool == 0,
        handoff,
        max_sessions: 1,
        refuses_silently_after,
    };
    let listeners =
        [listener(0, false, None), listener(1, false, None), listener(0, true, None), listener(0, true, Some(ms(400)))];
    let bounds = DrillBounds {
        attempt: vec![ms(1000); 2],
        worker: ms(300),
        dispatcher: ms(500),
        watchdog: ms(2000),
        drain: ms(1000),
        restart: ms(200),
        repair: ms(600),
        store_after: ms(20),
        slack: ms(10),
        parts_follow_watchdog: true,
    };
    let violations = check(history, &listeners, &[0, 1], &bounds);
    violations.into_iter().map(|violation| (violation.promise, violation.what)).collect()
}

fn attempt(request: u64, number: u32, listener: usize, outcome: AttemptOutcome) -> RequestAttempt {
    let sent = at(request * 100 + u64::from(number) * 10);
    let (client_time, previous_sent) = (Duration::ZERO, None);
    RequestAttempt { request, number, listener, sent, ended: sent + ms(10), client_time, previous_sent, outcome }
}

fn history(attempts: Vec<RequestAttempt>, recorded_starts: &[(u64, u32)]) -> DrillHistory {
    DrillHistory { attempts, recorded_starts: recorded_starts.to_vec(), ..empty_history() }
}

fn empty_history() -> DrillHistory {
    DrillHistory {
        started_at: at(0),
        attempts: Vec::new(),
        sessions: Vec::new(),
        recorded_starts: Vec::new(),
        effects: Vec::new(),
        unexplained_exits: Vec::new(),
        delays: Vec::new(),
    }
}

fn effect(kind: FaultKind, part: DrillPart, injected: u64, recovered: u64) -> FaultEffect {
    FaultEffect {
        number: 1,
        kind,
        target: FaultTarget::Part(part),
        part: Some(part),
        expected: kind.expected_effect(),
        injected: at(injected),
        detected: Some(at(injected + 1)),
        recovered: Some(at(recovered)),
        repaired: None,
        ended: Some(at(recovered)),
        kill_cause: None,
        excluded: None,
    }
}

#[track_caller]
fn assert_violation(history: &DrillHistory, promise: &str, words: &str) {
    let found = violations(history);
    assert!(matches!(found.as_slice(), [(p, what)] if *p == promise && what.contains(words)), "{found:?}");
}

const REFUSED: AttemptOutcome = AttemptOutcome::NotStarted(NotStartedReason::Refused(503));
const NO_RESPONSE: AttemptOutcome = AttemptOutcome::Unknown(UnknownReason::NoResponse);

#[test]
fn removed_files_are_repaired_within_the_bound_and_delay_no_client() {
    let removal = |repaired: Option<u64>| FaultEffect {
        target: FaultTarget::Set,
        part: None,
        detected: None,
        recovered: None,
        repaired: repaired.map(at),
        ended: Some(at(900)),
        ..effect(FaultKind::RemoveState, WORKER_0, 100, 900)
    };
    let with = |effect| DrillHistory { effects: vec![effect], ..empty_history() };
    assert_eq!(violations(&with(removal(Some(710)))), []);
    assert_violation(&with(removal(Some(711))), "P9", "repaired after 611 ms");
    assert_violation(&with(removal(None)), "P9", "were not repaired");
    assert_eq!(violations(&with(FaultEffect { excluded: Some("interrupted"), ..removal(None) })), []);
    let mut slow = with(removal(Some(200)));
    slow.attempts = vec![attempt(1, 1, ECHO, AttemptOutcome::Served)];
    slow.attempts[0].ended = slow.attempts[0].sent + ms(1011);
    assert_violation(&slow, "P7", "waited 1011 ms; its bound is 1010 ms");
}

#[test]
fn worker_that_freezes_while_it_is_removed_must_be_detected_in_time() {
    let frozen = |detected: u64| FaultEffect {
        detected: Some(at(detected)),
        ..effect(FaultKind::FreezeRemoved, WORKER_0, 100, 600)
    };
    let with = |effect| DrillHistory { effects: vec![effect], ..empty_history() };
    assert_eq!(violations(&with(frozen(410))), []);
    assert_violation(&with(frozen(411)), "P2", "found frozen after 311 ms");
}

#[test]
fn worker_without_descriptors_explains_an_explicit_outcome_only() {
    let limited =
        || FaultEffect { detected: None, recovered: None, ..effect(FaultKind::LimitDescriptors, WORKER_0, 90, 300) };
    let reported = AttemptOutcome::Unknown(UnknownReason::Reported(502));
    for listener in [RECORDING, HANDOFF] {
        let mut lost = history(vec![attempt(1, 1, listener, reported.clone())], &[]);
        assert_eq!(violations(&lost).len(), 1);
        lost.effects = vec![limited()];
        assert_eq!(violations(&lost), []);
        lost.attempts[0].outcome = NO_RESPONSE;
        assert_violation(&lost, "P3", "");
    }
    let mut inetd = history(vec![attempt(1, 1, INETD, NO_RESPONSE)], &[]);
    inetd.effects = vec![limited()];
    assert_eq!(violations(&inetd), []);
}

#[test]
fn history_that_keeps_every_promise_has_no_violation() {
    let returned = AttemptOutcome::NotStarted(NotStartedReason::ReturnedToDispatcher);
    let reported = AttemptOutcome::Unknown(UnknownReason::Reported(502));
    let mut good = history(
        vec![
            attempt(1, 1, RECORDING, AttemptOutcome::Served),
            attempt(2, 1, RECORDING, REFUSED),
            attempt(2, 2, RECORDING, returned),
            attempt(2, 3, RECORDING, AttemptOutcome::Served),
            attempt(3, 1, RECORDING, NO_RESPONSE),
            attempt(4, 1, RECORDING, reported),
            attempt(5, 1, RECORDING, AttemptOutcome::Disconnected),
            attempt(6, 1, ECHO, AttemptOutcome::Served),
        ],
        &[(1, 1), (2, 3), (4, 1), (5, 1)],
    );
    good.effects.push(effect(FaultKind::Kill, WORKER_0, 300, 420));
    assert_eq!(violations(&good), []);
}

#[test]
fn request_with_two_recorded_starts_is_found() {
    let served = vec![attempt(1, 1, RECORDING, AttemptOutcome::Served)];
    assert_violation(&history(served, &[(1, 1), (1, 1)]), "P1", "started 2 times");
    // Two attempts, both recorded: the client of the first got `not-started`.
    let attempts = vec![attempt(1, 1, RECORDING, REFUSED), attempt(1, 2, RECORDING, AttemptOutcome::Served)];
    let found = violations(&history(attempts, &[(1, 1), (1, 2)]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].1.contains("2 times") && found[1].1.contains("although"), "{found:?}");
    let disconnected = vec![attempt(1, 1, RECORDING, AttemptOutcome::Disconnected)];
    assert_violation(&history(disconnected, &[(1, 1), (1, 1)]), "P1", "started 2 times");
}

#[test]
fn attempt_reported_as_not_started_must_not_be_recorded() {
    for reason in [
        NotStartedReason::Refused(503),
        NotStartedReason::DispatcherUnreachable,
        NotStartedReason::ReturnedToDispatcher,
        NotStartedReason::WorkerUnreachable,
        NotStartedReason::ConnectionClosed,
    ] {
        let attempts = vec![attempt(1, 1, RECORDING, AttemptOutcome::NotStarted(reason))];
        assert_eq!(violations(&history(attempts.clone(), &[])), []);
        assert_violation(&history(attempts, &[(1, 1)]), "P1", "although its client saw");
    }
}

#[test]
fn served_attempt_must_be_recorded_if_its_handler_records() {
    let served = |listener| vec![attempt(1, 1, listener, AttemptOutcome::Served)];
    assert_violation(&history(served(RECORDING), &[]), "P1", "not recorded");
    // The recorded start of another attempt does not count.
    let retried = vec![attempt(1, 1, RECORDING, REFUSED), attempt(1, 2, RECORDING, AttemptOutcome::Served)];
    assert_eq!(violations(&history(retried, &[(1, 1)])).len(), 2);
    assert_eq!(violations(&history(served(ECHO), &[])), []);
}

#[test]
fn recorded_start_without_a_request_is_found() {
    assert_violation(&history(Vec::new(), &[(9, 1)]), "P1", "no client sent it");
}

#[test]
fn wrong_missing_and_unexplained_responses_are_found() {
    let ended = |outcome| history(vec![attempt(1, 1, ECHO, outcome)], &[]);
    let wrong = AttemptOutcome::WrongResponse("byte 7".into());
    assert_violation(&ended(wrong), "P3", "looks complete and is wrong: byte 7");
    assert_violation(&ended(AttemptOutcome::TimedOut("worker")), "P3", "no response within its bound");
    assert_violation(&ended(AttemptOutcome::NoOutcome(500)), "P3", "status 500 without Patou-Outcome");
}

#[test]
fn lost_request_needs_a_fault_of_its_pool() {
    for reason in [UnknownReason::NoResponse, UnknownReason::Truncated, UnknownReason::Reported(504)] {
        let mut lost = history(vec![attempt(1, 1, ECHO, AttemptOutcome::Unknown(reason))], &[]);
        assert_violation(&lost, "P3", "without a fault of its pool");
        for (kind, part) in [
            (FaultKind::Kill, WORKER_0),
            (FaultKind::Kill, DrillPart::Dispatcher),
            // A worker loses nothing by a pause.
            (FaultKind::Pause, WORKER_1),
        ] {
            lost.effects = vec![effect(kind, part, 100, 150)];
            assert_violation(&lost, "P3", "without a fault of its pool");
        }
        for part in [WORKER_1, DrillPart::Watchdog] {
            lost.effects = vec![effect(FaultKind::Kill, part, 100, 150)];
            assert_eq!(violations(&lost), []);
        }
        // A fault that ended long before explains nothing.
        lost.effects = vec![effect(FaultKind::Kill, WORKER_1, 0, 5)];
        lost.attempts[0].sent = at(300);
        lost.attempts[0].ended = at(310);
        assert_violation(&lost, "P3", "without a fault of its pool");
    }
}

#[test]
fn dispatcher_may_close_without_a_byte_only_when_it_dies() {
    let closed = AttemptOutcome::NotStarted(NotStartedReason::ClosedByDispatcher);
    let mut closed = history(vec![attempt(1, 1, ECHO, closed)], &[]);
    assert_violation(&closed, "P4", "closed by the dispatcher");
    closed.effects = vec![effect(FaultKind::Kill, WORKER_1, 100, 150)];
    assert_violation(&closed, "P4", "closed by the dispatcher");
    closed.effects = vec![effect(FaultKind::Freeze, DrillPart::Dispatcher, 100, 150)];
    assert_eq!(violations(&closed), []);
}

#[test]
fn silent_refusal_of_an_inetd_pool_needs_a_full_queue_time_and_a_fault_of_the_pool() {
    let mut lost = history(vec![attempt(1, 1, INETD, NO_RESPONSE)], &[]);
    assert_violation(&lost, "P3", "no byte of response");
    // A slowed pool may have no free worker in time; a fault of another pool explains nothing.
    lost.effects = vec![effect(FaultKind::Pause, WORKER_1, 100, 150)];
    assert_violation(&lost, "P3", "no byte of response");
    lost.effects = vec![effect(FaultKind::Pause, WORKER_0, 100, 150)];
    assert_violation(&lost, "P3", "no byte of response");
    lost.attempts[0].ended = lost.attempts[0].sent + ms(400);
    assert_eq!(violations(&lost), []);
    lost.effects[0].part = None;
    lost.effects[0].target = FaultTarget::Listener(HANDOFF); // of the same pool
    assert_eq!(violations(&lost), []);
    lost.effects[0].target = FaultTarget::Listener(ECHO);
    assert_violation(&lost, "P3", "no byte of response");
    // A request that started was not refused.
    lost.effects[0].target = FaultTarget::Listener(INETD);
    lost.recorded_starts = vec![(1, 1)];
    assert_violation(&lost, "P3", "no byte of response");
}

#[test]
fn inetd_pool_may_refuse_at_once_while_all_its_workers_are_drained() {
    let mut drained = history(vec![attempt(1, 1, INETD, NO_RESPONSE)], &[]);
    drained.effects = vec![effect(FaultKind::Drain, WORKER_0, 100, 150)];
    assert_eq!(violations(&drained), []);
}

#[test]
fn queued_inetd_connection_survives_the_dispatcher_and_may_then_be_refused() {
    let mut lost = history(vec![attempt(1, 1, INETD, NO_RESPONSE)], &[]);
    lost.effects = vec![effect(FaultKind::Kill, DrillPart::Dispatcher, 200, 250)];
    lost.attempts[0].ended = at(210);
    assert_violation(&lost, "P4", "longer than store_after");
    lost.attempts[0].ended = at(520);
    assert_eq!(violations(&lost), []);
}

#[test]
fn started_handoff_request_may_be_lost_with_its_worker_only() {
    for reason in [
        UnknownReason::NoResponse,
        UnknownReason::Truncated,
        UnknownReason::Reported(502),
        UnknownReason::Reported(504),
    ] {
        let mut lost = history(vec![attempt(1, 1, HANDOFF, AttemptOutcome::Unknown(reason))], &[(1, 1)]);
        assert_eq!(violations(&lost).len(), 1);
        lost.effects = vec![effect(FaultKind::Kill, WORKER_1, 100, 150)];
        assert_eq!(violations(&lost).len(), 1);
        lost.effects = vec![effect(FaultKind::Kill, WORKER_0, 100, 150)];
        assert_eq!(violations(&lost), []);
        lost.effects = vec![effect(FaultKind::Kill, DrillPart::Dispatcher, 112, 150)];
        assert_eq!(violations(&lost).len(), 1);
    }
}

#[test]
fn unstarted_handoff_request_may_be_lost_with_the_dispatcher_if_recent_or_idle() {
    let mut lost = history(vec![attempt(1, 1, HANDOFF, NO_RESPONSE)], &[]);
    lost.attempts[0].ended = at(500);
    assert_violation(&lost, "P3", "no byte of response");
    // Sent at 110: store_after and the slack end at 140.
    lost.effects = vec![effect(FaultKind::Kill, DrillPart::Dispatcher, 140, 200)];
    assert_eq!(violations(&lost), []);
    lost.effects = vec![effect(FaultKind::Kill, DrillPart::Dispatcher, 141, 200)];
    assert_violation(&lost, "P4", "waited longer than store_after");
    let mut idle = lost.clone();
    idle.attempts[0].previous_sent = Some(at(0));
    assert_eq!(violations(&idle), []);
    // The dispatcher died while the previous request was being served: only the worker still held the connection.
    idle.attempts[0].sent = at(450);
    assert_eq!(violations(&idle), []);
    idle.attempts[0].previous_sent = Some(at(420));
    assert_violation(&idle, "P3", "no byte of response");
    // A dispatcher that was paused meanwhile could not store the connection.
    let mut paused = lost.clone();
    paused.effects.push(FaultEffect { number: 2, ..effect(FaultKind::Pause, DrillPart::Dispatcher, 115, 130) });
    assert_eq!(violations(&paused), []);
    // The dispatcher never truncates a response.
    lost.effects = vec![effect(FaultKind::Kill, DrillPart::Dispatcher, 140, 200)];
    lost.attempts[0].outcome = AttemptOutcome::Unknown(UnknownReason::Truncated);
    assert_violation(&lost, "P3", "without a fault of its pool");
}

#[test]
fn wait_beyond_its_bound_is_found_and_a_fault_extends_the_bound() {
    let mut long = history(vec![attempt(1, 1, ECHO, AttemptOutcome::Served)], &[]);
    long.attempts[0].ended = long.attempts[0].sent + ms(1011);
    assert_violation(&long, "P7", "waited 1011 ms; its bound is 1010 ms");
    let mut slow_client = long.clone();
    slow_client.attempts[0].client_time = ms(1);
    assert_eq!(violations(&slow_client), []);
    let mut affected = long.clone();
    affected.effects = vec![effect(FaultKind::Freeze, WORKER_1, 200, 600)];
    assert_eq!(violations(&affected), []);
    affected.effects = vec![effect(FaultKind::Freeze, WORKER_0, 200, 600)];
    assert_violation(&affected, "P7", "waited 1011 ms");
    let mut delayed = long;
    delayed.delays = vec![(at(500), ms(2))];
    assert_eq!(violations(&delayed), []);
}

#[test]
fn part_that_does_not_recover_in_time_is_found() {
    let mut slow = DrillHistory { effects: vec![effect(FaultKind::Freeze, WORKER_0, 100, 610)], ..empty_history() };
    assert_eq!(violations(&slow), []);
    slow.effects[0].recovered = Some(at(611));
    assert_violation(&slow, "P2", "recovered after 511 ms; its bound is 510 ms");
    slow.effects[0].recovered = None;
    assert_violation(&slow, "P2", "had not recovered at the end");
    slow.effects[0].excluded = Some("the watchdog was killed meanwhile");
    assert_eq!(violations(&slow), []);
}

#[test]
fn kill_after_a_harmless_fault_and_exit_without_a_fault_are_found() {
    let mut killed = DrillHistory { effects: vec![effect(FaultKind::Pause, WORKER_0, 100, 150)], ..empty_history() };
    assert_eq!(violations(&killed), []);
    killed.effects[0].kill_cause = Some("frozen".into());
    assert_violation(&killed, "P5", "killed after a harmless fault: frozen");
    killed.effects[0].excluded = Some("the drill was late");
    assert_eq!(violations(&killed), []);
    let exit = UnexplainedExit { part: DrillPart::Dispatcher, pid: 7, cause: "frozen".into(), at: at(5) };
    let exited = DrillHistory { unexplained_exits: vec![exit], ..empty_history() };
    assert_violation(&exited, "P5", "ended without a fault at 0.005 s: frozen");
}

#[test]
fn pool_has_no_more_sessions_than_it_may_and_each_continues_or_ends() {
    let session =
        |listener, opened, until| SessionSpan { listener, opened: at(opened), alive_until: at(until), fault: None };
    let with = |sessions| DrillHistory { sessions, ..empty_history() };
    let in_turns = vec![session(0, 100, 200), session(2, 201, 300), session(1, 150, 250), session(0, 301, 301)];
    assert_eq!(violations(&with(in_turns.clone())), []);
    // Of the pool of listeners 0 and 2.
    let overlapping = [in_turns, vec![session(0, 190, 210)]].concat();
    assert_violation(&with(overlapping), "P2", "2 sessions were open at the same time, max_sessions is 1");
    let silent = SessionSpan { fault: Some("neither continued nor ended"), ..session(1, 100, 200) };
    assert_violation(&with(vec![silent]), "P2", "a session at listener 1 neither continued nor ended");
}
