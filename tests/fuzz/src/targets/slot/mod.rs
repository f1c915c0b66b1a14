//! The slots of a pool with two hostile workers and a well-behaved one, under the real dispatcher code. Hostile workers
//! write any value to any word, between the steps of the dispatcher and in the middle of them. The promises to the
//! clients of the well-behaved worker hold nevertheless.

mod fuzzed_pool;
mod scripted_slot;
mod well_behaved;

pub(crate) use scripted_slot::ScriptedSlot;

use super::input::Input;
use crate::exchange::WORDS;
use fuzzed_pool::{FuzzedPool, HOSTILE, Step};

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut pool = FuzzedPool::new();
    while !input.is_empty() {
        let step = match input.below(20) {
            0 | 1 => Step::ClientArrives(input.byte() % 4),
            2 => Step::ClientLeaves(input.byte().into()),
            3 => Step::Advance(u64::from(input.byte()) + 1),
            4 => Step::Advance(10 * (u64::from(input.byte()) + 1)),
            5 | 6 => Step::Ring(input.below(3)),
            7 => Step::Probe,
            8 => Step::Drain(input.below(3), input.byte() % 2 == 0),
            9 | 10 => Step::Write(input.below(HOSTILE), input.byte(), input.below(WORDS), value(&mut input)),
            11 | 12 => Step::WriteClaim(input.below(HOSTILE), input.byte(), input.byte()),
            13 => Step::WriteAnswer(input.below(HOSTILE), input.byte(), input.byte()),
            14 => Step::ToggleAlive(input.below(HOSTILE)),
            15 => Step::WorkerTurn,
            16 => Step::UseToken(input.byte().into()),
            17 => Step::Finish,
            18 => Step::RestartDispatcher,
            _ => match input.below(3) {
                0 => Step::Reconfigure(input.byte() % 4),
                1 => Step::RestartWorker,
                _ => Step::Quiesce,
            },
        };
        pool.step(step);
    }
    pool.recover();
}

fn value(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => input.word(),
        1 => u64::MAX - u64::from(input.byte()),
        2 => 1 << input.below(64),
        _ => u64::from(input.byte()),
    }
}
