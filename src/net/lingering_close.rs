//! The end of a connection: after the response has been delivered, or with a reset.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::io::AsyncReadExt;

use super::SharedStream;
use crate::sys;

/// Closes a connection on which unread request bytes may follow the response.
///
/// A plain close with unread bytes makes the kernel send a reset, which can destroy the response before the client
/// reads it. So this shuts down the sending direction, then discards input until the client closes, for at most
/// `bound`.
pub(crate) async fn lingering_close(stream: SharedStream, bound: Duration) {
    if shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write).is_err() {
        return; // already disconnected
    }
    discard_until_closed(stream, bound).await;
}

/// The second half of [`lingering_close`], after the sending direction has been shut down.
pub(crate) async fn discard_until_closed(mut stream: SharedStream, bound: Duration) {
    let discard = async {
        let mut buffer = vec![0; 16 * 1024];
        while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
    };
    let _ = tokio::time::timeout(bound, discard).await; // after that the connection is dropped in any case
}

/// Ends a connection now, also while other processes hold it. TCP sends a reset, so that an incomplete response does
/// not look complete.
pub(crate) fn reset(connection: impl AsFd) {
    // A Unix socket has no AF_UNSPEC: the end of both directions is the closest equivalent.
    if sys::disconnect(connection.as_fd()).is_err() {
        let _ = shutdown(connection.as_fd().as_raw_fd(), Shutdown::Both); // fails if already disconnected
    }
}

/// While on, a close of this TCP connection, also by the death of the process, sends a reset, so that an incomplete
/// response does not look complete. Has no effect on a Unix socket.
pub(crate) fn set_reset_on_close(stream: &SharedStream, on: bool) -> io::Result<()> {
    if stream.0.is_tcp() {
        let linger = libc::linger { l_onoff: on.into(), l_linger: 0 };
        setsockopt(&stream.0.as_fd(), sockopt::Linger, &linger)?;
    }
    Ok(())
}
