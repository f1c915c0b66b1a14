//! The checks on a request head that come before any handler. Pure code.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Version};

use super::{ProblemResponse, host, is_host_allowed};

/// The path on which clients request a lease.
pub(crate) const LEASE_PATH: &str = "/.patou/lease";

/// A redirect adds this to the target of a request: "/.patou/" and the token.
pub(crate) const LEASE_PREFIX_LENGTH: usize = 40;

/// The target of `OPTIONS *`: a URI without a path (RFC 9112, section 3.2.4).
const ASTERISK: &str = "*";

/// The host of a request, if it names one.
///
/// # Errors
/// The response to a request without a host, or with an invalid one.
pub(crate) fn check_host<B>(request: &Request<B>) -> Result<Option<String>, ProblemResponse> {
    let bad = |detail| ProblemResponse::not_started(StatusCode::BAD_REQUEST, detail);
    let host = host(request).map_err(bad)?;
    if host.is_none() && request.version() >= Version::HTTP_11 {
        return Err(bad("an HTTP/1.1 request needs a Host header"));
    }
    Ok(host)
}

/// Checks a request head. Returns the host, if the request names one, and the target. `allowed_hosts` and `listens_on`
/// are the listener's; `max_body` is in bytes, 0 for no bound.
///
/// # Errors
/// The response for a rejected request.
pub(crate) fn check_request<B>(
    request: &Request<B>,
    allowed_hosts: &[String],
    listens_on: Option<IpAddr>,
    max_body: u64,
) -> Result<(Option<String>, String), ProblemResponse> {
    let bad = |detail| ProblemResponse::not_started(StatusCode::BAD_REQUEST, detail);
    let host = check_host(request)?;
    if let Some(host) = &host
        && !is_host_allowed(host, allowed_hosts, listens_on)
    {
        let detail = format!("this listener does not serve the host {host}: see allowed_hosts");
        return Err(ProblemResponse::not_started(StatusCode::MISDIRECTED_REQUEST, detail));
    }
    let target = request.uri().path_and_query().map(PathAndQuery::as_str);
    let target = target.ok_or_else(|| bad("the request has no path"))?;
    // An empty path in absolute form means the root (RFC 9112, section 3.2.1).
    let target = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
    if target == ASTERISK && request.method() != Method::OPTIONS {
        return Err(bad("the target * is valid for OPTIONS only"));
    }
    let path = request.uri().path();
    if path.starts_with("/.patou/") && path != LEASE_PATH {
        let detail = "paths under /.patou/ are reserved; a lease is valid at its worker's address";
        return Err(ProblemResponse::not_started(StatusCode::NOT_FOUND, detail));
    }
    if path == LEASE_PATH && request.method() != Method::POST {
        let detail = "a lease is requested with POST";
        return Err(ProblemResponse::not_started(StatusCode::METHOD_NOT_ALLOWED, detail));
    }
    let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if max_body > 0 && length.is_some_and(|length| length > max_body) {
        let detail = format!("the body is larger than max_body, {max_body} bytes");
        return Err(ProblemResponse::not_started(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    Ok((host, target))
}
