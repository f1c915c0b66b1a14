//! The control loop: a thread that answers the dispatcher and obeys signals, and never runs the handler's code.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use sd_notify::NotifyState;

use super::state::{Current, Order, WorkerState};
use super::{ServeError, Signals, system};
use crate::doorbell::Doorbell;
use crate::exchange::{self, QuestionKind, Reply, Word};
use crate::ids::{Claim, LeaseId, Lifecycle, Monotonic, Phase};
use crate::log;
use crate::net::{ProblemResponse, set_reset_on_close};
use crate::signals::{ParentWatch, STOP_DEBOUNCE, Signal};
use crate::{backoff, clock};

/// How long after its deadline a request is ended from here, because the serving task has not ended it: the
/// handler blocks its thread.
const BLOCKED: Duration = Duration::from_secs(1);

/// Whom nobody meets for so long is not offered to the next client.
const ABSENT: Duration = Duration::from_millis(250);

/// How often a stopping worker looks whether its last offer has been taken back, which nobody rings for.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Starts the thread. It ends with the process.
pub fn start(shared: Arc<WorkerState>, hear: Doorbell, signals: Signals) -> Result<JoinHandle<()>, ServeError> {
    let Signals { stop, reload } = signals;
    let answered = shared.respondent.answered();
    let (beat, parent) = (Beat::new(), ParentWatch::now());
    let mut control = Control {
        shared,
        hear,
        stop,
        reload,
        answered,
        promised: None,
        exit_ordered: false,
        stopped: None,
        beat,
        parent,
    };
    std::thread::Builder::new().name("control".into()).spawn(move || control.run()).map_err(system("thread"))
}

struct Control {
    shared: Arc<WorkerState>,
    hear: Doorbell,
    stop: Signal,
    reload: Signal,
    /// Sequence of the last question answered.
    answered: u64,
    /// The last lease that was accepted, as long as it is open whether its client meets anybody.
    promised: Option<LeaseId>,
    exit_ordered: bool,
    /// When it was told to stop.
    stopped: Option<Monotonic>,
    beat: Beat,
    parent: ParentWatch,
}

impl Control {
    fn run(&mut self) {
        loop {
            self.wait(clock::now());
            let now = clock::now();
            self.shared.respondent.tick(now);
            self.shared.be_on_core();
            if !self.shared.respondent.is_intact() {
                self.leave_the_slot();
            }
            self.shared.restate();
            self.hear.clear();
            self.shared.woken();
            self.beat.beat(now);
            if self.stop.take() > 0 {
                self.stop(now);
            }
            if self.reload.take() > 0 {
                self.shared.want_reload();
            }
            self.follow_orders();
            // One: whoever puts another meanwhile rings for it.
            if let Some(question) = self.shared.respondent.question(self.answered) {
                let reply = self.shared.respondent.decide(&question, self.shared.state());
                self.miss_nobody(now);
                if (question.kind, reply) == (QuestionKind::Offer, Reply::Accept) {
                    self.promised = question.lease;
                }
                let order = self.obey(question.kind, reply);
                self.shared.respondent.reply(&question, reply);
                self.answered = question.sequence;
                match question.kind {
                    QuestionKind::Offer => self.shared.ring_if_need_be(),
                    _ => self.shared.ring(),
                }
                // Only now: the next incarnation would find a question that is not answered, and obey it again.
                if let Some(order) = order {
                    self.order(order, now);
                }
            }
            if self.shared.old_at().is_some_and(|at| at <= now) {
                self.shared.want_recycle();
            }
            if let Some(current) = self.shared.overdue(now, BLOCKED) {
                self.give_up(current);
            }
            match self.shared.attention.owed(now) {
                Some(owed) if owed >= self.shared.attention.limit + BLOCKED => self.leave_the_deaf(),
                owed => self.be_absent(owed.is_some_and(|owed| owed >= ABSENT)),
            }
            if self.shared.is_stopping() && !self.exit_ordered && !self.shared.respondent.has_obligation(now) {
                self.exit_ordered = true;
                self.order(Order::Exit, now);
            }
        }
    }

    fn wait(&self, now: Monotonic) {
        let drain = self.shared.is_stopping().then(|| now + DRAIN_LOOK).filter(|_| !self.exit_ordered);
        let age = self.shared.old_at().filter(|at| *at > now);
        let overdue = self.shared.overdue_at(BLOCKED);
        let attention = &self.shared.attention;
        let bounds = [ABSENT, attention.limit + BLOCKED];
        let deaf = attention.since().and_then(|since| bounds.map(|by| since + by).into_iter().find(|at| *at > now));
        let until = [drain, age, overdue, deaf, self.beat.next].into_iter().flatten().min();
        let timeout = until.map_or(PollTimeout::NONE, |at| {
            // Rounded up: waking early would only mean waiting again.
            PollTimeout::try_from(at.since(now) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [self.hear.as_fd(), self.stop.as_fd(), self.reload.as_fd(), self.shared.wake_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut fds, timeout); // interrupted: the loop looks at everything anyway
    }

    fn stop(&mut self, now: Monotonic) {
        let orphaned = self.parent.has_just_died();
        if orphaned {
            tracing::warn!(worker = %self.shared.id, "the watchdog has died: finishing what is in hand, then leaving");
        }
        if let Some(first) = self.stopped {
            if !orphaned && now.since(first) >= STOP_DEBOUNCE {
                std::process::exit(1);
            }
            return;
        }
        tracing::debug!(worker = %self.shared.id, "stopping");
        self.stopped = Some(now);
        self.shared.stop();
        backoff::clear_failures(self.shared.respondent.memory(), Word::WORKER_LAST_START);
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }

    /// Drain and Resume are what the slot says: the question that brought them may have been overtaken by the next.
    fn follow_orders(&self) {
        // Who is starting or recycling sees for itself, when it is through, whether it is drained.
        if self.shared.is_settled() {
            self.shared.settle();
        }
    }

    /// Says what changes at once; what the serving task is to be told once the answer is given.
    fn obey(&self, kind: QuestionKind, reply: Reply) -> Option<Order> {
        match (kind, reply) {
            (QuestionKind::Recycle, Reply::Accept) if self.shared.state() == Lifecycle::Ready => {
                self.shared.set_state(Lifecycle::Recycling);
                return Some(Order::Recycle);
            }
            _ => {}
        }
        None
    }

    fn order(&self, order: Order, now: Monotonic) {
        // Before it: who has the order answers no call until it is done.
        self.shared.attention.call(now);
        self.shared.order(order);
    }

    /// Asks the serving task for a sign of life when nobody has come for a lease: either the client has not, or it
    /// stands before a door that nobody opens. The answer to a client who comes is another sign, so that nobody is
    /// asked as long as all goes well.
    fn miss_nobody(&mut self, now: Monotonic) {
        let Some(lease) = self.promised.filter(|_| !self.exit_ordered) else { return };
        let begun = self.shared.attention.has_begun(lease);
        if !begun {
            self.shared.attention.call(now);
        }
        // After its end once more: the client may have come last.
        let open = exchange::claim(self.shared.respondent.memory()) == Some(Claim::Held(lease, Phase::Offered));
        self.promised = self.promised.filter(|_| open && !begun);
    }

    /// Nobody is sent to a door that nobody opens.
    fn be_absent(&self, absent: bool) {
        if self.shared.set_absent(absent) && absent {
            tracing::warn!(worker = %self.shared.id, epoch = %self.shared.respondent.epoch(),
                "something blocks the thread on which the worker serves: it gets no client until it is free");
        }
    }

    /// The thread of the serving task is blocked, and by nothing that a client waits for: by what a handler has left
    /// behind on it, say. Clients that stand before the door are led back by the next incarnation.
    fn leave_the_deaf(&self) {
        tracing::error!(worker = %self.shared.id, epoch = %self.shared.respondent.epoch(),
            event = %log::Event::HandlerBlocked,
            "the worker has not come back to serving within request_timeout, with no request in hand: it ends itself");
        std::process::exit(70)
    }

    /// Somebody has written into this worker's life line who it is: nobody can find it by that any more.
    fn leave_the_slot(&self) {
        tracing::error!(worker = %self.shared.id, event = %log::Event::SlotCorrupt,
            "the slot of this worker has been overwritten and names another: it ends itself, to be replaced");
        std::process::exit(70)
    }

    /// The serving task is stuck in the handler. All this thread can do for the client is an answer of its
    /// own, or a reset; all it can do for the worker is to end it. The answer gets its time on a thread of its
    /// own, since this one has questions to answer until then.
    fn give_up(&self, current: Current) {
        let worker = &self.shared.id;
        tracing::error!(worker = %worker, lease = %current.lease, epoch = %self.shared.respondent.epoch(),
            event = %log::Event::HandlerBlocked, "the handler has blocked its thread past request_timeout: the worker ends itself");
        // Should the handler come back now, its worker is nevertheless not for the next client.
        self.shared.stop();
        if self.shared.respondent.respond(current.lease) {
            let detail = format!("the handler of worker {worker} did not finish within request_timeout");
            let answer = ProblemResponse::started(http::StatusCode::GATEWAY_TIMEOUT, detail).raw();
            let _ = set_reset_on_close(&current.stream, false);
            let socket = current.stream.0.as_fd().as_raw_fd();
            let _ = send(socket, &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            let _ = shutdown(socket, Shutdown::Write);
            let bound = self.shared.front.linger_timeout;
            let last = move || {
                drain(&current.stream, bound);
                std::process::exit(70)
            };
            if std::thread::Builder::new().name("parting".into()).spawn(last).is_ok() {
                return;
            }
        }
        std::process::exit(70)
    }
}

/// As [`crate::net::lingering_close`] without a runtime: an answer that is followed by a reset may never be read.
fn drain(stream: &crate::net::SharedStream, bound: Duration) {
    let give_up = clock::now() + bound;
    let mut waste = vec![0; 16 * 1024];
    loop {
        let left = give_up.since(clock::now());
        let mut fds = [PollFd::new(stream.0.as_fd(), PollFlags::POLLIN)];
        if left.is_zero() || poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) == Ok(0) {
            return;
        }
        match recv(stream.0.as_fd().as_raw_fd(), &mut waste, MsgFlags::MSG_DONTWAIT) {
            Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// `WATCHDOG=1` to systemd, where it asks for it (sd_watchdog_enabled(3)): at half its interval.
struct Beat {
    every: Option<Duration>,
    next: Option<Monotonic>,
}

impl Beat {
    fn new() -> Self {
        let every = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        // At once: the incarnation before may have been about to.
        Self { every, next: every.map(|_| clock::now()) }
    }

    fn beat(&mut self, now: Monotonic) {
        if let Some(every) = self.every
            && self.next.is_some_and(|next| next <= now)
        {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            self.next = Some(now + every);
        }
    }
}
