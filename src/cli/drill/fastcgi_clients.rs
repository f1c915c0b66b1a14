//! Clients of FastCGI listeners, as front servers: one request after the other on a connection, kept or not.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use bytes::BytesMut;

use super::connection::ClientStream;
use super::history::{AttemptOutcome, NotStartedReason};
use super::random::SplitMix64;
use super::raw_http::{self, ReceiveOutcome};
use super::traffic::{AttemptTiming, DrillRequest, MAX_ATTEMPTS, Traffic, complete_response};
use crate::ids::Monotonic;
use crate::net::fastcgi::{
    FastcgiRecord, FastcgiStream, ProtocolStatus, RESPONDER, RecordContent, RecordDecoder, encode_pair,
};

/// The most requests on one connection.
const MAX_REQUESTS: u64 = 8;

/// How long a client that aborts its request stays.
const BEFORE_LEAVING: Duration = Duration::from_millis(10);

/// One client, which retries what has certainly not started.
pub(super) fn run(traffic: &Traffic<'_>, mut random: SplitMix64) {
    let mut retry: Option<(DrillRequest, u32)> = None;
    while !traffic.is_stopped() {
        let listener = retry.as_ref().map(|(request, _)| request.listener);
        let choose = || traffic.choose_listener(&mut random, |listener| listener.is_fastcgi);
        let Some(listener) = listener.or_else(choose) else { return };
        let stream = traffic.address(listener).and_then(|address| address.connect(traffic.timeout).ok());
        let mut connection = FastcgiConnection { traffic, stream, previous_sent: None };
        for remaining in (0..=random.below(MAX_REQUESTS)).rev() {
            let new = || (traffic.new_request(&mut random, listener), 1);
            let (request, number) = retry.take().unwrap_or_else(new);
            let id = 1 + random.below(u64::from(u16::MAX)) as u16;
            let is_aborted = random.below(16) == 0;
            let Some(outcome) = connection.exchange(&request, number, id, remaining > 0, is_aborted) else { break };
            if matches!(outcome, AttemptOutcome::NotStarted(_)) && number < MAX_ATTEMPTS {
                retry = Some((request, number + 1));
            }
            // FastCGI does not say whether a connection is kept: patou ends it after a response of its own.
            if outcome != AttemptOutcome::Served || traffic.is_stopped() {
                break;
            }
            // Shorter or longer than the dispatcher needs to watch the connection again.
            std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(20)));
        }
        drop(connection);
        std::thread::sleep(random.between(Duration::from_millis(2), Duration::from_millis(40)));
    }
}

struct FastcgiConnection<'a> {
    traffic: &'a Traffic<'a>,
    /// `None` if it could not be made.
    stream: Option<ClientStream>,
    previous_sent: Option<Monotonic>,
}

impl FastcgiConnection<'_> {
    /// Sends a request, reads its response, and records what became of it. `None` if the client has aborted it.
    fn exchange(
        &mut self,
        request: &DrillRequest,
        number: u32,
        id: u16,
        keeps: bool,
        is_aborted: bool,
    ) -> Option<AttemptOutcome> {
        let timing = AttemptTiming { previous_sent: self.previous_sent, ..AttemptTiming::now() };
        self.previous_sent = Some(timing.sent);
        let outcome = match &mut self.stream {
            None => AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable),
            Some(stream) => {
                let bytes = encode(self.traffic, request, number, id, keeps, is_aborted);
                let received = exchange_bytes(stream, &bytes, id, is_aborted);
                match complete_response(received, "on a FastCGI connection") {
                    _ if is_aborted => AttemptOutcome::Disconnected,
                    Ok(response) => self.traffic.outcome_of(request, number, &response),
                    Err(outcome) => outcome,
                }
            }
        };
        self.traffic.record(request, number, timing, outcome.clone());
        Some(outcome).filter(|_| !is_aborted)
    }
}

/// Writes on another thread, because a large body and its response do not fit into the buffers of the connection.
fn exchange_bytes(stream: &mut ClientStream, bytes: &[u8], id: u16, is_aborted: bool) -> ReceiveOutcome {
    let writer = stream.try_clone();
    std::thread::scope(|scope| {
        let writing = writer.map(|mut writer| scope.spawn(move || writer.write_all(bytes)));
        let received = if is_aborted {
            std::thread::sleep(BEFORE_LEAVING);
            ReceiveOutcome::NoBytes
        } else {
            receive(stream, id)
        };
        if !matches!(received, ReceiveOutcome::Complete(_)) {
            stream.shutdown(); // ends a writer that is still sending
        }
        drop(writing);
        received
    })
}

fn encode(
    traffic: &Traffic<'_>,
    request: &DrillRequest,
    number: u32,
    id: u16,
    keeps_connection: bool,
    is_aborted: bool,
) -> Vec<u8> {
    let (mut params, mut bytes) = (BytesMut::new(), BytesMut::new());
    let host = traffic.address(request.listener).map(|address| traffic.host(request.listener, &address));
    let (target, length) = (traffic.target(request, number), request.body.len().to_string());
    for (name, value) in [
        ("REQUEST_METHOD", request.method()),
        ("REQUEST_URI", &target),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("HTTP_HOST", host.as_deref().unwrap_or("localhost")),
        ("CONTENT_LENGTH", if request.body.is_empty() { "" } else { &length }),
        ("REMOTE_ADDR", "192.0.2.1"),
    ] {
        encode_pair(name.as_bytes(), value.as_bytes(), &mut params);
    }
    let record = |content| FastcgiRecord { request_id: id, content };
    record(RecordContent::BeginRequest { role: RESPONDER, keeps_connection }).encode(&mut bytes);
    for (stream, content) in [(FastcgiStream::Params, &params[..]), (FastcgiStream::Stdin, &request.body)] {
        stream.encode(id, content, &mut bytes);
        stream.end(id, &mut bytes);
    }
    if is_aborted {
        record(RecordContent::AbortRequest).encode(&mut bytes);
    }
    bytes.into()
}

/// Reads the response to request `id`, which is complete by FCGI_END_REQUEST alone.
fn receive(stream: &mut impl Read, id: u16) -> ReceiveOutcome {
    let (mut decoder, mut received, mut stdout) = (RecordDecoder::default(), BytesMut::new(), Vec::new());
    let (mut chunk, mut has_received) = (vec![0; 64 * 1024], false);
    loop {
        loop {
            match decoder.next(&mut received) {
                Ok(None) => break,
                Ok(Some(FastcgiRecord { request_id, content })) if request_id == id => match content {
                    RecordContent::Stream(FastcgiStream::Stdout, data) => stdout.extend_from_slice(&data),
                    RecordContent::EndRequest { status: ProtocolStatus::RequestComplete, .. } => {
                        return raw_http::parse_cgi_response(&stdout);
                    }
                    _ => return ReceiveOutcome::Truncated,
                },
                Ok(Some(_)) | Err(_) => return ReceiveOutcome::Truncated,
            }
        }
        let end = if has_received { ReceiveOutcome::Truncated } else { ReceiveOutcome::NoBytes };
        match stream.read(&mut chunk) {
            Ok(0) => return end,
            Ok(length) => {
                has_received = true;
                received.extend_from_slice(&chunk[..length]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return ReceiveOutcome::TimedOut;
            }
            Err(_) => return end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_by_the_end_of_its_request_alone() {
        let mut bytes = BytesMut::new();
        FastcgiStream::Stdout.encode(7, b"Status: 503 X\r\npatou-outcome: not-started\r\n\r\nbody", &mut bytes);
        FastcgiStream::Stdout.end(7, &mut bytes);
        let without_end = bytes.len();
        let content = RecordContent::EndRequest { exit_status: 0, status: ProtocolStatus::RequestComplete };
        FastcgiRecord { request_id: 7, content }.encode(&mut bytes);
        match receive(&mut &bytes[..], 7) {
            ReceiveOutcome::Complete(response) => {
                let outcome = (response.status, response.header("patou-outcome"), &response.body[..]);
                assert_eq!(outcome, (503, Some("not-started"), &b"body"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(receive(&mut &bytes[..without_end], 7), ReceiveOutcome::Truncated);
        assert_eq!(receive(&mut &bytes[..], 8), ReceiveOutcome::Truncated, "the response to another request");
        assert_eq!(receive(&mut &b""[..], 7), ReceiveOutcome::NoBytes);
    }
}
