//! The start of a part as a child process: with its sockets, its resource limits, and the stored connections. And the
//! removal of a worker's sockets and objects.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::child_processes::ChildSetup;
use super::children::ChildSupervisor;
use crate::config::ProcessLimits;
use crate::ids::WorkerId;
use crate::watchdog::plan::{ChildEvent, ChildSet, Part};
use crate::watchdog::restart_stats::RestartCause;
use crate::watchdog::watched_set::WatchedSet;
use crate::{clock, descriptors, ipc, log};

impl ChildSupervisor {
    /// Starts a part and returns the result as an event.
    pub(super) fn start(&mut self, set: &mut WatchedSet<ChildSet>, part: Part) -> ChildEvent {
        set.restart_stats.starting(&part);
        let limits = match &part {
            Part::Dispatcher => ProcessLimits::default(),
            Part::Worker(id) => {
                self.replace_lost_endpoints(set, id);
                let pool = set.config.pool(&id.pool);
                let limits = pool.map(|pool| pool.limits.as_rlimits()).unwrap_or_default();
                // This process has raised its own limit, and the dispatcher's with it.
                ProcessLimits { open_files: limits.open_files.or(Some(descriptors::inherited())), ..limits }
            }
            // A limit that is too low for the handler must not end the stand-in as well.
            Part::StandIn(_) => ProcessLimits::default(),
        };
        let notify_socket = self.notify_socket.file().reachable_path();
        let setup = self
            .sockets_of(&part)
            .and_then(|sockets| Ok(ChildSetup { sockets, objects: self.objects_of(&part)?, limits, notify_socket }));
        match setup.and_then(|setup| self.processes.start(&part, setup)) {
            Ok(pid) => {
                tracing::debug!(pid, %part, "{part} was started");
                if part == Part::Dispatcher {
                    set.prober.dispatcher_replaced();
                }
                ChildEvent::Started(part, pid)
            }
            Err(error) => {
                set.restart_stats.ended(clock::now(), &part, RestartCause::Start);
                let cause = format!("it cannot be started: {error}");
                if descriptors::is_shortage(&error) {
                    ChildEvent::StartPostponed(part, cause)
                } else {
                    ChildEvent::StartFailed(part, cause)
                }
            }
        }
    }

    /// A worker and its stand-in find the worker's objects whatever becomes of their names.
    fn objects_of(&self, part: &Part) -> io::Result<Vec<OwnedFd>> {
        let endpoints = match part {
            Part::Worker(id) | Part::StandIn(id) => self.endpoints.get(id),
            Part::Dispatcher => None,
        };
        let references = endpoints.map(|endpoints| endpoints.objects.references()).transpose()?;
        Ok(references.into_iter().flatten().map(|(_, fd)| fd).collect())
    }

    fn sockets_of(&mut self, part: &Part) -> io::Result<Vec<(String, Arc<OwnedFd>)>> {
        let duplicate = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().map(Arc::new);
        match part {
            Part::Worker(id) | Part::StandIn(id) => {
                let listener = self.sockets.workers.get(id).ok_or(io::ErrorKind::NotFound)?;
                let endpoints = self.endpoints.get(id).ok_or(io::ErrorKind::NotFound)?;
                let mut sockets = vec![duplicate(listener)?, duplicate(&endpoints.handoff)?];
                for replaced in self.files.pass_replaced_addresses(id) {
                    sockets.push(duplicate(replaced)?);
                }
                Ok(sockets.into_iter().map(|socket| ("worker".to_owned(), socket)).collect())
            }
            Part::Dispatcher => {
                let mut sockets = vec![
                    ("probe".to_owned(), duplicate(&self.sockets.probe)?),
                    ("channel".to_owned(), Arc::new(self.files.open_channel()?)),
                ];
                for (index, socket) in self.files.retired() {
                    sockets.push((format!("retired-{index}"), duplicate(socket)?));
                }
                // The others are found by name.
                for (id, endpoints) in self.endpoints.iter().filter(|(_, endpoints)| !endpoints.is_in_place()) {
                    let objects = endpoints.references()?.into_iter();
                    sockets.extend(objects.map(|(object, fd)| (object.descriptor_name(id), Arc::new(fd))));
                }
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

    /// Removes what outlives the incarnations of a worker that has left the set.
    pub(super) fn remove_worker(&mut self, id: &WorkerId) {
        self.sockets.workers.remove(id);
        self.files.forget_worker(id);
        self.endpoints.remove(id);
        let segment = self.segments.borrow_mut().remove(id);
        let removed = ipc::retire_worker(&self.runtime_dir, id);
        if let Err(error) = removed.and(segment.map_or(Ok(()), |name| ipc::remove_segment(&name))) {
            tracing::error!(worker = %id, event = %log::Event::RuntimeDirError,
                "cannot remove the segment and doorbells of worker {id}: {error}");
        }
        tracing::info!(worker = %id, event = %log::Event::WorkerRemoved, "worker {id} was removed from the set");
    }
}
