//! Clients that use patou's client library, on redirect listeners.

use std::time::Duration;

use http_body_util::BodyExt;

use super::connection::ServerAddress;
use super::history::{AttemptOutcome, NotStartedReason, UnknownReason};
use super::random::SplitMix64;
use super::traffic::{AttemptTiming, DrillRequest, MAX_ATTEMPTS, Traffic};
use crate::client::{CallError, Client, FailureCause, Payload};

/// One client, which uses the library with and without the library's own retries.
pub(super) async fn run(traffic: &Traffic<'_>, mut random: SplitMix64) {
    while !traffic.is_stopped() {
        let Some(listener) = traffic.choose_listener(&mut random, |listener| listener.redirects) else { return };
        let request = traffic.new_request(&mut random, listener);
        let retry = if random.below(2) == 0 { Duration::ZERO } else { Duration::from_secs(2) };
        for number in 1..=MAX_ATTEMPTS {
            // The library's last attempt may start only when the time for retries ends.
            let timing = AttemptTiming { client_time: retry, ..AttemptTiming::now() };
            let called = tokio::time::timeout(traffic.timeout, call(traffic, &request, number, retry)).await;
            let outcome = called.unwrap_or(AttemptOutcome::TimedOut("in a call of the client library"));
            let retries = matches!(outcome, AttemptOutcome::NotStarted(_)) && !traffic.is_stopped();
            traffic.record(&request, number, timing, outcome);
            if !retries {
                break;
            }
            tokio::time::sleep(random.between(Duration::from_millis(2), Duration::from_millis(50))).await;
        }
        tokio::time::sleep(random.between(Duration::ZERO, Duration::from_millis(40))).await;
    }
}

async fn call(traffic: &Traffic<'_>, request: &DrillRequest, number: u32, retry: Duration) -> AttemptOutcome {
    let unreachable = AttemptOutcome::NotStarted(NotStartedReason::DispatcherUnreachable);
    let Some(address) = traffic.address(request.listener) else { return unreachable };
    let (url, address) = match &address {
        ServerAddress::Tcp(address) => (format!("http://{address}"), address.to_string()),
        ServerAddress::Unix(path) => (format!("unix:{}", path.display()), format!("unix:{}", path.display())),
    };
    let Ok(dispatcher) = url.parse() else { return unreachable };
    let payload = if request.body.is_empty() { Payload::Empty } else { Payload::Bytes(request.body.clone().into()) };
    let mut message = http::Request::builder().method(request.method()).uri(traffic.target(request, number));
    if let Some(host) = &traffic.listeners[request.listener].host {
        message = message.header("host", host);
    }
    let message = message.body(payload).expect("the parts of a drill's request are valid");
    let answer = match Client::new(dispatcher).retry_for(retry).call(message).await {
        Ok(answer) => answer,
        Err(CallError::StartedUnknown { .. }) => return AttemptOutcome::Unknown(UnknownReason::NoResponse),
        Err(CallError::NotStarted { cause, .. }) => {
            return AttemptOutcome::NotStarted(match cause {
                FailureCause::Dispatcher { .. } | FailureCause::LeaseTimeout { .. } => {
                    NotStartedReason::ClosedByDispatcher
                }
                FailureCause::Connect { to, .. } | FailureCause::ConnectTimeout { to, .. }
                    if to.to_string() != address =>
                {
                    NotStartedReason::WorkerUnreachable
                }
                _ => NotStartedReason::DispatcherUnreachable,
            });
        }
    };
    let leased = answer.lease.is_some();
    let (head, body) = answer.response.into_parts();
    let outcome = head.headers.get("patou-outcome").and_then(|value| value.to_str().ok());
    let Ok(body) = body.collect().await else { return AttemptOutcome::Unknown(UnknownReason::Truncated) };
    match traffic.outcome_of_parts(request, number, head.status.as_u16(), outcome, &body.to_bytes()) {
        AttemptOutcome::NotStarted(_) if leased => AttemptOutcome::NotStarted(NotStartedReason::ReturnedToDispatcher),
        outcome => outcome,
    }
}
