//! What the watchdog of `patou run` knows of the set's files: the lock, events, what is missing, and what the running
//! dispatcher has yet to receive.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use crate::ids::{Monotonic, WorkerId};
use crate::ipc::SetLock;
use crate::watchdog::file_watch::FileWatch;
use crate::watchdog::sockets::ListeningSocket;
use crate::watchdog::worker_endpoints::WorkerEndpoints;
use crate::{clock, handoff};

/// How often the files are inspected without an event. Costs no wake-up: the watchdog is awake for a probe.
const RESCAN: Duration = Duration::from_secs(2);
/// The same while something could not be restored: a lack of descriptors or space passes.
const RETRY: Duration = Duration::from_millis(250);
/// The files are inspected when no event has come for this time: a removal of many files is not over yet, and would fail
/// if some of them came back meanwhile. At the latest after [`EVENTS_MAX`].
const QUIET: Duration = Duration::from_millis(100);
const EVENTS_MAX: Duration = Duration::from_millis(400);
/// After so many reports a dispatcher with free places has accepted what was queued in a socket that it knew to be replaced.
const REPORTS_UNTIL_EMPTY: u32 = 2;

/// What the watchdog of `patou run` knows of the set's files.
pub(crate) struct SetFiles {
    pub lock: Rc<SetLock>,
    pub(super) watch: FileWatch,
    /// The first and the last event since the last inspection.
    pub(super) events: Option<(Monotonic, Monotonic)>,
    pub(super) inspected_at: Monotonic,
    /// What is missing and cannot be restored now, for operators.
    pub(super) problems: Vec<String>,
    pub(super) lost: BTreeSet<WorkerId>,
    /// Those whose objects the running dispatcher has not received yet.
    unsent_objects: BTreeSet<WorkerId>,
    /// To the running dispatcher, which receives listening sockets over it. `None` while it ends for a reload.
    pub(super) channel: Option<OwnedFd>,
    /// The sockets that it has not received yet.
    pub(super) unsent: BTreeSet<String>,
    /// Replaced listening sockets by the index of their listener, in whose queues clients may still wait, and the
    /// reports received since.
    retired: Vec<(usize, ListeningSocket, u32)>,
    /// The same for the addresses of workers: the reports received since a process that has inherited the socket serves.
    replaced_addresses: Vec<(WorkerId, ListeningSocket, Option<u32>)>,
    /// READY=1 of a part may have been lost with the notify socket.
    pub(super) may_miss_ready: bool,
}

impl SetFiles {
    pub(super) fn new(lock: Rc<SetLock>) -> Self {
        Self {
            lock,
            watch: FileWatch::new(),
            events: None,
            inspected_at: clock::now(),
            problems: Vec::new(),
            lost: BTreeSet::new(),
            unsent_objects: BTreeSet::new(),
            channel: None,
            unsent: BTreeSet::new(),
            retired: Vec::new(),
            replaced_addresses: Vec::new(),
            may_miss_ready: false,
        }
    }

    /// What is missing and cannot be restored now.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The workers that use objects without names.
    pub(super) fn lost(&self) -> &BTreeSet<WorkerId> {
        &self.lost
    }

    /// When an inspection is due, if an event has asked for one.
    pub(super) fn due_at(&self) -> Option<Monotonic> {
        self.events.map(|(first, last)| (last + QUIET).min(first + EVENTS_MAX))
    }

    pub(super) fn is_due(&self, now: Monotonic) -> bool {
        let interval = if self.problems.is_empty() { RESCAN } else { RETRY };
        self.due_at().map_or_else(|| now.since(self.inspected_at) >= interval, |at| at <= now)
    }

    /// Waits for an event. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.watch.changed().await;
    }

    /// Has the files inspected soon.
    pub(super) fn schedule(&mut self, now: Monotonic) {
        self.events = Some((self.events.map_or(now, |(first, _)| first), now));
    }

    /// A new dispatcher receives everything when it starts; returns its end of the channel.
    pub(super) fn open_channel(&mut self) -> io::Result<OwnedFd> {
        let (own, peer) = handoff::listener_channel()?;
        self.channel = Some(own);
        self.unsent.clear();
        self.unsent_objects.clear();
        Ok(peer)
    }

    /// Passes the objects of a worker to the running dispatcher, which may not find them by their names. Returns whether
    /// all were sent; the dispatcher uses them once it has received the last one.
    pub(super) fn send_objects(&self, id: &WorkerId, endpoints: &WorkerEndpoints) -> bool {
        let (Some(channel), Ok(references)) = (&self.channel, endpoints.references()) else { return false };
        references
            .into_iter()
            .all(|(object, fd)| handoff::send_listener(channel, &object.descriptor_name(id), fd.as_fd()).is_ok())
    }

    /// Passes the objects of workers that were not lost before. A dispatcher that was starting during the removal may have
    /// inherited none and found no names; one that uses them already closes the references.
    pub(super) fn pass_lost_objects(
        &mut self,
        had_lost: &BTreeSet<WorkerId>,
        endpoints: &BTreeMap<WorkerId, WorkerEndpoints>,
    ) {
        let mut unsent = std::mem::take(&mut self.unsent_objects);
        unsent.extend(self.lost.difference(had_lost).cloned());
        unsent.retain(|id| endpoints.get(id).is_some_and(|endpoints| !self.send_objects(id, endpoints)));
        self.unsent_objects = unsent;
    }

    /// The replaced listening sockets, each with the index of its listener.
    pub(super) fn retired(&self) -> impl Iterator<Item = (usize, &ListeningSocket)> {
        self.retired.iter().map(|(index, socket, _)| (*index, socket))
    }

    /// A new configuration is in force. `kept`: for each of its listeners the index of the socket that it keeps.
    pub(crate) fn renumber(&mut self, kept: &[Option<usize>]) {
        self.retired.retain_mut(|(index, ..)| {
            let new = kept.iter().position(|at| *at == Some(*index));
            *index = new.unwrap_or(*index);
            new.is_some()
        });
    }

    /// The running dispatcher ends: its listeners have other indices, and it accepts no more. The next one receives all.
    pub(crate) fn close_channel(&mut self) {
        self.channel = None;
    }

    /// The dispatcher has reported, so it has run since it received the sockets; and so have the workers that serve.
    /// `accepts`: whether it had a free place for a connection.
    pub(super) fn on_report(&mut self, accepts: bool, serves: impl Fn(&WorkerId) -> bool) {
        if accepts && self.channel.is_some() && self.unsent.is_empty() {
            self.retired.iter_mut().for_each(|(.., reports)| *reports += 1);
            self.retired.retain(|(.., reports)| *reports <= REPORTS_UNTIL_EMPTY);
        }
        for (id, _, reports) in &mut self.replaced_addresses {
            *reports = reports.map(|reports| reports + u32::from(serves(id)));
        }
        self.replaced_addresses.retain(|(.., reports)| reports.is_none_or(|reports| reports <= REPORTS_UNTIL_EMPTY));
    }

    /// Replaces a listening socket whose file was removed: its queue is emptied, and it accepts no more.
    pub(super) fn retire(&mut self, index: usize, socket: ListeningSocket) {
        socket.retire();
        self.retired.push((index, socket, 0));
    }

    /// Replaces the listening socket of a worker whose file was removed. The running process accepts what is queued in it
    /// until it ends, and the next one accepts the rest.
    pub(super) fn replace_address(&mut self, id: &WorkerId, socket: ListeningSocket) {
        self.replaced_addresses.push((id.clone(), socket, None));
    }

    /// The replaced sockets of a worker's address, for a process that is about to start.
    pub(super) fn pass_replaced_addresses(&mut self, id: &WorkerId) -> impl Iterator<Item = &ListeningSocket> {
        self.replaced_addresses.iter_mut().filter(move |(of, ..)| of == id).map(|(_, socket, reports)| {
            *reports = Some(0);
            &*socket
        })
    }

    /// The worker has left the set.
    pub(super) fn forget_worker(&mut self, id: &WorkerId) {
        self.replaced_addresses.retain(|(of, ..)| of != id);
    }
}
