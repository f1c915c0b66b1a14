//! What a client is told: where its worker is, or why there is none.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::desk::Grant;
use crate::clock;
use crate::config::Address;
use crate::net::Problem;
use crate::pool::Refusal;

/// The target of `OPTIONS *`: a URI without a path (RFC 9112, section 3.2.4).
pub const ASTERISK: &str = "*";

/// 307 to the worker. `host` is what the client called us; `target` its original path and query. A worker on
/// a Unix socket has no such address: then the answer is [`lease`].
pub fn to_worker(grant: &Grant, host: &str, target: &str) -> Response<Full<Bytes>> {
    let Address::Tcp(address) = &grant.address else { return lease(grant) };
    let target = if target == ASTERISK { "" } else { target };
    let location = format!("http://{host}:{}/.patou/{}{target}", address.port(), grant.token);
    // From bytes: a target may have some beyond ASCII, and goes back as it came.
    let Ok(location) = HeaderValue::from_bytes(location.as_bytes()) else { return lease(grant) };
    let mut response = Response::new(Full::from(format!("{} is yours\n", grant.worker)));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The lease as JSON: for clients that ask for it, and for all on a Unix socket.
pub fn lease(grant: &Grant) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "worker": grant.worker,
        "address": grant.address.to_string(),
        "token": grant.token.to_string(),
        "expires_ms": grant.claim_by.since(clock::now()).as_millis() as u64,
    });
    let mut response = Response::new(Full::from(format!("{body}\n")));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 503, saying what is full.
pub fn refusal(refusal: Refusal, pool: &str, workers: u16) -> Problem {
    let busy = match workers {
        1 => "its worker is busy".to_owned(),
        n => format!("its {n} workers are busy"),
    };
    let detail = match refusal {
        Refusal::QueueFull(bound) => {
            format!("pool {pool}: {busy}, and {bound} clients are waiting, as many as `queue` allows")
        }
        Refusal::QueueTimeout(waited) => {
            let waited = waited.as_secs_f32();
            format!("pool {pool}: no worker came free in {waited:.1} s, as long as `queue_timeout` allows")
        }
        Refusal::NobodyFree => format!("pool {pool}: {busy}, and `queue` is 0"),
        Refusal::Stopping => "the set is stopping".to_owned(),
    };
    Problem::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1)
}
