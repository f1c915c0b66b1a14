//! What control loop and serving task share: the slot, the bell, and what the worker says of itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, mpsc};

use super::handler::{Builtin, Failure};
use super::handoff_receiver::HandoffReceiver;
use super::recycle::Lifespan;
use super::task_ping::TaskPing;
use super::turn::HandlerPermit;
use super::{ServeError, Signals, WorkerSetup, system};
use crate::clock;
use crate::config::FrontConfig;
use crate::doorbell::Doorbell;
use crate::exchange::{Counter, WorkerSide};
use crate::ids::{LeaseId, LeaseTerms, Lifecycle, Monotonic, WorkerId};
use crate::log::Event;
use crate::net::{self, SocketListener};
use crate::shm::Segment;
use crate::signals::SignalFlag;
use std::sync::Arc;

/// Where a worker's clients come from: by its address, and handed over.
pub type Sockets = (SocketListener, Option<HandoffReceiver>);

/// What the control loop tells the serving task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make room for the next incarnation.
    Recycle,
    /// Everything owed is done: leave.
    Exit,
}

/// The request in hand, for the control loop's eyes.
#[derive(Debug)]
pub struct Current {
    pub lease: LeaseId,
    pub deadline: Monotonic,
    pub stream: net::SharedStream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    state: Lifecycle,
    wants_recycle: bool,
    /// The configuration has changed: only a new process image will do.
    reload: bool,
    stopping: bool,
    /// The serving task does not answer.
    absent: bool,
}

/// Shared by the worker's two threads.
pub struct WorkerState {
    pub id: WorkerId,
    pub front: FrontConfig,
    pub respondent: WorkerSide<Arc<Segment>>,
    pub builtin: Option<Builtin>,
    ring: Doorbell,
    condition: Mutex<Condition>,
    current: Mutex<Option<Current>>,
    pub attention: TaskPing,
    lifespan: Lifespan,
    /// SIGTERM or SIGINT, also before the control loop has taken notice.
    pub told_to_stop: SignalFlag,
    orders: mpsc::UnboundedSender<Order>,
    wake: EventFd,
    floor: Arc<tokio::sync::Mutex<()>>,
    wanted: Notify,
    /// Read-locked by every connection whose answer may still be on its way.
    pub parting: Arc<RwLock<()>>,
}

/// A lock that a panic elsewhere does not poison for good: all that is kept under one is plain data.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerState {
    pub fn new(
        office: WorkerSetup,
        builtin: Option<Builtin>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Order>, Doorbell, Sockets, Signals), ServeError> {
        let (orders, ordered) = mpsc::unbounded_channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|e| system("eventfd")(e.into()))?;
        let starting = Condition {
            state: Lifecycle::Starting,
            wants_recycle: false,
            reload: false,
            stopping: false,
            absent: false,
        };
        let shared = Self {
            attention: TaskPing::new(office.pool.request_timeout),
            lifespan: Lifespan::new(&office.pool, clock::now()),
            told_to_stop: office.signals.stop.came(),
            id: office.id,
            front: office.front,
            respondent: office.respondent,
            builtin,
            ring: office.ring,
            condition: Mutex::new(starting),
            current: Mutex::new(None),
            orders,
            wake,
            floor: Arc::default(),
            wanted: Notify::new(),
            parting: Arc::default(),
        };
        let inbox =
            office.handed.map(HandoffReceiver::new).transpose().map_err(system("the socket for connections"))?;
        Ok((shared, ordered, office.hear, (office.listener, inbox), office.signals))
    }

    /// What the worker says of itself just now.
    pub fn state(&self) -> Lifecycle {
        locked(&self.condition).state
    }

    /// Whether it is neither starting nor making room for its next life.
    pub fn is_settled(&self) -> bool {
        matches!(self.state(), Lifecycle::Ready | Lifecycle::Draining)
    }

    /// Whether it has been told to stop.
    pub fn is_stopping(&self) -> bool {
        locked(&self.condition).stopping
    }

    /// Says something else, and rings. A worker that is stopping, or kept out of service, drains instead of
    /// being ready.
    pub fn set_state(&self, state: Lifecycle) {
        let drained = self.respondent.drained();
        self.change(|condition| {
            let out = condition.stopping || (state == Lifecycle::Ready && drained);
            condition.state = if out { Lifecycle::Draining } else { state };
        });
    }

    /// From now on everything goes towards the end.
    pub fn stop(&self) {
        self.change(|condition| {
            condition.stopping = true;
            condition.state = Lifecycle::Draining;
        });
    }

    /// Asks the dispatcher to be recycled.
    pub fn want_recycle(&self) {
        self.change(|condition| condition.wants_recycle = true);
    }

    /// Asks to be recycled because the configuration has changed.
    pub fn want_reload(&self) {
        self.change(|condition| (condition.wants_recycle, condition.reload) = (true, true));
    }

    /// Whether that has been asked since the last call.
    pub fn take_reload(&self) -> bool {
        std::mem::take(&mut locked(&self.condition).reload)
    }

    /// The worker has made room and goes on as what it is now, unless it must begin again: the configuration has
    /// changed meanwhile.
    pub fn recycled(&self) -> bool {
        self.lifespan.renew(clock::now());
        let mut over = true;
        self.change(|condition| {
            over = !condition.reload || condition.stopping;
            if over {
                condition.wants_recycle = false;
                condition.state = self.settled(condition);
            }
        });
        over
    }

    /// What a worker is that has nothing to do.
    pub fn settle(&self) {
        // Under the lock: an operator's order that comes now must not be undone.
        self.change(|condition| condition.state = self.settled(condition));
    }

    fn settled(&self, condition: &Condition) -> Lifecycle {
        let out = condition.stopping || condition.absent || self.respondent.drained();
        if out { Lifecycle::Draining } else { Lifecycle::Ready }
    }

    /// The serving task does not answer, or does again: whether there is anybody for a client to come to.
    /// Returns whether that is news.
    pub fn set_absent(&self, absent: bool) -> bool {
        let mut before = absent;
        self.change(|condition| {
            before = std::mem::replace(&mut condition.absent, absent);
            if matches!(condition.state, Lifecycle::Ready | Lifecycle::Draining) {
                condition.state = self.settled(condition);
            }
        });
        before != absent
    }

    /// What only the serving task can say.
    pub fn here(&self) {
        self.attention.answer();
        self.set_absent(false);
    }

    /// Says again what it is: a stray write to the slot is not to take it out of service for good.
    pub fn restate(&self) {
        let condition = locked(&self.condition);
        self.respondent.set_state(condition.state, condition.wants_recycle);
    }

    fn change(&self, how: impl FnOnce(&mut Condition)) {
        let mut condition = locked(&self.condition);
        let before = *condition;
        how(&mut condition);
        if *condition != before {
            self.respondent.set_state(condition.state, condition.wants_recycle);
            // Not under the lock: who is woken by it may get our processor, and the control loop needs the lock.
            drop(condition);
            self.ring.ring();
        }
    }

    pub fn ring(&self) {
        self.ring.ring();
    }

    /// For an offer that is answered, or a lease that is over.
    pub fn ring_if_need_be(&self) {
        if self.respondent.needs_doorbell() {
            self.ring.ring();
        }
    }

    /// Says on which core this thread runs.
    pub fn be_on_core(&self) {
        if let Ok(core) = nix::sched::sched_getcpu() {
            self.respondent.set_core(core);
        }
    }

    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order); // the serving task has ended: so has the need
    }

    /// Wakes the control loop.
    pub fn wake_control(&self) {
        let _ = self.wake.write(1); // full: it is awake
    }

    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn woken(&self) {
        let _ = self.wake.read();
    }

    /// Waits until nobody watches over the co-process, and keeps it so; `None` where there is no co-process.
    pub async fn floor(&self) -> Option<HandlerPermit> {
        let Some(Builtin::Coprocess(_)) = self.builtin else { return None };
        self.wanted.notify_one();
        Some(self.floor.clone().lock_owned().await)
    }

    /// Watches over the co-process while nobody is served, so that the death of one between requests costs the
    /// next request nothing. Never returns; to be dropped at any time.
    pub async fn idle(&self) {
        let Some(builtin @ Builtin::Coprocess(_)) = &self.builtin else { return std::future::pending().await };
        loop {
            // Whoever is served has it, and whoever wants to be stands before us in its queue from then on.
            let _floor = self.floor.lock().await;
            tokio::select! {
                () = builtin.watch() => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    /// A request has been claimed; what the control loop must know of it.
    pub fn begin(&self, terms: &LeaseTerms, now: Monotonic, stream: &net::SharedStream) {
        self.be_on_core();
        let current = Current { lease: terms.lease, deadline: now + terms.request_timeout, stream: stream.clone() };
        *locked(&self.current) = Some(current);
        self.attention.begin(terms.lease);
        self.here();
    }

    /// A request without a connection of its own is over, which was read with the one before.
    pub fn served_another(&self) {
        self.respondent.count(Counter::Served, 1);
        self.lifespan.served_one();
    }

    /// The request in hand, if it should have ended this long ago.
    pub fn overdue(&self, now: Monotonic, by: Duration) -> Option<Current> {
        let mut current = locked(&self.current);
        if current.as_ref().is_some_and(|c| c.deadline + by <= now) { current.take() } else { None }
    }

    /// When that will be.
    pub fn overdue_at(&self, by: Duration) -> Option<Monotonic> {
        locked(&self.current).as_ref().map(|current| current.deadline + by)
    }

    /// The handler is through with the request: what takes time from here on does not block its thread.
    pub fn handled(&self) {
        *locked(&self.current) = None;
    }

    /// What has been answered ends without a reset, in a task of its own: see [`net::net::discard_until_closed`]. `parting` is held until then.
    pub fn drain(&self, stream: net::SharedStream, parting: OwnedRwLockReadGuard<()>) {
        let bound = self.front.linger_timeout;
        tokio::spawn(async move {
            net::discard_until_closed(stream, bound).await;
            drop(parting);
        });
    }

    /// The request is over: counts it, gives the lease back and says so.
    pub fn finish(&self, lease: LeaseId, took: Duration, failed: bool) {
        self.respondent.count(if failed { Counter::Failed } else { Counter::Served }, 1);
        self.respondent.record(took);
        let served = self.lifespan.served_one();
        self.let_go(lease, served);
    }

    /// Gives a lease back of which nothing came.
    pub fn give_back(&self, lease: LeaseId) {
        self.let_go(lease, 0);
    }

    fn let_go(&self, lease: LeaseId, served: u64) {
        self.handled();
        let memory = || self.builtin.as_ref().and_then(Builtin::memory);
        if self.lifespan.is_over(served, clock::now(), memory) {
            // Before the lease is given back, so that the dispatcher sees both at once.
            self.want_recycle();
        }
        self.respondent.done(lease);
        self.ring_if_need_be();
        if self.state() != Lifecycle::Ready {
            self.wake_control();
        }
    }

    /// When the worker has reached its age, if it has one.
    pub fn old_at(&self) -> Option<Monotonic> {
        self.lifespan.old_at()
    }

    /// Whether it serves connections and no requests.
    pub fn is_inetd(&self) -> bool {
        matches!(self.builtin, Some(Builtin::Inetd(_)))
    }

    /// For the log: what went wrong with a request.
    pub fn warn(&self, lease: LeaseId, failure: &Failure) {
        let event = match failure.status {
            StatusCode::GATEWAY_TIMEOUT => Event::RequestDeadline,
            _ => Event::RequestFailed,
        };
        tracing::warn!(worker = %self.id, lease = %lease, epoch = %self.respondent.epoch(),
            status = failure.status.as_u16(), %event, "request failed: {failure}");
    }
}
