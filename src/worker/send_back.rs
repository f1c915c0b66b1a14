//! The response to a client at a worker's address without a lease of this worker: back to the dispatcher.

use http::header::LOCATION;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::handler::Body;
use super::lease_url;
use super::service::problem_response;
use crate::net::{self, ProblemResponse, SharedStream};

/// 307 to `return_port` with the original target; 409 if there is no address for it, and 400 without a valid Host.
pub(super) fn send_back(
    return_port: Option<u16>,
    stream: &SharedStream,
    request: &Request<Incoming>,
) -> Response<Body> {
    let host = match net::check_host(request) {
        Ok(host) => host,
        Err(problem) => return problem_response(&problem),
    };
    let target = lease_url::split(request.method(), request.uri()).map(|(_, target)| target);
    let location = return_port.and_then(|port| {
        let host = host.unwrap_or_else(|| net::fallback_host(&stream.0));
        lease_url::return_location(&host, port, target.as_ref().or_else(|| request.uri().path_and_query()))
    });
    let detail = "this lease has ended or never existed: request another from the dispatcher";
    let status = if location.is_some() { StatusCode::TEMPORARY_REDIRECT } else { StatusCode::CONFLICT };
    let mut response = problem_response(&ProblemResponse::not_started(status, detail));
    if let Some(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
