//! One request of a connection, served by hyper: its head is read and checked first, hyper gets it and nothing after it,
//! and writes no byte before the service has it.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use bytes::BytesMut;
use http::header::CONNECTION;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::handler::{Body, BoxError, Session};
use super::served_connection::ServedConnection;
use super::service::ServiceEnd;
use super::transaction::{
    EndCause, InputStep, LeasePhase, ReceivedHead, RequestPhase, ResponsePhase, Transaction, TransactionEvent,
};
use crate::clock;
use crate::net::{self, NoRequest, ProblemResponse, RequestInput, discard_input};

/// What the head of a request says.
pub(super) fn request_head(request: &Request<Incoming>) -> ReceivedHead {
    let has_option = |wanted: &str| {
        let values = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(wanted))
    };
    let is_http11 = request.version() >= Version::HTTP_11;
    // RFC 9112, section 9.3.
    let is_last = has_option("close") || !is_http11 && !has_option("keep-alive");
    ReceivedHead { has_body: !request.body().is_end_stream(), is_http11, is_last }
}

/// Reads the head of the next request, of at most `limit` bytes. `received` was read with the request before.
pub(super) async fn read_head(
    connection: &ServedConnection,
    received: BytesMut,
    limit: usize,
) -> Result<RequestInput, ServiceEnd> {
    until_head_timeout(connection, RequestInput::read(&connection.stream, received, limit)).await
}

/// Waits for the head of a request until its bound.
pub(super) async fn until_head_timeout<T>(
    connection: &ServedConnection,
    read: impl Future<Output = Result<T, NoRequest>>,
) -> Result<T, ServiceEnd> {
    let bound = connection.transaction.get(Transaction::head_by).since(clock::now());
    match net::until(Instant::now() + bound, with_reset_on_close(connection, read)).await {
        Some(Ok(read)) => Ok(read),
        Some(Err(NoRequest::Closed)) => Err(ServiceEnd::By(EndCause::Closed)),
        Some(Err(NoRequest::Rejected(problem))) => Err(ServiceEnd::BadHead(problem)),
        None => Err(ServiceEnd::By(EndCause::LateHead)),
    }
}

/// Runs a step of the connection. Where it waits, a close resets the connection as long as that is needed.
pub(super) async fn with_reset_on_close<T>(connection: &ServedConnection, step: impl Future<Output = T>) -> T {
    let mut step = pin!(step);
    poll_fn(|task| {
        let polled = step.as_mut().poll(task);
        if polled.is_pending() {
            connection.update_reset_on_close();
        }
        polled
    })
    .await
}

/// Has hyper serve the request. Returns what was received after it, if the connection may have another one.
pub(super) async fn serve_request<R>(
    connection: &Arc<ServedConnection>,
    input: RequestInput,
    head_bytes: usize,
    respond: impl Fn(Request<Incoming>) -> R,
) -> Result<BytesMut, ServiceEnd>
where
    R: Future<Output = Result<Response<Body>, BoxError>>,
{
    let transaction = &connection.transaction;
    let io = TokioIo::new(RequestIo { connection: connection.clone(), input, session: SessionGuard(None) });
    let mut http = http1::Builder::new()
        .half_close(true)
        .max_buf_size(head_bytes)
        .serve_connection(io, service_fn(respond))
        .with_upgrades();
    let served = poll_fn(|task| match Pin::new(&mut http).poll(task) {
        Poll::Ready(served) => Poll::Ready(Some(served)),
        Poll::Pending if transaction.get(Transaction::request) == RequestPhase::None => Poll::Ready(None),
        Poll::Pending => {
            connection.update_reset_on_close();
            Poll::Pending
        }
    });
    let end = tokio::select! {
        biased; // no timers for a request that is done at once
        served = served => served.map(|served| match served {
            Ok(()) => match transaction.session() {
                Some(session) => ServiceEnd::Switched(session),
                None => ServiceEnd::By(EndCause::Closed),
            },
            Err(error) if error.is_parse() && transaction.get(Transaction::request) == RequestPhase::Head => {
                ServiceEnd::BadHead(ProblemResponse::unparsable(&error))
            }
            Err(error) => ServiceEnd::Http(error),
        }),
        cause = connection.aborted() => Some(ServiceEnd::By(cause)),
    };
    match end {
        None => match http.into_parts() {
            Some(parts) => Ok(parts.io.into_inner().input.into_next()),
            None => Err(ServiceEnd::By(EndCause::Closed)), // not without a session
        },
        Some(end @ ServiceEnd::Switched(_)) => Err(end),
        Some(end) => {
            // Before hyper's connection is dropped: that drops the response body, which looks like the end of the response.
            transaction.on(TransactionEvent::Ended(end.cause()));
            Err(end)
        }
    }
}

struct RequestIo {
    connection: Arc<ServedConnection>,
    input: RequestInput,
    /// Set once the response that starts it is written.
    session: SessionGuard,
}

/// Ends a session when its handler drops the connection.
struct SessionGuard(Option<Arc<Session>>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.iter().for_each(|session| session.end());
    }
}

impl AsyncRead for RequestIo {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { connection, input, session } = &mut *self;
        if let Some(session) = &session.0 {
            let before = buffer.filled().len();
            ready!(input.poll_read_rest(&connection.stream, task, buffer))?;
            session.count_received(buffer.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        match connection.transaction.step(Transaction::next_input) {
            InputStep::End => Poll::Ready(Ok(())),
            // Until the response is written, after which hyper polls again.
            InputStep::Wait => Poll::Pending,
            InputStep::Deliver if input.is_delivered() => Poll::Pending,
            InputStep::Deliver => input.poll_read(&connection.stream, task, buffer),
        }
    }
}

impl AsyncWrite for RequestIo {
    fn poll_write(self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let connection = &self.connection;
        if let Some(session) = &self.session.0 {
            let written = ready!(Pin::new(&mut connection.stream.clone()).poll_write_vectored(task, bytes))?;
            session.count_sent(written);
            return Poll::Ready(Ok(written));
        }
        let (request, response) = connection.transaction.step(|transaction| {
            transaction.on(TransactionEvent::Written);
            (transaction.request(), transaction.response())
        });
        // hyper rejects a malformed request by itself, without calling the service: the worker sends a response that
        // says more.
        if request == RequestPhase::Head {
            return Poll::Ready(Ok(bytes.iter().map(|part| part.len()).sum()));
        }
        if response != ResponsePhase::Complete {
            connection.update_reset_on_close();
        }
        let mut stream = connection.stream.clone();
        let written = Pin::new(&mut stream).poll_write_vectored(task, bytes);
        if written.is_pending() && request == RequestPhase::Abandoned {
            discard_input(&connection.stream, task);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let Self { connection, session, .. } = &mut *self;
        let mut stream = connection.stream.clone();
        ready!(Pin::new(&mut stream).poll_flush(task))?;
        if session.0.is_some() {
            return Poll::Ready(Ok(()));
        }
        let (response, lease) = connection.transaction.step(|transaction| {
            transaction.on(TransactionEvent::Flushed);
            (transaction.response(), transaction.lease_phase())
        });
        if lease == LeasePhase::Upgraded && response == ResponsePhase::Complete {
            session.0 = connection.transaction.session();
        }
        if response == ResponsePhase::Complete {
            connection.update_reset_on_close(); // the kernel has all of it
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the sending direction of a session. Otherwise it does nothing: the end of the connection is decided after the
    /// lease.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        if self.session.0.is_some() {
            shutdown(self.connection.stream.0.as_fd().as_raw_fd(), Shutdown::Write)?;
        }
        Poll::Ready(Ok(()))
    }
}
