//! One request at a listener of the dispatcher: checked against the settings of its listener, run, and logged.

use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
use tokio::time::Instant;

use super::handler::{Body, BoxError, BuiltinHandler};
use super::served_connection::ServedConnection;
use super::service::{HandlerService, ReceivedBody, RequestRunner};
use super::state::WorkerState;
use crate::net::{self, ProblemResponse, RequestOrigin};

/// The response to a request.
pub(super) struct CheckedResponse {
    pub response: Response<Body>,
    /// Whether the request was rejected with 400.
    pub is_malformed: bool,
}

/// Checks the request, and runs the handler for it. `stated`: its origin, if the client is a front server that says so.
/// An error means that no response may be sent.
pub(super) async fn respond<S: HandlerService, B: ReceivedBody>(
    runner: &RequestRunner<S>,
    mut request: Request<B>,
    stated: Option<RequestOrigin>,
) -> Result<CheckedResponse, BoxError> {
    let RequestRunner { state, connection, .. } = runner;
    if !matches!(state.builtin, Some(BuiltinHandler::Echo)) {
        connection.update_reset_on_close();
    }
    let is_logged = connection.listener.as_ref().is_some_and(|listener| listener.access_log);
    let access_line = is_logged.then(|| format!("{} {}", request.method(), request.uri()));
    let since = Instant::now();
    let checked = check(state, connection, &mut request, stated);
    let client = checked.as_ref().map_or(connection.peer, |(_, origin)| origin.client);
    let is_malformed = checked.as_ref().is_err_and(|problem| problem.status == StatusCode::BAD_REQUEST);
    let response = match checked {
        Ok((target, origin)) => runner.run(request, target, origin).await?,
        Err(problem) => runner.refuse(&problem)?,
    };
    if let Some(line) = access_line {
        connection.log_access(&state.id, client, &line, response.status(), since);
    }
    Ok(CheckedResponse { response, is_malformed })
}

/// The target of the request and where it comes from, if its listener accepts it.
fn check<B>(
    state: &WorkerState,
    connection: &ServedConnection,
    request: &mut Request<B>,
    stated: Option<RequestOrigin>,
) -> Result<(PathAndQuery, RequestOrigin), ProblemResponse> {
    let unknown_target =
        || ProblemResponse::not_started(StatusCode::NOT_FOUND, "leases are not available on a handoff listener");
    let listener = connection.listener.as_ref().ok_or_else(unknown_target)?;
    let peer = stated.as_ref().map_or(connection.peer, |stated| stated.client);
    let believed = net::request_origin(request, peer, &listener.proxies)?;
    let origin = match stated {
        // No proxy in front of the front server has named the scheme.
        Some(stated) if believed.port.is_none() => {
            RequestOrigin { client: believed.client, user: believed.user.or(stated.user), ..stated }
        }
        Some(stated) => RequestOrigin { user: believed.user.clone().or(stated.user), ..believed },
        None => believed,
    };
    let (_, target) = net::check_request(request, &listener.allowed_hosts, listener.listens_on, state.front.max_body)?;
    let target = target.parse().ok().filter(|_| request.uri().path() != net::LEASE_PATH);
    Ok((target.ok_or_else(unknown_target)?, origin))
}
