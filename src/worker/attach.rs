//! How a new incarnation takes its role, also when the previous one has corrupted the segment.

use std::time::Duration;

use super::error::{ServeError, system};
use crate::clock;
use crate::config::Config;
use crate::exchange::Incarnation;
use crate::ids::WorkerId;
use crate::ipc::{self, PassedObjects, WorkerIpc};
use crate::shm::SegmentRole;

/// How often an unusable or locked segment is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// How long another process may hold the worker's lock: the dispatcher does while it recreates the segment.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// Opens segment and doorbells of worker `id`, and takes its role.
///
/// Only the dispatcher recreates a damaged segment, because two processes that do it would race. It does so when its
/// doorbell rings and the worker's lock is free. The wait ends before `start_timeout`: an error that names the damage
/// helps more than being killed for not having started.
pub(super) fn attach(config: &Config, id: &WorkerId) -> Result<WorkerIpc, ServeError> {
    let since = clock::now();
    let mut logged = false;
    let passed = PassedObjects::of_this_worker();
    loop {
        let ipc = ipc::open_unchecked(config, id, passed.as_ref())?;
        let waited = clock::now().since(since);
        let damage = match ipc.segment.damage() {
            None if ipc
                .segment
                .lock_role(SegmentRole::Worker)
                .map_err(|e| system("locking the segment")(e.into()))? =>
            {
                // The segment may have changed before it was locked. From now on the dispatcher does not recreate it.
                match ipc.segment.damage() {
                    None => return Ok(ipc),
                    damage => damage,
                }
            }
            None if waited >= LOCK_WAIT => {
                let pid = Incarnation::load(&ipc.segment).map_or(0, |holder| holder.pid);
                return Err(ServeError::Taken { worker: id.clone(), pid });
            }
            damage => damage,
        };
        if let Some(damage) = damage {
            if waited >= config.watchdog.start_timeout * 3 / 4 {
                return Err(ServeError::Damaged { worker: id.clone(), damage, waited });
            }
            if !logged {
                tracing::info!(worker = %id,
                    "the segment is unusable ({damage}): waiting for the dispatcher to recreate it");
                logged = true;
            }
            ipc.to_dispatcher.ring();
        }
        drop(ipc); // releases the lock, if it is held
        std::thread::sleep(RETRY_DELAY);
    }
}
