//! What a client is told: where its worker is, or why there is none.

use std::fmt;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::driver::Grant;
use super::request;
use crate::clock;
use crate::config::ListenAddress;
use crate::net::ProblemResponse;
use crate::pool::Refusal;

/// 307 to the worker. `host` is what the client called us; `target` its original path and query. A worker on
/// a Unix socket has no such address: then the answer is [`lease`].
pub fn to_worker(grant: &Grant, host: &str, target: &str) -> Response<Full<Bytes>> {
    let ListenAddress::Tcp(address) = &grant.address else { return lease(grant) };
    let Some(location) = request::location(host, address.port(), grant.token, target) else { return lease(grant) };
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

/// The workers of a pool, and how many of them nobody can get.
#[derive(Clone, Debug, Default)]
pub struct PoolAvailability {
    pub workers: usize,
    /// An operator has taken them out of service.
    pub drained: usize,
    /// They do not run, and are not among those.
    pub gone: usize,
    /// What ended them, if the watchdog has given up all of them.
    pub failed: Option<String>,
}

impl fmt::Display for PoolAvailability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolAvailability { workers, drained, gone, .. } = *self;
        match workers {
            0 => f.write_str("it is not part of the set any more"),
            1 if drained == 1 => f.write_str("its worker is taken out of service"),
            1 if gone == 1 => f.write_str("its worker is not running"),
            1 => f.write_str("its worker is busy"),
            n if drained == n => write!(f, "all {n} workers are taken out of service"),
            n if gone == n => write!(f, "none of its {n} workers is running"),
            n if drained + gone == 0 => write!(f, "its {n} workers are busy"),
            n => {
                write!(f, "of its {n} workers")?;
                let others = n - drained - gone;
                let all = [(drained, "out of service"), (gone, "not running"), (others, "busy")];
                for (i, (count, what)) in all.into_iter().filter(|(count, _)| *count > 0).enumerate() {
                    let (comma, verb) = (if i > 0 { "," } else { "" }, if count == 1 { "is" } else { "are" });
                    write!(f, "{comma} {count} {verb} {what}")?;
                }
                Ok(())
            }
        }
    }
}

/// 503, saying what is full, or who is missing.
pub fn refusal(refusal: Refusal, pool: &str, staff: &PoolAvailability) -> ProblemResponse {
    let detail = match refusal {
        Refusal::QueueFull(bound) => {
            format!("pool {pool}: {staff}, and {bound} clients are waiting, as many as `queue` allows")
        }
        Refusal::QueueTimeout(waited) => {
            let waited = waited.as_secs_f32();
            format!("pool {pool}: no worker came free in {waited:.1} s, as long as `queue_timeout` allows: {staff}")
        }
        Refusal::NoWorkerFree => format!("pool {pool}: {staff}, and `queue` is 0"),
        Refusal::OutOfService => format!("pool {pool}: {staff}"),
        Refusal::Failed => {
            let cause = staff.failed.as_deref().unwrap_or("they ended too often");
            format!("every worker of pool {pool} has failed: {cause}; an operator has to mend that and reload the set")
        }
        Refusal::Stopping => "the set is stopping".to_owned(),
    };
    // Nobody comes back by himself.
    let pause = if refusal == Refusal::Failed { 10 } else { 1 };
    ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_who_is_missing() {
        let words = |workers, drained, gone| PoolAvailability { workers, drained, gone, failed: None }.to_string();
        assert_eq!(words(1, 0, 0), "its worker is busy");
        assert_eq!(words(2, 0, 0), "its 2 workers are busy");
        assert_eq!(words(2, 2, 0), "all 2 workers are taken out of service");
        assert_eq!(words(2, 0, 2), "none of its 2 workers is running");
        assert_eq!(words(2, 1, 1), "of its 2 workers 1 is out of service, 1 is not running");
        assert_eq!(words(4, 1, 0), "of its 4 workers 1 is out of service, 3 are busy");
    }
}
