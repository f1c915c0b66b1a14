//! The table, cell by cell; then what holds for every sequence of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::Epoch;
use crate::pool::Peer;

const NOW: Monotonic = Monotonic(100);
/// All deadlines of [`states`] have passed.
const LATE: Monotonic = Monotonic(u64::MAX);
const CLIENT: ClientId = 1;
/// No client with an offer has this number.
const ADOPTED: ClientId = 1000;

fn lease(n: u64) -> LeaseId {
    LeaseId::of(Epoch::FIRST, n)
}

fn offer_to(is_handoff: bool) -> Offer {
    let client =
        QueuedClient { id: CLIENT, peer: Peer::User(0), since: NOW, due: Monotonic(500), is_handoff, turn: None };
    Offer { lease: lease(1), client, claim_by: Monotonic(300), request_timeout: Duration::from_nanos(1000) }
}

/// Every state, with lease 1 if it has one. Offers are told apart by the delivery.
fn states() -> [(&'static str, Hold); 11] {
    let (redirect, handoff, answer_by) = (offer_to(false), offer_to(true), Monotonic(200));
    [
        ("Free", Hold::Free),
        ("Offered", Hold::Offered { offer: redirect, answer_by }),
        ("OfferedHandoff", Hold::Offered { offer: handoff, answer_by }),
        ("Revoking", Hold::Revoking(redirect)),
        ("RevokingHandoff", Hold::Revoking(handoff)),
        ("Granted", Hold::Granted(redirect)),
        ("Recovered", Hold::Recovered { lease: lease(1), claim_by: Monotonic(300) }),
        ("Busy", Hold::Busy(lease(1))),
        ("HandedOff", Hold::HandedOff { lease: lease(1), client: CLIENT, abort_at: Monotonic(1000) }),
        ("Releasing", Hold::Releasing),
        ("Corrupt", Hold::Corrupt),
    ]
}

fn offered(worker: BoundTo, inherited: Option<Monotonic>) -> HoldEvent {
    SlotRead(SeenLease::Offered { lease: lease(1), worker, inherited })
}

fn adopted(lease: LeaseId, client: ClientId) -> HoldEvent {
    Adopted(AdoptedLease { lease, client, abort_at: Monotonic(1000) })
}

/// Every event, about lease 1.
fn events() -> [(&'static str, Monotonic, HoldEvent); 29] {
    use SeenLease::{Aborted, Claimed, Corrupt, Done, Free, Invalid, Responding, Revoked, Upgraded};
    let own = lease(1);
    [
        ("accepted", NOW, Accepted(own, Living)),
        ("accepted late", LATE, Accepted(own, Living)),
        ("accepted, gone", NOW, Accepted(own, Gone)),
        ("refused", NOW, Refused(own)),
        ("question replaced", NOW, QuestionReplaced),
        ("client left", NOW, ClientLeft(CLIENT)),
        ("other client left", NOW, ClientLeft(CLIENT + 1)),
        ("adopted", NOW, adopted(own, CLIENT)),
        ("corrupt", NOW, SlotRead(Corrupt { claimed: None })),
        ("corrupt, claimed", NOW, SlotRead(Corrupt { claimed: Some(own) })),
        ("invalid", NOW, SlotRead(Invalid)),
        ("free", NOW, SlotRead(Free)),
        ("offered", NOW, offered(Living, None)),
        ("offered late", LATE, offered(Living, None)),
        ("offered, gone", NOW, offered(Gone, None)),
        ("inherited", NOW, offered(Living, Some(Monotonic(300)))),
        ("inherited late", LATE, offered(Living, Some(Monotonic(300)))),
        ("claimed", NOW, SlotRead(Claimed(own, Living))),
        ("claimed late", LATE, SlotRead(Claimed(own, Living))),
        ("claimed, gone", NOW, SlotRead(Claimed(own, Gone))),
        ("responding", NOW, SlotRead(Responding(own, Living))),
        ("responding, gone", NOW, SlotRead(Responding(own, Gone))),
        ("upgraded", NOW, SlotRead(Upgraded(own, Living))),
        ("upgraded late", LATE, SlotRead(Upgraded(own, Living))),
        ("upgraded, gone", NOW, SlotRead(Upgraded(own, Gone))),
        ("done", NOW, SlotRead(Done(own))),
        ("revoked", NOW, SlotRead(Revoked(own))),
        ("aborted", NOW, SlotRead(Aborted(own))),
        ("aborted late", LATE, SlotRead(Aborted(own))),
    ]
}

/// Event, states, and what follows: the next state, and the actions.
const TABLE: &[(&str, &str, &str)] = &[
    ("accepted", "Free Revoking RevokingHandoff Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("accepted", "Offered", "Granted: grant"),
    ("accepted", "OfferedHandoff", "stays"),
    ("accepted late", "Free Revoking RevokingHandoff Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("accepted late", "Offered OfferedHandoff", "Revoking:"),
    ("accepted, gone", "Free Revoking RevokingHandoff Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("accepted, gone", "Offered OfferedHandoff", "Revoking:"),
    ("refused", "Free Revoking RevokingHandoff Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("refused", "Offered OfferedHandoff", "Revoking:"),
    ("question replaced", "Free Revoking RevokingHandoff Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("question replaced", "Offered OfferedHandoff", "Revoking: revoke"),
    ("client left", "Free Granted Recovered Busy HandedOff Releasing Corrupt", "stays"),
    ("client left", "Offered OfferedHandoff", "Releasing: revoke"),
    ("client left", "Revoking RevokingHandoff", "Releasing:"),
    ("other client left", "Free Offered OfferedHandoff Revoking RevokingHandoff Granted Recovered", "stays"),
    ("other client left", "Busy HandedOff Releasing Corrupt", "stays"),
    ("adopted", "Free", "HandedOff:"),
    ("adopted", "Offered OfferedHandoff", "Offered: end cut"),
    ("adopted", "Revoking RevokingHandoff", "Revoking: end cut"),
    ("adopted", "Granted", "Granted: end cut"),
    ("adopted", "Recovered", "Recovered: end cut"),
    ("adopted", "Busy", "Busy: end cut"),
    ("adopted", "HandedOff", "HandedOff: end cut"),
    ("adopted", "Releasing", "Releasing: end cut"),
    ("adopted", "Corrupt", "Corrupt: end cut"),
    ("corrupt", "Free Granted Recovered Busy Releasing", "Corrupt: note corrupt"),
    ("corrupt", "Offered Revoking", "Corrupt: note corrupt, queue"),
    ("corrupt", "OfferedHandoff RevokingHandoff HandedOff", "Corrupt: note corrupt, end cut"),
    ("corrupt", "Corrupt", "stays"),
    ("corrupt, claimed", "Free Granted Recovered Busy Releasing", "Corrupt: note corrupt"),
    ("corrupt, claimed", "Offered Revoking", "Corrupt: grant, note corrupt"),
    ("corrupt, claimed", "OfferedHandoff RevokingHandoff", "Corrupt: grant, note corrupt, end cut"),
    ("corrupt, claimed", "HandedOff", "Corrupt: note corrupt, end cut"),
    ("corrupt, claimed", "Corrupt", "stays"),
    ("invalid", "Free Granted Recovered Busy Releasing Corrupt", "Free: clear"),
    ("invalid", "Offered Revoking", "Free: queue, clear"),
    ("invalid", "OfferedHandoff RevokingHandoff HandedOff", "Free: end cut, clear"),
    ("free", "Free", "stays"),
    ("free", "Granted Recovered Busy Releasing Corrupt", "Free:"),
    ("free", "Offered Revoking", "Free: queue"),
    ("free", "OfferedHandoff RevokingHandoff HandedOff", "Free: end cut"),
    ("offered", "Free Busy Releasing Corrupt", "Releasing: revoke"),
    ("offered", "Offered OfferedHandoff Granted Recovered", "stays"),
    ("offered", "Revoking RevokingHandoff", "Revoking: revoke"),
    ("offered", "HandedOff", "Releasing: end cut, revoke"),
    ("offered late", "Free Busy Releasing Corrupt", "Releasing: revoke"),
    ("offered late", "Offered OfferedHandoff", "Revoking: note late, revoke"),
    ("offered late", "Revoking RevokingHandoff", "Revoking: revoke"),
    ("offered late", "Granted Recovered", "Releasing: note unclaimed, revoke"),
    ("offered late", "HandedOff", "Releasing: end cut, revoke"),
    ("offered, gone", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: revoke"),
    ("offered, gone", "Offered OfferedHandoff Revoking RevokingHandoff", "Revoking: revoke"),
    ("offered, gone", "HandedOff", "Releasing: end cut, revoke"),
    ("inherited", "Free", "Recovered:"),
    ("inherited", "Busy Releasing Corrupt", "Releasing: revoke"),
    ("inherited", "Offered OfferedHandoff Granted Recovered", "stays"),
    ("inherited", "Revoking RevokingHandoff", "Revoking: revoke"),
    ("inherited", "HandedOff", "Releasing: end cut, revoke"),
    ("inherited late", "Free Busy Releasing Corrupt", "Releasing: revoke"),
    ("inherited late", "Offered OfferedHandoff", "Revoking: note late, revoke"),
    ("inherited late", "Revoking RevokingHandoff", "Revoking: revoke"),
    ("inherited late", "Granted Recovered", "Releasing: note unclaimed, revoke"),
    ("inherited late", "HandedOff", "Releasing: end cut, revoke"),
    ("claimed", "Free Granted Recovered Releasing Corrupt", "Busy:"),
    ("claimed", "Offered Revoking", "Busy: grant"),
    ("claimed", "OfferedHandoff RevokingHandoff", "HandedOff: grant"),
    ("claimed", "Busy HandedOff", "stays"),
    ("claimed late", "Free Granted Recovered Releasing Corrupt", "Busy:"),
    ("claimed late", "Offered Revoking", "Busy: grant"),
    ("claimed late", "Busy", "stays"),
    ("claimed late", "OfferedHandoff RevokingHandoff", "HandedOff: grant, abort"),
    ("claimed late", "HandedOff", "HandedOff: abort"),
    ("claimed, gone", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: note lost, abort"),
    ("claimed, gone", "Offered Revoking", "Releasing: grant, note lost, abort"),
    ("claimed, gone", "OfferedHandoff RevokingHandoff", "HandedOff: grant, note lost, abort"),
    ("claimed, gone", "HandedOff", "HandedOff: note lost, abort"),
    ("responding", "Free Granted Recovered Releasing Corrupt", "Busy:"),
    ("responding", "Offered Revoking", "Busy: grant"),
    ("responding", "OfferedHandoff RevokingHandoff", "HandedOff: grant"),
    ("responding", "Busy HandedOff", "stays"),
    ("responding, gone", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: note lost, reclaim"),
    ("responding, gone", "Offered Revoking", "Releasing: grant, note lost, reclaim"),
    ("responding, gone", "OfferedHandoff RevokingHandoff", "Releasing: grant, note lost, end cut, reclaim"),
    ("responding, gone", "HandedOff", "Releasing: note lost, end cut, reclaim"),
    ("upgraded", "Free Granted Recovered Releasing Corrupt", "Busy:"),
    ("upgraded", "Offered Revoking", "Busy: grant"),
    ("upgraded", "OfferedHandoff RevokingHandoff", "HandedOff: grant"),
    ("upgraded", "Busy HandedOff", "stays"),
    ("upgraded late", "Free Granted Recovered Releasing Corrupt", "Busy:"),
    ("upgraded late", "Offered Revoking", "Busy: grant"),
    ("upgraded late", "OfferedHandoff RevokingHandoff", "HandedOff: grant"),
    ("upgraded late", "Busy HandedOff", "stays"),
    ("upgraded, gone", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: note lost, reclaim"),
    ("upgraded, gone", "Offered Revoking", "Releasing: grant, note lost, reclaim"),
    ("upgraded, gone", "OfferedHandoff RevokingHandoff", "Releasing: grant, note lost, end cut, reclaim"),
    ("upgraded, gone", "HandedOff", "Releasing: note lost, end cut, reclaim"),
    ("done", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: release"),
    ("done", "Offered Revoking", "Releasing: grant, release"),
    ("done", "OfferedHandoff RevokingHandoff", "Releasing: grant, end done, release"),
    ("done", "HandedOff", "Releasing: end done, release"),
    ("revoked", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: release"),
    ("revoked", "Offered Revoking RevokingHandoff", "Releasing: queue, release"),
    ("revoked", "OfferedHandoff HandedOff", "Releasing: end cut, release"),
    ("aborted", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: release"),
    ("aborted", "Offered Revoking", "Releasing: grant, release"),
    ("aborted", "OfferedHandoff RevokingHandoff", "Releasing: grant, end no response, release"),
    ("aborted", "HandedOff", "Releasing: end no response, release"),
    ("aborted late", "Free Granted Recovered Busy Releasing Corrupt", "Releasing: release"),
    ("aborted late", "Offered Revoking", "Releasing: grant, release"),
    ("aborted late", "OfferedHandoff RevokingHandoff", "Releasing: grant, end overdue, release"),
    ("aborted late", "HandedOff", "Releasing: end overdue, release"),
];

/// A step in the words of the table.
fn describe(before: Hold, step: &Transition) -> String {
    let grant = step.grant.map(|_| "grant");
    let note = step.note.map(|note| match note {
        PoolNote::Late(_) => "note late",
        PoolNote::Unclaimed(_) => "note unclaimed",
        PoolNote::Corrupt => "note corrupt",
        PoolNote::Lost(_) => "note lost",
        other @ (PoolNote::Up(_) | PoolNote::Down(_) | PoolNote::Back) => panic!("{other:?} concerns no lease"),
    });
    let client = step.client.map(|client| match client {
        Return::Queue(_) => "queue",
        Return::Dispatcher(_, _, LeaseEnd::Done) => "end done",
        Return::Dispatcher(_, _, LeaseEnd::NoResponse) => "end no response",
        Return::Dispatcher(_, _, LeaseEnd::Overdue) => "end overdue",
        Return::Dispatcher(_, _, LeaseEnd::Cut) => "end cut",
    });
    let slot = step.slot.map(|action| match action {
        SlotAction::Revoke(_) => "revoke",
        SlotAction::Abort(_) => "abort",
        SlotAction::Reclaim(_) => "reclaim",
        SlotAction::Release(_) => "release",
        SlotAction::Clear => "clear",
        other => panic!("{other:?} does not concern the claim word"),
    });
    let actions: Vec<_> = [grant, note, client, slot].into_iter().flatten().collect();
    if actions.is_empty() && step.hold == before {
        return "stays".into();
    }
    let hold = format!("{:?}", step.hold);
    let state = hold.split([' ', '(']).next().unwrap();
    format!("{state}: {}", actions.join(", ")).trim_end().to_owned()
}

#[test]
fn table_has_every_state_with_every_event() {
    let mut cells = BTreeMap::new();
    for (event, states, outcome) in TABLE {
        for state in states.split(' ') {
            assert_eq!(cells.insert((*event, state), *outcome), None, "{state}, {event}: twice");
        }
    }
    let mut count = 0;
    for (event_name, now, event) in events() {
        for (state_name, state) in states() {
            let step = state.step(now, event);
            let expected = cells.remove(&(event_name, state_name));
            assert_eq!(Some(describe(state, &step).as_str()), expected, "{state_name}, {event_name}");
            count += 1;
        }
    }
    assert!(cells.is_empty(), "unknown: {cells:?}");
    println!("{count} cells");
}

/// The same event about another lease, if it is about one.
fn about(event: HoldEvent, other: LeaseId) -> Option<HoldEvent> {
    Some(match event {
        Accepted(_, worker) => Accepted(other, worker),
        Refused(_) => Refused(other),
        Adopted(lease) => Adopted(AdoptedLease { lease: other, ..lease }),
        SlotRead(seen) => SlotRead(match seen {
            SeenLease::Corrupt { claimed: Some(_) } => SeenLease::Corrupt { claimed: Some(other) },
            SeenLease::Offered { worker, inherited, .. } => SeenLease::Offered { lease: other, worker, inherited },
            SeenLease::Claimed(_, worker) => SeenLease::Claimed(other, worker),
            SeenLease::Responding(_, worker) => SeenLease::Responding(other, worker),
            SeenLease::Upgraded(_, worker) => SeenLease::Upgraded(other, worker),
            SeenLease::Done(_) => SeenLease::Done(other),
            SeenLease::Revoked(_) => SeenLease::Revoked(other),
            SeenLease::Aborted(_) => SeenLease::Aborted(other),
            SeenLease::Corrupt { claimed: None } | SeenLease::Invalid | SeenLease::Free => return None,
        }),
        QuestionReplaced | ClientLeft(_) => return None,
    })
}

#[test]
fn other_lease_in_the_slot_ends_the_own_one() {
    let mut count = 0;
    for (event_name, now, event) in events() {
        let Some(event) = about(event, lease(2)) else { continue };
        for (state_name, state) in states() {
            // The client goes where it goes when the slot is free; the slot is treated as if there were no client.
            let expected = match (event, state) {
                (Accepted(..) | Refused(_), _) => Transition::to(state),
                (Adopted(_), Hold::Free) => continue, // it has no own lease
                (Adopted(lease), _) => state.without(lease),
                (_, Hold::Free | Hold::Corrupt) => state.step(now, event),
                _ => Transition {
                    client: state.step(now, SlotRead(SeenLease::Free)).client,
                    ..Hold::Releasing.step(now, event)
                },
            };
            assert_eq!(state.step(now, event), expected, "{state_name}, {event_name}");
            count += 1;
        }
    }
    println!("{count} cells");
}

/// An event at a time after the last one, about the lease that was offered last or one of those before it.
fn any_event() -> impl Strategy<Value = (Duration, HoldEvent, u64)> {
    let events = events().map(|(_, _, event)| event);
    let event = prop_oneof![3 => proptest::sample::select(events[8..].to_vec()), 1 => proptest::sample::select(events.to_vec())];
    ((0..150_u64).prop_map(Duration::from_nanos), event, prop_oneof![4 => Just(0), 1 => 1..3_u64])
}

proptest! {
    #[test]
    fn each_client_gets_one_verdict(
        events in proptest::collection::vec(any_event(), 1..200),
        handoff in proptest::collection::vec(any::<bool>(), 200),
        starts_adopted: bool,
    ) {
        let (mut hold, mut now, mut last) = (Hold::Free, NOW, 0);
        let (mut waiting, mut connection) = (None, None);
        if starts_adopted {
            (last, connection) = (1, Some(ADOPTED));
            hold = hold.step(now, adopted(lease(1), ADOPTED)).hold;
        }
        for (passed, event, back) in events {
            now = now + passed;
            if hold == Hold::Free {
                last += 1;
                let template = offer_to(handoff[last as usize]);
                let client = QueuedClient { id: last, ..template.client };
                let offer = Offer { lease: lease(last), client, claim_by: now + Duration::from_nanos(300), ..template };
                hold = Hold::Offered { offer, answer_by: now + Duration::from_nanos(200) };
                waiting = Some(last);
            }
            let about_lease = lease(last.saturating_sub(back).max(1));
            let event = match event {
                ClientLeft(_) => ClientLeft(last - back.min(last)),
                Adopted(_) => adopted(about_lease, ADOPTED + 1),
                _ => about(event, about_lease).unwrap_or(event),
            };
            let step = hold.step(now, event);
            if let Adopted(lease) = event {
                prop_assert_eq!(step, hold.without(lease)); // the hold is never free here
                continue;
            }
            if event == ClientLeft(waiting.unwrap_or_default()) {
                waiting = None;
            }
            if let Some(offer) = step.grant {
                prop_assert_eq!(waiting.take(), Some(offer.client.id));
                connection = offer.client.is_handoff.then_some(offer.client.id);
            }
            match step.client {
                Some(Return::Queue(client)) => prop_assert_eq!(waiting.take(), Some(client.id)),
                Some(Return::Dispatcher(client, _, end)) => {
                    let from = if waiting.is_some() { &mut waiting } else { &mut connection };
                    prop_assert_eq!(from.take(), Some(client));
                    prop_assert!(step.grant.is_some() || hold.offer().is_none() || end == LeaseEnd::Cut);
                }
                None => {}
            }
            hold = step.hold;
            let undecided = hold.offer().filter(|_| !matches!(hold, Hold::Granted(_)));
            prop_assert_eq!(waiting, undecided.map(|offer| offer.client.id), "{:?}", hold);
            prop_assert_eq!(connection.is_some(), matches!(hold, Hold::HandedOff { .. }), "{:?}", hold);
        }
    }

    /// The claim word steps as the dispatcher's actions say, and nothing else changes it.
    #[test]
    fn lease_of_a_dead_worker_ends(
        (_, state) in proptest::sample::select(states().to_vec()),
        (_, _, event) in proptest::sample::select(events()[8..].to_vec()),
        number in 1..3_u64,
    ) {
        let SlotRead(mut seen) = about(event, lease(number)).unwrap_or(event) else { panic!("{event:?}") };
        let mut hold = state;
        for _ in 0..4 {
            seen = match seen {
                SeenLease::Offered { lease, .. } => SeenLease::Offered { lease, worker: Gone, inherited: None },
                SeenLease::Claimed(lease, _) => SeenLease::Claimed(lease, Gone),
                SeenLease::Responding(lease, _) => SeenLease::Responding(lease, Gone),
                SeenLease::Upgraded(lease, _) => SeenLease::Upgraded(lease, Gone),
                SeenLease::Corrupt { .. } => SeenLease::Invalid,
                other => other,
            };
            let step = hold.step(NOW, SlotRead(seen));
            hold = step.hold;
            seen = match (step.slot, seen) {
                (Some(SlotAction::Revoke(of)), SeenLease::Offered { lease, .. }) if of == lease => SeenLease::Revoked(lease),
                (Some(SlotAction::Abort(of)), SeenLease::Claimed(lease, _)) if of == lease => SeenLease::Aborted(lease),
                (Some(SlotAction::Reclaim(of)), SeenLease::Responding(lease, _) | SeenLease::Upgraded(lease, _))
                    if of == lease =>
                {
                    SeenLease::Free
                }
                (
                    Some(SlotAction::Release(of)),
                    SeenLease::Done(lease) | SeenLease::Revoked(lease) | SeenLease::Aborted(lease),
                ) if of == lease => SeenLease::Free,
                (Some(SlotAction::Clear), SeenLease::Invalid) => SeenLease::Free,
                (None, SeenLease::Free) => SeenLease::Free,
                (action, seen) => panic!("{action:?} on {seen:?}"),
            };
        }
        prop_assert_eq!((hold, seen), (Hold::Free, SeenLease::Free));
    }
}
