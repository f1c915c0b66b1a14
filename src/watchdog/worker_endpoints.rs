//! The worker's endpoints that outlive its incarnations.

use std::os::fd::OwnedFd;

use super::{Segments, WatchdogError, system};
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::handoff;
use crate::ids::WorkerId;
use crate::ipc::{self, Modes};

/// What the watchdog keeps open for a worker.
pub struct WorkerEndpoints {
    /// Rung when the worker has died.
    pub doorbell: Doorbell,
    /// The socket through which connections are passed to the worker: those in its queue outlive an incarnation.
    pub handoff: OwnedFd,
}

impl WorkerEndpoints {
    /// Creates the worker's segment, doorbells and handoff socket.
    pub fn create(config: &Config, id: &WorkerId, set_epoch: u64, segments: &Segments) -> Result<Self, WatchdogError> {
        let segment = ipc::create_worker(config, id, set_epoch, &Modes::default())?;
        segments.borrow_mut().insert(id.clone(), segment);
        let path = ipc::handoff_path(&config.set.runtime_dir, id);
        let handoff = handoff::bind_handoff_socket(&path).map_err(system(path.display().to_string()))?;
        Ok(Self { doorbell: ipc::open(config, id)?.to_dispatcher, handoff })
    }
}
