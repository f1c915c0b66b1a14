//! What the control loop and the serving task share: the slot, the doorbell, the published lifecycle, the active
//! request.

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use sd_notify::NotifyState;
use tokio::sync::{Notify, RwLock, mpsc};

use super::error::{ServeError, system};
use super::handler::{BuiltinHandler, HandlerReadiness};
use super::last_end::last_end;
use super::lifecycle_state::{LifecycleState, TaskCommand};
use super::recycle::{ReachedLimit, RecycleLimits};
use super::reported_status::ReportedStatus;
use super::served_connection::{ServedConnection, SharedTransaction, keep_alive};
use super::task_ping::TaskPing;
use super::transaction::Transaction;
use crate::bounds::BLOCKED_GRACE;
use crate::config::{FrontConfig, PoolConfig, SessionBounds};
use crate::doorbell::Doorbell;
use crate::exchange::{self, Counter, SlotCounters, Word, WorkerSide};
use crate::ids::{LeaseId, Lifecycle, Monotonic, WorkerId};
use crate::log::{self, Event};
use crate::net::SharedStream;
use crate::sd_notification::notify;
use crate::shm::Segment;
use crate::signals::SignalFlag;
use crate::{backoff, clock, process_tree, sync};

/// The claimed request, as far as the control loop needs it.
pub(super) struct ActiveRequest {
    pub lease: LeaseId,
    pub transaction: Arc<SharedTransaction>,
    pub stream: SharedStream,
}

/// Shared by the worker's two threads.
pub(super) struct WorkerState {
    pub id: WorkerId,
    pub front: FrontConfig,
    /// `Keep-Alive` of a kept connection: how long it may be idle. `None` for less than a second.
    pub keep_alive: Option<HeaderValue>,
    pub slot: WorkerSide<Arc<Segment>>,
    pub builtin: Option<BuiltinHandler>,
    /// Whether `Authorization` is removed from its requests.
    pub drops_authorization: bool,
    /// `None` if no connection may switch to another protocol.
    pub sessions: Option<SessionBounds>,
    to_dispatcher: Doorbell,
    lifecycle: Mutex<LifecycleState>,
    active: Mutex<Option<ActiveRequest>>,
    pub ping: TaskPing,
    limits: RecycleLimits,
    /// Whether SIGTERM or SIGINT has arrived, also before the control loop has read it.
    pub stop_signal: SignalFlag,
    commands: mpsc::UnboundedSender<TaskCommand>,
    wakeup: EventFd,
    reported: Mutex<ReportedStatus>,
    /// Notified after each turn of the control loop, which reads signals and the words of the dispatcher.
    pub turn: Notify,
    /// Read-locked by each connection until its response is delivered.
    pub pending_responses: Arc<RwLock<()>>,
}

impl WorkerState {
    /// The state of a starting worker, and the receiver of the commands to its serving task.
    pub(super) fn new(
        id: WorkerId,
        pool: &PoolConfig,
        front: FrontConfig,
        slot: WorkerSide<Arc<Segment>>,
        to_dispatcher: Doorbell,
        stop_signal: SignalFlag,
        builtin: Option<BuiltinHandler>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<TaskCommand>), ServeError> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let handler = builtin.as_ref().map_or(HandlerReadiness::Ready, BuiltinHandler::readiness);
        let state = Self {
            lifecycle: Mutex::new(LifecycleState::starting(handler, slot.replacements())),
            id,
            keep_alive: keep_alive(front.idle_timeout),
            front,
            slot,
            builtin,
            drops_authorization: pool.drops_authorization(),
            sessions: pool.sessions(),
            to_dispatcher,
            active: Mutex::new(None),
            ping: TaskPing::new(pool.request_timeout),
            limits: RecycleLimits::new(pool, clock::now()),
            stop_signal,
            commands,
            wakeup: EventFd::from_flags(flags).map_err(|e| system("eventfd")(e.into()))?,
            reported: Mutex::default(),
            turn: Notify::new(),
            pending_responses: Arc::default(),
        };
        Ok((state, receiver))
    }

    /// The lifecycle as last published.
    pub(super) fn lifecycle(&self) -> Lifecycle {
        sync::lock(&self.lifecycle).lifecycle
    }

    /// Whether [`Self::stop`] was called.
    pub(super) fn is_stopping(&self) -> bool {
        sync::lock(&self.lifecycle).stopping
    }

    /// Drains for good.
    pub(super) fn stop(&self) {
        self.update(LifecycleState::stop);
    }

    /// Starts to recycle. Returns what the serving task has to do; `None` if the worker is stopping or recycles already.
    ///
    /// A worker that keeps its warm process until the next one is ready continues to serve.
    pub(super) fn start_recycle(&self) -> Option<TaskCommand> {
        let replacing = self.builtin.as_ref().and_then(BuiltinHandler::replacing);
        let mut command = None;
        self.update(|state| command = state.start_recycle(replacing));
        command
    }

    /// Requests a recycle from the dispatcher.
    pub(super) fn request_recycle(&self) {
        self.update(|state| state.wants_recycle = true);
    }

    /// Requests a recycle because the configuration has changed.
    pub(super) fn request_reload(&self) {
        self.update(|state| (state.wants_recycle, state.reload) = (true, true));
    }

    /// The handler has ended, and the next process image follows, which reads the configuration.
    pub(super) fn prepare_image(&self) {
        self.update(|state| (state.reload, state.image_ends) = (false, false));
    }

    /// Ends a recycle after which this process continues. If the configuration has changed meanwhile, the worker wants
    /// another one.
    pub(super) fn finish_recycle(&self, failure: Option<&dyn Display>) {
        self.limits.reset(clock::now());
        let replacements = sync::lock(&self.lifecycle).replacements.with(failure.is_some());
        let status = match failure {
            None => self.serving_status(),
            Some(error) => format!("{}{error}", replacements.failure_status()),
        };
        notify(&[NotifyState::Status(&status)]); // `patou recycle` looks for it when it sees the result in the slot
        sync::lock(&self.reported).tell(clock::now(), &status); // and finds it for a while
        self.update(|state| state.finish_recycle(replacements, self.slot.drained()));
    }

    /// The serving task has started: publishes Ready or Draining, unless the handler has to load.
    pub(super) fn finish_start(&self) {
        sync::lock(&self.lifecycle).started = true;
        self.update_handler();
    }

    /// Publishes whether the handler can serve a request. Notifies the supervisor when the worker is ready for the first
    /// time.
    pub(super) fn update_handler(&self) {
        let handler = self.builtin.as_ref().map_or(HandlerReadiness::Ready, BuiltinHandler::readiness);
        let is_first = {
            let mut state = sync::lock(&self.lifecycle);
            let is_first = state.started && handler != HandlerReadiness::Starting && !state.announced;
            state.announced |= is_first;
            is_first
        };
        if is_first {
            // Logged before the dispatcher can see it, so that the log has the incarnations of a pool in order.
            tracing::debug!(worker = %self.id, epoch = %self.slot.epoch(), "ready");
            log::flush();
        }
        self.update(|state| {
            state.handler = handler;
            state.update_ready(self.slot.drained());
        });
        if is_first {
            backoff::note_ready(self.slot.memory(), Word::WORKER_LAST_START);
            let status = self.serving_status();
            sync::lock(&self.reported).tell(clock::now(), &status);
            notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        }
    }

    /// One line for `systemctl status`: what the worker does, what it has served, and what went wrong last.
    fn serving_status(&self) -> String {
        let SlotCounters { served, failed, .. } = SlotCounters::load(&**self.slot.memory());
        let state = match self.lifecycle() {
            Lifecycle::Ready if sync::lock(&self.active).is_some() => "busy",
            Lifecycle::Ready => "idle",
            Lifecycle::Draining => "draining",
            Lifecycle::Starting | Lifecycle::Recycling => "starting",
        };
        let failures = backoff::failures(self.slot.memory(), Word::WORKER_LAST_START);
        let troubles = sync::lock(&self.reported).troubles(failures);
        format!("{state}, {served} served, {failed} failed, incarnation {}{troubles}", self.slot.epoch())
    }

    /// Tells the supervisor how the worker is, if that has changed and was not told a moment ago. Called by the control
    /// loop when something else wakes it.
    pub(super) fn report_status(&self, now: Monotonic) {
        if sync::lock(&self.reported).is_due(now) {
            sync::lock(&self.reported).find_last_end(|| last_end(&self.id));
            self.tell_status(now);
        }
    }

    fn tell_status(&self, now: Monotonic) {
        let status = self.serving_status();
        if sync::lock(&self.reported).tell(now, &status) {
            notify(&[NotifyState::Status(&status)]);
        }
    }

    /// Counts a request that failed through a fault of the handler, and tells the supervisor the reason.
    pub(super) fn note_fault(&self, reason: &str) {
        self.slot.count(Counter::HandlerFaults, 1);
        let now = clock::now();
        let is_due = {
            let mut reported = sync::lock(&self.reported);
            reported.note_fault(reason);
            reported.is_due(now)
        };
        if is_due {
            self.tell_status(now);
        }
    }

    /// Publishes Ready or Draining according to the operator's flag in the slot. A worker that starts or recycles reads
    /// the flag at the end of that.
    pub(super) fn apply_drain_flag(&self) {
        self.update(|state| state.update_ready(self.slot.drained()));
    }

    /// Publishes whether the serving task can serve clients. Returns whether that has changed.
    pub(super) fn set_serving_blocked(&self, blocked: bool) -> bool {
        let mut before = blocked;
        self.update(|state| {
            before = std::mem::replace(&mut state.serving_blocked, blocked);
            state.update_ready(self.slot.drained());
        });
        before != blocked
    }

    /// Whether the serving task was last found blocked.
    pub(super) fn is_serving_blocked(&self) -> bool {
        sync::lock(&self.lifecycle).serving_blocked
    }

    /// Called by the serving task: it runs.
    pub(super) fn ack_ping(&self) {
        self.ping.ack();
        self.set_serving_blocked(false);
    }

    /// Writes the state to the slot again, where a stray write may have replaced it.
    pub(super) fn republish_state(&self) {
        self.write_state(&sync::lock(&self.lifecycle));
    }

    fn update(&self, change: impl FnOnce(&mut LifecycleState)) {
        let mut state = sync::lock(&self.lifecycle);
        let before = *state;
        change(&mut state);
        if *state != before {
            self.write_state(&state);
            // Not under the lock: the dispatcher may get this processor when it wakes, and the control loop needs the
            // lock.
            drop(state);
            self.to_dispatcher.ring();
        }
    }

    fn write_state(&self, state: &LifecycleState) {
        self.slot.set_replacements(state.replacements);
        self.slot.set_state(state.lifecycle, state.wants_recycle);
    }

    pub(super) fn ring_dispatcher(&self) {
        self.to_dispatcher.ring();
    }

    /// After an answer to an offer, or the end of a lease.
    pub(super) fn ring_dispatcher_if_needed(&self) {
        if self.slot.needs_doorbell() {
            self.to_dispatcher.ring();
        }
    }

    pub(super) fn send_command(&self, command: TaskCommand) {
        let _ = self.commands.send(command); // fails once the serving task has returned, which needs no commands
    }

    pub(super) fn wake_control_loop(&self) {
        let _ = self.wakeup.write(1); // fails if the counter is full: then the control loop is being woken
    }

    /// Readable after [`Self::wake_control_loop`] until [`Self::drain_wakeup`].
    pub(super) fn wakeup_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    pub(super) fn drain_wakeup(&self) {
        let _ = self.wakeup.read();
    }

    /// A lease was claimed: the control loop times its request.
    pub(super) fn start_request(&self, lease: LeaseId, connection: &ServedConnection) {
        let (transaction, stream) = (connection.transaction.clone(), connection.stream.clone());
        *sync::lock(&self.active) = Some(ActiveRequest { lease, transaction, stream });
        self.ping.note_claim(lease);
        self.ack_ping();
        tracing::debug!(worker = %self.id, %lease, epoch = %self.slot.epoch(), event = %Event::LeaseClaimed,
            "lease is claimed");
    }

    /// The handler is done with the active request. Whatever takes time from now on does not block the handler's thread.
    pub(super) fn end_request(&self) {
        *sync::lock(&self.active) = None;
    }

    /// Counts a request of the active lease that is followed by a pipelined one.
    pub(super) fn count_pipelined(&self, failed: bool) {
        self.slot.count(if failed { Counter::Failed } else { Counter::Served }, 1);
        self.limits.count_request();
    }

    /// Whether the worker has to finish what it serves: it is drained, stopped or recycled.
    pub(super) fn is_wanted_back(&self) -> bool {
        self.is_stopping() || self.slot.drained() || sync::lock(&self.lifecycle).wants_recycle
    }

    /// Takes the active request if its handler is still overdue since `deadline`.
    pub(super) fn take_overdue(&self, deadline: Monotonic) -> Option<ActiveRequest> {
        (self.overdue_since() == Some(deadline)).then(|| sync::lock(&self.active).take()).flatten()
    }

    /// [`BLOCKED_GRACE`] before the control loop concludes that the handler blocks its thread; `None` if there is no request,
    /// or its handler is done.
    pub(super) fn overdue_since(&self) -> Option<Monotonic> {
        let transaction = sync::lock(&self.active).as_ref().map(|active| active.transaction.clone());
        transaction.and_then(|transaction| transaction.get(Transaction::blocked_at)).map(|at| at.before(BLOCKED_GRACE))
    }

    /// Counts a finished request, and releases its lease.
    pub(super) fn finish(&self, lease: LeaseId, took: Duration, failed: bool) {
        self.slot.count(if failed { Counter::Failed } else { Counter::Served }, 1);
        self.slot.record(took);
        let served = self.limits.count_request();
        self.release(lease, served);
    }

    /// Releases a lease that received no request.
    pub(super) fn release_unused(&self, lease: LeaseId) {
        self.release(lease, 0);
    }

    fn release(&self, lease: LeaseId, served: u64) {
        if let Some(limit) = self.limits.reached(served, clock::now(), process_tree::memory_above) {
            if let ReachedLimit::Memory { used, max } = limit {
                tracing::info!(worker = %self.id, epoch = %self.slot.epoch(), used, max, event = %Event::WorkerRecycled,
                    "the worker and its processes use {} MiB, more than max_memory ({} MiB with its jitter): requesting its replacement",
                    used >> 20, max >> 20);
            }
            // Before the lease is released, so that the dispatcher sees both at once.
            self.request_recycle();
        }
        self.slot.done(lease);
        self.ring_dispatcher_if_needed();
        if self.lifecycle() != Lifecycle::Ready {
            self.wake_control_loop();
        }
    }

    /// When the worker reaches `max_age`.
    pub(super) fn max_age_at(&self) -> Option<Monotonic> {
        self.limits.max_age_at()
    }

    /// The `request_timeout` that the next claim will have: of the lease in the slot, because a reload changes it for the
    /// dispatcher first.
    pub(super) fn request_timeout(&self) -> Duration {
        exchange::terms(self.slot.memory()).map_or(self.ping.limit, |(_, terms)| terms.request_timeout)
    }

    /// Whether it serves connections and no requests.
    pub(super) fn is_inetd(&self) -> bool {
        matches!(self.builtin, Some(BuiltinHandler::Inetd(_)))
    }
}
