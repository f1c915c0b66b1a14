//! The slots of a pool, two of them written by hostile workers: any word, any value, between any two steps of the
//! dispatcher and in the middle of them. The dispatcher's own code runs over them. The third worker is honest, and its
//! clients get what they were promised whatever the others write.

mod honest;
mod words;
mod world;

pub use words::Words;

use super::input::Input;
use world::{HOSTILE, Step, World};

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new();
    while !input.is_empty() {
        let step = match input.below(20) {
            0 | 1 => Step::Arrive(input.byte() % 4),
            2 => Step::Leave(input.byte().into()),
            3 => Step::Pass(u64::from(input.byte()) + 1),
            4 => Step::Pass(10 * (u64::from(input.byte()) + 1)),
            5 | 6 => Step::Ring(input.below(3)),
            7 => Step::Probe,
            8 => Step::Drain(input.below(3), input.byte() % 2 == 0),
            9 | 10 => Step::Write(input.below(HOSTILE), input.byte(), input.below(words::COUNT), value(&mut input)),
            11 | 12 => Step::Claim(input.below(HOSTILE), input.byte(), input.byte()),
            13 => Step::Answer(input.below(HOSTILE), input.byte(), input.byte()),
            14 => Step::Live(input.below(HOSTILE)),
            15 => Step::Turn,
            16 => Step::Use(input.byte().into()),
            17 => Step::Finish,
            18 => Step::Restart,
            _ => match input.below(3) {
                0 => Step::Reconfigure(input.byte() % 4),
                1 => Step::Die,
                _ => Step::Quiesce,
            },
        };
        world.step(step);
    }
    world.heal();
}

fn value(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => input.word(),
        1 => u64::MAX - u64::from(input.byte()),
        2 => 1 << input.below(64),
        _ => u64::from(input.byte()),
    }
}
