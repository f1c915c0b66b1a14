//! A connection whose client speaks FastCGI: one request for each lease, served as one of HTTP.
//!
//! Nothing is read after the end of the response, so that the dispatcher finds the next request in the socket. A response
//! that is cut has no FCGI_END_REQUEST.

mod input;
mod records;
mod response;

use std::pin::pin;
use std::sync::Arc;

use http::header::{HeaderValue, TRANSFER_ENCODING};
use tokio::time::sleep;

use self::input::{FastcgiBody, FastcgiInput};
use self::records::{FastcgiHead, RecordReader};
use self::response::ResponseWriter;
use super::checked_request;
use super::request_io::{until_head_timeout, with_reset_on_close};
use super::served_connection::DISCONNECT_WATCH_DELAY;
use super::service::{HandlerService, RequestRunner, ServiceEnd};
use super::transaction::{EndCause, ReceivedHead, TransactionEvent};
use crate::net::{FastcgiRequest, WireProtocol};

/// Serves the request that has begun to arrive, as the dispatcher has seen: `request_id` is 0 if it has seen none.
pub(super) async fn serve<S: HandlerService>(runner: Arc<RequestRunner<S>>, request_id: u16) -> ServiceEnd {
    let RequestRunner { state, connection, .. } = &*runner;
    let mut reader = RecordReader::new(connection.stream.clone(), request_id, state.front.connections);
    let read = until_head_timeout(connection, reader.read_head(state.front.head_bytes)).await;
    connection.transaction.set_wire(WireProtocol::Fastcgi(reader.request_id()));
    let (request, keeps_connection, first) = match read {
        Ok(FastcgiHead::Request { request, keeps_connection, first }) => (request, keeps_connection, first),
        Ok(FastcgiHead::Management) => return reply(&runner, reader, EndCause::Idle).await,
        Ok(FastcgiHead::UnknownRole) => return reply(&runner, reader, EndCause::Closed).await,
        Err(end) => return end,
    };
    let (request_id, linger_timeout) = (reader.request_id(), state.front.linger_timeout);
    let has_body = request.length.is_some_and(|length| length > 0) || first.is_some();
    let input = FastcgiInput::new(reader, !has_body);
    connection.on(TransactionEvent::HeadRead(ReceivedHead { has_body, is_http11: false, is_last: !keeps_connection }));
    let end = {
        let exchange = async {
            let FastcgiRequest { mut request, origin, length } = *request;
            if length.is_none() && has_body {
                // What handlers know such a body by.
                request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            let method = request.method().clone();
            let request = request.map(|()| FastcgiBody::new(input.clone(), length, first));
            let responded = checked_request::respond(&runner, request, Some(origin)).await;
            let Ok(checked) = responded else { return Err(ServiceEnd::By(EndCause::HandlerFault)) };
            let writer = ResponseWriter { connection, input: &input, request_id, linger_timeout };
            writer.send_response(&method, checked.response).await
        };
        let mut exchange = pin!(with_reset_on_close(connection, exchange));
        let aborted = async {
            sleep(DISCONNECT_WATCH_DELAY).await;
            input.aborted().await;
        };
        let end = tokio::select! {
            biased; // no timers for a request that is done at once
            sent = &mut exchange => sent,
            cause = connection.aborted() => Err(ServiceEnd::By(cause)),
            () = aborted => Err(ServiceEnd::By(EndCause::ClientGone)),
        };
        if let Err(end) = &end {
            // Before the response body is dropped, which looks like the end of the response.
            connection.on(TransactionEvent::Ended(end.cause()));
        }
        end
    };
    let is_next_unread = input.close();
    match end {
        Ok(is_read) => {
            connection.on(TransactionEvent::NextWanted);
            let is_kept = keeps_connection && is_read && is_next_unread;
            ServiceEnd::By(if is_kept { EndCause::Idle } else { EndCause::Closed })
        }
        Err(end) => end,
    }
}

/// Sends the replies to records without a request.
async fn reply<S: HandlerService>(runner: &RequestRunner<S>, mut reader: RecordReader, end: EndCause) -> ServiceEnd {
    let RequestRunner { state, connection, .. } = runner;
    let mut replies = reader.take_replies();
    if replies.is_empty() || !connection.may_respond(&state.slot) {
        return ServiceEnd::By(end);
    }
    let input = FastcgiInput::new(reader, true);
    let linger_timeout = state.front.linger_timeout;
    let writer = ResponseWriter { connection, input: &input, request_id: 0, linger_timeout };
    tokio::select! {
        biased;
        sent = writer.send(&mut replies, &[]) => sent.err().unwrap_or(ServiceEnd::By(end)),
        cause = connection.aborted() => ServiceEnd::By(cause),
    }
}
