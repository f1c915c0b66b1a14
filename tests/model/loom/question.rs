//! Questions and answers.

use loom::thread;

use super::{Missing, lease, sides};
use crate::exchange::{DispatcherSide, Question, QuestionKind, Reply};

/// A question that is replaced while it is read is read whole, and an answer belongs to the question for which it is
/// returned.
fn question_and_answer(missing: Missing) {
    loom::model(move || {
        let (mut dispatcher, worker) = sides(missing);
        let asking = thread::spawn(move || {
            let check = |dispatcher: &mut DispatcherSide<_>| {
                if let Some((question, reply)) = dispatcher.answer() {
                    let right = if question.kind == QuestionKind::Offer { Reply::Accept } else { Reply::Working };
                    assert_eq!(reply, right, "an answer to another question");
                }
            };
            dispatcher.write_question(QuestionKind::Offer, Some(lease(1)));
            check(&mut dispatcher);
            dispatcher.write_question(QuestionKind::Finished, Some(lease(2)));
            check(&mut dispatcher);
        });
        let mut answered = 0;
        for _ in 0..2 {
            if let Some(question) = worker.question(answered) {
                let Question { sequence, kind, lease: about } = question;
                let first = sequence == 1 && kind == QuestionKind::Offer && about == Some(lease(1));
                let second = sequence == 2 && kind == QuestionKind::Finished && about == Some(lease(2));
                assert!(first || second, "torn question: {question:?}");
                worker.reply(&question, if first { Reply::Accept } else { Reply::Working });
                answered = sequence;
            }
        }
        asking.join().unwrap();
    });
}

#[test]
fn a_question_is_read_whole() {
    question_and_answer(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_release_and_acquire() {
    question_and_answer(Missing::LoadAndStoreOrder);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_release_fence() {
    question_and_answer(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn question")]
fn a_question_needs_its_acquire_fence() {
    question_and_answer(Missing::AcquireFence);
}
