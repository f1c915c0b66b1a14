//! A warm process that a request, or the task that keeps the process, has taken.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::handler::WarmHandler;
use super::process::WarmProcess;
use super::state::{CurrentProcess, Running};

/// The process, until it is returned. A drop returns it as well, in the state that it then has.
#[derive(Debug)]
pub(in super::super) struct Borrowed<P: WarmProcess> {
    pub(in super::super) handler: Arc<WarmHandler<P>>,
    /// `None` once it is returned.
    running: Option<Running<P>>,
    dropped_as: fn(Running<P>) -> CurrentProcess<P>,
}

impl<P: WarmProcess> Borrowed<P> {
    pub(super) fn new(
        handler: &Arc<WarmHandler<P>>,
        running: Running<P>,
        dropped_as: fn(Running<P>) -> CurrentProcess<P>,
    ) -> Self {
        Self { handler: handler.clone(), running: Some(running), dropped_as }
    }

    /// Returns the process: it waits for a request.
    pub(in super::super) fn put_idle(mut self) {
        self.put(CurrentProcess::Idle);
    }

    /// Returns the process: it has to become ready again.
    pub(in super::super) fn put_starting(mut self) {
        self.put(CurrentProcess::Starting);
    }

    /// The process is lost. What is left of it is killed at the end of the request.
    pub(in super::super) fn lose(mut self) {
        drop(self.running.take());
        self.handler.put(CurrentProcess::Lost);
    }

    pub(super) fn put(&mut self, state: fn(Running<P>) -> CurrentProcess<P>) {
        if let Some(running) = self.running.take() {
            self.handler.put(state(running));
        }
    }

    pub(super) fn running(&self) -> &Running<P> {
        self.running.as_ref().expect("it is not returned yet")
    }
}

impl<P: WarmProcess> Deref for Borrowed<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.running().process
    }
}

impl<P: WarmProcess> DerefMut for Borrowed<P> {
    fn deref_mut(&mut self) -> &mut P {
        &mut self.running.as_mut().expect("it is not returned yet").process
    }
}

impl<P: WarmProcess> Drop for Borrowed<P> {
    fn drop(&mut self) {
        self.put(self.dropped_as);
    }
}
