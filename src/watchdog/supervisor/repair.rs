//! Files of the running set that were removed, moved or replaced from outside: noticed, reported and restored.
//!
//! No running part needs the name of a file that it has open, and a new incarnation receives what it cannot find. So a
//! loss interrupts nothing; what can be restored at once is restored at once. A worker's segment, doorbells and handoff
//! socket are used by two processes and are replaced together, when the worker starts next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;

use super::children::ChildSupervisor;
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::{Lifecycle, WorkerId};
use crate::ipc::{self, Modes};
use crate::watchdog::applied_config;
use crate::watchdog::error::{WatchdogError, system};
use crate::watchdog::notify::NotifySocket;
use crate::watchdog::plan::{ChildEvent, ChildSet, Part, PartSignal};
use crate::watchdog::sockets::ListeningSocket;
use crate::watchdog::watched_set::WatchedSet;
use crate::watchdog::worker_endpoints::WorkerEndpoints;
use crate::{clock, handoff, log};

impl ChildSupervisor {
    /// Watches all files of the set, and has them inspected soon: one that was removed before its watch existed raises no
    /// event.
    pub(super) fn watch_files(&mut self, config: &Config) {
        self.files.schedule(clock::now());
        let watch = &mut self.files.watch;
        watch.watch_directory(&self.runtime_dir);
        config.pools.iter().for_each(|pool| watch.watch_directory(&self.runtime_dir.join(pool.name.as_str())));
        let endpoints = self.endpoints.values().flat_map(WorkerEndpoints::paths);
        endpoints.for_each(|path| watch.watch_file(&path));
        let sockets = self.sockets.listeners.iter().chain(self.sockets.workers.values());
        sockets.filter_map(|socket| socket.file.as_ref()).for_each(|file| watch.watch_file(file.path()));
    }

    /// Looks for what is missing and restores what can be restored. Not while the set stops: nothing of it must be left.
    pub(super) fn inspect_files(&mut self, set: &mut WatchedSet<ChildSet>) {
        (self.files.events, self.files.inspected_at) = (None, clock::now());
        if set.plan.is_stopping() {
            return;
        }
        self.files.lock.maintain(&self.runtime_dir);
        let (mut restored, mut problems) = (Vec::new(), Vec::new());
        match self.restore_directory(&set.config) {
            Ok(was_missing) => {
                restored.extend(was_missing.then(|| "the runtime directory".to_owned()));
                self.restore_in_directory(set, &mut restored, &mut problems);
            }
            Err(error) => problems.push(format!(
                "the runtime directory is missing and cannot be restored: {error}; the set continues without it, and \
                 uses it again when it exists"
            )),
        }
        self.restore_listeners(&mut restored, &mut problems);
        self.send_listeners();
        if !restored.is_empty() {
            tracing::warn!(event = %log::Event::FilesLost,
                "files of the running set were removed from outside: restored {}", restored.join(", "));
        }
        let had = std::mem::replace(&mut self.files.problems, problems.clone());
        for problem in problems.iter().filter(|problem| !had.contains(problem)) {
            tracing::error!(event = %log::Event::FilesLost, "{problem}");
        }
        let lost = self.endpoints.iter().filter(|(_, endpoints)| !endpoints.is_in_place());
        let lost: BTreeSet<WorkerId> = lost.map(|(id, _)| id.clone()).collect();
        let new: Vec<_> = lost.difference(&self.files.lost).map(ToString::to_string).collect();
        if !new.is_empty() {
            tracing::warn!(event = %log::Event::FilesLost, "the segments, doorbells or handoff sockets of {} were removed \
                from outside: requests continue with them, and a worker gets new ones at its next start", new.join(", "));
        }
        let changed = had != self.files.problems || lost != self.files.lost;
        let had_lost = std::mem::replace(&mut self.files.lost, lost);
        self.files.pass_lost_objects(&had_lost, &self.endpoints);
        if !restored.is_empty() || changed {
            self.watch_files(&set.config);
        }
    }

    /// Creates and locks the directory if it was removed or replaced.
    fn restore_directory(&self, config: &Config) -> Result<bool, WatchdogError> {
        if self.files.lock.is_in_place(&self.runtime_dir) {
            return Ok(false);
        }
        ipc::prepare(config, &Modes::default())?;
        self.files.lock.renew(&self.runtime_dir)?;
        Ok(true)
    }

    /// Restores the files if the directory is missing.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn require_directory(&mut self, set: &mut WatchedSet<ChildSet>) -> Result<(), WatchdogError> {
        if !self.files.lock.is_in_place(&self.runtime_dir) {
            self.inspect_files(set);
        }
        self.restore_directory(&set.config).map(drop)
    }

    fn restore_in_directory(
        &mut self,
        set: &mut WatchedSet<ChildSet>,
        restored: &mut Vec<String>,
        problems: &mut Vec<String>,
    ) {
        let mut note = |what: &str, result: Result<bool, WatchdogError>| match result {
            Ok(was_missing) => restored.extend(was_missing.then(|| what.to_owned())),
            Err(error) => problems.push(format!("{what} was removed and cannot be restored: {error}")),
        };
        note("applied.toml", self.restore_applied_config(&set.config));
        note("watchdog.json", Ok(set.state_writer.restore(&self.runtime_dir)));
        note("notify.sock", self.restore_notify_socket(set));
        note("admin.sock", self.restore_admin_socket(set));
        note("probe.sock", self.restore_probe_socket());
        for (id, endpoints) in &self.endpoints {
            if endpoints.is_in_place() {
                note(&format!("the segment file of {id}"), endpoints.objects.restore_record().map_err(Into::into));
            }
        }
    }

    fn restore_applied_config(&mut self, config: &Config) -> Result<bool, WatchdogError> {
        if self.processes.config().is_in_place() {
            return Ok(false);
        }
        let written = applied_config::write(config, &self.runtime_dir)?;
        self.processes.set_config(written);
        Ok(true)
    }

    fn restore_notify_socket(&mut self, set: &mut WatchedSet<ChildSet>) -> Result<bool, WatchdogError> {
        if self.notify_socket.file().is_in_place() {
            return Ok(false);
        }
        let path = self.notify_socket.file().path().to_owned();
        let new = NotifySocket::bind(&path).map_err(system("bind"))?;
        let received = self.receive_notifications(set);
        self.found.extend(received);
        self.notify_socket.replace(new);
        self.files.may_miss_ready = true;
        Ok(true)
    }

    fn restore_admin_socket(&mut self, set: &mut WatchedSet<ChildSet>) -> Result<bool, WatchdogError> {
        if self.sockets.admin.is_in_place() {
            return Ok(false);
        }
        self.sockets.admin = self.sockets.admin.rebind().map_err(system("bind"))?;
        self.serve_admin(&mut set.admin)?;
        Ok(true)
    }

    fn restore_probe_socket(&mut self) -> Result<bool, WatchdogError> {
        if self.sockets.probe.is_in_place() {
            return Ok(false);
        }
        let new = self.sockets.probe.rebind().map_err(system("bind"))?;
        self.sockets.probe = new;
        self.probe_socket.hold();
        self.files.unsent.insert("probe".to_owned());
        Ok(true)
    }

    /// Binds Unix listeners again whose files were removed, and those of workers, which must restart for that.
    fn restore_listeners(&mut self, restored: &mut Vec<String>, problems: &mut Vec<String>) {
        let problem = |socket: &ListeningSocket, error: &io::Error| {
            format!("the socket {} was removed and cannot be bound again: {error}", socket.configured)
        };
        for (index, socket) in self.sockets.listeners.iter_mut().enumerate().filter(|(_, s)| !s.is_in_place()) {
            match socket.rebind() {
                Ok(new) => {
                    restored.push(format!("the listener {}", socket.configured));
                    self.files.retire(index, std::mem::replace(socket, new));
                    self.files.unsent.insert(format!("listener-{index}"));
                }
                Err(error) => problems.push(problem(socket, &error)),
            }
        }
        let mut restart = Vec::new();
        for (id, socket) in self.sockets.workers.iter_mut().filter(|(_, s)| !s.is_in_place()) {
            match socket.rebind() {
                Ok(new) => {
                    restored.push(format!("the address of {id}, which restarts with it when it is idle"));
                    self.files.replace_address(id, std::mem::replace(socket, new));
                    restart.extend([Part::StandIn(id.clone()), Part::Worker(id.clone())]);
                }
                Err(error) => problems.push(problem(socket, &error)),
            }
        }
        // The others get their new sockets when they start.
        restart.retain(|part| self.processes.pid(part).is_some());
        if !restart.is_empty() {
            self.found.push(ChildEvent::SocketsReplaced(restart).into());
        }
    }

    /// Passes replaced sockets to the running dispatcher.
    fn send_listeners(&mut self) {
        let Some(channel) = &self.files.channel else { return };
        let listeners = self.sockets.listeners.iter().enumerate();
        let listeners = listeners.map(|(index, socket)| (format!("listener-{index}"), socket.as_fd()));
        let sockets: BTreeMap<_, _> = listeners.chain([("probe".to_owned(), self.sockets.probe.as_fd())]).collect();
        // One that cannot be sent now is sent at the next inspection, or inherited by the next dispatcher.
        self.files.unsent.retain(|name| {
            sockets.get(name).is_some_and(|socket| handoff::send_listener(channel, name, *socket).is_err())
        });
    }

    /// Before worker `id` starts: replaces its endpoints if some were lost. If that fails, it inherits the old ones.
    pub(super) fn replace_lost_endpoints(&mut self, set: &mut WatchedSet<ChildSet>, id: &WorkerId) {
        if self.endpoints.get(id).is_none_or(WorkerEndpoints::is_in_place) {
            return;
        }
        if self.require_directory(set).is_err() {
            return;
        }
        let Some(old) = self.endpoints.get(id) else { return };
        match old.recreate(&set.config, id, self.set_epoch, &self.segments) {
            Ok(new) => {
                self.files.send_objects(id, &new);
                self.endpoints.insert(id.clone(), new);
                tracing::info!(worker = %id, event = %log::Event::FilesLost,
                    "worker {id} starts with a new segment, doorbells and handoff socket, in place of the removed ones");
                self.files.schedule(clock::now());
                // It reads what the old segment contains, and opens the new one.
                self.processes.signal(&Part::Dispatcher, PartSignal::Reload);
                // It would not see in the old segment that the worker serves; the next one gets the new segment.
                self.processes.signal(&Part::StandIn(id.clone()), PartSignal::Terminate);
            }
            Err(error) => {
                // No process must find half of the new ones; the worker starts with the old ones.
                let _ = ipc::retire_worker(&self.runtime_dir, id);
                tracing::error!(worker = %id, event = %log::Event::FilesLost,
                    "cannot replace the removed segment, doorbells or handoff socket of worker {id}: {error}; it starts \
                     with the old ones");
            }
        }
    }

    /// The parts that are ready although their READY=1 was lost: the dispatcher answers, or the worker's slot says so.
    pub(super) fn find_ready_parts(&mut self, set: &WatchedSet<ChildSet>) -> Vec<Part> {
        if !self.files.may_miss_ready {
            return Vec::new();
        }
        let starting = set.plan.status().filter(|(_, status)| status.state == "starting");
        let starting: Vec<_> = starting.filter_map(|(part, status)| Some((part.clone(), status.pid?))).collect();
        self.files.may_miss_ready = !starting.is_empty();
        let answers = set.prober.last_report().map(|(_, report)| report.pid);
        let is_ready = |(part, pid): &(Part, u32)| match part {
            Part::Dispatcher => answers == Some(*pid),
            Part::StandIn(_) => false, // it reports READY=1 repeatedly
            Part::Worker(id) => {
                let slot = self.endpoints.get(id).and_then(|endpoints| endpoints.objects.slot().ok());
                let life = slot.as_ref().and_then(Incarnation::load);
                life.is_some_and(|life| life.pid == *pid && life.state != Lifecycle::Starting)
            }
        };
        starting.into_iter().filter(is_ready).map(|(part, _)| part).collect()
    }
}
