//! The start of a part as a child process: with its sockets, its resource limits, and the stored connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::child_supervisor::ChildSupervisor;
use crate::watchdog::plan::{Part, PlanEvent};
use crate::watchdog::restart_stats::RestartCause;
use crate::{clock, descriptors};

impl ChildSupervisor {
    /// Starts a part and returns the result as an event.
    pub(crate) fn start(&mut self, part: Part) -> PlanEvent {
        self.restart_stats.starting(&part);
        let pool = part.worker().and_then(|id| self.config.pool(&id.pool));
        let mut limits = pool.map(|pool| pool.limits.as_rlimits()).unwrap_or_default();
        if part != Part::Dispatcher {
            // This process has raised its own limit, and the dispatcher's with it.
            limits.open_files = limits.open_files.or(Some(descriptors::inherited()));
        }
        match self.sockets_of(&part).and_then(|sockets| self.children.start(&part, sockets, limits)) {
            Ok(pid) => {
                tracing::debug!(pid, %part, "{part} was started");
                PlanEvent::Started(part, pid)
            }
            Err(error) => {
                self.restart_stats.ended(clock::now(), &part, RestartCause::Start);
                let cause = format!("it cannot be started: {error}");
                if descriptors::is_shortage(&error) {
                    PlanEvent::StartPostponed(part, cause)
                } else {
                    PlanEvent::StartFailed(part, cause)
                }
            }
        }
    }

    fn sockets_of(&self, part: &Part) -> io::Result<Vec<(String, Arc<OwnedFd>)>> {
        let duplicate = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().map(Arc::new);
        match part {
            Part::Worker(id) => {
                let listener = self.sockets.workers.get(id).ok_or(io::ErrorKind::NotFound)?;
                let endpoints = self.endpoints.get(id).ok_or(io::ErrorKind::NotFound)?;
                Ok(vec![("worker".into(), duplicate(listener)?), ("worker".into(), duplicate(&endpoints.handoff)?)])
            }
            Part::Dispatcher => {
                let mut sockets = vec![("probe".to_owned(), duplicate(&self.sockets.probe)?)];
                for (index, socket) in self.sockets.listeners.iter().enumerate() {
                    sockets.push((format!("listener-{index}"), duplicate(socket)?));
                }
                for (name, fd) in self.fd_store.iter() {
                    sockets.push((name.to_owned(), fd.clone()));
                }
                Ok(sockets)
            }
        }
    }
}
