//! The worker's endpoints that outlive its incarnations.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::error::{WatchdogError, system};
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::handoff;
use crate::ids::WorkerId;
use crate::ipc::{self, Modes};

/// The names of the set's segments by worker, shared with the code that removes them at the end.
pub(super) type SegmentNames = Rc<RefCell<BTreeMap<WorkerId, String>>>;

/// What the watchdog keeps open for a worker.
pub(super) struct WorkerEndpoints {
    /// Rung when the worker has died.
    pub doorbell: Doorbell,
    /// The socket through which connections are passed to the worker: those in its queue outlive an incarnation.
    pub handoff: OwnedFd,
}

impl WorkerEndpoints {
    /// Creates the worker's segment, doorbells and handoff socket.
    pub(super) fn create(
        config: &Config,
        id: &WorkerId,
        set_epoch: u64,
        segments: &SegmentNames,
    ) -> Result<Self, WatchdogError> {
        let segment = ipc::create_worker(config, id, set_epoch, &Modes::default())?;
        segments.borrow_mut().insert(id.clone(), segment);
        let path = ipc::handoff_path(&config.set.runtime_dir, id);
        let handoff = handoff::bind_handoff_socket(&path).map_err(system(path.display().to_string()))?;
        Ok(Self { doorbell: ipc::open(config, id)?.to_dispatcher, handoff })
    }
}
