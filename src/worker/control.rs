//! The control loop: a thread that answers the dispatcher and handles signals, and never runs the handler's code.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use sd_notify::NotifyState;

use super::error::{ServeError, system};
use super::lifecycle_state::TaskCommand;
use super::serving_thread::ServingThread;
use super::signals::WorkerSignals;
use super::stand_in::serve_blocked;
use super::state::{ActiveRequest, WorkerState};
use crate::bounds::{BLOCKED_GRACE, PING_LATE};
use crate::doorbell::Doorbell;
use crate::exchange::{self, QuestionKind, Reply, Word};
use crate::ids::{Claim, LeaseId, Monotonic, Phase, RefuseReason};
use crate::log::{self, Event};
use crate::net::{LingerBounds, ProblemResponse, discard_until_closed_blocking, set_reset_on_close};
use crate::sd_notification::notify;
use crate::sd_watchdog::WatchdogTicker;
use crate::signals::{ParentWatch, STOP_DEBOUNCE};
use crate::{backoff, clock};

/// How often a stopping worker checks whether its last offer was revoked, for which the dispatcher rings no doorbell.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The shortest pause between two samples of a silent serving thread.
const SILENCE_CHECK: Duration = Duration::from_millis(50);

/// Exit status of a worker that cannot continue (EX_SOFTWARE, sysexits.h).
const EXIT_FAILED: i32 = 70;

/// Starts the thread, which ends with the process.
pub(super) fn start(
    state: Arc<WorkerState>,
    to_worker: Doorbell,
    signals: WorkerSignals,
    listener: OwnedFd,
) -> Result<JoinHandle<()>, ServeError> {
    let mut control = ControlLoop {
        answered: state.slot.answered(),
        state,
        to_worker,
        signals,
        listener,
        accepted_lease: None,
        exit_sent: false,
        stopping_since: None,
        watchdog: WatchdogTicker::start(),
        parent: ParentWatch::now(),
        serving: ServingThread::current(),
    };
    std::thread::Builder::new().name("control".into()).spawn(move || control.run()).map_err(system("thread"))
}

struct ControlLoop {
    state: Arc<WorkerState>,
    to_worker: Doorbell,
    signals: WorkerSignals,
    /// The worker's address, for the time in which the serving task does not serve it.
    listener: OwnedFd,
    /// Sequence of the last question answered.
    answered: u64,
    /// The last lease that was accepted, until its claim is seen or its offer has ended.
    accepted_lease: Option<LeaseId>,
    exit_sent: bool,
    stopping_since: Option<Monotonic>,
    watchdog: WatchdogTicker,
    parent: ParentWatch,
    serving: ServingThread,
}

impl ControlLoop {
    fn run(&mut self) {
        loop {
            self.wait(clock::now());
            let now = clock::now();
            self.state.slot.tick(now);
            if !self.state.slot.is_intact() {
                self.exit_slot_corrupt();
            }
            self.state.republish_state();
            // Before the question and the flags are read, so that no wake-up is lost.
            self.to_worker.clear();
            self.state.drain_wakeup();
            self.watchdog.tick(now);
            if self.signals.stop.take_count() > 0 {
                self.stop(now);
            }
            if self.signals.reload.take_count() > 0 {
                self.state.request_reload();
            }
            // The flag in the slot counts: the question that announced it may have been replaced by the next one.
            self.state.apply_drain_flag();
            self.answer_question(now);
            self.check_limits(now);
            self.state.report_status(now);
            self.state.turn.notify_waiters();
        }
    }

    /// Waits for a doorbell, a signal, a wake-up or the next deadline.
    fn wait(&self, now: Monotonic) {
        let drain = (self.state.is_stopping() && !self.exit_sent).then(|| now + DRAIN_POLL);
        let max_age = self.state.max_age_at().filter(|at| *at > now);
        // At its start a silence is sampled. At its end the thread may have waited for a processor, and it is sampled again.
        let check_silence = |start: Monotonic, end: Monotonic| {
            if start > now { start } else { end.max(now + SILENCE_CHECK) }
        };
        let overdue = self.state.overdue_since().map(|deadline| check_silence(deadline, deadline + BLOCKED_GRACE));
        let ping = &self.state.ping;
        let ping =
            ping.pending_since().map(|since| check_silence(since + PING_LATE, since + ping.limit + BLOCKED_GRACE));
        let until = [drain, max_age, overdue, ping, self.watchdog.due_at()].into_iter().flatten().min();
        let timeout = until.map_or(PollTimeout::NONE, |at| {
            // Rounded up: poll(2) counts in milliseconds, and an early wake-up would only wait again.
            PollTimeout::try_from(at.since(now) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let signals = &self.signals;
        let mut fds = [self.to_worker.as_fd(), signals.stop.as_fd(), signals.reload.as_fd(), self.state.wakeup_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut fds, timeout); // on EINTR too, the loop checks everything
    }

    fn stop(&mut self, now: Monotonic) {
        let orphaned = self.parent.has_just_died();
        if orphaned {
            tracing::warn!(worker = %self.state.id, "the watchdog has died: the worker finishes its request and exits");
        }
        if let Some(first) = self.stopping_since {
            if !orphaned && now.since(first) >= STOP_DEBOUNCE {
                log::exit(1);
            }
            return;
        }
        tracing::debug!(worker = %self.state.id, "stopping");
        self.stopping_since = Some(now);
        self.state.stop();
        backoff::clear_failures(self.state.slot.memory(), Word::WORKER_LAST_START);
        notify(&[NotifyState::Stopping]);
    }

    /// Answers one question: the dispatcher rings for each.
    fn answer_question(&mut self, now: Monotonic) {
        let Some(question) = self.state.slot.question(self.answered) else { return };
        let mut reply = self.state.slot.decide(&question, self.state.lifecycle());
        let mut recycle = None;
        if (question.kind, reply) == (QuestionKind::Recycle, Reply::Accept) {
            recycle = self.state.start_recycle();
            if recycle.is_none() {
                reply = Reply::Refuse(RefuseReason::Draining);
            }
        }
        self.check_serving_task(now);
        if (question.kind, reply) == (QuestionKind::Offer, Reply::Accept) {
            self.accepted_lease = question.lease;
        }
        self.state.slot.reply(&question, reply);
        self.answered = question.sequence;
        if question.kind == QuestionKind::Offer {
            self.state.ring_dispatcher_if_needed();
        } else {
            self.state.ring_dispatcher();
        }
        // After the answer: the next incarnation would find the question unanswered, and recycle again.
        if let Some(command) = recycle {
            self.send_command(command, now);
        }
    }

    fn check_limits(&mut self, now: Monotonic) {
        if self.state.max_age_at().is_some_and(|at| at <= now) {
            self.state.request_recycle();
        }
        if let Some(deadline) = self.state.overdue_since().filter(|deadline| *deadline <= now)
            && self.serving.own_silence(deadline, now) >= BLOCKED_GRACE
            && let Some(request) = self.state.take_overdue(deadline)
        {
            self.time_out_blocked_request(request);
        }
        let late_since = self.state.ping.pending_since().filter(|since| now.since(*since) >= PING_LATE);
        if let Some(since) = late_since
            && self.serving.own_silence(since, now) >= self.state.ping.limit + BLOCKED_GRACE
        {
            self.exit_serving_blocked();
        }
        self.set_serving_blocked(late_since.is_some());
        if self.state.is_stopping() && !self.exit_sent && !self.state.slot.has_obligation(now) {
            self.exit_sent = true;
            self.send_command(TaskCommand::Exit, now);
        }
    }

    fn send_command(&self, command: TaskCommand, now: Monotonic) {
        // Before the command: the task acknowledges no ping while it executes it.
        self.state.ping.ping(now);
        self.state.send_command(command);
    }

    /// Pings the serving task if the last accepted lease was not claimed: its client has not connected, or waits in the
    /// listen queue of a blocked thread. A claim acknowledges as well, so clients that are served cause no pings.
    fn check_serving_task(&mut self, now: Monotonic) {
        let Some(lease) = self.accepted_lease.filter(|_| !self.exit_sent) else { return };
        let claimed = self.state.ping.has_claimed(lease);
        if !claimed {
            self.state.ping.ping(now);
        }
        // The last ping comes after the end of the offer: the client may have connected just before.
        let offered = exchange::claim(self.state.slot.memory()) == Some(Claim::Held(lease, Phase::Offered));
        self.accepted_lease = self.accepted_lease.filter(|_| offered && !claimed);
    }

    /// While the serving task is blocked, the worker refuses clients.
    fn set_serving_blocked(&self, blocked: bool) {
        if self.state.set_serving_blocked(blocked) && blocked {
            tracing::warn!(worker = %self.state.id, epoch = %self.state.slot.epoch(),
                "the worker's serving thread is blocked: the worker gets no client until the thread responds, and \
                 clients that have a lease are sent back to the dispatcher");
            let state = self.state.clone();
            let started = self.listener.try_clone().and_then(|listener| {
                let (segment, front) = (state.slot.memory().clone(), state.front.clone());
                serve_blocked(listener, segment, front, move || state.is_serving_blocked())
            });
            if let Err(error) = started {
                tracing::error!(worker = %self.state.id, event = %Event::AcceptFailed,
                    "cannot start a thread that sends the clients of this worker back: {error}; they wait");
            }
        }
    }

    /// Something other than a request blocks the serving thread: a background task of the handler, for example.
    fn exit_serving_blocked(&self) {
        tracing::error!(worker = %self.state.id, epoch = %self.state.slot.epoch(), event = %Event::HandlerBlocked,
            "the worker's serving thread was blocked for longer than request_timeout, without a request: \
             the worker exits");
        log::exit(EXIT_FAILED)
    }

    /// Another process has overwritten the identity in the slot, by which dispatcher and watchdog know this process.
    fn exit_slot_corrupt(&self) {
        tracing::error!(worker = %self.state.id, event = %Event::SlotCorrupt,
            "the slot of this worker was overwritten and names another process: the worker exits");
        log::exit(EXIT_FAILED)
    }

    /// The handler blocks the serving thread past the request's deadline. This thread sends the client a 504, or lets
    /// the exit reset the connection, and ends the process. Another thread delivers the 504, because this one must
    /// answer questions meanwhile.
    fn time_out_blocked_request(&self, request: ActiveRequest) {
        let worker = &self.state.id;
        tracing::error!(worker = %worker, lease = %request.lease, epoch = %self.state.slot.epoch(),
            event = %Event::HandlerBlocked, "the handler blocks its thread past request_timeout: the worker exits");
        self.state.note_fault("the handler blocks its thread past request_timeout");
        // If the handler returns now, the worker must not get another client.
        self.state.stop();
        if self.state.slot.respond(request.lease) {
            let detail = format!("the handler of worker {worker} did not finish within request_timeout");
            let response = ProblemResponse::started(http::StatusCode::GATEWAY_TIMEOUT, detail);
            let response = response.framed(request.transaction.wire());
            let _ = set_reset_on_close(&request.stream, false);
            let socket = request.stream.0.as_fd().as_raw_fd();
            let _ = send(socket, &response, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            let _ = shutdown(socket, Shutdown::Write);
            // The process ends after it, and its pool is one worker short meanwhile: a client that only sends must not
            // delay that.
            let silence = self.state.front.linger_timeout;
            let bounds = LingerBounds { silence, total: silence };
            let deliver = move || {
                discard_until_closed_blocking(&request.stream, bounds);
                log::exit(EXIT_FAILED)
            };
            if std::thread::Builder::new().name("late-response".into()).spawn(deliver).is_ok() {
                return;
            }
        }
        log::exit(EXIT_FAILED)
    }
}
