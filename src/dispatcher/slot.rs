//! A slot read and written in the pool's terms.

use crate::exchange::{self, Asker, Kind, Life, Memory, Question, Reply};
use crate::ids::Reason;
use crate::pool::{Answer, Ask, Seen};

/// Reads everything the pool wants to know of a slot. `alive`: whether the worker's lock is held.
pub fn look<M: Memory>(asker: &mut Asker<M>, alive: bool) -> Seen {
    let heard = asker.take_heard().then_some(Answer::Here);
    let answer = asker.answer().and_then(|(question, reply)| answer(question, reply)).or(heard);
    let life = Life::load(asker.memory());
    Seen {
        life: life.map(|life| (life.epoch, life.state, life.wants_recycle)),
        alive,
        claim: exchange::claim(asker.memory()),
        terms: exchange::terms(asker.memory()).map(|(_, terms)| terms),
        answer,
        drained: asker.drained(),
    }
}

/// What a reply means to the question it answers; `None` if it is no answer to it.
fn answer(question: Question, reply: Reply) -> Option<Answer> {
    match (question.kind, reply) {
        (Kind::Offer, Reply::Accept) => question.lease.map(Answer::Accept),
        (Kind::Offer, Reply::Refuse(reason)) => question.lease.map(|lease| Answer::Refuse(lease, reason)),
        (Kind::Offer, _) => question.lease.map(|lease| Answer::Refuse(lease, Reason::Stale)),
        (Kind::Recycle, reply) => Some(Answer::Recycle(reply == Reply::Accept)),
        (Kind::Ping | Kind::Finished | Kind::Drain | Kind::Resume, _) => Some(Answer::Here),
    }
}

/// Writes a question of the pool's.
pub fn ask<M: Memory>(asker: &mut Asker<M>, ask: Ask) {
    match ask {
        Ask::Ping => asker.ask(Kind::Ping, None),
        Ask::Finished(lease) => asker.ask(Kind::Finished, Some(lease)),
        Ask::Drain => asker.ask(Kind::Drain, None),
        Ask::Resume => asker.ask(Kind::Resume, None),
        Ask::Recycle => asker.ask(Kind::Recycle, None),
    }
}
