use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn client(id: ClientId, peer: u32, is_handoff: bool) -> QueuedClient {
    let peer = Peer::User(peer);
    QueuedClient { id, peer, since: Monotonic(id), due: Monotonic(u64::MAX), is_handoff, turn: None }
}

fn pop_ids(queue: &mut ClientQueue) -> Vec<ClientId> {
    std::iter::from_fn(|| queue.pop(Monotonic(0)).map(|client| client.id)).collect()
}

#[test]
fn addresses_take_turns() {
    let mut queue = ClientQueue::default();
    for (id, peer) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (6, 2), (7, 3)] {
        queue.push(client(id, peer, id % 2 == 0));
    }
    assert_eq!(pop_ids(&mut queue), [1, 4, 7, 2, 6, 3, 5]);
    assert!(queue.is_empty() && queue.peers.is_empty() && queue.turns.is_empty() && queue.by_length.is_empty());
}

#[test]
fn returned_client_keeps_its_place_and_the_turn_of_its_address() {
    let mut queue = ClientQueue::default();
    for (id, peer) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)] {
        queue.push(client(id, peer, true));
    }
    let [first, second, third] = [(); 3].map(|()| queue.pop(Monotonic(0)).unwrap());
    assert_eq!([first.id, second.id, third.id], [1, 4, 6]);
    queue.push(client(7, 4, true));
    queue.push(second);
    queue.push(first);
    assert_eq!(pop_ids(&mut queue), [1, 4, 2, 5, 7, 3]);
}

#[test]
fn address_that_returns_waits_for_the_others() {
    let mut queue = ClientQueue::default();
    queue.push(client(1, 1, true));
    queue.push(client(2, 2, true));
    queue.push(client(3, 2, true));
    assert_eq!(queue.pop(Monotonic(0)).unwrap().id, 1);
    queue.push(client(4, 1, true));
    assert_eq!(queue.pop(Monotonic(0)).unwrap().id, 2);
    queue.push(client(5, 1, true));
    assert_eq!(pop_ids(&mut queue), [4, 3, 5]);
}

#[test]
fn ipv6_networks_and_mapped_addresses_are_one_peer() {
    let peer = |text: &str| Peer::at(text.parse::<IpAddr>().unwrap());
    assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff:ffff:ffff:ffff"));
    assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
    assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    assert_ne!(peer("::ffff:192.0.2.1"), peer("::ffff:192.0.2.2"));
    assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
}

#[derive(Clone, Debug)]
enum Step {
    /// A client of this peer arrives; `true`: with handoff delivery.
    Arrive(u32, bool),
    Pop,
    /// The offer of a popped client fails.
    Return(usize),
    /// A popped client claims its lease.
    Claim(usize),
    /// The lease of a popped client ends unclaimed.
    Unclaimed(usize),
    /// A waiting client leaves.
    Leave(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_u32, any::<bool>()).prop_map(|(peer, is_handoff)| Step::Arrive(peer, is_handoff)),
        5 => Just(Step::Pop),
        2 => any::<usize>().prop_map(Step::Return),
        2 => any::<usize>().prop_map(Step::Claim),
        1 => any::<usize>().prop_map(Step::Unclaimed),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => (1..8_u64).prop_map(Step::Wait),
    ]
}

/// The same queue as a list, without any order of turns.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<ClientId, QueuedClient>,
    popped: Vec<QueuedClient>,
    unclaimed: BTreeMap<Peer, i32>,
    suspect_until: BTreeMap<Peer, Monotonic>,
    /// How many turns of the second peer the first one has waited for.
    turns: BTreeMap<(Peer, Peer), u32>,
}

impl Model {
    fn may_be_offered(&self, client: &QueuedClient, now: Monotonic) -> bool {
        let suspect = self.suspect_until.get(&client.peer).is_some_and(|until| now < *until);
        client.is_handoff || !suspect || self.unclaimed.get(&client.peer).is_none_or(|count| *count == 0)
    }

    fn take(&mut self, index: usize) -> Option<QueuedClient> {
        let index = index.checked_rem(self.popped.len())?;
        Some(self.popped.swap_remove(index))
    }

    fn count_unclaimed(&mut self, queue: &mut ClientQueue, client: QueuedClient, by: i32) {
        queue.count_unclaimed(client, by);
        if !client.is_handoff {
            *self.unclaimed.entry(client.peer).or_default() += by;
        }
    }

    /// A peer without a client that may be offered waits for no turn.
    fn forget_idle_peers(&mut self, now: Monotonic) {
        let ready: Vec<Peer> =
            self.waiting.values().filter(|c| self.may_be_offered(c, now)).map(|client| client.peer).collect();
        self.turns.retain(|(peer, _), _| ready.contains(peer));
    }

    fn check_popped(&mut self, popped: Option<QueuedClient>, now: Monotonic) {
        let offerable: Vec<_> = self.waiting.values().filter(|client| self.may_be_offered(client, now)).collect();
        let Some(client) = popped else { return assert!(offerable.is_empty(), "not work-conserving") };
        let first = offerable.iter().find(|other| other.peer == client.peer).expect("may be offered");
        assert_eq!(first.id, client.id, "not first in, first out");
        let turn = client.turn.unwrap();
        for returned in offerable.iter().filter(|other| other.turn.is_some_and(|other| other < turn)) {
            let is_first = offerable.iter().find(|other| other.peer == returned.peer).unwrap().id == returned.id;
            assert!(!is_first, "client {} has lost its turn", returned.id);
        }
        if first.turn.is_none() {
            let others: BTreeSet<Peer> =
                offerable.iter().map(|other| other.peer).filter(|p| *p != client.peer).collect();
            for other in others {
                let turns = self.turns.entry((other, client.peer)).or_default();
                *turns += 1;
                assert!(*turns <= 1, "{other:?} waits for {turns} turns of {:?}", client.peer);
            }
            self.turns.retain(|(peer, _), _| *peer != client.peer);
        }
    }

    /// The client that a full queue loses.
    fn expected_surplus(&self, new: &QueuedClient) -> Vec<ClientId> {
        let fresh = || self.waiting.values().filter(|client| client.turn.is_none());
        let length = |peer| fresh().filter(|c| c.peer == peer).count();
        let longest = fresh().map(|client| length(client.peer)).max().unwrap_or(0);
        if length(new.peer) == longest {
            return vec![new.id];
        }
        let peers: BTreeSet<Peer> = fresh().map(|c| c.peer).filter(|peer| length(*peer) == longest).collect();
        peers.iter().filter_map(|peer| fresh().rfind(|client| client.peer == *peer)).map(|c| c.id).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens: no address waits for more than one turn of another one, the clients of an address are served in
    /// order, no client waits while it could be served, and a full queue loses the newest client of the largest address.
    #[test]
    fn turns_are_fair(steps in proptest::collection::vec(step(), 1..120)) {
        const BOUND: usize = 9;
        let (mut queue, mut model, mut now, mut id) = (ClientQueue::default(), Model::default(), Monotonic(0), 0);
        for step in steps {
            match step {
                Step::Arrive(peer, is_handoff) => {
                    id += 1;
                    let new = client(id, peer, is_handoff);
                    queue.push(new);
                    model.waiting.insert(id, new);
                    let fresh = model.waiting.values().filter(|client| client.turn.is_none()).count();
                    prop_assert!(fresh <= BOUND + 1);
                    if queue.len() > BOUND {
                        let lost = queue.remove_surplus(new).unwrap().id;
                        prop_assert!(model.expected_surplus(&new).contains(&lost), "{} is refused", lost);
                        model.waiting.remove(&lost);
                    }
                }
                Step::Pop => {
                    let popped = queue.pop(now);
                    model.check_popped(popped, now);
                    if let Some(client) = popped {
                        model.waiting.remove(&client.id);
                        model.popped.push(client);
                        model.count_unclaimed(&mut queue, client, 1);
                    }
                }
                Step::Return(index) => {
                    if let Some(client) = model.take(index) {
                        model.count_unclaimed(&mut queue, client, -1);
                        queue.push(client);
                        model.waiting.insert(client.id, client);
                    }
                }
                Step::Claim(index) => {
                    if let Some(client) = model.take(index) {
                        model.count_unclaimed(&mut queue, client, -1);
                    }
                }
                Step::Unclaimed(index) => {
                    if let Some(client) = model.take(index).filter(|client| !client.is_handoff) {
                        queue.suspect(client.peer, now);
                        model.suspect_until.insert(client.peer, now + SUSPICION);
                        model.count_unclaimed(&mut queue, client, -1);
                    }
                }
                Step::Leave(index) => {
                    let left = index.checked_rem(model.waiting.len()).and_then(|i| model.waiting.keys().nth(i).copied());
                    if let Some(left) = left {
                        prop_assert_eq!(queue.remove(left).map(|client| client.id), Some(left));
                        model.waiting.remove(&left);
                    }
                }
                Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
            }
            model.forget_idle_peers(now);
            prop_assert_eq!(queue.len(), model.waiting.len());
            prop_assert_eq!(queue.oldest(), model.waiting.values().next().map(|client| client.since));
        }
    }
}
