//! The deadlines of the pools.

use std::collections::VecDeque;

use super::Driver;
use crate::clock;
use crate::pool::PoolEvent;

impl Driver {
    /// Sends each pool a tick when its deadline is reached; never returns.
    pub(crate) async fn run_timers(&self) {
        loop {
            let next = self.pools.borrow().iter().filter_map(|pool| pool.table.deadline()).min();
            self.armed.set(next);
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.rearm.notified() => continue,
            }
            self.armed.set(None);
            let now = clock::now();
            let due: Vec<_> = (0..self.pools.borrow().len())
                .filter(|i| self.pools.borrow()[*i].table.deadline().is_some_and(|at| at <= now))
                .collect();
            for index in due {
                self.run(index, Some(PoolEvent::Tick), VecDeque::new());
            }
            self.close_surplus_slots();
        }
    }
}
