//! Sessions: connections that switch to another protocol, with the permission of the dispatcher, and their end.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::handler::Session;
use super::served_connection::ServedConnection;
use super::state::WorkerState;
use super::transaction::{Transaction, TransactionEvent};
use crate::bounds::{HANDLER_ABORT_GRACE, SESSION_DECISION_TIMEOUT};
use crate::clock;
use crate::config::SessionBounds;
use crate::exchange::Counter;
use crate::ids::LeaseId;
use crate::log::Event;
use crate::net::ProblemResponse;

/// Whether the request asks for WebSocket (RFC 6455, section 4.2.1).
pub(super) fn is_websocket(request: &Request<impl http_body::Body>) -> bool {
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && has_token(request.headers(), CONNECTION, "upgrade")
        && has_token(request.headers(), UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// Removes what asks for another protocol (RFC 9110, section 7.8: a server may ignore it).
pub(super) fn remove_upgrade<B>(request: &mut Request<B>) {
    request.extensions_mut().remove::<OnUpgrade>();
    remove_upgrade_fields(request.headers_mut());
}

fn remove_upgrade_fields(headers: &mut HeaderMap) {
    if headers.remove(UPGRADE).is_none() {
        return;
    }
    let options: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|option| !option.is_empty() && !option.eq_ignore_ascii_case("upgrade"))
        .map(str::to_owned)
        .collect();
    headers.remove(CONNECTION);
    if let Ok(options) = HeaderValue::from_str(&options.join(", "))
        && !options.is_empty()
    {
        headers.insert(CONNECTION, options);
    }
}

/// Requests the dispatcher's permission for a session under this lease.
///
/// # Errors
/// The response of a request that gets none, and that no handler has seen.
pub(super) async fn permission(
    state: &WorkerState,
    bounds: SessionBounds,
    lease: LeaseId,
) -> Result<Arc<Session>, ProblemResponse> {
    state.slot.want_session(lease);
    state.ring_dispatcher();
    let until = Instant::now() + SESSION_DECISION_TIMEOUT;
    let decision = loop {
        let turn = state.turn.notified();
        let decision = state.slot.session_decision(lease);
        if decision.is_some() || timeout_at(until, turn).await.is_err() {
            break decision;
        }
    };
    let pool = &state.id.pool;
    let detail = match decision {
        Some(true) => return Ok(Arc::default()),
        Some(false) => format!("pool {pool} has as many sessions as it may have (max_sessions, {})", bounds.max),
        None => "the dispatcher did not decide in time whether the connection may switch to WebSocket".to_owned(),
    };
    Err(ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1))
}

/// Waits for the end of a session, and cuts it when it may not last longer.
pub(super) async fn serve(state: &WorkerState, connection: &ServedConnection, session: &Session) {
    let cut = tokio::select! {
        biased;
        () = session.ended() => None,
        reason = overdue(state, connection) => Some(reason),
    };
    if let Some(reason) = cut {
        tracing::info!(worker = %state.id, lease = connection.lease().map(tracing::field::display),
            epoch = %state.slot.epoch(), event = %Event::SessionClosed, "{reason}: the session is closed");
        // The serving task runs, however late it is.
        connection.on(TransactionEvent::DeadlineReached(clock::now()));
        session.cut();
        // A handler of its own notices the end of the connection.
        let _ = shutdown(connection.stream.0.as_fd().as_raw_fd(), Shutdown::Both); // fails if the client has gone
        let _ = timeout(HANDLER_ABORT_GRACE, session.ended()).await;
    }
    if session.has_failed() {
        connection.on(TransactionEvent::RequestFailed);
    }
    let (received, sent) = session.bytes();
    state.slot.count(Counter::BytesIn, received);
    state.slot.count(Counter::BytesOut, sent);
}

/// Completes with the reason when the session may not last longer: after `session_timeout`, and after `drain_timeout` in a
/// worker that has to leave or to recycle, also if an operator has requested that of the dispatcher.
async fn overdue(state: &WorkerState, connection: &ServedConnection) -> &'static str {
    let left = connection.transaction.get(Transaction::respond_by).since(clock::now());
    let (end, mut leave_by) = (Instant::now() + left, None);
    let drain = state.sessions.map_or(Duration::ZERO, |bounds| bounds.drain);
    loop {
        let turn = state.turn.notified();
        let is_withdrawn = connection.lease().is_some_and(|lease| state.slot.session_decision(lease) == Some(false));
        leave_by =
            if is_withdrawn || state.is_wanted_back() { leave_by.or(Some(Instant::now() + drain)) } else { None };
        let (until, reason) = match leave_by.filter(|by| *by < end) {
            Some(by) => (by, "drain_timeout has passed"),
            None => (end, "session_timeout has passed"),
        };
        tokio::select! {
            () = turn => {}
            () = sleep_until(until) => return reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn token_is_found_in_every_line_and_as_a_whole() {
        let fields = headers(&[(CONNECTION, "keep-alive"), (CONNECTION, "x , Upgrade")]);
        assert!(has_token(&fields, CONNECTION, "upgrade"));
        assert!(!has_token(&headers(&[(CONNECTION, "upgraded")]), CONNECTION, "upgrade"));
        assert!(!has_token(&fields, UPGRADE, "websocket"));
    }

    #[test]
    fn options_of_the_connection_stay_without_the_upgrade() {
        let removed = |fields: &[(HeaderName, &'static str)]| {
            let mut fields = headers(fields);
            remove_upgrade_fields(&mut fields);
            assert!(!fields.contains_key(UPGRADE));
            fields.get(CONNECTION).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(
            removed(&[(UPGRADE, "h2c"), (CONNECTION, "Upgrade, HTTP2-Settings")]).as_deref(),
            Some("HTTP2-Settings")
        );
        assert_eq!(removed(&[(UPGRADE, "websocket"), (CONNECTION, "upgrade")]), None);
        assert_eq!(removed(&[(CONNECTION, "upgrade")]).as_deref(), Some("upgrade"), "without Upgrade it says nothing");
    }
}
