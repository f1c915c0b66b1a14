//! The start of a part as a child process: with its sockets, its resource limits, and the stored connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::child_supervisor::ChildSupervisor;
use super::children::ChildSetup;
use crate::clock;
use crate::config::ProcessLimits;
use crate::watchdog::plan::{Part, PlanEvent};
use crate::watchdog::restart_stats::RestartCause;

impl ChildSupervisor {
    /// Starts a part and returns the result as an event.
    pub(crate) fn start(&mut self, part: Part) -> PlanEvent {
        self.restart_stats.starting(&part);
        let pool = part.worker().and_then(|id| self.config.pool(&id.pool));
        let mut limits = pool.map(|pool| pool.limits.as_rlimits()).unwrap_or_else(|| {
            let files = self.config.dispatcher_descriptors();
            ProcessLimits { open_files: Some((files, files)), ..ProcessLimits::default() }
        });
        // Not the one that this process has set for itself.
        limits.open_files = limits.open_files.or(self.inherited_descriptor_limit);
        if let Part::Worker(id) = &part {
            self.replace_lost_endpoints(id);
        }
        let notify_socket = self.notify_socket.file().reachable_path();
        let setup = self
            .sockets_of(&part)
            .and_then(|sockets| Ok(ChildSetup { sockets, objects: self.objects_of(&part)?, limits, notify_socket }));
        match setup.and_then(|setup| self.children.start(&part, setup)) {
            Ok(pid) => {
                tracing::debug!(pid, %part, "{part} was started");
                PlanEvent::Started(part, pid)
            }
            Err(error) => {
                self.restart_stats.ended(clock::now(), &part, RestartCause::Start);
                PlanEvent::StartFailed(part, format!("it cannot be started: {error}"))
            }
        }
    }

    /// A worker finds its objects whatever becomes of their names.
    fn objects_of(&self, part: &Part) -> io::Result<Vec<OwnedFd>> {
        let endpoints = part.worker().and_then(|id| self.endpoints.get(id));
        let references = endpoints.map(|endpoints| endpoints.objects.references()).transpose()?;
        Ok(references.into_iter().flatten().map(|(_, fd)| fd).collect())
    }

    fn sockets_of(&mut self, part: &Part) -> io::Result<Vec<(String, OwnedFd)>> {
        let duplicate = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        match part {
            Part::Worker(id) => {
                let listener = self.sockets.workers.get(id).ok_or(io::ErrorKind::NotFound)?;
                let endpoints = self.endpoints.get(id).ok_or(io::ErrorKind::NotFound)?;
                Ok(vec![("worker".into(), duplicate(listener)?), ("worker".into(), duplicate(&endpoints.handoff)?)])
            }
            Part::Dispatcher => {
                let mut sockets = vec![
                    ("probe".to_owned(), duplicate(&self.sockets.probe)?),
                    ("channel".to_owned(), self.files.open_channel()?),
                ];
                for (index, socket) in self.files.retired() {
                    sockets.push((format!("retired-{index}"), duplicate(socket)?));
                }
                // The others are found by name.
                for (id, endpoints) in self.endpoints.iter().filter(|(_, endpoints)| !endpoints.is_in_place()) {
                    let objects = endpoints.references()?.into_iter();
                    sockets.extend(objects.map(|(object, fd)| (object.descriptor_name(id), fd)));
                }
                for (index, socket) in self.sockets.listeners.iter().enumerate() {
                    sockets.push((format!("listener-{index}"), duplicate(socket)?));
                }
                for (name, fd) in self.fd_store.iter() {
                    sockets.push((name.to_owned(), fd.try_clone()?));
                }
                Ok(sockets)
            }
        }
    }
}
