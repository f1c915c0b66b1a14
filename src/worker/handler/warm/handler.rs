//! A handler with a warm process, as those share it that use the process.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::super::child::HandlerProgram;
use super::super::output_log::OutputLog;
use super::super::spool::Spool;
use super::process::{WarmProcess, WarmSettings};
use super::state::{CurrentProcess, WarmState};
use crate::sync;

/// The handler: a program and its single process.
#[derive(Debug)]
pub(crate) struct WarmHandler<P: WarmProcess> {
    pub(super) program: HandlerProgram,
    pub(super) settings: WarmSettings,
    pub(super) log: Arc<OutputLog>,
    pub(super) state: Mutex<WarmState<P>>,
    /// Readable when a child has ended: the process, or an orphan of it.
    pub(super) child_ended: UnixStream,
    /// The state has changed.
    pub(super) changed: Notify,
    /// Held while the rest of a lost process is killed: what starts meanwhile would be killed as well.
    pub(super) cleaning: tokio::sync::Mutex<()>,
    /// Held by the one task that brings up a process.
    pub(super) bringing_up: tokio::sync::Mutex<()>,
}

impl<P: WarmProcess> WarmHandler<P> {
    pub(in super::super) fn lock(&self) -> MutexGuard<'_, WarmState<P>> {
        sync::lock(&self.state)
    }

    pub(in super::super) fn settings(&self) -> &WarmSettings {
        &self.settings
    }

    pub(in super::super) fn spool(&self) -> &Spool {
        &self.settings.spool
    }

    /// Sets the state of the process. A successor that is ready takes the place of one that waits for a request.
    pub(super) fn put(&self, process: CurrentProcess<P>) {
        self.lock().set(process);
        self.changed.notify_waiters();
    }
}
