//! One connection for one request. It counts the bytes written, and a failed write does not hide a response that has
//! already arrived.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::address::Address;
use super::error::FailureCause;

/// The largest response head, in bytes.
const HEAD_MAX: usize = 64 * 1024;

trait ByteStream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> ByteStream for S {}

/// A connected stream socket.
pub(super) struct ClientSocket {
    stream: Pin<Box<dyn ByteStream>>,
    written: Arc<AtomicU64>,
    write_failed: bool,
}

/// Connects to `to` within `timeout`, which covers all addresses of a host name.
pub(super) async fn connect(to: &Address, timeout: Duration) -> Result<ClientSocket, FailureCause> {
    let connecting = async {
        Ok::<Pin<Box<dyn ByteStream>>, io::Error>(match to {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::pin(stream)
            }
            Address::Unix(path) => Box::pin(UnixStream::connect(path).await?),
        })
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(stream)) => Ok(ClientSocket { stream, written: Arc::default(), write_failed: false }),
        Ok(Err(error)) => Err(FailureCause::Connect { to: to.clone(), error }),
        Err(_) => Err(FailureCause::ConnectTimeout { to: to.clone(), after: timeout }),
    }
}

impl ClientSocket {
    /// Counts a write. If the peer responds early and closes, further writes fail while its response is still unread in
    /// the socket. Such a write stays pending, and the result of reading ends the request.
    fn after_write(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(bytes)) => {
                self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(error)) if is_disconnect(error.kind()) => {
                self.write_failed = true;
                // The read side may have been polled before the response arrived.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        result
    }
}

fn is_disconnect(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted)
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.stream.as_mut().poll_read(cx, buf))?;
        // The failed write has consumed the pending error of the socket. Without this check the reset would read as
        // EOF, and a truncated response of unknown length would look complete.
        if self.write_failed && buf.filled().len() == before && buf.remaining() > 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let result = self.stream.as_mut().poll_write(cx, buf);
        self.after_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let result = self.stream.as_mut().poll_write_vectored(cx, bufs);
        self.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

/// The HTTP connection. The call and the response body poll it; it is not a separate task, so dropping either closes
/// the connection.
type ConnectionFuture = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A request without a response.
pub(super) struct SendError {
    /// Whether the kernel accepted the first byte of the request.
    pub(super) is_started: bool,
    pub(super) error: hyper::Error,
}

/// Sends `request` as the only one on this connection and waits for the response head.
pub(super) async fn send<B>(socket: ClientSocket, request: Request<B>) -> Result<Response<IncomingBody>, SendError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let written = socket.written.clone();
    let failed = |error| SendError { is_started: written.load(Ordering::Relaxed) > 0, error };
    let handshake = http1::Builder::new().max_header_size(HEAD_MAX).handshake(TokioIo::new(socket));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let mut driver = ConnectionDriver { future: Some(Box::pin(connection)), error: None };
    let mut response = std::pin::pin!(sender.send_request(request));
    let response = std::future::poll_fn(|cx| {
        driver.poll(cx);
        response.as_mut().poll(cx)
    });
    match response.await {
        Ok(response) => Ok(response.map(|incoming| IncomingBody { incoming, driver })),
        // The error of the connection is more precise than the "canceled" that follows from it.
        Err(error) => Err(failed(driver.error.unwrap_or(error))),
    }
}

struct ConnectionDriver {
    future: Option<ConnectionFuture>,
    error: Option<hyper::Error>,
}

impl ConnectionDriver {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(future) = &mut self.future
            && let Poll::Ready(end) = future.as_mut().poll(cx)
        {
            self.error = end.err();
            self.future = None;
        }
    }
}

/// The body of a response. Reading it also sends the rest of the request.
pub(super) struct IncomingBody {
    incoming: Incoming,
    driver: ConnectionDriver,
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.driver.poll(cx);
        Poll::Ready(match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Err(error)) => Some(Err(self.driver.error.take().unwrap_or(error))),
            frame => frame,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};

    /// A peer that responded and closed: it accepts `accepts` bytes, then writes fail, and only then its response can
    /// be read, followed by EOF.
    struct ClosingPeer {
        accepts: usize,
        failed: bool,
        response: &'static [u8],
    }

    impl AsyncRead for ClosingPeer {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.failed {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.response));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for ClosingPeer {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let bytes = buf.len().min(self.accepts);
            self.accepts -= bytes;
            self.failed = bytes == 0;
            Poll::Ready(if self.failed { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(bytes) })
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn send_to_closing_peer(
        accepts: usize,
        response: &'static [u8],
    ) -> Result<Response<IncomingBody>, SendError> {
        let stream = Box::pin(ClosingPeer { accepts, failed: false, response });
        send(ClientSocket { stream, written: Arc::default(), write_failed: false }, Request::new(Empty::<Bytes>::new()))
            .await
    }

    #[tokio::test]
    async fn failed_write_does_not_hide_the_response() {
        let response = send_to_closing_peer(3, b"HTTP/1.1 413 x\r\nContent-Length: 4\r\n\r\nlong").await.ok().unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "long");
    }

    #[tokio::test]
    async fn reset_after_a_failed_write_is_not_the_end_of_a_response() {
        let response = send_to_closing_peer(3, b"HTTP/1.1 200 x\r\n\r\nlong").await.ok().unwrap();
        assert!(response.into_body().collect().await.is_err());
    }

    #[tokio::test]
    async fn request_is_started_with_its_first_byte() {
        assert!(send_to_closing_peer(1, b"").await.err().unwrap().is_started);
        assert!(!send_to_closing_peer(0, b"").await.err().unwrap().is_started);
    }
}
