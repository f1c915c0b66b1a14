//! The signals of a worker.

use super::error::{ServeError, system};
use crate::signals::Signal;

/// Stop (SIGTERM, SIGINT) and reload (SIGHUP).
pub(super) struct WorkerSignals {
    pub stop: Signal,
    pub reload: Signal,
}

impl WorkerSignals {
    /// Catches the signals, and unblocks SIGHUP. Must come before the handler starts: its processes inherit the signal
    /// mask.
    pub(super) fn catch() -> Result<Self, ServeError> {
        let stop = Signal::stop().map_err(system("signals"))?;
        let reload = Signal::reload().map_err(system("signals"))?;
        Ok(Self { stop, reload })
    }
}
