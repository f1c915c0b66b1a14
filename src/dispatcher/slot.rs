//! Reads and writes a slot in the pool's terms.

use crate::exchange::{self, DispatcherSide, Incarnation, Question, QuestionKind, Reply, SlotMemory};
use crate::ids::{Claim, RefuseReason};
use crate::pool::{SlotAnswer, SlotQuestion, SlotView};

/// Reads what the pool needs to know of a slot. `alive`: whether the worker's lock is held.
pub(crate) fn read_slot<M: SlotMemory>(side: &mut DispatcherSide<M>, alive: bool) -> SlotView {
    let superseded = side.take_superseded_answer().then_some(SlotAnswer::Ack);
    let answer = side.answer().and_then(|(question, reply)| answer(question, reply)).or(superseded);
    let life = Incarnation::load(side.memory());
    SlotView {
        life: life.map(|life| (life.epoch, life.state, life.wants_recycle)),
        replacements: life.map(|life| life.replacements).unwrap_or_default(),
        alive,
        claim: exchange::claim(side.memory()),
        terms: exchange::terms(side.memory()).map(|(_, terms)| terms),
        answer,
        drained: side.drained(),
        session: exchange::load_session(side.memory()),
    }
}

/// The meaning of a reply to its question.
fn answer(question: Question, reply: Reply) -> Option<SlotAnswer> {
    match (question.kind, reply) {
        (QuestionKind::Offer, Reply::Accept) => question.lease.map(SlotAnswer::Accept),
        (QuestionKind::Offer, Reply::Refuse(reason)) => question.lease.map(|lease| SlotAnswer::Refuse(lease, reason)),
        (QuestionKind::Offer, _) => question.lease.map(|lease| SlotAnswer::Refuse(lease, RefuseReason::Stale)),
        (QuestionKind::Recycle, reply) => Some(SlotAnswer::Recycle(reply == Reply::Accept)),
        (QuestionKind::Ping | QuestionKind::Finished | QuestionKind::Drain | QuestionKind::Resume, _) => {
            Some(SlotAnswer::Ack)
        }
    }
}

/// Writes a question of the pool.
pub(crate) fn write_question<M: SlotMemory>(side: &mut DispatcherSide<M>, question: SlotQuestion) {
    match question {
        SlotQuestion::Ping => side.write_question(QuestionKind::Ping, None),
        SlotQuestion::Finished(lease) => side.write_question(QuestionKind::Finished, Some(lease)),
        SlotQuestion::Drain => side.write_question(QuestionKind::Drain, None),
        SlotQuestion::Resume => side.write_question(QuestionKind::Resume, None),
        SlotQuestion::Recycle => side.write_question(QuestionKind::Recycle, None),
    }
}

/// What can be believed of a slot: all that was read from one that is sound.
pub(crate) fn believed(seen: SlotView, is_sound: bool) -> SlotView {
    match (is_sound, seen.alive) {
        (true, _) => seen,
        // It does not show what the worker is doing; `claim: None` has the worker replaced.
        (false, true) => SlotView { claim: None, terms: None, answer: None, ..seen },
        // No worker is attached, and none can attach until the segment is recreated.
        (false, false) => SlotView { claim: Some(Claim::Free), terms: None, answer: None, life: None, ..seen },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, LeaseId, Lifecycle, Phase, Replacements};

    #[test]
    fn damaged_slot_shows_a_corrupt_claim_of_a_living_worker_and_nothing_of_a_dead_one() {
        let lease = LeaseId::of(Epoch::FIRST, 1);
        let seen = |alive| SlotView {
            life: Some((Epoch::FIRST, Lifecycle::Ready, false)),
            replacements: Replacements::default(),
            alive,
            claim: Some(Claim::Held(lease, Phase::Claimed)),
            terms: None,
            answer: Some(SlotAnswer::Accept(lease)),
            drained: true,
            ..SlotView::default()
        };
        for alive in [true, false] {
            let sound = believed(seen(alive), true);
            assert_eq!((sound.claim, sound.answer), (seen(alive).claim, seen(alive).answer));
            let damaged = believed(seen(alive), false);
            assert_eq!(damaged.claim, if alive { None } else { Some(Claim::Free) });
            assert_eq!(damaged.answer, None);
            assert_eq!(damaged.life.is_some(), alive);
            assert_eq!((damaged.alive, damaged.drained), (alive, true));
        }
    }
}
