//! The inetd handler: the connection is standard input and output of a program. patou does not see its protocol.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::time::sleep;

use super::served_connection::ServedConnection;
use super::service::log_failure;
use super::state::WorkerState;
use super::transaction::{EndCause, ReceivedHead, Transaction, TransactionEvent};
use crate::clock;
use crate::log::Event;

/// Runs the program until it ends or `request_timeout` passes.
pub(super) async fn serve(state: &Arc<WorkerState>, connection: &Arc<ServedConnection>) -> EndCause {
    let (worker, epoch) = (&state.id, state.slot.epoch());
    // From now on the program may send.
    if !connection.may_respond(&state.slot) {
        return EndCause::Closed; // the dispatcher has aborted the lease
    }
    let Some(lease) = connection.lease() else { return EndCause::Closed };
    let stream = &connection.stream;
    state.slot.note_request(lease, clock::now(), &[b"(an inetd connection)"]);
    // All of it is one request and its response, whose ends only the program knows.
    connection.on(TransactionEvent::HeadRead(ReceivedHead { has_body: false, is_http11: false, is_last: false }));
    connection.on(TransactionEvent::ResponseStarted(0, clock::now()));
    connection.update_reset_on_close();
    let outcome = {
        let addresses = connection.peer.zip(connection.server);
        let run = async {
            // The program expects a blocking descriptor. All holders of the socket share this flag.
            let copy = stream.0.as_fd().try_clone_to_owned()?;
            fcntl(&copy, FcntlArg::F_SETFL(OFlag::empty()))?;
            let builtin = state.builtin.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
            Ok::<_, std::io::Error>(builtin.run_inetd(copy, addresses, lease.to_string()).await)
        };
        let deadline = connection.transaction.get(Transaction::respond_by);
        tokio::select! {
            run = run => Some(run),
            // A client that disconnects is the program's concern, but the deadline holds all the same.
            () = sleep(deadline.since(clock::now())) => None,
        }
    };
    let cause = match outcome {
        None => EndCause::Deadline,
        Some(Ok(Some(Ok((_, true))))) => {
            connection.on(TransactionEvent::ResponseEnded);
            EndCause::Closed
        }
        Some(Ok(Some(Ok((ended, false))))) => {
            tracing::warn!(%worker, %lease, %epoch, event = %Event::HandlerFault, "the program {ended}");
            EndCause::HandlerFault
        }
        Some(Ok(Some(Err(failure)))) => {
            log_failure(state, lease, &failure);
            EndCause::HandlerFault
        }
        Some(Ok(None)) => EndCause::HandlerFault,
        Some(Err(error)) => {
            tracing::warn!(%worker, %lease, %epoch, %error, event = %Event::HandlerFault,
                "the connection cannot be passed to the program: it is cut");
            EndCause::HandlerFault
        }
    };
    let _ = fcntl(stream.0.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    cause
}
