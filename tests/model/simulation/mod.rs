//! A set under a simulated clock, with all kinds of faults, from a seed.
//!
//! [`pool`]: the real `Pool` over real slots. Workers are slow, freeze, die and return; doorbells are lost, late and
//! duplicated; clients leave, never claim, claim late or twice; the dispatcher restarts. Half of the clients are
//! handoff connections.
//!
//! [`set`]: the same pool, with its dispatcher and workers as processes that the real `watchdog::plan::Plan` starts,
//! judges, kills and replaces. Processes are stopped, killed, traced, starved, never become ready, or die again and
//! again; the machine stalls and is suspended, the watchdog is late, the configuration is reloaded, and the set is
//! stopped.
//!
//! After every event the promises are checked. At the end all faults end; the set must then recover, and no lease may
//! be left. A failure prints its seed:
//!
//! ```text
//! PATOU_SIM_SEED=<seed> cargo test --lib model::simulation       the same run again
//! PATOU_SIM_STEPS=50000000 cargo test --lib model::simulation    many more runs
//! ```

mod pool;
mod random;
mod set;

use pool::PoolSimulation;
use proptest::prelude::ProptestConfig;
use set::SetSimulation;

/// Events of each simulation in one ordinary `cargo test`, over all runs.
const STEPS: u64 = 500_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: `{text}`")))
}

/// Runs seeds until the number of steps is reached. `run` returns the number of granted clients.
fn run_seeds(steps_per_run: u64, run: impl Fn(u64) -> u64) -> (u64, u64) {
    let steps = variable("PATOU_SIM_STEPS").unwrap_or(STEPS);
    let only = variable("PATOU_SIM_SEED");
    let (mut done, mut granted) = (0, 0);
    for seed in only.unwrap_or(0).. {
        granted += run(seed);
        done += steps_per_run;
        if only.is_some() || done >= steps {
            break;
        }
    }
    println!("{done} events, {granted} grants");
    (done, granted)
}

#[test]
fn pool_keeps_its_promises() {
    const STEPS_PER_RUN: u64 = 4_000;
    let offered_again = std::cell::Cell::new(0);
    let ends_of_adopted = std::cell::RefCell::new(std::collections::BTreeMap::<String, u64>::new());
    let (done, granted) = run_seeds(STEPS_PER_RUN, |seed| {
        let mut pool = PoolSimulation::new(seed, false);
        for _ in 0..STEPS_PER_RUN {
            pool.step();
        }
        pool.recover();
        offered_again.set(offered_again.get() + pool.offered_again);
        for (end, count) in &pool.ends_of_adopted {
            *ends_of_adopted.borrow_mut().entry(end.clone()).or_default() += count;
        }
        pool.granted
    });
    assert!(offered_again.get() > 0, "no connection was ever offered to a second worker");
    println!("{} connections were offered again", offered_again.get());
    let ends = ends_of_adopted.into_inner();
    // Overdue as well, in longer runs.
    assert!(["Cut", "Done", "NoResponse"].iter().all(|end| ends.contains_key(*end)), "{ends:?}");
    println!("adopted connections ended: {ends:?}");
    assert!(granted * 50 > done, "too few clients were served: {granted} grants in {done} events");
}

#[test]
fn set_keeps_its_promises() {
    const STEPS_PER_RUN: u64 = 8_000;
    let (done, granted) = run_seeds(STEPS_PER_RUN, |seed| {
        let mut set = SetSimulation::new(seed);
        for _ in 0..STEPS_PER_RUN {
            set.step();
        }
        if seed % 2 == 0 {
            set.recover();
        }
        set.stop();
        set.granted()
    });
    assert!(granted * 50 > done, "too few clients were served: {granted} grants in {done} events");
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// Random seeds, each run ended after any number of steps; a failure shrinks to few steps.
    #[test]
    fn pool_recovers_from_every_state(seed: u64, steps in 1..1500usize) {
        let mut pool = PoolSimulation::new(seed, false);
        for _ in 0..steps {
            pool.step();
        }
        pool.recover();
    }
}
