//! A slot read and written in the pool's terms.

use crate::exchange::{self, DispatcherSide, Incarnation, Question, QuestionKind, Reply, SlotMemory};
use crate::ids::RefuseReason;
use crate::pool::{SlotAnswer, SlotQuestion, SlotView};

/// Reads everything the pool wants to know of a slot. `alive`: whether the worker's lock is held.
pub fn read_slot<M: SlotMemory>(asker: &mut DispatcherSide<M>, alive: bool) -> SlotView {
    let heard = asker.take_superseded_answer().then_some(SlotAnswer::Here);
    let answer = asker.answer().and_then(|(question, reply)| answer(question, reply)).or(heard);
    let life = Incarnation::load(asker.memory());
    SlotView {
        life: life.map(|life| (life.epoch, life.state, life.wants_recycle)),
        alive,
        claim: exchange::claim(asker.memory()),
        terms: exchange::terms(asker.memory()).map(|(_, terms)| terms),
        answer,
        drained: asker.drained(),
    }
}

/// What a reply means to the question it answers; `None` if it is no answer to it.
fn answer(question: Question, reply: Reply) -> Option<SlotAnswer> {
    match (question.kind, reply) {
        (QuestionKind::Offer, Reply::Accept) => question.lease.map(SlotAnswer::Accept),
        (QuestionKind::Offer, Reply::Refuse(reason)) => question.lease.map(|lease| SlotAnswer::Refuse(lease, reason)),
        (QuestionKind::Offer, _) => question.lease.map(|lease| SlotAnswer::Refuse(lease, RefuseReason::Stale)),
        (QuestionKind::Recycle, reply) => Some(SlotAnswer::Recycle(reply == Reply::Accept)),
        (QuestionKind::Ping | QuestionKind::Finished | QuestionKind::Drain | QuestionKind::Resume, _) => {
            Some(SlotAnswer::Here)
        }
    }
}

/// Writes a question of the pool's.
pub fn ask<M: SlotMemory>(asker: &mut DispatcherSide<M>, ask: SlotQuestion) {
    match ask {
        SlotQuestion::Ping => asker.write_question(QuestionKind::Ping, None),
        SlotQuestion::Finished(lease) => asker.write_question(QuestionKind::Finished, Some(lease)),
        SlotQuestion::Drain => asker.write_question(QuestionKind::Drain, None),
        SlotQuestion::Resume => asker.write_question(QuestionKind::Resume, None),
        SlotQuestion::Recycle => asker.write_question(QuestionKind::Recycle, None),
    }
}
