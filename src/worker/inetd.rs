//! A connection as the standard input and output of a program (`inetd`): whatever the two speak.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::sleep_until;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::handoff::Claimed;
use super::state::WorkerState;
use crate::log::Event;
use crate::net::{reset, set_reset_on_close};

/// Runs the program until it ends, or to `request_timeout`.
pub async fn serve(shared: &Arc<WorkerState>, lent: Claimed) {
    let (worker, epoch) = (&shared.id, shared.respondent.epoch());
    let Claimed { held, stream, peer, server, .. } = lent;
    let lease = held.lease;
    // From here on whatever is sent is the program's.
    if !shared.respondent.respond(lease) {
        return; // the dispatcher has ended the lease
    }
    shared.respondent.note_request(lease, crate::clock::now(), &[b"(a connection)"]);
    let _ = set_reset_on_close(&stream, true); // not a socket any more: found by the program
    let outcome = {
        let addresses = peer.zip(server);
        let run = async {
            // Shared by all holders of the socket: the program expects a descriptor that blocks.
            let copy = stream.0.as_fd().try_clone_to_owned()?;
            fcntl(&copy, FcntlArg::F_SETFL(OFlag::empty()))?;
            let builtin = shared.builtin.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
            Ok::<_, std::io::Error>(builtin.run_inetd(copy, addresses, lease.to_string()).await)
        };
        tokio::select! {
            run = run => Some(run),
            // A client that has gone is the program's to notice; what it does then is bounded all the same.
            () = sleep_until(held.deadline) => None,
        }
    };
    let parting = shared.parting.clone().read_owned().await;
    shared.handled();
    if let Some(builtin) = &shared.builtin {
        builtin.end_request().await; // with everything that it has started
    }
    let whole = match outcome {
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
            shared.warn(lease, &failure);
            false
        }
        Some(Ok(None)) => false,
        Some(Err(error)) => {
            tracing::warn!(%worker, %lease, %epoch, %error, event = %Event::HandlerFault, "the connection cannot be used");
            false
        }
    };
    let _ = fcntl(stream.0.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    if whole {
        let _ = set_reset_on_close(&stream, false);
        let _ = shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write); // the client has gone
    } else {
        reset(&*stream.0);
    }
    let took = held.since.elapsed();
    tracing::debug!(%worker, %lease, %epoch, took_ms = took.as_millis() as u64, event = %Event::RequestAnswered,
        "connection is over");
    shared.finish(lease, took, !whole);
    if whole {
        shared.drain(stream, parting); // what the program has not read would destroy what it has said
    }
}
