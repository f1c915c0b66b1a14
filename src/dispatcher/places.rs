//! The places for connections: `front.connections`, or fewer if the limit of open files does not allow as many.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, DescriptorNeeds, FrontConfig};
use crate::descriptors;
use crate::log::{Event, LogThrottle};
use crate::net::LingerBounds;

/// A place for one connection each. Without a free place clients wait in the kernel's backlog.
pub(super) struct ConnectionPlaces {
    permits: Arc<Semaphore>,
    /// How many there are, in use or free.
    count: Cell<usize>,
    needs: Cell<DescriptorNeeds>,
    failures: RefCell<LogThrottle>,
}

impl ConnectionPlaces {
    /// As many as the configuration wants and the limit of open files allows.
    pub(super) fn new(config: &Config) -> Self {
        let places = Self {
            permits: Arc::new(Semaphore::new(0)),
            count: Cell::new(0),
            needs: Cell::new(config.descriptor_needs()),
            failures: RefCell::default(),
        };
        places.apply(config);
        places
    }

    /// Applies a configuration. Connections beyond a smaller number stay; none is accepted until they have ended.
    pub(super) fn apply(&self, config: &Config) {
        self.needs.set(config.descriptor_needs());
        let (limit, before) = (descriptors::limit(), self.count.get());
        self.resize(limit);
        if let Some(limitation) = self.needs.get().limitation(limit).filter(|_| self.count.get() != before) {
            tracing::warn!(event = %Event::ConnectionsLimited, "{limitation}");
        }
    }

    /// The limit of open files may have been raised since an accept failed (prlimit(2)). Called with each probe.
    pub(super) fn follow_limit(&self) {
        let limit = descriptors::limit();
        if self.needs.get().connections_within(limit) > self.count.get() {
            self.resize(limit);
        }
    }

    /// Of the places those in use, and all.
    pub(super) fn usage(&self) -> (usize, usize) {
        let count = self.count.get();
        (count.saturating_sub(self.permits.available_permits()), count)
    }

    /// The bounds of the last response on a connection. While most places are in use, no client holds one for longer by
    /// sending a byte now and then.
    pub(super) fn linger_bounds(&self, settings: &FrontConfig) -> LingerBounds {
        let (used, count) = self.usage();
        let silence = settings.linger_timeout;
        LingerBounds { silence, total: if used > count / 2 { silence } else { settings.body_timeout } }
    }

    /// Waits for a place.
    pub(super) fn acquire(&self) -> impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + use<> {
        self.permits.clone().acquire_owned()
    }

    /// A place, if one is free.
    pub(super) fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// As many places as are free, at most `count`.
    pub(super) fn acquire_up_to(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        let count = count.min(self.permits.available_permits());
        self.permits.clone().try_acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX)).ok()
    }

    /// A connection could not be accepted. If the limit of open files was lowered meanwhile, so is the number of places.
    pub(super) fn accept_failed(&self, error: &io::Error) {
        if error.raw_os_error() == Some(Errno::EMFILE as i32) {
            let limit = descriptors::limit();
            let before = self.count.get();
            self.resize(limit);
            if let Some(limitation) = self.needs.get().limitation(limit).filter(|_| self.count.get() < before) {
                tracing::warn!(event = %Event::ConnectionsLimited, "{limitation}");
            }
        }
        if let Some(count) = self.failures.borrow_mut().count() {
            tracing::warn!(%error, count, event = %Event::AcceptFailed,
                "cannot accept connections: clients wait in the backlog of the kernel until it succeeds");
        }
    }

    fn resize(&self, limit: u64) {
        let wanted = self.needs.get().connections_within(limit);
        let before = self.count.replace(wanted);
        self.permits.add_permits(wanted.saturating_sub(before));
        let surplus = before.saturating_sub(wanted);
        let in_use = surplus - self.permits.forget_permits(surplus);
        if in_use > 0 {
            let permits = self.permits.clone();
            tokio::task::spawn_local(async move {
                // All at once: nothing is accepted before that many connections have ended.
                if let Ok(surplus) = permits.acquire_many_owned(u32::try_from(in_use).unwrap_or(u32::MAX)).await {
                    surplus.forget();
                }
            });
        }
    }
}
