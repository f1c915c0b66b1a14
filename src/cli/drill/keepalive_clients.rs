//! Clients of handoff listeners that send several requests on one connection, one after the other or pipelined.

use std::io::Write;
use std::time::Duration;

use super::connection::ClientStream;
use super::history::{AttemptOutcome, NotStartedReason, UnknownReason};
use super::random::SplitMix64;
use super::raw_http::{self, RawResponse};
use super::traffic::{AttemptTiming, DrillRequest, MAX_ATTEMPTS, PROXY_CLIENT, Traffic, complete_response};

/// The most requests on one connection.
const MAX_REQUESTS: u64 = 8;

/// The most requests that are pipelined (RFC 9112, section 9.3.2).
const MAX_PIPELINED: u64 = 3;

/// A request with the number of its next attempt.
type PendingAttempt = (DrillRequest, u32);

/// Requests that are sent together.
struct Burst {
    attempts: Vec<PendingAttempt>,
    timing: AttemptTiming,
    /// No request follows on this connection.
    is_last: bool,
}

/// One client, which retries what has certainly not started.
pub(super) fn run(traffic: &Traffic<'_>, mut random: SplitMix64) {
    let mut retries: Vec<PendingAttempt> = Vec::new();
    while !traffic.is_stopped() {
        let listener = retries.first().map(|(request, _)| request.listener);
        let choose = || traffic.choose_listener(&mut random, |listener| !listener.redirects && !listener.is_fastcgi);
        let Some(listener) = listener.or_else(choose) else { return };
        let mut stream = traffic.address(listener).and_then(|address| address.connect(traffic.timeout).ok());
        let mut remaining = 1 + random.below(MAX_REQUESTS);
        let mut previous_sent = None;
        loop {
            let count = if random.below(4) == 0 { (1 + random.below(MAX_PIPELINED)).min(remaining) } else { 1 };
            let mut attempts = std::mem::take(&mut retries);
            while (attempts.len() as u64) < count {
                attempts.push((traffic.new_request(&mut random, listener), 1));
            }
            remaining = remaining.saturating_sub(attempts.len() as u64);
            let timing = AttemptTiming { previous_sent, ..AttemptTiming::now() };
            previous_sent = Some(timing.sent);
            let burst = Burst { attempts, timing, is_last: remaining == 0 };
            let stays_alive = exchange(traffic, stream.as_mut(), burst, &mut retries);
            if !stays_alive || traffic.is_stopped() {
                break;
            }
            // Shorter or longer than the dispatcher needs to watch the connection again.
            std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(20)));
        }
        drop(stream);
        std::thread::sleep(random.between(Duration::from_millis(2), Duration::from_millis(40)));
    }
}

/// Sends a burst, reads and records its responses, and puts what may be retried into `retries`. Returns whether the
/// connection stays alive.
fn exchange(
    traffic: &Traffic<'_>,
    mut stream: Option<&mut ClientStream>,
    burst: Burst,
    retries: &mut Vec<PendingAttempt>,
) -> bool {
    let bytes = encode(traffic, &burst);
    let writer = stream.as_ref().and_then(|stream| stream.try_clone().ok());
    std::thread::scope(|scope| {
        let writing = writer.map(|mut writer| scope.spawn(move || writer.write_all(&bytes).is_ok()));
        let Burst { attempts, mut timing, is_last } = burst;
        let (mut buffer, mut final_outcome) = (Vec::new(), None);
        let count = attempts.len();
        for (index, (request, number)) in attempts.into_iter().enumerate() {
            let is_last_response = index + 1 == count;
            let received = match (&final_outcome, stream.as_mut()) {
                (Some(outcome), _) => Err(outcome_behind(outcome)),
                (None, None) => Err(AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable)),
                (None, Some(stream)) => {
                    complete_response(raw_http::read_next(stream, &mut buffer), "on a handoff connection")
                }
            };
            let (outcome, closes) = match received {
                Err(outcome) => (outcome, true),
                Ok(mut response) => {
                    if is_last_response {
                        response.body.append(&mut buffer); // bytes beyond the last response are wrong
                    }
                    let closes = is_last && is_last_response || closes_connection(&response);
                    (traffic.outcome_of(&request, number, &response), closes)
                }
            };
            let keeps_connection =
                matches!(outcome, AttemptOutcome::Served | AttemptOutcome::NotStarted(NotStartedReason::Refused(_)));
            if final_outcome.is_none() && (closes || !keeps_connection) {
                final_outcome = Some(outcome.clone());
            }
            let retry = matches!(outcome, AttemptOutcome::NotStarted(_)) && number < MAX_ATTEMPTS;
            traffic.record(&request, number, timing, outcome);
            timing.client_time += request.delay;
            if retry {
                retries.push((request, number + 1));
            }
        }
        if let (Some(_), Some(stream)) = (&final_outcome, &stream) {
            stream.shutdown(); // ends a writer that is still sending
        }
        writing.is_some_and(|thread| thread.join().unwrap_or(false)) && final_outcome.is_none()
    })
}

/// The bytes of a burst, after the PROXY header if the connection is new.
fn encode(traffic: &Traffic<'_>, burst: &Burst) -> Vec<u8> {
    let mut bytes = match burst.attempts.first() {
        Some((request, _)) if burst.timing.previous_sent.is_none() => {
            traffic.proxy_header(request.listener, request.id, PROXY_CLIENT)
        }
        _ => Vec::new(),
    };
    for (index, (request, number)) in burst.attempts.iter().enumerate() {
        let Some(address) = traffic.address(request.listener) else { return bytes };
        let target = traffic.target(request, *number);
        let host = traffic.host(request.listener, &address);
        let is_last = burst.is_last && index + 1 == burst.attempts.len();
        let head = if is_last { raw_http::last_head } else { raw_http::keepalive_head };
        bytes.extend(head(request.method(), &target, &host, request.body.len()));
        bytes.extend(&request.body);
    }
    bytes
}

fn closes_connection(response: &RawResponse) -> bool {
    response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// The outcome of a request that was pipelined behind one with this outcome, which ended the connection. Behind a
/// complete response nothing is started; 502 and 504 are sent only when the worker had sent nothing.
fn outcome_behind(outcome: &AttemptOutcome) -> AttemptOutcome {
    match outcome {
        AttemptOutcome::Unknown(UnknownReason::NoResponse | UnknownReason::Truncated) => {
            AttemptOutcome::Unknown(UnknownReason::NoResponse)
        }
        AttemptOutcome::TimedOut(_) => AttemptOutcome::Disconnected,
        AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable) => {
            AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable)
        }
        _ => AttemptOutcome::NotStarted(NotStartedReason::ConnectionClosed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_behind_a_complete_response_that_closes_the_connection_has_not_started() {
        for outcome in [
            AttemptOutcome::Served,
            AttemptOutcome::Unknown(UnknownReason::Reported(502)),
            AttemptOutcome::NotStarted(NotStartedReason::Refused(503)),
        ] {
            assert_eq!(outcome_behind(&outcome), AttemptOutcome::NotStarted(NotStartedReason::ConnectionClosed));
        }
        let truncated = AttemptOutcome::Unknown(UnknownReason::Truncated);
        assert_eq!(outcome_behind(&truncated), AttemptOutcome::Unknown(UnknownReason::NoResponse));
    }
}
