//! One connection that was handed over: claim, requests, and back to the dispatcher or to its end.
//!
//! The lease is for one request and for what was read with it: a client may have sent the next ones before it had the
//! answer to the first (RFC 9112, section 9.3.2). Nothing more is read once a request is answered, so that the
//! dispatcher finds the next one where it looks for it: in the socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::handler::{Body, BoxError};
use super::handoff_receiver::HandoffReceiver;
use super::inetd;
use super::redirect::{Answerer, End, Handler, boxed};
use super::state::WorkerState;
use super::turn::{AbortCause, ActiveLease, Transaction};
use crate::clock;
use crate::handoff::{HandoffMessage, ListenerInfo};
use crate::ids::{LeaseId, Lifecycle};
use crate::log::Event;
use crate::net::{self, ProblemResponse, reset, set_reset_on_close};

/// Requests of one client that are answered in one go, if they came together; the last one ends the connection.
const PIPELINED: u32 = 64;

/// A connection that this worker has claimed.
pub struct Claimed {
    pub held: ActiveLease,
    pub stream: net::SharedStream,
    /// The client's address, and the one that it has connected to.
    pub peer: Option<SocketAddr>,
    pub server: Option<SocketAddr>,
    entrance: ListenerInfo,
    requests: AtomicU32,
    /// Whether a close would reset it.
    resets: AtomicBool,
    /// Whether the client has said that it sends nothing after its last request.
    is_last: AtomicBool,
    /// Whether something is to be written that hyper has taken.
    unflushed: AtomicBool,
}

/// Takes one connection after the other, and serves it; never returns.
pub async fn run<S: Handler>(shared: Arc<WorkerState>, service: Arc<Mutex<S>>, inbox: Option<HandoffReceiver>) {
    let Some(mut inbox) = inbox else { return std::future::pending().await };
    loop {
        if let Some(lent) = take(&shared, inbox.next().await) {
            serve(&shared, &service, lent).await;
        }
    }
}

/// Claims the connection that has come, before a byte of it is read. What cannot be claimed is closed: it belongs to
/// somebody else by now, or will soon.
fn take(shared: &WorkerState, (message, connection): (HandoffMessage, OwnedFd)) -> Option<Claimed> {
    let now = clock::now();
    let terms = match shared.state() {
        Lifecycle::Ready => shared.respondent.claim(message.token, now),
        _ => {
            // The control loop says no, and why: so the client goes on to another at once.
            shared.wake_control();
            return None;
        }
    };
    let terms = match terms {
        Ok(terms) if terms.lease == message.lease => terms,
        other => {
            tracing::debug!(worker = %shared.id, lease = %message.lease, ?other, "a connection came too late");
            return None;
        }
    };
    let since = Instant::now();
    let held = ActiveLease { lease: terms.lease, since, deadline: since + terms.request_timeout };
    let HandoffMessage { peer, server, listener: entrance, .. } = message;
    let stream = net::SharedStream(Arc::new(net::SocketStream::new(connection, server.is_some())));
    shared.begin(&terms, now, &stream);
    shared.respondent.note_request(terms.lease, now, &[b"(its head is being read)"]);
    let (worker, lease, epoch) = (&shared.id, terms.lease, shared.respondent.epoch());
    tracing::debug!(%worker, %lease, %epoch, event = %Event::LeaseClaimed, "lease is claimed");
    let no = || AtomicBool::new(false);
    let (requests, resets, is_last, unflushed) = (AtomicU32::new(0), no(), no(), no());
    Some(Claimed { held, stream, peer, server, entrance, requests, resets, is_last, unflushed })
}

/// Serves it until it is to go back, or to its end.
async fn serve<S: Handler>(shared: &Arc<WorkerState>, service: &Arc<Mutex<S>>, lent: Claimed) {
    if shared.is_inetd() {
        return inetd::serve(shared, lent).await;
    }
    let lent = Arc::new(lent);
    let turn = Arc::new(Transaction::default());
    turn.begin(lent.held, false);
    // Whether a response was amid its way at the end: said before its body is dropped, which looks like the end of that.
    let mut amid;
    let ending = turn.clone();
    let end = {
        let mut cut = pin!(turn.clone().cut(lent.stream.clone()));
        let mut before = Bytes::new();
        loop {
            let idle = Arc::new(AtomicBool::new(false));
            let known = lent.requests.load(Ordering::Relaxed);
            let (stream, turn) = (lent.stream.clone(), turn.clone());
            let io = HandoffIo {
                lent: lent.clone(),
                shared: shared.clone(),
                turn: turn.clone(),
                before,
                known,
                idle: idle.clone(),
            };
            let (shared, service) = (shared.clone(), service.clone());
            let front = shared.front.clone();
            let answerer = Answerer { shared, service, turn, stream, lent: Some(lent.clone()) };
            let mut connection = http1::Builder::new()
                .half_close(true)
                .max_buf_size(front.head_bytes)
                .serve_connection(TokioIo::new(io), answerer);
            let served = std::future::poll_fn(|task| match Pin::new(&mut connection).poll(task) {
                Poll::Ready(served) => Poll::Ready(Some(served.map_err(End::Early))),
                Poll::Pending if idle.load(Ordering::Relaxed) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let served = tokio::select! {
                biased; // most are through at once, and need no timer
                served = served => served,
                cut = &mut cut => Some(Err(End::AbortCause(cut))),
                () = lent.late(known, front.head_timeout) => Some(Err(End::AbortCause(AbortCause::Head))),
            };
            amid = ending.is_asked() || lent.unflushed.load(Ordering::Relaxed);
            match served {
                Some(Ok(())) => break Ok(false),
                Some(Err(end)) => break Err(end),
                None => before = connection.into_parts().read_buf,
            }
            if before.is_empty() {
                break Ok(true);
            }
        }
    };
    finish(shared, &turn, lent, end, amid).await;
}

/// Gives the lease back, and with it the connection or its end. `amid`: a request was in hand, or not all of a response was written.
async fn finish(shared: &Arc<WorkerState>, turn: &Transaction, lent: Arc<Claimed>, end: Result<bool, End>, amid: bool) {
    if let Err(End::Early(error)) = &end {
        tracing::debug!(worker = %shared.id, %error, "connection ended early");
    }
    // Taken before the lease is given back, and so before anybody may want to recycle this worker.
    let parting = shared.parting.clone().read_owned().await;
    shared.handled();
    if let Some(builtin) = &shared.builtin {
        builtin.end().await;
    }
    let (worker, lease, epoch) = (&shared.id, lent.held.lease, shared.respondent.epoch());
    let asked = lent.requests.load(Ordering::Relaxed) > 0;
    let kept = matches!(end, Ok(true));
    // Amid a response it must not look whole; before and after, there is nothing that could.
    let whole = end.is_ok() || !amid && !matches!(&end, Err(End::AbortCause(AbortCause::Gone)));
    if let Err(end) = &end {
        if asked && !whole {
            turn.fail();
        }
        if asked && end.is_client_gone() {
            let event = Event::RequestCancelled;
            tracing::info!(%worker, %lease, %epoch, %event, "the client has gone: its request is cancelled");
        } else if asked && matches!(end, End::AbortCause(AbortCause::Deadline)) {
            let event = Event::RequestDeadline;
            tracing::warn!(%worker, %lease, %epoch, %event, "request_timeout passed within the response: it is cut");
        } else if matches!(end, End::AbortCause(AbortCause::Head)) {
            let _ =
                may_write(shared, turn, lease).then(|| lent.stream.0.try_write(&ProblemResponse::late_head().raw()));
        }
    }
    // Only who holds the lease may end the connection for all.
    if may_write(shared, turn, lease) {
        if whole {
            lent.let_resets(false);
            if !kept {
                let _ = shutdown(lent.stream.0.as_fd().as_raw_fd(), Shutdown::Write); // the client has gone
            }
        } else {
            reset(&*lent.stream.0);
        }
    }
    turn.leave_floor();
    let took = lent.held.since.elapsed();
    tracing::debug!(%worker, %lease, %epoch, status = turn.status(), took_ms = took.as_millis() as u64,
        event = %Event::RequestAnswered, "request is over");
    // Of a client that keeps its word nothing comes any more that a close would answer with a reset.
    let is_last = end.is_ok() && turn.has_received() && lent.is_last.load(Ordering::Relaxed);
    let is_through = is_last && lent.has_no_more();
    let stream = if kept {
        shared.respondent.keep_connection(lease);
        drop(lent); // before anybody else waits on it
        None
    } else {
        Some(lent.stream.clone()).filter(|_| !is_through)
    };
    match asked {
        true => shared.finish(lease, took, turn.has_failed()),
        false => shared.give_back(lease),
    }
    if let Some(stream) = stream.filter(|_| whole) {
        shared.drain(stream, parting);
    }
}

/// Whether the lease is still this worker's, for good: the dispatcher ends none that has begun to respond.
fn may_write(shared: &WorkerState, turn: &Transaction, lease: LeaseId) -> bool {
    if !turn.is_responding() && shared.respondent.respond(lease) {
        turn.respond(StatusCode::BAD_REQUEST); // until a request has another one
    }
    turn.is_responding()
}

impl Claimed {
    /// Has a close reset the connection, or not: also the one by the death of this process, should it be the last that
    /// holds it.
    fn let_resets(&self, on: bool) {
        if self.resets.swap(on, Ordering::Relaxed) != on {
            let _ = set_reset_on_close(&self.stream, on); // not a socket any more: found by the next call
        }
    }

    /// Returns when the request after the first `known` has not come within `bound`. hyper's own bound would need a timer
    /// for each request, also for those whose head has come when they do.
    async fn late(&self, known: u32, bound: Duration) {
        sleep(bound).await;
        if self.requests.load(Ordering::Relaxed) > known {
            std::future::pending().await
        }
    }

    /// Whether there is nothing to read.
    fn has_no_more(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.0.as_fd().as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::EAGAIN))
    }

    /// Answers one of its requests.
    pub async fn answer<S: Handler>(
        self: Arc<Self>,
        answerer: Answerer<S>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, BoxError> {
        let Answerer { shared, turn, .. } = &answerer;
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 1 {
            // The one before is over, without anybody having been told.
            if let Some(builtin) = &shared.builtin {
                builtin.end().await;
            }
            shared.served_another();
        }
        if request.version() >= Version::HTTP_11 {
            turn.allow_probe();
        }
        self.is_last.store(is_last(&request), Ordering::Relaxed);
        let wants_log = self.entrance.access_log.then(|| format!("{} {}", request.method(), request.uri()));
        let since = Instant::now();
        let (hosts, listens_on) = (&self.entrance.allowed_hosts, self.entrance.listens_on);
        let checked = net::check_request(&request, hosts, listens_on, shared.front.max_body).and_then(|(_, target)| {
            let unknown =
                || ProblemResponse::not_started(StatusCode::NOT_FOUND, "there is no lease to be had on this listener");
            target.parse().ok().filter(|_| request.uri().path() != net::LEASE_PATH).ok_or_else(unknown)
        });
        let mut response = match checked {
            Ok(target) => answerer.run(request, target, self.held, (self.peer, self.server)).await?,
            Err(problem) => {
                turn.ask(hyper::body::Body::is_end_stream(request.body()));
                turn.let_body_go();
                if !may_write(shared, turn, self.held.lease) {
                    return Err("the dispatcher has ended the lease".into());
                }
                turn.respond(problem.status);
                turn.send();
                problem.response().map(boxed)
            }
        };
        // Whoever leaves a body unread cannot tell where the next request would begin.
        if turn.is_unread() || number == PIPELINED {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(line) = wants_log {
            let client = self.peer.map_or("unix".into(), |address| address.to_string());
            let wait_ms = format!("{:.1}", since.elapsed().as_secs_f64() * 1e3);
            tracing::info!(client, status = response.status().as_u16(), worker = %shared.id, lease = %self.held.lease,
                wait_ms, event = %Event::RequestLogged, "{line}");
        }
        Ok(response)
    }
}

/// Whether a client sends no request after this one (RFC 9112, section 9.3).
fn is_last<B>(request: &Request<B>) -> bool {
    let says = |wanted: &str| {
        let values = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(wanted))
    };
    says("close") || request.version() < Version::HTTP_11 && !says("keep-alive")
}

/// The connection as hyper sees it.
struct HandoffIo {
    lent: Arc<Claimed>,
    shared: Arc<WorkerState>,
    turn: Arc<Transaction>,
    /// What was read with the request before.
    before: Bytes,
    /// Requests before the one that `before` is the beginning of.
    known: u32,
    /// Told when a request is answered and hyper wants the next one.
    idle: Arc<AtomicBool>,
}

impl AsyncRead for HandoffIo {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let length = self.before.len().min(buffer.remaining());
            buffer.put_slice(&self.before[..length]);
            self.before.advance(length);
            return Poll::Ready(Ok(()));
        }
        if self.turn.has_sent() && self.lent.requests.load(Ordering::Relaxed) > self.known {
            if !self.turn.has_received() {
                return Poll::Ready(Ok(())); // nobody reads the rest of this body: as if it had ended
            }
            if !self.lent.unflushed.load(Ordering::Relaxed) {
                self.idle.store(true, Ordering::Relaxed);
            }
            return Poll::Pending; // until it is flushed, which polls again
        }
        let mut stream = self.lent.stream.clone();
        Pin::new(&mut stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for HandoffIo {
    fn poll_write(self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lent.unflushed.store(true, Ordering::Relaxed);
        // hyper refuses by itself what is no request.
        let unasked = !self.turn.is_responding() && !self.turn.is_asked();
        if unasked && !may_write(&self.shared, &self.turn, self.lent.held.lease) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // What is written whole at once is never found unfinished.
        let last = self.turn.has_sent();
        if !last {
            self.lent.let_resets(true);
        }
        let mut stream = self.lent.stream.clone();
        let written = ready!(Pin::new(&mut stream).poll_write_vectored(task, bytes))?;
        if last && written < bytes.iter().map(|part| part.len()).sum() {
            self.lent.let_resets(true);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lent.stream.clone();
        ready!(Pin::new(&mut stream).poll_flush(task))?;
        self.lent.unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
