//! A slot read and written in the pool's terms.

use crate::exchange::{self, DispatcherSide, Incarnation, Question, QuestionKind, Reply, SlotMemory};
use crate::ids::RefuseReason;
use crate::pool::{SlotAnswer, SlotQuestion, SlotView};

/// Reads everything the pool wants to know of a slot. `alive`: whether the worker's lock is held.
pub fn read_slot<M: SlotMemory>(asker: &mut DispatcherSide<M>, alive: bool) -> SlotView {
    let heard = asker.take_superseded_answer().then_some(SlotAnswer::Ack);
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
            Some(SlotAnswer::Ack)
        }
    }
}

/// Writes a question of the pool's.
pub fn write_question<M: SlotMemory>(asker: &mut DispatcherSide<M>, ask: SlotQuestion) {
    match ask {
        SlotQuestion::Ping => asker.ask(QuestionKind::Ping, None),
        SlotQuestion::Finished(lease) => asker.ask(QuestionKind::Finished, Some(lease)),
        SlotQuestion::Drain => asker.ask(QuestionKind::Drain, None),
        SlotQuestion::Resume => asker.ask(QuestionKind::Resume, None),
        SlotQuestion::Recycle => asker.ask(QuestionKind::Recycle, None),
    }
}
