//! How a connection ends: with everything delivered, or with a reset.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::io::AsyncReadExt;

use super::SharedStream;
use crate::sys;

/// Ends a connection whose answer may have come before all of its request was read.
///
/// A plain close with unread bytes makes the kernel send a reset, which can destroy the answer on its way.
/// So: end our direction, then read and throw away until the other side ends its own, at most for `bound`.
pub async fn lingering_close(stream: SharedStream, bound: Duration) {
    if shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write).is_err() {
        return; // the other side is gone
    }
    drain(stream, bound).await;
}

/// The second half of it, where our direction has been ended already.
pub async fn drain(mut stream: SharedStream, bound: Duration) {
    let drain = async {
        let mut waste = vec![0; 16 * 1024];
        while matches!(stream.read(&mut waste).await, Ok(n) if n > 0) {}
    };
    let _ = tokio::time::timeout(bound, drain).await; // at its end the rest is not worth waiting for
}

/// Ends a connection now, with a reset where there is one (TCP), whoever else holds it: nothing unfinished is to look
/// finished.
pub fn reset(connection: impl AsFd) {
    // A Unix socket knows no such address: there the end of both directions is all there is.
    if sys::disconnect(connection.as_fd()).is_err() {
        let _ = shutdown(connection.as_fd().as_raw_fd(), Shutdown::Both); // the other side is gone
    }
}

/// While on, a close of this TCP connection (also by the death of the process) sends a reset, so that
/// nothing unfinished can look finished. Nothing happens on a Unix socket.
pub fn set_reset_on_close(stream: &SharedStream, on: bool) -> io::Result<()> {
    if stream.0.is_tcp() {
        let linger = libc::linger { l_onoff: on.into(), l_linger: 0 };
        setsockopt(&stream.0.as_fd(), sockopt::Linger, &linger)?;
    }
    Ok(())
}
