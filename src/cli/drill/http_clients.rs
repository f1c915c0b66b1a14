//! Clients that use nothing but HTTP, with one request per connection.

use std::io::{Read, Write};
use std::time::Duration;

use super::connection::ClientStream;
use super::history::{AttemptOutcome, NotStartedReason};
use super::random::SplitMix64;
use super::raw_http::{self, ReceiveOutcome};
use super::traffic::{
    AttemptTiming, DrillRequest, MAX_ATTEMPTS, PROXY_CLIENT, Traffic, complete_response, leased_worker,
};

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestStyle {
    Plain,
    /// The body is sent to the dispatcher as well, without waiting for the redirect.
    EagerBody,
    /// The body waits for `100 Continue`.
    ExpectContinue,
    Http10,
}

const STYLES: &[RequestStyle] = &[
    RequestStyle::Plain,
    RequestStyle::Plain,
    RequestStyle::EagerBody,
    RequestStyle::EagerBody,
    RequestStyle::ExpectContinue,
    RequestStyle::Http10,
];

impl RequestStyle {
    fn head(self, request: &DrillRequest, target: &str, host: &str) -> Vec<u8> {
        let head = match self {
            RequestStyle::Http10 => raw_http::http10_head,
            RequestStyle::ExpectContinue if !request.body.is_empty() => raw_http::expect_head,
            _ => raw_http::last_head,
        };
        head(request.method(), target, host, request.body.len())
    }
}

/// One client, which retries what has certainly not started.
pub(super) fn run(traffic: &Traffic<'_>, mut random: SplitMix64) {
    while !traffic.is_stopped() {
        let Some(listener) = traffic.choose_listener(&mut random, |listener| !listener.is_fastcgi) else { return };
        let request = traffic.new_request(&mut random, listener);
        for number in 1..=MAX_ATTEMPTS {
            let style = *random.pick(STYLES);
            let timing = AttemptTiming::now();
            let outcome = attempt(traffic, &request, number, style);
            let retries = matches!(outcome, AttemptOutcome::NotStarted(_)) && !traffic.is_stopped();
            traffic.record(&request, number, timing, outcome);
            if !retries {
                break;
            }
            std::thread::sleep(random.between(Duration::from_millis(2), Duration::from_millis(50)));
        }
        std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(30)));
    }
}

/// One attempt, from the dispatcher to the worker.
fn attempt(traffic: &Traffic<'_>, request: &DrillRequest, number: u32, style: RequestStyle) -> AttemptOutcome {
    let unreachable = AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable);
    let Some(address) = traffic.address(request.listener) else { return unreachable };
    let target = traffic.target(request, number);
    let host = traffic.host(request.listener, &address);
    let Ok(stream) = address.connect(traffic.timeout) else { return unreachable };
    let handoff = !traffic.listeners[request.listener].redirects;
    let mut head = traffic.proxy_header(request.listener, request.id, PROXY_CLIENT);
    head.extend(style.head(request, &target, &host));
    let body: &[u8] = if handoff || style == RequestStyle::EagerBody { &request.body } else { &[] };
    let received = exchange(stream, &head, body, style);
    if !handoff && matches!(received, ReceiveOutcome::NoBytes | ReceiveOutcome::Truncated) {
        return AttemptOutcome::NotStarted(NotStartedReason::ClosedByDispatcher);
    }
    let response = match complete_response(received, "waiting for the dispatcher") {
        Ok(response) => response,
        Err(outcome) => return outcome,
    };
    let (worker, target) = match leased_worker(&response, &address, &target) {
        Some(leased) if !handoff => leased,
        _ => return traffic.outcome_of(request, number, &response),
    };
    let Ok(stream) = worker.connect(traffic.timeout) else {
        return AttemptOutcome::NotStarted(NotStartedReason::WorkerUnreachable);
    };
    let head = style.head(request, &target, &traffic.host(request.listener, &worker));
    match complete_response(exchange(stream, &head, &request.body, style), "waiting for the worker") {
        Ok(response) if response.header("patou-outcome") == Some("not-started") => {
            AttemptOutcome::NotStarted(NotStartedReason::ReturnedToDispatcher)
        }
        Ok(response) => traffic.outcome_of(request, number, &response),
        Err(outcome) => outcome,
    }
}

/// Sends the request and reads the response at the same time: an early or streamed response must not wait for the
/// body to be sent.
fn exchange(mut stream: ClientStream, head: &[u8], body: &[u8], style: RequestStyle) -> ReceiveOutcome {
    /// What the buffers of a socket always hold: so much can be sent before reading.
    const SOCKET_BUFFER: usize = 32 * 1024;
    let (mut bytes, mut received) = (head.to_vec(), Vec::new());
    if style == RequestStyle::ExpectContinue && !body.is_empty() {
        let _ = stream.write_all(head); // reading shows whether it failed
        match raw_http::read_first_head(&mut stream) {
            None => return ReceiveOutcome::TimedOut,
            Some(first) if !first.is_continue => {
                return raw_http::read_to_end(&mut first.bytes.chain(&mut stream));
            }
            Some(first) => received = first.bytes,
        }
        bytes.clear();
    }
    bytes.extend(body);
    if bytes.len() <= SOCKET_BUFFER {
        let _ = stream.write_all(&bytes); // reading shows whether it failed
        return raw_http::read_to_end(&mut received.chain(&mut stream));
    }
    let Ok(mut writer) = stream.try_clone() else { return ReceiveOutcome::NoBytes };
    std::thread::scope(|scope| {
        scope.spawn(move || drop(writer.write_all(&bytes)));
        raw_http::read_to_end(&mut received.chain(&mut stream))
    })
}
