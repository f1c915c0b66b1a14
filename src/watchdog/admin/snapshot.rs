//! What the deciding loop leaves for the admin thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Config;
use crate::ids::{Monotonic, PoolName};
use crate::probe::ProbeReport;
use crate::stats::CounterTotals;
use crate::status::SavedState;
use crate::watchdog::pool_outcomes::PoolOutcomes;
use crate::watchdog::prober::Prober;
use crate::watchdog::restart_stats::RestartStats;

/// The set as the deciding loop knows it at one turn.
pub(crate) struct SetSnapshot {
    /// When it was made.
    pub at: Monotonic,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The states of the parts.
    pub state: Arc<SavedState>,
    /// The dispatcher's last report, and when it arrived.
    pub last_report: Option<(Monotonic, Arc<ProbeReport>)>,
    /// When the probe was sent that is not answered yet.
    pub unanswered_since: Option<Monotonic>,
    /// The counters of the dispatchers.
    pub pools: CounterTotals<PoolName, u32>,
    /// What the reports say of the clients of each pool.
    pub outcomes: BTreeMap<PoolName, PoolOutcomes>,
    /// Restarts, and their detection and recovery times.
    pub restart_stats: RestartStats,
}

impl SetSnapshot {
    /// The snapshot of a loop with these components.
    pub(crate) fn new(
        now: Monotonic,
        config: &Arc<Config>,
        state: Arc<SavedState>,
        prober: &Prober,
        restart_stats: &RestartStats,
    ) -> Self {
        Self {
            at: now,
            config: config.clone(),
            state,
            last_report: prober.last_report().cloned(),
            unanswered_since: prober.pending_since(),
            pools: prober.pool_counters().clone(),
            outcomes: prober.outcomes().clone(),
            restart_stats: restart_stats.clone(),
        }
    }
}
