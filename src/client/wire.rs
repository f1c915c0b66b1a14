//! One connection for one request: it counts what was written, and a failed write does not hide an
//! answer that is already here.

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
use super::error::Cause;

/// The largest head of an answer, in bytes.
const HEAD_MAX: usize = 64 * 1024;

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

/// A connected stream socket.
pub(super) struct Wire {
    stream: Pin<Box<dyn Stream>>,
    written: Arc<AtomicU64>,
    broken: bool,
}

/// Connects to `to`; a name is tried at each of its addresses, all of them together within `within`.
pub(super) async fn connect(to: &Address, within: Duration) -> Result<Wire, Cause> {
    let connecting = async {
        Ok::<Pin<Box<dyn Stream>>, io::Error>(match to {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::pin(stream)
            }
            Address::Unix(path) => Box::pin(UnixStream::connect(path).await?),
        })
    };
    match tokio::time::timeout(within, connecting).await {
        Ok(Ok(stream)) => Ok(Wire { stream, written: Arc::default(), broken: false }),
        Ok(Err(error)) => Err(Cause::Connect { to: to.clone(), error }),
        Err(_) => Err(Cause::ConnectTimeout { to: to.clone(), after: within }),
    }
}

impl Wire {
    /// A peer that answers early and closes makes further writes fail while its answer lies unread in the
    /// socket: such a write is pending for ever, and reading decides how the conversation ends.
    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(bytes)) => {
                self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(error)) if gone(error.kind()) => {
                self.broken = true;
                // The reader may have been polled just before the answer came.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        result
    }
}

fn gone(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted)
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.stream.as_mut().poll_read(cx, buf))?;
        // The write took the socket's pending error with it. Without this the reset would read as a
        // regular end, and a cut answer of unknown length would look complete.
        if self.broken && buf.filled().len() == before && buf.remaining() > 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let result = self.stream.as_mut().poll_write(cx, buf);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let result = self.stream.as_mut().poll_write_vectored(cx, bufs);
        self.wrote(cx, result)
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

/// The HTTP conversation, polled by whoever waits for the answer: no task of its own, so dropping the
/// call or the answer closes the connection.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A request without an answer.
pub(super) struct Unanswered {
    /// Whether the operating system took a first byte of the request.
    pub(super) begun: bool,
    pub(super) error: hyper::Error,
}

/// Sends `request` as the only one of this connection and waits for the head of the answer.
pub(super) async fn send<B>(wire: Wire, request: Request<B>) -> Result<Response<Live>, Unanswered>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let written = wire.written.clone();
    let unanswered = |error| Unanswered { begun: written.load(Ordering::Relaxed) > 0, error };
    let handshake = http1::Builder::new().max_header_size(HEAD_MAX).handshake(TokioIo::new(wire));
    let (mut sender, connection) = handshake.await.map_err(unanswered)?;
    let mut conversation = Conversation { driver: Some(Box::pin(connection)), error: None };
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = std::future::poll_fn(|cx| {
        conversation.poll(cx);
        answer.as_mut().poll(cx)
    });
    match answer.await {
        Ok(answer) => Ok(answer.map(|incoming| Live { incoming, conversation })),
        // The conversation's own end says more than the "canceled" that follows from it.
        Err(error) => Err(unanswered(conversation.error.unwrap_or(error))),
    }
}

struct Conversation {
    driver: Option<Driver>,
    error: Option<hyper::Error>,
}

impl Conversation {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(end) = driver.as_mut().poll(cx)
        {
            self.error = end.err();
            self.driver = None;
        }
    }
}

/// The body of an answer; reading it also goes on sending the request, if that is not all out yet.
pub(super) struct Live {
    incoming: Incoming,
    conversation: Conversation,
}

impl Body for Live {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.conversation.poll(cx);
        Poll::Ready(match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Err(error)) => Some(Err(self.conversation.error.take().unwrap_or(error))),
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

    /// A peer that answered and left: it takes `takes` bytes, then writes fail, and only then its answer
    /// is seen, followed by the end.
    struct Gone {
        takes: usize,
        failed: bool,
        answer: &'static [u8],
    }

    impl AsyncRead for Gone {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.failed {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.answer));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Gone {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let bytes = buf.len().min(self.takes);
            self.takes -= bytes;
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

    async fn ask(takes: usize, answer: &'static [u8]) -> Result<Response<Live>, Unanswered> {
        let stream = Box::pin(Gone { takes, failed: false, answer });
        send(Wire { stream, written: Arc::default(), broken: false }, Request::new(Empty::<Bytes>::new())).await
    }

    #[tokio::test]
    async fn a_failed_write_hides_no_answer() {
        let answer = ask(3, b"HTTP/1.1 413 x\r\nContent-Length: 4\r\n\r\nlong").await.ok().unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "long");
    }

    #[tokio::test]
    async fn a_reset_is_no_end_of_an_answer() {
        let answer = ask(3, b"HTTP/1.1 200 x\r\n\r\nlong").await.ok().unwrap();
        assert!(answer.into_body().collect().await.is_err());
    }

    #[tokio::test]
    async fn a_request_is_begun_with_its_first_byte() {
        assert!(ask(1, b"").await.err().unwrap().begun);
        assert!(!ask(0, b"").await.err().unwrap().begun);
    }
}
