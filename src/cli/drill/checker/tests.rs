//! Each rule with a case that it finds, and the same case without the fault.

use super::*;

const RECORDS: usize = 0;
const ECHOES: usize = 1;
const HANDED: usize = 2;
const MUTE: usize = 3;

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Two pools behind a listener each: worker 0 records, worker 1 does not.
fn judged(facts: &Facts) -> Vec<(&'static str, String)> {
    let doors = [
        Door { pool: 0, records: true, handed: false, mute_after: None },
        Door { pool: 1, records: false, handed: false, mute_after: None },
        Door { pool: 0, records: true, handed: true, mute_after: None },
        Door { pool: 0, records: true, handed: true, mute_after: Some(ms(400)) },
    ];
    let bounds = Bounds {
        attempt: vec![ms(1000); 2],
        worker: ms(300),
        dispatcher: ms(500),
        watchdog: ms(2000),
        leave: ms(1000),
        restart: ms(200),
        store_after: ms(20),
        slack: ms(10),
        orphans_leave: true,
    };
    judge(facts, &doors, &[0, 1], &bounds).into_iter().map(|breach| (breach.promise, breach.what)).collect()
}

fn attempt(request: u64, number: u32, door: usize, end: End) -> Attempt {
    let begun = at(request * 100 + u64::from(number) * 10);
    Attempt { request, number, door, begun, ended: begun + ms(10), own: Duration::ZERO, kept: None, end }
}

fn facts(attempts: Vec<Attempt>, records: &[(u64, u32)]) -> Facts {
    Facts { attempts, records: records.to_vec(), ..nothing() }
}

fn nothing() -> Facts {
    let (attempts, records, effects) = (Vec::new(), Vec::new(), Vec::new());
    Facts { began: at(0), attempts, records, effects, strays: Vec::new(), late: Vec::new() }
}

fn effect(kind: Kind, part: Part, from: u64, back: u64) -> Effect {
    Effect {
        number: 1,
        kind,
        target: Target::Part(part),
        part: Some(part),
        expect: kind.expect(),
        from: at(from),
        detected: Some(at(from + 1)),
        back: Some(at(back)),
        over: Some(at(back)),
        killed: None,
        excused: None,
    }
}

fn one(facts: &Facts, promise: &str, words: &str) {
    let found = judged(facts);
    assert!(matches!(found.as_slice(), [(p, what)] if *p == promise && what.contains(words)), "{found:?}");
}

const REFUSED: End = End::NotStarted(Reason::Refused(503));

#[test]
fn an_honest_drill_has_no_breach() {
    let mut honest = facts(
        vec![
            attempt(1, 1, RECORDS, End::Served),
            attempt(2, 1, RECORDS, REFUSED),
            attempt(2, 2, RECORDS, End::NotStarted(Reason::SentBack)),
            attempt(2, 3, RECORDS, End::Served),
            attempt(3, 1, RECORDS, End::Unknown(Doubt::Lost)),
            attempt(4, 1, RECORDS, End::Unknown(Doubt::Told(502))),
            attempt(5, 1, RECORDS, End::Left),
            attempt(6, 1, ECHOES, End::Served),
        ],
        &[(1, 1), (2, 3), (4, 1), (5, 1)],
    );
    honest.effects.push(effect(Kind::Kill, Part::Worker(0), 300, 420));
    assert_eq!(judged(&honest), []);
}

#[test]
fn a_request_on_record_twice_is_found_whoever_cheats() {
    one(&facts(vec![attempt(1, 1, RECORDS, End::Served)], &[(1, 1), (1, 1)]), "P1", "started 2 times");
    // Two attempts, both recorded: the first was told that it had not started.
    let twice = facts(vec![attempt(1, 1, RECORDS, REFUSED), attempt(1, 2, RECORDS, End::Served)], &[(1, 1), (1, 2)]);
    let found = judged(&twice);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].1.contains("2 times") && found[1].1.contains("although"), "{found:?}");
    // Also of one whose client left.
    one(&facts(vec![attempt(1, 1, RECORDS, End::Left)], &[(1, 1), (1, 1)]), "P1", "started 2 times");
}

#[test]
fn whoever_was_told_not_started_must_not_be_on_record() {
    for reason in [Reason::Refused(503), Reason::Unreached, Reason::SentBack, Reason::Unmet, Reason::Behind] {
        let told = vec![attempt(1, 1, RECORDS, End::NotStarted(reason))];
        assert_eq!(judged(&facts(told.clone(), &[])), []);
        one(&facts(told, &[(1, 1)]), "P1", "although its client was told");
    }
}

#[test]
fn who_was_answered_must_be_on_record_where_records_are_kept() {
    one(&facts(vec![attempt(1, 1, RECORDS, End::Served)], &[]), "P1", "not on record");
    // Under another attempt's number it is not the same start.
    let other = vec![attempt(1, 1, RECORDS, REFUSED), attempt(1, 2, RECORDS, End::Served)];
    assert_eq!(judged(&facts(other, &[(1, 1)])).len(), 2);
    assert_eq!(judged(&facts(vec![attempt(1, 1, ECHOES, End::Served)], &[])), []);
}

#[test]
fn a_start_that_nobody_asked_for_is_found() {
    one(&facts(Vec::new(), &[(9, 1)]), "P1", "nobody has sent it");
}

#[test]
fn a_response_that_is_not_what_it_seems_is_found() {
    let wrong = End::Wrong("byte 7".into());
    one(&facts(vec![attempt(1, 1, ECHOES, wrong)], &[]), "P3", "looks whole and is not");
    one(&facts(vec![attempt(1, 1, ECHOES, End::Silent("worker"))], &[]), "P3", "no answer at all");
    one(&facts(vec![attempt(1, 1, ECHOES, End::Odd(500))], &[]), "P3", "answered 500");
}

#[test]
fn a_loss_needs_a_fault_of_its_own_pool() {
    for doubt in [Doubt::Lost, Doubt::Cut, Doubt::Told(504)] {
        let mut lost = facts(vec![attempt(1, 1, ECHOES, End::Unknown(doubt))], &[]);
        one(&lost, "P3", "without a fault of its pool");
        lost.effects = vec![effect(Kind::Kill, Part::Worker(0), 100, 150)];
        one(&lost, "P3", "without a fault of its pool");
        lost.effects = vec![effect(Kind::Kill, Part::Dispatcher, 100, 150)];
        one(&lost, "P3", "without a fault of its pool");
        // A pause is no reason to lose anything.
        lost.effects = vec![effect(Kind::Pause, Part::Worker(1), 100, 150)];
        one(&lost, "P3", "without a fault of its pool");
        lost.effects = vec![effect(Kind::Kill, Part::Worker(1), 100, 150)];
        assert_eq!(judged(&lost), []);
        lost.effects = vec![effect(Kind::Kill, Part::Watchdog, 100, 150)];
        assert_eq!(judged(&lost), []);
        // One that was over long before explains nothing.
        lost.effects = vec![effect(Kind::Kill, Part::Worker(1), 0, 5)];
        lost.attempts[0].begun = at(300);
        lost.attempts[0].ended = at(310);
        one(&lost, "P3", "without a fault of its pool");
    }
}

#[test]
fn the_dispatcher_closes_without_a_word_only_when_it_dies() {
    let mut closed = facts(vec![attempt(1, 1, ECHOES, End::NotStarted(Reason::Closed))], &[]);
    one(&closed, "P4", "closed by the dispatcher");
    closed.effects = vec![effect(Kind::Kill, Part::Worker(1), 100, 150)];
    one(&closed, "P4", "closed by the dispatcher");
    closed.effects = vec![effect(Kind::Freeze, Part::Dispatcher, 100, 150)];
    assert_eq!(judged(&closed), []);
}

#[test]
fn who_cannot_be_told_of_a_refusal_needs_a_reason_for_one() {
    let mut lost = facts(vec![attempt(1, 1, MUTE, End::Unknown(Doubt::Lost))], &[]);
    one(&lost, "P3", "no byte of response");
    // A pool that is slowed may have nobody free in time, another one explains nothing.
    lost.effects = vec![effect(Kind::Pause, Part::Worker(1), 100, 150)];
    one(&lost, "P3", "no byte of response");
    lost.effects = vec![effect(Kind::Pause, Part::Worker(0), 100, 150)];
    one(&lost, "P3", "no byte of response");
    lost.attempts[0].ended = lost.attempts[0].begun + ms(400);
    assert_eq!(judged(&lost), []);
    lost.effects[0].part = None;
    lost.effects[0].target = Target::Door(HANDED); // of the same pool
    assert_eq!(judged(&lost), []);
    lost.effects[0].target = Target::Door(ECHOES);
    one(&lost, "P3", "no byte of response");
    // It is no refusal any more once something has started.
    lost.effects[0].target = Target::Door(MUTE);
    lost.records = vec![(1, 1)];
    one(&lost, "P3", "no byte of response");
    // A pool of which all are drained takes nobody, whoever comes.
    let mut drained = facts(vec![attempt(1, 1, MUTE, End::Unknown(Doubt::Lost))], &[]);
    drained.effects = vec![effect(Kind::Drain, Part::Worker(0), 100, 150)];
    assert_eq!(judged(&drained), []);
    // A connection that had waited is not lost with the dispatcher, but it may be refused when its time is over.
    let mut died = facts(vec![attempt(1, 1, MUTE, End::Unknown(Doubt::Lost))], &[]);
    died.effects = vec![effect(Kind::Kill, Part::Dispatcher, 200, 250)];
    died.attempts[0].ended = at(210);
    one(&died, "P4", "longer than store_after");
    died.attempts[0].ended = at(520);
    assert_eq!(judged(&died), []);
}

#[test]
fn what_was_handed_over_is_lost_with_its_worker_only() {
    for doubt in [Doubt::Lost, Doubt::Cut, Doubt::Told(502), Doubt::Told(504)] {
        let mut lost = facts(vec![attempt(1, 1, HANDED, End::Unknown(doubt))], &[(1, 1)]);
        assert_eq!(judged(&lost).len(), 1);
        lost.effects = vec![effect(Kind::Kill, Part::Worker(1), 100, 150)];
        assert_eq!(judged(&lost).len(), 1);
        lost.effects = vec![effect(Kind::Kill, Part::Worker(0), 100, 150)];
        assert_eq!(judged(&lost), []);
        // The dispatcher's death is no reason for what had started.
        lost.effects = vec![effect(Kind::Kill, Part::Dispatcher, 112, 150)];
        assert_eq!(judged(&lost).len(), 1);
    }
}

#[test]
fn what_no_worker_had_begun_may_go_with_the_dispatcher_if_it_had_only_just_come_or_rested() {
    let mut lost = facts(vec![attempt(1, 1, HANDED, End::Unknown(Doubt::Lost))], &[]);
    lost.attempts[0].ended = at(500);
    one(&lost, "P3", "no byte of response");
    // It began at 110: store_after and the slack are over at 140.
    lost.effects = vec![effect(Kind::Kill, Part::Dispatcher, 140, 200)];
    assert_eq!(judged(&lost), []);
    lost.effects = vec![effect(Kind::Kill, Part::Dispatcher, 141, 200)];
    one(&lost, "P4", "waited longer than store_after");
    let mut rested = lost.clone();
    rested.attempts[0].kept = Some(at(0));
    assert_eq!(judged(&rested), []);
    // The dispatcher died while the one before was served: then its worker was the last who held the connection.
    rested.attempts[0].begun = at(450);
    assert_eq!(judged(&rested), []);
    rested.attempts[0].kept = Some(at(420));
    one(&rested, "P3", "no byte of response");
    // A dispatcher that was stopped meanwhile could not put it there.
    let mut paused = lost.clone();
    paused.effects.push(Effect { number: 2, ..effect(Kind::Pause, Part::Dispatcher, 115, 130) });
    assert_eq!(judged(&paused), []);
    // A response that is cut is never the dispatcher's doing.
    lost.effects = vec![effect(Kind::Kill, Part::Dispatcher, 140, 200)];
    lost.attempts[0].end = End::Unknown(Doubt::Cut);
    one(&lost, "P3", "without a fault of its pool");
}

#[test]
fn a_wait_beyond_its_bound_is_found_and_a_fault_extends_the_bound() {
    let mut long = facts(vec![attempt(1, 1, ECHOES, End::Served)], &[]);
    long.attempts[0].ended = long.attempts[0].begun + ms(1011);
    one(&long, "P7", "waited 1011 ms, and its bound is 1010 ms");
    let mut own = long.clone();
    own.attempts[0].own = ms(1);
    assert_eq!(judged(&own), []);
    let mut felt = long.clone();
    felt.effects = vec![effect(Kind::Freeze, Part::Worker(1), 200, 600)];
    assert_eq!(judged(&felt), []);
    felt.effects = vec![effect(Kind::Freeze, Part::Worker(0), 200, 600)];
    one(&felt, "P7", "waited 1011 ms");
    let mut late = long;
    late.late = vec![(at(500), ms(2))];
    assert_eq!(judged(&late), []);
}

#[test]
fn a_part_that_is_not_back_in_time_is_found() {
    let mut slow = Facts { effects: vec![effect(Kind::Freeze, Part::Worker(0), 100, 610)], ..nothing() };
    assert_eq!(judged(&slow), []);
    slow.effects[0].back = Some(at(611));
    one(&slow, "P2", "back after 511 ms, and its bound is 510 ms");
    slow.effects[0].back = None;
    one(&slow, "P2", "not back at the end");
    slow.effects[0].excused = Some("swept");
    assert_eq!(judged(&slow), []);
}

#[test]
fn who_was_killed_without_reason_is_found() {
    let mut killed = Facts { effects: vec![effect(Kind::Pause, Part::Worker(0), 100, 150)], ..nothing() };
    assert_eq!(judged(&killed), []);
    killed.effects[0].killed = Some("frozen".into());
    one(&killed, "P5", "for a fault that harms nobody: frozen");
    killed.effects[0].excused = Some("the drill was late");
    assert_eq!(judged(&killed), []);
    let stray = Stray { part: Part::Dispatcher, pid: 7, cause: "frozen".into(), at: at(5) };
    one(&Facts { strays: vec![stray], ..nothing() }, "P5", "to which nothing had been done: frozen");
}
