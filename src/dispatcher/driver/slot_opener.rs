//! Opens the slots of workers, and recovers what an earlier dispatcher left in them.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use super::recovered::RecoveredConnections;
use super::unopened_objects::UnopenedObjects;
use crate::config::Config;
use crate::dispatcher::error::DispatcherError;
use crate::dispatcher::fdstore::{DescriptorStore, StoredFd};
use crate::dispatcher::pool_slots::SlotIndex;
use crate::dispatcher::worker_slot::WorkerSlot;
use crate::exchange::{DispatcherSide, Incarnation};
use crate::handoff::HandoffSender;
use crate::ids::{Epoch, ProcessId, Token, WorkerId};
use crate::ipc::{self, WorkerIpc, WorkerObject};
use crate::shm::{SegmentIdentity, SegmentRole};
use crate::{doorbell, held_file, log, procfs, sys};

/// What it needs for that, and what it finds.
pub(super) struct SlotOpener {
    epoch: Epoch,
    process: ProcessId,
    store: DescriptorStore,
    /// Called when the doorbell of a slot rings.
    on_ring: Rc<dyn Fn(SlotIndex)>,
    pub objects: UnopenedObjects,
    pub recovered: RecoveredConnections,
}

impl SlotOpener {
    pub(super) fn new(
        epoch: Epoch,
        objects: UnopenedObjects,
        store: DescriptorStore,
        on_ring: Rc<dyn Fn(SlotIndex)>,
    ) -> Self {
        let (process, recovered) = (procfs::this_process(), RecoveredConnections::default());
        Self { epoch, process, store, on_ring, objects, recovered }
    }

    /// Opens the slot of a worker of the pool at `index`. `drained`: the slot continues one that this dispatcher has
    /// settled, and whose worker was out of service or not.
    pub(super) fn open(
        &mut self,
        config: &Config,
        id: &WorkerId,
        index: usize,
        return_port: Option<u16>,
        drained: Option<bool>,
    ) -> Result<WorkerSlot, DispatcherError> {
        let passed = self.objects.passed(id);
        let WorkerIpc { segment, to_worker, to_dispatcher } = ipc::open_unchecked(config, id, passed)?;
        let undamaged = segment.damage().is_none();
        if !segment
            .lock_role(SegmentRole::Dispatcher)
            .map_err(|e| DispatcherError::System("locking a segment", e.into()))?
        {
            let pid = DispatcherSide::last_process(&segment).map_or(0, |process| process.pid);
            return Err(DispatcherError::Taken(pid));
        }
        let mut side = DispatcherSide::attach(segment.clone(), self.epoch, self.process, return_port);
        match drained {
            Some(drained) if undamaged => side.continue_copy(drained),
            None if undamaged => self.recovered.recover((index, id.number), &side),
            _ => side.discard_inherited(),
        }
        let own_doorbell =
            sys::when_readable(to_dispatcher.into()).map_err(|e| DispatcherError::System("a doorbell", e))?;
        let own_doorbell = Rc::new(own_doorbell);
        let (readiness, on_ring, at) = (own_doorbell.clone(), self.on_ring.clone(), (index, id.number));
        let doorbell_task = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = readiness.readable().await {
                ready.clear_ready();
                doorbell::clear(readiness.get_ref());
                on_ring(at);
            }
        });
        let mut stored: Vec<_> = passed.iter().flat_map(|_| self.stored_objects(id)).collect();
        if !segment.is_unlinked() {
            stored.clear(); // the worker has new objects: removes the old ones from the store
        }
        Ok(WorkerSlot {
            identity: SegmentIdentity { set_epoch: segment.set_epoch(), digest: config.digest_of(id) },
            last_epoch: Incarnation::load(&*segment).map(|life| life.epoch).filter(|_| undamaged),
            reads: (0, 0),
            checked_at: None,
            polled: false,
            side,
            segment,
            doorbell: to_worker,
            handoff_sender: HandoffSender::new(
                ipc::handoff_path(&config.set.runtime_dir, id),
                passed.and_then(|passed| passed.path(WorkerObject::Handoff)).map(PathBuf::as_path),
            ),
            lent: None,
            token: Token::new(0),
            own_doorbell,
            doorbell_task: doorbell_task.abort_handle(),
            stored,
        })
    }

    /// Gives the segment and doorbells of a slot, whose names were removed, to systemd, which passes them to the next
    /// dispatcher. Each is opened once more: the lock on the segment must end with this process.
    pub(super) fn store_lost_objects(&self, slot: &mut WorkerSlot, id: &WorkerId) {
        if !slot.stored.is_empty() || !slot.has_lost_names() {
            return;
        }
        let opened = (|| {
            Ok::<_, io::Error>([
                held_file::reopen(&slot.segment)?,
                held_file::reopen(&slot.doorbell)?,
                held_file::reopen(slot.own_doorbell.get_ref())?,
            ])
        })();
        match opened {
            Ok(opened) => {
                tracing::warn!(worker = %id, event = %log::Event::FilesLost, "the segment or doorbells of worker {id} \
                    were removed from outside: requests continue, and the next dispatcher gets them from systemd");
                slot.stored = self.stored_objects(id).collect();
                for (fd, entry) in opened.into_iter().zip(&slot.stored) {
                    self.store.add_object(fd, entry.name().to_owned());
                }
            }
            Err(error) => tracing::error!(worker = %id, event = %log::Event::FilesLost,
                "cannot open the objects of worker {id} once more: {error}; trying again"),
        }
    }

    /// A worker's objects in the descriptor store.
    fn stored_objects(&self, id: &WorkerId) -> impl Iterator<Item = StoredFd> {
        let objects = [WorkerObject::Segment, WorkerObject::ToWorker, WorkerObject::ToDispatcher];
        objects.into_iter().map(|object| self.store.entry(object.descriptor_name(id)))
    }
}
