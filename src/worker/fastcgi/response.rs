//! The response to a FastCGI request: `Status` and headers as those of a CGI program, then the body, in records of the
//! stream STDOUT.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::AsyncWrite;

use super::super::handler::Body;
use super::super::served_connection::ServedConnection;
use super::super::service::ServiceEnd;
use super::super::transaction::{EndCause, RequestPhase, ResponsePhase, Transaction, TransactionEvent};
use super::input::FastcgiInput;
use crate::net::fastcgi::{CONTENT_MAX, FastcgiStream};
use crate::net::{encode_cgi_head, encode_fastcgi_end};

/// A longer piece of the body is not copied behind its header.
const COPIED_MAX: usize = 4096;
/// What is copied is sent when it is longer.
const BUFFERED_MAX: usize = 16 << 10;

/// Writes to the client of one request.
pub(super) struct ResponseWriter<'a> {
    pub connection: &'a ServedConnection,
    pub input: &'a FastcgiInput,
    pub request_id: u16,
    /// How long a client that sends nothing more may owe the end of a body.
    pub linger_timeout: Duration,
}

impl ResponseWriter<'_> {
    /// Sends the whole response to a request with this method. Returns whether all of the request had been read before its
    /// end.
    ///
    /// # Errors
    /// The response cannot be sent whole. Its end has not been sent.
    pub(super) async fn send_response(&self, method: &Method, response: Response<Body>) -> Result<bool, ServiceEnd> {
        let (mut head, mut body) = response.into_parts();
        let has_no_body = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match body.size_hint().exact() {
            _ if head.status == StatusCode::NO_CONTENT => drop(head.headers.remove(CONTENT_LENGTH)),
            Some(length @ 1..) if !has_no_body && !head.headers.contains_key(CONTENT_LENGTH) => {
                head.headers.insert(CONTENT_LENGTH, length.into());
            }
            Some(0) if !has_no_body && method != Method::HEAD && !head.headers.contains_key(CONTENT_LENGTH) => {
                head.headers.insert(CONTENT_LENGTH, 0.into());
            }
            _ => {}
        }
        let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let (mut text, mut out) = (BytesMut::new(), self.input.take_replies());
        encode_cgi_head(&head, &mut text);
        FastcgiStream::Stdout.encode(self.request_id, &text, &mut out);
        if !has_no_body && method != Method::HEAD {
            self.send_body(&mut body, announced, &mut out).await?;
        }
        drop(body);
        let is_complete = self.connection.transaction.get(Transaction::request) == RequestPhase::Complete;
        let is_read = is_complete && self.input.finish(self.linger_timeout).await;
        out.unsplit(self.input.take_replies());
        encode_fastcgi_end(self.request_id, &mut out);
        self.send(&mut out, &[]).await?;
        self.connection.update_reset_on_close(); // the kernel has all of it
        Ok(is_read)
    }

    /// Sends the body, but for its last bytes, which it leaves in `out`.
    async fn send_body(&self, body: &mut Body, announced: Option<u64>, out: &mut BytesMut) -> Result<(), ServiceEnd> {
        let mut left = announced;
        while left != Some(0) {
            let polled = poll_fn(|task| Poll::Ready(Pin::new(&mut *body).poll_frame(task))).await;
            let frame = match polled {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    self.send(out, &[]).await?; // what there is, before the wait
                    body.frame().await
                }
            };
            let Some(frame) = frame else { break };
            // An error is logged and counted where it occurs.
            let Ok(frame) = frame else { return Err(ServiceEnd::By(EndCause::HandlerFault)) };
            let Ok(mut data) = frame.into_data() else { continue }; // trailers have no place here
            if let Some(left) = &mut left {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            self.send_data(data, out).await?;
        }
        match left {
            Some(1..) => {
                tracing::warn!(lease = self.connection.lease().map(tracing::field::display),
                    event = %crate::log::Event::ResponseCut, "the response is shorter than its Content-Length: it is cut");
                Err(ServiceEnd::By(EndCause::HandlerFault))
            }
            Some(0) | None => Ok(()),
        }
    }

    async fn send_data(&self, mut data: Bytes, out: &mut BytesMut) -> Result<(), ServiceEnd> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CONTENT_MAX));
            if piece.len() <= COPIED_MAX {
                FastcgiStream::Stdout.encode(self.request_id, &piece, out);
                if out.len() > BUFFERED_MAX {
                    self.send(out, &[]).await?;
                }
            } else {
                out.extend_from_slice(&FastcgiStream::Stdout.header(self.request_id, piece.len() as u16));
                self.send(out, &piece).await?;
            }
        }
        Ok(())
    }

    /// Sends everything in `out`, then `data`.
    pub(super) async fn send(&self, out: &mut BytesMut, mut data: &[u8]) -> Result<(), ServiceEnd> {
        let (connection, transaction) = (self.connection, &self.connection.transaction);
        if out.is_empty() && data.is_empty() {
            return Ok(());
        }
        connection.on(TransactionEvent::Written);
        if transaction.get(Transaction::response) != ResponsePhase::Complete {
            connection.update_reset_on_close();
        }
        let mut stream = connection.stream.clone();
        let sent = poll_fn(|task| {
            while !out.is_empty() || !data.is_empty() {
                let parts = [IoSlice::new(out), IoSlice::new(data)];
                match Pin::new(&mut stream).poll_write_vectored(task, &parts) {
                    Poll::Ready(Ok(written)) => {
                        let first = written.min(out.len());
                        out.advance(first);
                        data = &data[written - first..];
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        connection.update_reset_on_close();
                        // The client may read nothing before it has sent everything.
                        if transaction.get(Transaction::request) == RequestPhase::Abandoned {
                            self.input.discard(task);
                        }
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(()))
        });
        match sent.await {
            Ok(()) => {
                connection.on(TransactionEvent::Flushed);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(ServiceEnd::By(EndCause::ClientGone))
            }
            Err(_) => Err(ServiceEnd::By(EndCause::Broken)),
        }
    }
}
