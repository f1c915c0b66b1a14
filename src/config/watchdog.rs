//! Timeouts of the watchdog and its restart policy.

#![forbid(unsafe_code)]

use std::time::Duration;

use serde::Serialize;

use super::quantity;

/// Timeouts of the watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatchdogConfig {
    /// How often liveness is probed; shorter than both timeouts below.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub probe_interval: Duration,
    /// A worker whose control loop makes no progress for this long is frozen.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub worker_timeout: Duration,
    /// A dispatcher that does not answer probes for this long is frozen.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub dispatcher_timeout: Duration,
    /// How long a process may take to become ready.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub start_timeout: Duration,
    /// Time from SIGABRT to SIGKILL; 0: immediately.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub abort_grace: Duration,
    /// A pool is degraded if all its requests failed through a fault of its handler for this long; 0: never.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub degraded_after: Duration,
    /// When and how often processes are restarted.
    pub restarts: RestartConfig,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(250),
            worker_timeout: Duration::from_secs(1),
            dispatcher_timeout: Duration::from_secs(2),
            start_timeout: Duration::from_secs(10),
            abort_grace: Duration::from_millis(200),
            degraded_after: Duration::from_secs(30),
            restarts: RestartConfig::default(),
        }
    }
}

/// When a process is restarted, and when its part is declared failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestartConfig {
    /// A part is declared failed when it ends after this many restarts, the last one delayed by `delay_max`.
    pub max: u32,
    /// Earlier restarts of a part that was ready for this long are forgotten.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub within: Duration,
    /// The first delay; each following one is longer.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub delay: Duration,
    /// The longest delay.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub delay_max: Duration,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            max: 10,
            within: Duration::from_secs(60),
            delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
        }
    }
}
