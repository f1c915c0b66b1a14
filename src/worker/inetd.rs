//! The inetd handler: the connection is standard input and output of a program. patou does not see its protocol.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::sleep_until;

use super::claim::ClaimedConnection;
use super::service::log_failure;
use super::state::WorkerState;
use crate::clock;
use crate::log::Event;
use crate::net::{reset, set_reset_on_close};

/// Runs the program until it ends or `request_timeout` passes.
pub(super) async fn serve(state: &Arc<WorkerState>, connection: ClaimedConnection) {
    let (worker, epoch) = (&state.id, state.slot.epoch());
    let ClaimedConnection { active, stream, peer, server, .. } = connection;
    let lease = active.lease;
    // From now on the program may send.
    if !state.slot.respond(lease) {
        return; // the dispatcher has aborted the lease
    }
    state.slot.note_request(lease, clock::now(), &[b"(an inetd connection)"]);
    let _ = set_reset_on_close(&stream, true); // a failure shows in the program
    let outcome = {
        let addresses = peer.zip(server);
        let run = async {
            // The program expects a blocking descriptor. All holders of the socket share this flag.
            let copy = stream.0.as_fd().try_clone_to_owned()?;
            fcntl(&copy, FcntlArg::F_SETFL(OFlag::empty()))?;
            let builtin = state.builtin.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
            Ok::<_, std::io::Error>(builtin.run_inetd(copy, addresses, lease.to_string()).await)
        };
        tokio::select! {
            run = run => Some(run),
            // A client that disconnects is the program's concern, but the deadline holds all the same.
            () = sleep_until(active.deadline) => None,
        }
    };
    let pending = state.pending_responses.clone().read_owned().await;
    state.handler_done();
    if let Some(builtin) = &state.builtin {
        builtin.end_request().await; // kills all processes that the program has left
    }
    let succeeded = match outcome {
        None => {
            tracing::warn!(%worker, %lease, %epoch, event = %Event::RequestDeadline,
                "request_timeout passed: the program is killed and its connection cut");
            false
        }
        Some(Ok(Some(Ok((_, true))))) => true,
        Some(Ok(Some(Ok((ended, false))))) => {
            tracing::warn!(%worker, %lease, %epoch, event = %Event::HandlerFault, "the program {ended}");
            false
        }
        Some(Ok(Some(Err(failure)))) => {
            log_failure(state, lease, &failure);
            false
        }
        Some(Ok(None)) => false,
        Some(Err(error)) => {
            tracing::warn!(%worker, %lease, %epoch, %error, event = %Event::HandlerFault,
                "the connection cannot be passed to the program: it is cut");
            false
        }
    };
    let _ = fcntl(stream.0.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    if succeeded {
        let _ = set_reset_on_close(&stream, false);
        let _ = shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write); // fails if the client has gone
    } else {
        reset(&*stream.0);
    }
    let took = active.claimed_at.elapsed();
    tracing::debug!(%worker, %lease, %epoch, took_ms = took.as_millis() as u64, event = %Event::RequestAnswered,
        "connection finished");
    state.finish(lease, took, !succeeded);
    if succeeded {
        state.drain(stream, pending); // a close with unread bytes sends a reset, which destroys what the program sent
    }
}
