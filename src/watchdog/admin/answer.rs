//! What is asked, and the answer: from the snapshot, the segments and the clock.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{Snapshot, locked, metrics};
use crate::clock;
use crate::ids::{Monotonic, WorkerId};
use crate::net::{self, ProblemResponse};
use crate::stats::CounterTotals;
use crate::status::{self, HealthState, PROBE_TIMEOUT, ProbeResult, StatusView};

/// The media type of OpenMetrics text, version 1.0.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";

type Answer = Response<Full<Bytes>>;

/// Answers one request on a listener with this address.
pub fn answer(
    request: &Request<Incoming>,
    listens_on: Option<IpAddr>,
    snapshot: Option<Arc<Snapshot>>,
    workers: &Mutex<CounterTotals<WorkerId, ()>>,
) -> Answer {
    match respond(request, listens_on, snapshot.as_deref(), workers) {
        Ok(answer) => answer,
        Err(problem) => {
            let mut answer = problem.response();
            if problem.status == StatusCode::METHOD_NOT_ALLOWED {
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            answer
        }
    }
}

fn respond(
    request: &Request<Incoming>,
    listens_on: Option<IpAddr>,
    snapshot: Option<&Snapshot>,
    workers: &Mutex<CounterTotals<WorkerId, ()>>,
) -> Result<Answer, ProblemResponse> {
    let problem = |status, detail: &str| ProblemResponse::not_started(status, detail);
    let host = net::host(request).map_err(|detail| problem(StatusCode::BAD_REQUEST, detail))?;
    let snapshot = snapshot.ok_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, "the watchdog is starting"))?;
    match host {
        None if request.version() >= Version::HTTP_11 => {
            return Err(problem(StatusCode::BAD_REQUEST, "an HTTP/1.1 request needs a Host header"));
        }
        // Who can connect to the Unix socket may call it what he likes.
        Some(host)
            if listens_on.is_some()
                && !net::is_host_allowed(&host, &snapshot.config.admin.allowed_hosts, listens_on) =>
        {
            let detail = format!("this listener does not serve the host {host}: see admin.allowed_hosts");
            return Err(problem(StatusCode::MISDIRECTED_REQUEST, &detail));
        }
        _ => {}
    }
    let path = request.uri().path();
    if !["/healthz", "/status", "/metrics"].contains(&path) {
        return Err(problem(StatusCode::NOT_FOUND, "there are /healthz, /status and /metrics"));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Err(problem(StatusCode::METHOD_NOT_ALLOWED, "it can only be read: GET or HEAD"));
    }
    let now = clock::now();
    let view = view(now, snapshot);
    let health = status::health(&view);
    let json = |text: serde_json::Result<String>| text.unwrap_or_default() + "\n";
    Ok(match path {
        "/healthz" => {
            let status = match health.state {
                HealthState::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                HealthState::Ready | HealthState::Degraded => StatusCode::OK,
            };
            whole(status, JSON, json(serde_json::to_string(&health)))
        }
        "/status" => whole(StatusCode::OK, JSON, json(serde_json::to_string(&view))),
        _ => {
            let mut workers = locked(workers);
            let counted = view.pools.iter().flat_map(|pool| &pool.workers);
            for (id, tally) in counted.filter_map(|worker| Some((&worker.id, worker.counters.clone()?))) {
                // A slot outlives its worker; one that is made anew is noticed, because it begins at zero.
                workers.update(id, (), tally);
            }
            whole(StatusCode::OK, OPENMETRICS, metrics::text(now, snapshot, &view, health.state, &workers))
        }
    })
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// The set as `patou status` shows it. Nobody is asked for it: the dispatcher's last report counts as long as it
/// owes no other, and a loop that leaves no snapshots is late itself.
fn view(now: Monotonic, snapshot: &Snapshot) -> StatusView {
    let report = snapshot.report.as_ref().map(|(_, report)| &**report);
    let answers = snapshot.asked.is_none_or(|since| now.since(since) <= PROBE_TIMEOUT);
    let mut view = status::collect(&snapshot.config, &snapshot.state, ProbeResult { report, responsive: answers });
    let bounds = &snapshot.config.watchdog;
    let late: Duration = bounds.probe_interval + bounds.dispatcher_timeout;
    if view.watchdog.state == "up" && now.since(snapshot.at) > late {
        view.watchdog.state = "late";
    }
    view
}
