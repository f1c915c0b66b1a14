//! How a new incarnation comes to its segment: it may find one that its predecessor has spoilt.

use std::time::Duration;

use super::{ServeError, system};
use crate::backoff;
use crate::clock;
use crate::config::Config;
use crate::exchange::{Incarnation, Word};
use crate::ids::WorkerId;
use crate::ipc::{self, WorkerIpc};
use crate::shm::SegmentRole;

/// How often a segment that cannot be used yet is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How long another may hold the worker's lock: the dispatcher does for a moment, while it makes a segment anew.
const RESTORING: Duration = Duration::from_millis(200);

/// Opens the parts of worker `id` and takes its role.
///
/// Only the dispatcher makes a damaged segment anew (a second maker would be a race), as soon as it hears the bell
/// and sees that nobody holds the lock. It is waited for, but not to the end of `start_timeout`: who says why it
/// cannot start says more than who is killed for not having started.
pub fn take(config: &Config, id: &WorkerId) -> Result<WorkerIpc, ServeError> {
    let mut began = clock::now();
    let (mut told, mut held_back) = (false, false);
    loop {
        let parts = ipc::open_unchecked(config, id)?;
        if !held_back && parts.segment.damage().is_none() {
            // Before the slot is taken: until then nobody expects an answer. Who replaces himself has not failed.
            if Incarnation::load(&parts.segment).is_none_or(|life| life.pid != std::process::id()) {
                backoff::delay_start(&[&parts.segment], Word::WORKER_LAST_START, config);
            }
            (held_back, began) = (true, clock::now());
        }
        let waited = clock::now().since(began);
        let damage = match parts.segment.damage() {
            None if parts
                .segment
                .lock_role(SegmentRole::Worker)
                .map_err(|e| system("locking the segment")(e.into()))? =>
            {
                // Made anew or spoilt between the look and the lock: now nobody else makes it anew.
                match parts.segment.damage() {
                    None => return Ok(parts),
                    damage => damage,
                }
            }
            None if waited >= RESTORING => {
                let pid = Incarnation::load(&parts.segment).map_or(0, |life| life.pid);
                return Err(ServeError::Taken { worker: id.clone(), pid });
            }
            damage => damage,
        };
        if let Some(damage) = damage {
            if waited >= config.watchdog.start_timeout * 3 / 4 {
                return Err(ServeError::Damaged { worker: id.clone(), damage, waited });
            }
            if !told {
                tracing::info!(worker = %id, "waiting for the dispatcher to make the segment anew: {damage}");
                told = true;
            }
            parts.to_dispatcher.ring();
        }
        drop(parts); // with its lock, if it has it
        std::thread::sleep(LOOK);
    }
}
