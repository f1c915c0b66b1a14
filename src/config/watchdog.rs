//! The watchdog: when something is late, frozen, or given up.

use std::time::Duration;

/// Bounds of the watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// How often liveness is asked; shorter than both timeouts below.
    pub probe_interval: Duration,
    /// A worker silent for so long is taken for frozen.
    pub worker_timeout: Duration,
    /// A dispatcher silent for so long is taken for frozen.
    pub dispatcher_timeout: Duration,
    /// How long a process may take to say that it is ready.
    pub start_timeout: Duration,
    /// From SIGABRT to SIGKILL; 0: at once.
    pub abort_grace: Duration,
    /// When and how often what died is started again.
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
            restarts: RestartConfig::default(),
        }
    }
}

/// When what died is started again, and when it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartConfig {
    /// More restarts than this within `within` and it is declared failed; 0: never restarted.
    pub max: u32,
    /// The time over which restarts are counted.
    pub within: Duration,
    /// The first delay; each further one is longer.
    pub delay: Duration,
    /// The longest delay.
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
