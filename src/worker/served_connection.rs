//! A connection and the transaction on it, as the tasks of the worker share them.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::handler::Session;
use super::transaction::{EndCause, LeasePhase, Transaction, TransactionEvent};
use crate::exchange::WorkerSide;
use crate::handoff::ListenerInfo;
use crate::ids::{LeaseId, WorkerId};
use crate::log::Event;
use crate::net::{HalfClose, ProblemResponse, SharedStream, WireProtocol, disconnected, set_reset_on_close};
use crate::shm::Segment;
use crate::{clock, sync};

/// A request is not watched for a disconnect before this: the watch costs a descriptor and five system calls.
pub(super) const DISCONNECT_WATCH_DELAY: Duration = Duration::from_millis(50);

/// A transaction that the serving task, the bodies of its request and the control loop share. The lock is held for single
/// steps: never across an await, and never while the handler's code runs.
pub(super) struct SharedTransaction {
    locked: Mutex<TransactionState>,
    claimed: Notify,
}

struct TransactionState {
    transaction: Transaction,
    resets_on_close: bool,
    /// After the step to Upgraded.
    session: Option<Arc<Session>>,
    wire: WireProtocol,
}

impl SharedTransaction {
    pub(super) fn new(transaction: Transaction, wire: WireProtocol) -> Arc<Self> {
        let state = TransactionState { transaction, resets_on_close: false, session: None, wire };
        Arc::new(Self { locked: Mutex::new(state), claimed: Notify::new() })
    }

    /// Reads the transaction.
    pub(super) fn get<R>(&self, read: impl FnOnce(&Transaction) -> R) -> R {
        read(&sync::lock(&self.locked).transaction)
    }

    /// Takes one step with it.
    pub(super) fn step<R>(&self, step: impl FnOnce(&mut Transaction) -> R) -> R {
        step(&mut sync::lock(&self.locked).transaction)
    }

    /// What the client speaks.
    pub(super) fn wire(&self) -> WireProtocol {
        sync::lock(&self.locked).wire
    }

    /// Notes which FastCGI request is the present one.
    pub(super) fn set_wire(&self, wire: WireProtocol) {
        sync::lock(&self.locked).wire = wire;
    }

    /// The connection switches to another protocol.
    pub(super) fn start_session(&self, session: Arc<Session>) {
        sync::lock(&self.locked).session = Some(session);
    }

    /// The session on the connection.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        sync::lock(&self.locked).session.clone()
    }

    pub(super) fn on(&self, event: TransactionEvent) {
        self.step(|transaction| transaction.on(event));
        if matches!(event, TransactionEvent::Claimed(..)) {
            self.claimed.notify_one();
        }
    }
}

/// `Keep-Alive` of a connection that is kept for so long; `None` for less than a second.
pub(super) fn keep_alive(idle_timeout: Duration) -> Option<HeaderValue> {
    let seconds = Some(idle_timeout.as_secs()).filter(|seconds| *seconds > 0)?;
    HeaderValue::from_str(&format!("timeout={seconds}")).ok()
}

/// A connection to this worker.
pub(super) struct ServedConnection {
    pub stream: SharedStream,
    /// The client's address; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The address the client connected to; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    /// Whether the client has used TLS to a proxy that says so in its PROXY header.
    pub is_https: bool,
    /// The dispatcher's listener; `None` if the client has connected to the worker itself.
    pub listener: Option<ListenerInfo>,
    /// Apart from the connection, of which no duplicate may remain: a handler may keep a request body.
    pub transaction: Arc<SharedTransaction>,
}

impl ServedConnection {
    pub(super) fn on(&self, event: TransactionEvent) {
        self.transaction.on(event);
    }

    /// The lease; `None` before a claim.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.transaction.get(|transaction| transaction.lease().map(|lease| lease.id))
    }

    /// Moves the lease to Responding, if it is not there yet. On `false` the lease is no longer this worker's, and nothing
    /// may be written. A connection without a lease belongs to its worker.
    pub(super) fn may_respond(&self, slot: &WorkerSide<Arc<Segment>>) -> bool {
        let (phase, lease) = self.transaction.get(|transaction| (transaction.lease_phase(), transaction.lease()));
        match (phase, lease) {
            (LeasePhase::Claimed, Some(lease)) => {
                let responds = slot.respond(lease.id);
                self.on(if responds { TransactionEvent::Responding } else { TransactionEvent::LeaseLost });
                responds
            }
            (LeasePhase::Lost, _) => false,
            _ => true,
        }
    }

    /// Makes a close reset the connection as long as that [is needed](Transaction::needs_reset_on_close): also the close at
    /// the death of this process, if no other process holds the connection, because the dispatcher has been restarted since
    /// the claim. A FIN would say that nothing was started. A request that the built-in echo serves without waiting is
    /// spared the two system calls.
    pub(super) fn update_reset_on_close(&self) {
        self.change_reset_on_close(Transaction::needs_reset_on_close);
    }

    pub(super) fn set_reset_on_close(&self, on: bool) {
        self.change_reset_on_close(|_| on);
    }

    fn change_reset_on_close(&self, needs_reset: impl FnOnce(&Transaction) -> bool) {
        let mut locked = sync::lock(&self.transaction.locked);
        let on = needs_reset(&locked.transaction);
        let before = std::mem::replace(&mut locked.resets_on_close, on);
        drop(locked);
        if before != on {
            let _ = set_reset_on_close(&self.stream, on); // a failure shows in the next call
        }
    }

    /// Returns when the connection must end, whatever happens on it: never before a claim.
    pub(super) async fn aborted(&self) -> EndCause {
        if self.lease().is_none() {
            self.transaction.claimed.notified().await;
        }
        let client_gone = async {
            sleep(DISCONNECT_WATCH_DELAY).await;
            disconnected(&self.stream, || self.on_half_close()).await;
        };
        let deadline = async {
            sleep(self.transaction.get(Transaction::respond_by).since(clock::now())).await;
            self.on(TransactionEvent::DeadlineReached(clock::now()));
            loop {
                match self.transaction.get(Transaction::cut_at).since(clock::now()) {
                    Duration::ZERO => break,
                    left => sleep(left).await,
                }
            }
        };
        tokio::select! {
            biased; // the earlier timer first: a timer that is earlier than all others costs a system call
            () = client_gone => EndCause::ClientGone,
            () = deadline => EndCause::Deadline,
        }
    }

    /// What it means that the client sends nothing more. HTTP/1.0 clients cannot be probed, and some of them end their
    /// sending direction after the request; a proxy or a FastCGI client that does so has lost its own client.
    fn on_half_close(&self) -> HalfClose {
        let is_proxy = || {
            let peer = self.peer.map(|peer| peer.ip());
            self.listener.as_ref().is_some_and(|listener| listener.proxies.trusted.contains(peer))
        };
        match self.transaction.get(|it| (it.may_probe(), it.is_http10_open())) {
            (true, _) => HalfClose::Probe,
            (false, true) if is_proxy() || self.transaction.wire().is_fastcgi() => HalfClose::Closed,
            _ => HalfClose::Unknown,
        }
    }

    /// Writes a line of the access log, if the listener has one. `client`: its address, or that of the connection if no
    /// more is known.
    pub(super) fn log_access(
        &self,
        worker: &WorkerId,
        client: Option<SocketAddr>,
        line: &str,
        status: StatusCode,
        since: Instant,
    ) {
        if self.listener.as_ref().is_some_and(|listener| listener.access_log) {
            let client = client.map_or("unix".into(), |client| match client.port() {
                0 => client.ip().to_string(),
                _ => client.to_string(),
            });
            let wait_ms = format!("{:.1}", since.elapsed().as_secs_f64() * 1e3);
            let lease = self.lease().map(tracing::field::display);
            tracing::info!(client, status = status.as_u16(), %worker, lease, wait_ms,
                event = %Event::RequestLogged, "{line}");
        }
    }

    /// The line of the access log for a head that is refused.
    pub(super) fn log_refusal(&self, worker: &WorkerId, problem: &ProblemResponse) {
        let claimed_at = self.transaction.get(|transaction| transaction.lease().map(|lease| lease.claimed_at));
        let waited = claimed_at.map_or(Duration::ZERO, |at| clock::now().since(at));
        self.log_access(worker, self.peer, &problem.detail, problem.status, Instant::now() - waited);
    }

    /// Whether the socket's receive queue is empty.
    pub(super) fn has_nothing_to_read(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.0.as_fd().as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::EAGAIN))
    }
}
