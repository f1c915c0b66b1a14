//! The start of a part: with its sockets, its limits, and what is stored for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::clock;
use crate::config::ProcessLimits;
use crate::watchdog::Watch;
use crate::watchdog::plan::{Part, PlanEvent};
use crate::watchdog::restart_stats::RestartCause;

impl Watch {
    /// Starts a part; what came of it.
    pub(in crate::watchdog) fn start(&mut self, part: Part) -> PlanEvent {
        self.account.starting(&part);
        let sockets = self.sockets_of(&part);
        let pool = part.worker().and_then(|id| self.config.pool(&id.pool));
        let limits = pool.map(|pool| pool.limits.as_rlimits()).unwrap_or_else(|| {
            let files = self.config.dispatcher_descriptors();
            ProcessLimits { open_files: Some((files, files)), ..ProcessLimits::default() }
        });
        match sockets.and_then(|sockets| self.children.start(&part, sockets, limits)) {
            Ok(pid) => {
                tracing::debug!(pid, %part, "{part} is started");
                PlanEvent::Started(part, pid)
            }
            Err(error) => {
                self.account.ended(clock::now(), &part, RestartCause::Start);
                PlanEvent::StartFailed(part, format!("it cannot be started: {error}"))
            }
        }
    }

    fn sockets_of(&self, part: &Part) -> io::Result<Vec<(String, OwnedFd)>> {
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        match part {
            Part::Worker(id) => {
                let socket = self.sockets.workers.get(id).ok_or(io::ErrorKind::NotFound)?;
                let reach = self.reaches.get(id).ok_or(io::ErrorKind::NotFound)?;
                Ok(vec![("worker".into(), copy(socket)?), ("worker".into(), copy(&reach.handoff)?)])
            }
            Part::Dispatcher => {
                let mut all = vec![("probe".to_owned(), copy(&self.sockets.probe)?)];
                for (index, socket) in self.sockets.listeners.iter().enumerate() {
                    all.push((format!("listener-{index}"), copy(socket)?));
                }
                for (name, fd) in self.store.iter() {
                    all.push((name.to_owned(), fd.try_clone()?));
                }
                Ok(all)
            }
        }
    }
}
