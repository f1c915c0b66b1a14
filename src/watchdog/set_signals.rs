//! The signals of the watchdog, as streams with one byte for each signal.

use std::io;

use tokio::net::UnixStream;

use crate::signals::Signal;

/// From the moment it exists, these signals are events: they cannot kill this process between two steps of the start.
pub(super) struct SetSignals {
    /// SIGTERM and SIGINT.
    pub stop: UnixStream,
    /// SIGQUIT.
    pub stop_now: UnixStream,
    /// SIGHUP.
    pub reload: UnixStream,
}

/// A signal to stop.
#[derive(Clone, Copy, Debug)]
pub(super) enum StopSignal {
    /// SIGTERM and SIGINT: requests in progress may finish.
    Drain,
    /// SIGQUIT.
    Now,
}

impl SetSignals {
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            stop: Signal::stop()?.into_async()?,
            stop_now: Signal::stop_now()?.into_async()?,
            reload: Signal::reload()?.into_async()?,
        })
    }
}
