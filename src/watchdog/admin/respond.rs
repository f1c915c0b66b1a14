//! The response to an admin request, from the snapshot, the slots and the clock.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;

use super::metrics;
use super::snapshot::SetSnapshot;
use crate::clock;
use crate::ids::{Monotonic, WorkerId};
use crate::net::{self, ProblemResponse};
use crate::stats::CounterTotals;
use crate::status::{self, HealthState, PROBE_TIMEOUT, ProbeResult, StatusView};
use crate::sync;

/// The media type of OpenMetrics text, version 1.0.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";

type AdminResponse = Response<Full<Bytes>>;

/// Responds to one request. `listens_on` is the address of the TCP listener; `None` for the Unix socket.
pub(super) fn respond(
    request: &Request<Incoming>,
    listens_on: Option<IpAddr>,
    snapshot: Option<&SetSnapshot>,
    workers: &Mutex<CounterTotals<WorkerId, ()>>,
) -> AdminResponse {
    handle(request, listens_on, snapshot, workers).unwrap_or_else(|problem| {
        let mut response = problem.response();
        if problem.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    })
}

fn handle(
    request: &Request<Incoming>,
    listens_on: Option<IpAddr>,
    snapshot: Option<&SetSnapshot>,
    workers: &Mutex<CounterTotals<WorkerId, ()>>,
) -> Result<AdminResponse, ProblemResponse> {
    let problem = |status, detail: &str| ProblemResponse::not_started(status, detail);
    let host = net::host(request).map_err(|detail| problem(StatusCode::BAD_REQUEST, detail))?;
    let snapshot = snapshot.ok_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, "the watchdog is starting"))?;
    match host {
        None if request.version() >= Version::HTTP_11 => {
            return Err(problem(StatusCode::BAD_REQUEST, "an HTTP/1.1 request needs a Host header"));
        }
        // Clients of the Unix socket may send any host: the file's permissions protect it.
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
        return Err(problem(StatusCode::NOT_FOUND, "the resources are /healthz, /status and /metrics"));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Err(problem(StatusCode::METHOD_NOT_ALLOWED, "this resource supports only GET and HEAD"));
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
            response(status, JSON, json(serde_json::to_string(&health)))
        }
        "/status" => response(StatusCode::OK, JSON, json(serde_json::to_string(&view))),
        _ => {
            let mut workers = sync::lock(workers);
            let counted = view.pools.iter().flat_map(|pool| &pool.workers);
            for (id, counters) in counted.filter_map(|worker| Some((&worker.id, worker.counters.clone()?))) {
                // A slot outlives its worker. The totals recognise a new slot because its counters restart at zero.
                workers.update(id, (), counters);
            }
            response(StatusCode::OK, OPENMETRICS, metrics::text(now, snapshot, &view, health.state, &workers))
        }
    })
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> AdminResponse {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The set as `patou status` shows it, without a probe: the dispatcher's last report counts unless a newer one is overdue,
/// and a watchdog without recent snapshots is late itself.
fn view(now: Monotonic, snapshot: &SetSnapshot) -> StatusView {
    let report = snapshot.last_report.as_ref().map(|(_, report)| &**report);
    let responsive = snapshot.unanswered_since.is_none_or(|since| now.since(since) <= PROBE_TIMEOUT);
    let mut view = status::collect(&snapshot.config, &snapshot.state, ProbeResult { report, responsive });
    let limits = &snapshot.config.watchdog;
    let SetSnapshot { config, last_report, outcomes, .. } = snapshot;
    view.dispatcher.was_up =
        last_report.as_ref().is_some_and(|(at, _)| now.since(*at) <= config.watchdog.dispatcher_timeout);
    for pool in &mut view.pools {
        // A client waits so long for the next incarnation of a worker.
        let wait = config.pool(&pool.name).map_or(Duration::ZERO, |pool| pool.queue_timeout);
        let wait = wait.min(config.watchdog.start_timeout);
        pool.was_in_service = outcomes.get(&pool.name).is_some_and(|pool| pool.was_in_service(now, wait));
    }
    if view.watchdog.state == "up" && now.since(snapshot.at) > limits.probe_interval + limits.dispatcher_timeout {
        view.watchdog.state = "late";
    }
    view
}
