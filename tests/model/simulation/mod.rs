//! A set under a simulated clock, with everything that can go wrong, from a seed.
//!
//! [`core`]: the real `Pool` over real slots. Workers are slow, freeze, die and come back, bells are lost, late and
//! doubled, clients leave, never claim, claim late or twice, and the dispatcher is restarted. Half of the clients are
//! connections that are handed over.
//!
//! [`set`]: the same core, its dispatcher and workers processes that the real `watchdog::plan::Plan` starts, judges,
//! kills and replaces. Processes are stopped, killed, traced, starved, never become ready or die again and again; the
//! machine stalls and is suspended, the watchdog is late, the configuration is loaded anew, and the set is stopped.
//!
//! After every event the promises are checked; in the end everything heals, and nothing may have leaked. A failure
//! prints its seed:
//!
//! ```text
//! PATOU_SIM_SEED=<seed> cargo test --test simulation       the same run again
//! PATOU_SIM_STEPS=50000000 cargo test --test simulation    many more runs
//! ```

mod core;
mod dog;
mod machine;
mod policy;
mod random;
mod set;

use core::Sim;
use set::Set;

/// Events in one ordinary `cargo test`, over all runs, of each of the two.
const STEPS: u64 = 500_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: `{text}`")))
}

/// Runs seeds until there were enough steps; `run` returns how many clients were served.
fn many(per_run: u64, run: impl Fn(u64) -> u64) -> (u64, u64) {
    let steps = variable("PATOU_SIM_STEPS").unwrap_or(STEPS);
    let only = variable("PATOU_SIM_SEED");
    let (mut done, mut granted) = (0, 0);
    for seed in only.unwrap_or(0).. {
        granted += run(seed);
        done += per_run;
        if only.is_some() || done >= steps {
            break;
        }
    }
    println!("{done} events, {granted} grants");
    (done, granted)
}

#[test]
fn a_core_keeps_its_promises() {
    const RUN: u64 = 4_000;
    let again = std::cell::Cell::new(0);
    let (done, granted) = many(RUN, |seed| {
        let mut sim = Sim::new(seed, false);
        for _ in 0..RUN {
            sim.step();
        }
        sim.heal();
        again.set(again.get() + sim.offered_again);
        sim.granted
    });
    assert!(again.get() > 0, "no connection was ever offered to a second worker");
    println!("{} connections were offered again", again.get());
    assert!(granted * 50 > done, "hardly anybody was served: {granted} grants in {done} events");
}

#[test]
fn a_set_keeps_its_promises() {
    const RUN: u64 = 8_000;
    let (done, granted) = many(RUN, |seed| {
        let mut set = Set::new(seed);
        for _ in 0..RUN {
            set.step();
        }
        if seed % 2 == 0 {
            set.heal();
        }
        set.stop();
        set.granted()
    });
    assert!(granted * 50 > done, "hardly anybody was served: {granted} grants in {done} events");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// Seeds by chance, each run ended at any point and healed from there; a failure shrinks to few steps.
    #[test]
    fn a_core_keeps_them_wherever_one_stops(seed: u64, steps in 1..1500usize) {
        let mut sim = Sim::new(seed, false);
        for _ in 0..steps {
            sim.step();
        }
        sim.heal();
    }
}
