//! Every cell of (phases, event) and of (phases, cause of the end), and random sequences.

use proptest::prelude::*;

use super::*;
use crate::ids::{Epoch, LeaseId, Token};

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(1);
const HEAD: ReceivedHead = ReceivedHead { has_body: true, is_http11: true, is_last: false };
const NO_BODY: ReceivedHead = ReceivedHead { has_body: false, ..HEAD };

fn at(ms: u64) -> Monotonic {
    Monotonic(0) + Duration::from_millis(ms)
}

fn terms() -> LeaseTerms {
    LeaseTerms {
        lease: LeaseId::of(Epoch::FIRST, 1),
        worker_epoch: Epoch::FIRST,
        dispatcher_epoch: Epoch::FIRST,
        connection: 0,
        token: Token::new(1),
        claim_by: at(100),
        request_timeout: TIMEOUT,
    }
}

/// A handed-over connection that was claimed at 0.
fn claimed() -> Transaction {
    Transaction::claimed(at(0), HEAD_TIMEOUT, &terms())
}

const REQUESTS: [(char, RequestPhase); 6] = [
    ('N', RequestPhase::None),
    ('H', RequestPhase::Head),
    ('B', RequestPhase::Body),
    ('A', RequestPhase::Awaited),
    ('C', RequestPhase::Complete),
    ('X', RequestPhase::Abandoned),
];
const RESPONSES: [(char, ResponsePhase); 4] = [
    ('-', ResponsePhase::None),
    ('S', ResponsePhase::Started),
    ('C', ResponsePhase::Complete),
    ('F', ResponsePhase::Failed),
];

/// `"BS"`: the body arrives, and the response has started.
fn in_phases(phases: &str) -> Transaction {
    let mut phases = phases.chars();
    let request = phases.next().unwrap();
    let response = phases.next().unwrap();
    let request = REQUESTS.into_iter().find(|(letter, _)| *letter == request).unwrap().1;
    let response = RESPONSES.into_iter().find(|(letter, _)| *letter == response).unwrap().1;
    Transaction { request, response, number: 1, ..claimed() }
}

fn phases_of(transaction: &Transaction) -> String {
    let request = REQUESTS.into_iter().find(|(_, phase)| *phase == transaction.request).unwrap().0;
    let response = RESPONSES.into_iter().find(|(_, phase)| *phase == transaction.response).unwrap().0;
    [request, response].into_iter().collect()
}

/// The events that change the phases of request and response, as the columns of [`PHASES`].
const COLUMNS: [TransactionEvent; 12] = [
    TransactionEvent::HeadRead(HEAD),
    TransactionEvent::HeadRead(NO_BODY),
    TransactionEvent::Refused(400),
    TransactionEvent::BodyAwaited,
    TransactionEvent::BodyArrived,
    TransactionEvent::BodyEnded,
    TransactionEvent::BodyDropped,
    TransactionEvent::ResponseStarted(200, Monotonic(0)),
    TransactionEvent::ResponseEnded,
    TransactionEvent::ResponseFailed,
    TransactionEvent::NextWanted,
    TransactionEvent::NextBegun(Monotonic(0)),
];

/// For each pair of phases the next one; a point where the event does not fit.
const PHASES: &str = "
    .  head none refu awai arri end  drop star ende fail want next
    N- .    .    .    .    .    .    .    .    .    .    .    H-
    H- B-   C-   .    .    .    .    .    .    .    .    .    .
    B- .    .    XC   A-   .    C-   X-   BS   .    .    .    .
    A- .    .    XC   .    B-   C-   X-   AS   .    .    .    .
    C- .    .    CC   .    .    .    .    CS   .    .    .    .
    X- .    .    XC   .    .    .    .    XS   .    .    .    .
    BS .    .    .    AS   .    CS   XS   .    BC   BF   .    .
    AS .    .    .    .    BS   CS   XS   .    AC   AF   .    .
    CS .    .    .    .    .    .    .    .    CC   CF   .    .
    XS .    .    .    .    .    .    .    .    XC   XF   .    .
    BC .    .    .    AC   .    CC   XC   .    .    .    .    .
    AC .    .    .    .    BC   CC   XC   .    .    .    .    .
    CC .    .    .    .    .    .    .    .    .    .    N-   .
    XC .    .    .    .    .    .    .    .    .    .    .    .
    BF .    .    .    AF   .    CF   XF   .    .    .    .    .
    AF .    .    .    .    BF   CF   XF   .    .    .    .    .
    CF .    .    .    .    .    .    .    .    .    .    .    .
    XF .    .    .    .    .    .    .    .    .    .    .    .
";

/// The causes of an end, as the columns of [`ENDINGS`].
const CAUSES: [EndCause; 8] = [
    EndCause::Idle,
    EndCause::Closed,
    EndCause::LateHead,
    EndCause::BadHead,
    EndCause::Deadline,
    EndCause::ClientGone,
    EndCause::HandlerFault,
    EndCause::Broken,
];

/// For each pair of phases how the connection ends.
const ENDINGS: &str = "
    .  idle  close late   bad    dead  gone  fault broken
    N- keep  close late   reject close reset reset close
    H- keep  close late   reject close reset reset close
    B- reset reset reset  reset  reset reset reset reset
    A- reset reset reset  reset  reset reset reset reset
    C- reset reset reset  reset  reset reset reset reset
    X- reset reset reset  reset  reset reset reset reset
    BS reset reset reset  reset  reset reset reset reset
    AS reset reset reset  reset  reset reset reset reset
    CS reset reset reset  reset  reset reset reset reset
    XS reset reset reset  reset  reset reset reset reset
    BC close close late   reject close reset reset close
    AC close close late   reject close reset reset close
    CC close close late   reject close reset reset close
    XC close close late   reject close reset reset close
    BF reset reset reset  reset  reset reset reset reset
    AF reset reset reset  reset  reset reset reset reset
    CF reset reset reset  reset  reset reset reset reset
    XF reset reset reset  reset  reset reset reset reset
";

/// The rows of a table: the phases, and one cell per column.
fn rows(table: &str) -> Vec<(&str, Vec<&str>)> {
    let lines = table.lines().skip(2).filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split_whitespace()).map(|mut words| (words.next().unwrap(), words.collect())).collect()
}

#[test]
fn every_event_in_every_phase_leads_where_the_table_says() {
    let mut cells = 0;
    for (phases, row) in rows(PHASES) {
        assert_eq!(row.len(), COLUMNS.len(), "{phases}");
        for (event, expected) in COLUMNS.into_iter().zip(row) {
            let mut transaction = in_phases(phases);
            let fits = transaction.on(event);
            assert_eq!(fits, expected != ".", "{phases}, {event:?}");
            let expected = if fits { expected } else { phases };
            assert_eq!(phases_of(&transaction), expected, "{phases}, {event:?}");
            cells += 1;
        }
    }
    println!("{cells} cells");
}

#[test]
fn other_events_change_no_phase_and_none_does_after_the_end() {
    use TransactionEvent::*;
    for (phases, _) in rows(PHASES) {
        let others = [Responding, LeaseLost, RequestFailed, DeadlineReached(at(1)), HandlerDone, Written, Flushed];
        for event in others.into_iter().chain([Ended(EndCause::Broken)]) {
            let mut transaction = in_phases(phases);
            transaction.on(event);
            assert_eq!(phases_of(&transaction), phases, "{event:?}");
        }
        for event in COLUMNS {
            let mut transaction = in_phases(phases);
            assert!(transaction.on(Ended(EndCause::Deadline)));
            let ending = transaction.ending();
            assert!(!transaction.on(event) && !transaction.on(Ended(EndCause::Closed)), "{event:?}");
            assert_eq!((phases_of(&transaction).as_str(), transaction.ending()), (phases, ending), "{event:?}");
        }
    }
}

#[test]
fn table_has_a_row_for_each_pair_of_phases_that_can_be_reached() {
    let mut reached = vec!["H-".to_owned()];
    let mut next = 0;
    while let Some(phases) = reached.get(next).cloned() {
        next += 1;
        for event in COLUMNS {
            let mut transaction = in_phases(&phases);
            transaction.on(event);
            let phases = phases_of(&transaction);
            if !reached.contains(&phases) {
                reached.push(phases);
            }
        }
    }
    let mut listed: Vec<_> = rows(PHASES).into_iter().map(|(phases, _)| phases.to_owned()).collect();
    reached.sort();
    listed.sort();
    assert_eq!(reached, listed);
    let mut ends: Vec<_> = rows(ENDINGS).into_iter().map(|(phases, _)| phases.to_owned()).collect();
    ends.sort();
    assert_eq!(ends, listed);
}

#[test]
fn every_cause_in_every_phase_ends_the_connection_as_the_table_says() {
    let name = |ending| match ending {
        Ending::KeepAlive => "keep",
        Ending::CloseWrite => "close",
        Ending::Reset => "reset",
        Ending::LateHead408(bound) => {
            assert_eq!(bound, "request_timeout", "the shorter bound");
            "late"
        }
        Ending::Reject => "reject",
        Ending::LeaveOpen => "leave",
    };
    for (phases, row) in rows(ENDINGS) {
        assert_eq!(row.len(), CAUSES.len(), "{phases}");
        for (cause, expected) in CAUSES.into_iter().zip(row) {
            let mut transaction = in_phases(phases);
            transaction.on(TransactionEvent::Ended(cause));
            assert_eq!(name(transaction.ending()), expected, "{phases}, {cause:?}");
            let failed = if expected == "reset" { RequestResult::Failed } else { RequestResult::Served };
            assert_eq!(transaction.result(), failed, "{phases}, {cause:?}");
            // Bytes that the kernel has not taken.
            let mut unflushed = in_phases(phases);
            unflushed.is_flushed = false;
            unflushed.on(TransactionEvent::Ended(cause));
            assert_eq!(unflushed.ending(), Ending::Reset, "{phases}, {cause:?}");
            let mut events = [TransactionEvent::LeaseLost, TransactionEvent::Ended(cause)];
            for _ in 0..2 {
                let mut lost = in_phases(phases);
                assert!(events.into_iter().all(|event| lost.on(event)));
                assert_eq!(lost.ending(), Ending::LeaveOpen, "{phases}, {events:?}");
                events.reverse();
            }
        }
    }
}

#[test]
fn lease_takes_each_step_once() {
    use LeasePhase::{Claimed, Lost, Responding, Unclaimed, Upgraded};
    use TransactionEvent as E;
    let claim = E::claimed(at(0), &terms());
    let upgrade = E::Upgraded(at(0), TIMEOUT);
    for (phase, after) in [
        (Unclaimed, [Some(Claimed), None, None, None]),
        (Claimed, [None, Some(Responding), Some(Lost), None]),
        (Responding, [None, None, None, Some(Upgraded)]),
        (Upgraded, [None, None, None, None]),
        (Lost, [None, None, None, None]),
    ] {
        for (event, after) in [claim, E::Responding, E::LeaseLost, upgrade].into_iter().zip(after) {
            let mut transaction = Transaction { lease_phase: phase, ..claimed() };
            assert_eq!(transaction.on(event), after.is_some(), "{phase:?}, {event:?}");
            assert_eq!(transaction.lease_phase(), after.unwrap_or(phase), "{phase:?}, {event:?}");
        }
    }
}

#[test]
fn hyper_reads_until_the_response_is_complete() {
    for (phases, _) in rows(PHASES) {
        let mut transaction = in_phases(phases);
        let expected = match phases {
            "N-" | "CC" => InputStep::Wait,
            "BC" | "AC" | "XC" => InputStep::End,
            _ => InputStep::Deliver,
        };
        assert_eq!(transaction.next_input(), expected, "{phases}");
        assert_eq!(transaction.request() == RequestPhase::None, expected == InputStep::Wait, "{phases}");
    }
    let mut unflushed = in_phases("CC");
    unflushed.is_flushed = false;
    assert_eq!((unflushed.next_input(), unflushed.request()), (InputStep::Wait, RequestPhase::Complete));
}

#[test]
fn close_resets_while_a_claimed_request_has_no_complete_response() {
    for (phases, _) in rows(PHASES) {
        let mut transaction = in_phases(phases);
        let is_over = phases.starts_with('N') || phases.ends_with('C');
        assert_eq!(transaction.needs_reset_on_close(), !is_over, "{phases}");
        for lease_phase in [LeasePhase::Unclaimed, LeasePhase::Lost] {
            transaction.lease_phase = lease_phase;
            assert!(!transaction.needs_reset_on_close(), "{phases}, {lease_phase:?}");
        }
    }
}

#[test]
fn session_has_its_own_deadlines_and_no_next_request_and_resets_until_its_end() {
    use TransactionEvent::*;
    for (phases, _) in rows(PHASES) {
        let mut transaction = Transaction { lease_phase: LeasePhase::Responding, ..in_phases(phases) };
        assert!(transaction.on(Upgraded(at(900), Duration::from_secs(60))), "{phases}");
        assert_eq!(transaction.respond_by(), at(60_900));
        assert_eq!(transaction.cut_at(), at(60_900) + HANDLER_ABORT_GRACE);
        assert_eq!(transaction.blocked_at(), Some(at(60_900) + BLOCKED_GRACE));
        assert!(transaction.needs_reset_on_close(), "{phases}");
        assert!(!transaction.on(NextWanted), "{phases}");
    }
    let mut transaction = claimed();
    let session =
        [HeadRead(NO_BODY), Responding, Upgraded(at(900), TIMEOUT), ResponseStarted(101, at(900)), ResponseEnded];
    assert!(session.into_iter().all(|event| transaction.on(event)));
    assert_eq!(transaction.next_input(), InputStep::Wait);
    transaction.on(DeadlineReached(at(15_000)));
    assert_eq!(transaction.blocked_at(), Some(at(15_000) + BLOCKED_GRACE), "a late serving task has its grace");
    transaction.on(Ended(EndCause::Closed));
    assert_eq!((transaction.ending(), transaction.result()), (Ending::CloseWrite, RequestResult::Served));
    assert_eq!((transaction.status(), transaction.number()), (101, 1));
}

#[test]
fn each_pipelined_request_has_its_own_deadlines() {
    use TransactionEvent::*;
    let mut transaction = claimed();
    assert_eq!((transaction.head_by(), transaction.respond_by()), (at(1000), at(1000)));
    let events = [HeadRead(NO_BODY), Responding, ResponseStarted(200, at(900)), ResponseEnded, NextWanted];
    for event in events.into_iter().chain([NextBegun(at(900))]) {
        assert!(transaction.on(event), "{event:?}");
    }
    assert_eq!((transaction.head_by(), transaction.respond_by()), (at(1900), at(1900)));
    assert_eq!(transaction.cut_at(), at(1900) + HANDLER_ABORT_GRACE);
    assert_eq!(transaction.blocked_at(), Some(at(1900) + BLOCKED_GRACE));
}

#[test]
fn response_is_cut_at_the_deadline_and_a_missing_one_later() {
    use TransactionEvent::*;
    let respond_at = |ms| {
        let mut transaction = claimed();
        transaction.on(HeadRead(NO_BODY));
        transaction.on(ResponseStarted(200, at(ms)));
        transaction.cut_at()
    };
    assert_eq!(respond_at(999), at(1000), "in time: the response ends at the deadline");
    assert_eq!(respond_at(1000), at(1000) + HANDLER_ABORT_GRACE, "504: its delivery has the grace");
    assert_eq!(claimed().cut_at(), at(1000) + HANDLER_ABORT_GRACE);
}

#[test]
fn late_serving_task_still_has_its_grace() {
    let mut transaction = in_phases("C-");
    transaction.on(TransactionEvent::DeadlineReached(at(15_000)));
    assert_eq!(transaction.cut_at(), at(15_000) + HANDLER_ABORT_GRACE);
    assert_eq!(transaction.blocked_at(), Some(at(15_000) + BLOCKED_GRACE));
    let mut responding = claimed();
    responding.on(TransactionEvent::HeadRead(NO_BODY));
    responding.on(TransactionEvent::ResponseStarted(200, at(500)));
    responding.on(TransactionEvent::DeadlineReached(at(15_000)));
    assert_eq!(responding.cut_at(), at(1000));
}

#[test]
fn handler_that_is_done_blocks_nothing_until_the_next_request() {
    use TransactionEvent::*;
    let mut transaction = in_phases("C-");
    assert!(transaction.on(HandlerDone) && !transaction.on(HandlerDone));
    assert_eq!(transaction.blocked_at(), None);
    for event in [ResponseStarted(504, at(2)), ResponseEnded, NextWanted, NextBegun(at(2))] {
        assert!(transaction.on(event));
    }
    assert_eq!(transaction.blocked_at(), Some(at(1002) + BLOCKED_GRACE));
}

#[test]
fn late_client_is_told_from_a_late_handler() {
    for (phases, _) in rows(PHASES) {
        assert_eq!(in_phases(phases).is_client_late(), phases.starts_with('A'), "{phases}");
    }
}

#[test]
fn body_of_an_earlier_request_does_not_touch_the_current_one() {
    let mut transaction = Transaction { number: 2, ..in_phases("B-") };
    assert!(!transaction.on_body(1, TransactionEvent::BodyDropped));
    assert_eq!(phases_of(&transaction), "B-");
    assert!(transaction.on_body(2, TransactionEvent::BodyDropped));
}

#[test]
fn request_counts_once_and_as_what_it_was() {
    use TransactionEvent::*;
    assert_eq!(claimed().result(), RequestResult::Unused);
    let mut transaction = in_phases("C-");
    transaction.on(Refused(404));
    assert_eq!((transaction.result(), transaction.status()), (RequestResult::Unused, 404));
    let next = [NextWanted, NextBegun(at(1)), HeadRead(NO_BODY)];
    for event in next.into_iter().chain([RequestFailed, ResponseStarted(502, at(1)), ResponseEnded]) {
        transaction.on(event);
    }
    assert_eq!((transaction.result(), transaction.status()), (RequestResult::Failed, 502));
    for event in next.into_iter().chain([ResponseStarted(200, at(1)), ResponseEnded]) {
        transaction.on(event);
    }
    assert_eq!((transaction.result(), transaction.status(), transaction.number()), (RequestResult::Served, 200, 3));
}

#[test]
fn interim_response_is_sent_to_http11_clients_that_have_received_nothing() {
    use TransactionEvent::*;
    let mut transaction = claimed();
    assert!(!transaction.may_probe(), "the version is unknown");
    transaction.on(HeadRead(HEAD));
    assert!(transaction.may_probe());
    transaction.on(Responding);
    assert!(!transaction.may_probe());
    let mut old = claimed();
    old.on(HeadRead(ReceivedHead { is_http11: false, ..HEAD }));
    assert!(!old.may_probe());
}

#[test]
fn client_without_a_lease_has_a_bound_for_its_head_and_is_closed() {
    let mut transaction = Transaction::new(at(0), TIMEOUT, HEAD_TIMEOUT);
    assert_eq!((transaction.head_by(), transaction.blocked_at()), (at(1000), None));
    transaction.on(TransactionEvent::Ended(EndCause::LateHead));
    assert_eq!(transaction.ending(), Ending::LateHead408("head_timeout"));
    for event in [TransactionEvent::HeadRead(NO_BODY), TransactionEvent::Refused(307)] {
        let mut transaction = Transaction::new(at(0), TIMEOUT, HEAD_TIMEOUT);
        transaction.on(event);
        transaction.on(TransactionEvent::Ended(EndCause::Idle));
        assert_ne!(transaction.ending(), Ending::KeepAlive);
    }
}

fn any_event() -> impl Strategy<Value = TransactionEvent> {
    use TransactionEvent::*;
    prop_oneof![
        any::<bool>().prop_map(|has_body| HeadRead(ReceivedHead { has_body, ..HEAD })),
        Just(Responding),
        Just(LeaseLost),
        (0..3000_u64).prop_map(|ms| Upgraded(at(ms), TIMEOUT)),
        Just(Refused(400)),
        Just(BodyAwaited),
        Just(BodyArrived),
        Just(BodyEnded),
        Just(BodyDropped),
        Just(RequestFailed),
        Just(HandlerDone),
        (0..3000_u64).prop_map(|ms| DeadlineReached(at(ms))),
        (0..3000_u64).prop_map(|ms| ResponseStarted(200, at(ms))),
        Just(ResponseEnded),
        Just(ResponseFailed),
        Just(Written),
        Just(Flushed),
        Just(NextWanted),
        (0..3000_u64).prop_map(|ms| NextBegun(at(ms))),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a connection is kept after a whole exchange or without any, no FIN ends an open request,
    /// and the deadlines keep their order.
    #[test]
    fn no_order_of_events_hides_a_cut(
        events in prop::collection::vec(any_event(), 0..60),
        cause in prop::sample::select(CAUSES.to_vec()),
    ) {
        let mut transaction = claimed();
        for event in events {
            let number = transaction.number();
            transaction.on(event);
            prop_assert!(transaction.number() - number <= 1);
            prop_assert!(transaction.respond_by() <= transaction.cut_at());
            prop_assert!(transaction.head_by() <= transaction.respond_by());
            if let Some(blocked_at) = transaction.blocked_at() {
                prop_assert!(transaction.cut_at() < blocked_at);
            }
            if transaction.is_request_open() && matches!(transaction.lease_phase(), LeasePhase::Claimed | LeasePhase::Responding) {
                prop_assert!(transaction.needs_reset_on_close());
            }
        }
        let is_open = transaction.is_request_open() || !transaction.is_flushed;
        transaction.on(TransactionEvent::Ended(cause));
        let ending = transaction.ending();
        match transaction.lease_phase() {
            LeasePhase::Lost => prop_assert_eq!(ending, Ending::LeaveOpen),
            _ => prop_assert!(!is_open || ending == Ending::Reset),
        }
        if ending == Ending::KeepAlive {
            prop_assert!(matches!(transaction.request(), RequestPhase::None | RequestPhase::Head));
            prop_assert_eq!(cause, EndCause::Idle);
        }
        if ending == Ending::Reset {
            prop_assert_ne!(transaction.result(), RequestResult::Served);
        }
    }
}
