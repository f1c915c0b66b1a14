//! The probe: questions to every worker.

use super::*;

#[test]
fn probe_questions_every_worker_and_recovers_lost_rings() {
    let mut t = PoolTest::with_idle_workers(PoolLimits { workers: 3, ..LIMITS });
    t.serve(0, (1, A), 3, 1);
    t.read_slot(0, 1, dead(free()), &[note(1, PoolNote::Down(ONE))]);
    let finished = Slot(W3, Question(SlotQuestion::Finished(lease(1))));
    t.handle(250, Probe, &[Slot(W1, Read), Slot(W2, Question(SlotQuestion::Ping)), finished]);
    t.read_slot(250, 1, dead(free()), &[]);
    t.read_slot(251, 3, answered(SlotAnswer::Ack, held(lease(1), Claimed, 0)), &[]);
    t.handle(500, Probe, &[Slot(W1, Read), Slot(W2, Ring), Slot(W2, Read), finished]);
    t.read_slot(500, 1, incarnation(2, Ready, free()), &[note(1, PoolNote::Up(epoch(2)))]);
    t.read_slot(500, 2, answered(SlotAnswer::Ack, free()), &[]);
    t.handle(
        750,
        Probe,
        &[
            Slot(W1, Question(SlotQuestion::Ping)),
            Slot(W2, Question(SlotQuestion::Ping)),
            Slot(W3, Ring),
            Slot(W3, Read),
        ],
    );
}

#[test]
fn probe_pings_many_workers_in_batches() {
    let mut pool = Pool::new(PoolLimits { workers: 100, ..LIMITS }, epoch(7));
    for n in 1..=100 {
        pool.handle(at(1), PoolEvent::SlotRead(WorkerNumber::of(n), free()));
    }
    let ping_count = |actions: Vec<PoolAction>| {
        let ping_count =
            actions.iter().filter(|action| matches!(action, Slot(_, Question(SlotQuestion::Ping)))).count();
        assert_eq!(ping_count, actions.len(), "{actions:?}");
        ping_count
    };
    assert_eq!(ping_count(pool.handle(at(10), PoolEvent::Probe)), 64);
    assert_eq!((pool.deadline(), ping_count(pool.handle(at(15), PoolEvent::Probe))), (Some(at(20)), 0));
    assert_eq!(ping_count(pool.handle(at(20), PoolEvent::Tick)), 36);
    assert_eq!(pool.deadline(), None);
}
