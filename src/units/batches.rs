//! Planned restarts of workers: how many at once, and how long they take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::render::{dispatcher_stop_timeout, start_timeout, worker_stop_timeout};
use crate::config::Config;
use crate::ids::{PoolName, WorkerId};

/// Divides the workers to restart into batches. Meanwhile at least half of the workers of each pool that are `running`
/// stay in service; the clients of a pool with one worker wait. A worker that does not run is in no batch.
pub(crate) fn restart_batches(restart: &[WorkerId], running: &BTreeSet<WorkerId>) -> Vec<Vec<WorkerId>> {
    let mut pools: BTreeMap<&PoolName, Vec<&WorkerId>> = BTreeMap::new();
    for id in restart.iter().filter(|id| running.contains(id)) {
        pools.entry(&id.pool).or_default().push(id);
    }
    let mut batches: Vec<Vec<WorkerId>> = Vec::new();
    for (pool, workers) in pools {
        let at_once = (running.iter().filter(|id| id.pool == *pool).count() / 2).max(1);
        for (index, some) in workers.chunks(at_once).enumerate() {
            if batches.len() == index {
                batches.push(Vec::new());
            }
            batches[index].extend(some.iter().copied().cloned());
        }
    }
    batches
}

/// How long systemd may take to restart these workers, batch by batch, and then the dispatcher and the watchdog.
pub(crate) fn restart_bound(config: &Config, batches: &[Vec<WorkerId>]) -> Duration {
    let stops = batches.iter().map(|batch| {
        let pools = batch.iter().filter_map(|id| config.pool(&id.pool));
        pools.map(|pool| worker_stop_timeout(config, pool)).max().unwrap_or_default()
    });
    let workers: Duration = stops.map(|stop| stop + start_timeout(config)).sum();
    workers
        + dispatcher_stop_timeout(config)
        + start_timeout(config)
        + WATCHDOG_STOP_TIMEOUT
        + config.watchdog.start_timeout
}

/// `TimeoutStopSec=` of `patou-watchdog.service`.
const WATCHDOG_STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(pool: &str, numbers: impl IntoIterator<Item = u16>) -> Vec<WorkerId> {
        numbers.into_iter().map(|n| format!("{pool}-{}", n + 1).parse().unwrap()).collect()
    }

    #[test]
    fn half_of_each_pool_restarts_at_once() {
        let sizes = |count: u16| {
            let all = ids("p", 0..count);
            let batches = restart_batches(&all, &all.iter().cloned().collect());
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0), Vec::<usize>::new());
        assert_eq!([sizes(1), sizes(2), sizes(3)], [vec![1], vec![1, 1], vec![1, 1, 1]]);
        assert_eq!([sizes(4), sizes(5), sizes(100)], [vec![2, 2], vec![2, 2, 1], vec![50, 50]]);
    }

    #[test]
    fn bound_is_the_sum_of_the_timeouts_of_the_units() {
        let mut config = Config::default();
        config.pools[0].drain_timeout = Duration::from_secs(15);
        let batches: Vec<_> = ids("default", 0..2).into_iter().map(|id| vec![id]).collect();
        let difference = restart_bound(&config, &batches) - restart_bound(&config, &batches[..1]);
        assert_eq!(difference, worker_stop_timeout(&config, &config.pools[0]) + start_timeout(&config));
        let unit = include_str!("../../systemd/patou-watchdog.service");
        assert!(unit.contains(&format!("\nTimeoutStopSec={}s\n", WATCHDOG_STOP_TIMEOUT.as_secs())));
    }

    proptest! {
        #[test]
        fn each_running_worker_is_in_one_batch_and_half_of_its_pool_stays(
            pools in proptest::collection::vec(proptest::collection::vec(any::<(bool, bool)>(), 0..12), 0..4)
        ) {
            let mut restart = Vec::new();
            let mut running = BTreeSet::new();
            for (index, workers) in pools.iter().enumerate() {
                let all = ids(&format!("p{index}"), 0..workers.len() as u16);
                for (id, (is_restarted, is_running)) in all.into_iter().zip(workers) {
                    restart.extend(is_restarted.then(|| id.clone()));
                    running.extend(is_running.then_some(id));
                }
            }
            let batches = restart_batches(&restart, &running);
            let mut restarted: Vec<WorkerId> = batches.concat();
            restarted.sort();
            let mut wanted: Vec<WorkerId> = restart.into_iter().filter(|id| running.contains(id)).collect();
            wanted.sort();
            prop_assert_eq!(restarted, wanted);
            for batch in &batches {
                prop_assert!(!batch.is_empty());
                for id in batch {
                    let of_pool = |other: &&WorkerId| other.pool == id.pool;
                    let (all, down) = (running.iter().filter(of_pool).count(), batch.iter().filter(of_pool).count());
                    prop_assert!(down == 1 && all == 1 || (all - down) * 2 >= all, "{} of {} restart", down, all);
                }
            }
            // No more batches than a pool of three needs.
            prop_assert!(batches.len() <= 3);
        }
    }
}
