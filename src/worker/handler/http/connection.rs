//! A connection to the server, and one exchange on it.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::address::PrivateAddress;
use super::delivery::may_reuse;
use super::request_body::{AttemptBody, SharedBody};
use crate::net::{SharedStream, SocketStream};
use crate::sync;

/// A response whose head has not arrived.
pub(super) type PendingResponse = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

/// A connection. It is closed when this is dropped.
pub(super) struct ServerConnection {
    sender: SendRequest<AttemptBody>,
    stream: Arc<SocketStream>,
    /// The request that is being written.
    current: Arc<std::sync::Mutex<Option<SharedBody>>>,
    task: JoinHandle<()>,
    idle_since: Instant,
}

impl ServerConnection {
    pub(super) async fn open(address: &PrivateAddress) -> io::Result<Self> {
        let stream = Arc::new(address.connect().await?);
        let current = Arc::new(std::sync::Mutex::new(None));
        let io =
            ServerIo { stream: SharedStream(stream.clone()), current: current.clone(), is_broken: false, reader: None };
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        // An error shows in the response.
        let task = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Self { sender, stream, current, task, idle_since: Instant::now() })
    }

    /// Whether it can carry another request.
    pub(super) async fn is_reusable(&mut self) -> bool {
        let is_readable = is_readable(&self.stream);
        may_reuse(self.idle_since.into_std(), Instant::now().into_std(), is_readable)
            && self.sender.ready().await.is_ok()
    }

    /// Sends a request.
    pub(super) fn send(&mut self, head: Request<()>, body: &SharedBody) -> PendingResponse {
        *sync::lock(&self.current) = Some(body.clone());
        let mut request = head.map(|()| body.attempt());
        let shared = body.clone();
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                shared.open_gate();
            }
        });
        Box::pin(self.sender.send_request(request))
    }

    /// The exchange is over. Whether the connection may carry another one.
    pub(super) fn set_idle(&mut self) -> bool {
        *sync::lock(&self.current) = None;
        self.idle_since = Instant::now();
        !self.sender.is_closed()
    }
}

impl std::fmt::Debug for ServerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConnection").field("stream", &self.stream).finish()
    }
}

impl Drop for ServerConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What hyper reads and writes. A server may respond and close before it has read the whole request: the rest of the
/// request is then discarded, and the response is read.
struct ServerIo {
    stream: SharedStream,
    current: Arc<std::sync::Mutex<Option<SharedBody>>>,
    is_broken: bool,
    /// Waits for the first byte of a request.
    reader: Option<Waker>,
}

impl AsyncRead for ServerIo {
    /// Reads nothing before a byte of the request is written: it would not be the response to it.
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.is_broken && !sync::lock(&self.current).as_ref().is_some_and(SharedBody::is_written) {
            self.reader = Some(task.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

/// Whether the server has closed the connection, or written what was not read.
fn is_readable(stream: &SocketStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_fd().as_raw_fd(), &mut [0], flags) != Err(Errno::EAGAIN)
}

/// Whether the server has not caused an error: there will be no response to what is not written.
fn is_local(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl AsyncWrite for ServerIo {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bytes.iter().map(|part| part.len()).sum();
        if self.is_broken {
            return Poll::Ready(Ok(all));
        }
        let is_first = sync::lock(&self.current).as_ref().is_some_and(|body| !body.is_written());
        if is_first && is_readable(&self.stream.0) {
            return Poll::Ready(Err(io::Error::other("the server has written without a request, or closed it")));
        }
        match Pin::new(&mut self.stream).poll_write_vectored(task, bytes) {
            Poll::Ready(Ok(written)) => {
                sync::lock(&self.current).iter().for_each(SharedBody::set_written);
                self.reader.take().into_iter().for_each(Waker::wake);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) if is_local(&error) => Poll::Ready(Err(error)),
            Poll::Ready(Err(_)) => {
                self.is_broken = true;
                self.reader.take().into_iter().for_each(Waker::wake);
                Poll::Ready(Ok(all))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// In a session the server learns that its client sends no more. hyper shuts down what it closes next.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = shutdown(self.stream.0.as_fd().as_raw_fd(), Shutdown::Write); // fails if the server has gone
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use http::header::HOST;

    use super::super::super::body;
    use super::super::super::limited_body::LimitedBody;
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    fn request() -> (Request<()>, SharedBody) {
        let head = Request::get("/").header(HOST, "localhost").body(()).unwrap();
        (head, SharedBody::new(LimitedBody::stored(body::empty()), false))
    }

    /// Responds to one request.
    fn respond(mut server: TcpStream) -> TcpStream {
        let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            let length = server.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..length]);
        }
        server.write_all(RESPONSE).unwrap();
        server
    }

    #[tokio::test]
    async fn bytes_that_arrive_just_before_a_request_are_not_its_response() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = PrivateAddress::Tcp { port, _reserved: listener.try_clone().unwrap().into() };
        let mut connection = ServerConnection::open(&address).await.unwrap();
        let (server, _) = listener.accept().unwrap();
        let server = std::thread::spawn(|| respond(server));
        let (head, body) = request();
        assert_eq!(connection.send(head, &body).await.unwrap().status(), StatusCode::OK);
        assert!(body.is_written());
        connection.set_idle();
        assert!(connection.is_reusable().await);
        // The task of the connection runs at the next await.
        let (head, body) = request();
        let pending = connection.send(head, &body);
        server.join().unwrap().write_all(RESPONSE).unwrap();
        assert!(pending.await.is_err());
        assert!(!body.is_written(), "a part of the request was sent");
    }
}
