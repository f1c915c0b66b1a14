//! The claim of a lease: of a handed-over connection before a byte of it is read, of a redirect client with the token in
//! its head.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::served_connection::{ServedConnection, SharedTransaction};
use super::state::WorkerState;
use super::transaction::{Transaction, TransactionEvent};
use crate::clock;
use crate::handoff::HandoffMessage;
use crate::ids::{Lifecycle, Token};
use crate::net::{SharedStream, SocketStream};

/// Claims the lease of a handed-over connection. A connection that cannot be claimed is closed and never shut down: the
/// dispatcher's duplicate may still go to another worker.
pub(super) fn claim_connection(
    state: &WorkerState,
    (message, connection): (HandoffMessage, OwnedFd),
) -> Option<ServedConnection> {
    if state.lifecycle() != Lifecycle::Ready {
        // The control loop refuses the offer, so that the dispatcher offers the connection to another worker at once.
        state.wake_control_loop();
        return None;
    }
    let now = clock::now();
    let terms = match state.slot.claim(message.token, now) {
        Ok(terms) if terms.lease == message.lease => terms,
        other => {
            tracing::debug!(worker = %state.id, lease = %message.lease, ?other,
                "a handed-over connection is not claimed: its lease has ended");
            return None;
        }
    };
    let HandoffMessage { peer, server, is_https, wire, listener, .. } = message;
    let stream = SharedStream(Arc::new(SocketStream::new(connection, server.is_some())));
    let transaction = SharedTransaction::new(Transaction::claimed(now, state.front.head_timeout, &terms), wire);
    let connection = ServedConnection { stream, peer, server, is_https, listener: Some(listener), transaction };
    state.start_request(terms.lease, &connection);
    state.slot.note_request(terms.lease, now, &[b"(reading the request head)"]);
    Some(connection)
}

/// Claims the lease with this token for a connection to the worker itself. Returns whether it has succeeded.
pub(super) fn claim_with_token(state: &WorkerState, token: Token, connection: &ServedConnection) -> bool {
    let now = clock::now();
    let terms = match state.slot.claim(token, now) {
        Ok(terms) => terms,
        Err(reason) => {
            tracing::debug!(worker = %state.id, ?reason, "token rejected");
            return false;
        }
    };
    connection.on(TransactionEvent::claimed(now, &terms));
    state.start_request(terms.lease, connection);
    connection.set_reset_on_close(true);
    true
}
