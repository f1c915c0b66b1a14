//! The wait of idle handoff connections for a request: a new connection has `front.head_timeout` to send the first byte,
//! a kept one `front.idle_timeout` for the next request. When the dispatcher stops, it closes all idle connections, but those without a first
//! request are kept for the next dispatcher.

use std::cell::Cell;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::Connection;
use crate::net;

/// All idle connections of the handoff listeners.
#[derive(Default)]
pub(super) struct IdleConnections {
    closing: Notify,
    is_closing: Cell<bool>,
}

impl IdleConnections {
    /// Ends every wait, present and future.
    pub(super) fn close(&self) {
        self.is_closing.set(true);
        self.closing.notify_waiters();
    }

    /// Whether the dispatcher stops.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Waits for the first byte of a request; `false` if none arrives within `bound`.
    pub(super) async fn wait_for_request(&self, connection: &Connection, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        let mut is_reported = false;
        loop {
            match connection.peek(&mut [0]) {
                Ok(1..) => return true,
                // Reported, and nothing to read: the error queue of the socket, which a worker has filled. It would be
                // reported again and again.
                Err(Errno::EAGAIN | Errno::EINTR) if !self.is_closing.get() && !is_reported => {}
                Ok(0) | Err(_) => return false,
            }
            let closing = self.closing.notified();
            tokio::select! {
                readable = net::until(deadline, connection.watched.readable()) => match readable {
                    Some(Ok(true)) => return true,
                    Some(Ok(false)) => is_reported = true,
                    Some(Err(_)) | None => return false,
                },
                () = closing => {}
            }
        }
    }
}
