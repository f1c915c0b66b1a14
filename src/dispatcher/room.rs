//! A pool with the slots of its workers.

use std::fmt;
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::slot;
use crate::bell::Bell;
use crate::config::{self, Address};
use crate::exchange::{Asker, Life};
use crate::ids::{LeaseId, PoolName, Time, Token, WorkerId};
use crate::log::Event;
use crate::pool::{Answer, Note, Pool, Refusal, Seen};
use crate::shm::{Role, Segment};

/// A worker given to a client.
#[derive(Clone, Debug)]
pub struct Grant {
    pub worker: WorkerId,
    pub lease: LeaseId,
    pub token: Token,
    /// Where the worker listens.
    pub address: Address,
    pub claim_by: Time,
}

/// What became of a client's wish.
pub type Verdict = Result<Grant, Refusal>;

/// A worker's slot, as this dispatcher holds it.
pub struct Slot {
    pub asker: Asker<Arc<Segment>>,
    pub segment: Arc<Segment>,
    pub ring: Bell,
    pub token: Token,
    pub listening: AbortHandle,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// One pool: its decisions, its slots.
pub struct Room {
    pub config: config::Pool,
    pub pool: Pool,
    /// Index `n - 1` is worker `n`.
    pub slots: Vec<Option<Slot>>,
}

impl Room {
    /// Reads the slot of worker `n`.
    pub fn see(&mut self, n: u16) -> Seen {
        let Some(slot) = self.slots.get_mut(usize::from(n) - 1).and_then(Option::as_mut) else {
            return Seen::default();
        };
        let alive = slot.segment.is_taken(Role::Worker);
        let seen = slot::look(&mut slot.asker, alive);
        let worker = Name(&self.config.name, n);
        match seen.answer {
            Some(Answer::Accept(lease)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker takes the lease");
            }
            Some(Answer::Refuse(lease, reason)) => {
                tracing::debug!(%worker, %lease, event = %Event::LeaseAnswered, "worker refuses the lease: {reason}");
            }
            _ => {}
        }
        seen
    }

    /// Tells the workers which listener leads to them.
    pub fn lead_back(&self, return_port: Option<u16>) {
        self.slots.iter().flatten().for_each(|slot| slot.asker.lead_back(return_port));
    }

    /// What the client of this lease is told.
    pub fn grant(&self, n: u16, lease: LeaseId, claim_by: Time) -> Grant {
        let worker = WorkerId { pool: self.config.name.clone(), number: n };
        let slot = self.slots[usize::from(n) - 1].as_ref().expect("who is granted was asked");
        let mut address = self.config.worker_address(n);
        if let (Address::Tcp(tcp), Some(port)) = (&mut address, Life::load(&*slot.segment).and_then(|life| life.port)) {
            tcp.set_port(port);
        }
        Grant { worker, lease, token: slot.token, address, claim_by }
    }

    /// Says what an operator wants to read.
    pub fn note(&self, n: u16, note: Note) {
        let worker = Name(&self.config.name, n);
        match note {
            Note::Up(epoch) => tracing::debug!(%worker, %epoch, "worker is there"),
            Note::Down(epoch) => tracing::debug!(%worker, %epoch, "worker has gone"),
            Note::Late(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::WorkerLate,
                    "worker did not answer within offer_timeout: its client goes on to another, or back into the queue");
            }
            Note::Back => tracing::info!(%worker, event = %Event::WorkerBack, "worker answers again"),
            Note::Unclaimed(lease) => {
                let event = Event::LeaseUnclaimed;
                tracing::debug!(%worker, %lease, %event, "lease was not used within claim_timeout");
            }
            Note::Garbled => {
                tracing::error!(%worker, event = %Event::SlotGarbled,
                    "the claim word of this worker's slot is garbled");
            }
            Note::Lost(lease) => {
                tracing::warn!(%worker, %lease, event = %Event::RequestLost,
                    "the worker died with a request in hand");
            }
        }
    }
}

/// A worker's name, written only when somebody reads it.
pub struct Name<'a>(pub &'a PoolName, pub u16);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}
