//! The end of a connection: after the response has been delivered, or with a reset.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::SharedStream;
use super::linger::{Linger, LingerBounds};
use crate::sys;

/// Closes a connection on which unread request bytes may follow the response, and on which the response may still be
/// under way.
///
/// A plain close with unread bytes makes the kernel send a reset, which destroys what the client has not read of the
/// response. So this shuts down the sending direction, then discards input until the client closes, or makes no progress
/// ([`LingerBounds`]).
pub(crate) async fn lingering_close(stream: SharedStream, bounds: LingerBounds) {
    deliver(stream, &[], bounds).await;
}

/// Sends the last bytes of a connection, then closes it as [`lingering_close`] does.
pub(crate) async fn deliver(stream: SharedStream, bytes: &[u8], bounds: LingerBounds) {
    let mut linger = Linger::new(Instant::now().into_std(), bounds);
    let mut unsent = bytes;
    // The client may send as well meanwhile, and read nothing before it has sent everything.
    let (mut reader, mut writer, mut discarded) = (stream.clone(), stream.clone(), vec![0; 16 * 1024]);
    let mut is_reading = true;
    while !unsent.is_empty() {
        let step = async {
            tokio::select! {
                biased;
                written = writer.write(unsent) => Some(written),
                read = reader.read(&mut discarded), if is_reading => {
                    is_reading = matches!(read, Ok(1..));
                    None
                }
            }
        };
        // Not a branch of the same `select!`: there the timer would be polled within the task's budget, which a socket
        // that only looks ready can use up.
        let has_progress = match timeout_at(linger.look_at().into(), step).await {
            Ok(Some(Ok(length @ 1..))) => {
                unsent = &unsent[length..];
                true
            }
            Ok(Some(_)) => return, // the client has disconnected
            Ok(None) => is_reading,
            Err(_elapsed) => false,
        };
        // What is sent whole ends with a FIN, although the client may have no time left: the close of this duplicate
        // alone ends nothing while another process holds one.
        if !unsent.is_empty() && !continues(&mut linger, &stream, has_progress) {
            return;
        }
    }
    if shutdown(stream.0.as_fd().as_raw_fd(), Shutdown::Write).is_ok() {
        discard(stream, linger, &mut discarded).await;
    }
}

/// The second half of [`lingering_close`], after the sending direction has been shut down.
pub(crate) async fn discard_until_closed(stream: SharedStream, bounds: LingerBounds) {
    discard(stream, Linger::new(Instant::now().into_std(), bounds), &mut vec![0; 16 * 1024]).await;
}

async fn discard(mut stream: SharedStream, mut linger: Linger, discarded: &mut [u8]) {
    loop {
        let has_sent = match timeout_at(linger.look_at().into(), stream.read(discarded)).await {
            Ok(Ok(1..)) => true,
            Ok(Ok(0) | Err(_)) => return,
            Err(_elapsed) => false,
        };
        if !continues(&mut linger, &stream, has_sent) {
            return; // the connection is dropped
        }
    }
}

/// Whether the client is waited for any longer; `has_progress` if it has just sent or received bytes.
fn continues(linger: &mut Linger, stream: &SharedStream, has_progress: bool) -> bool {
    let now = Instant::now().into_std();
    if has_progress {
        linger.note_progress(now);
    }
    // Without a send queue to look at, the bounds hold all the same.
    now < linger.look_at() || linger.look(now, sys::unreceived(stream.0.as_fd()).unwrap_or(0))
}
/// As [`discard_until_closed`], without a runtime.
pub(crate) fn discard_until_closed_blocking(stream: &SharedStream, bounds: LingerBounds) {
    let now = || Instant::now().into_std();
    let mut linger = Linger::new(now(), bounds);
    let mut discarded = vec![0; 16 * 1024];
    loop {
        let left = linger.look_at().saturating_duration_since(now());
        let mut fds = [PollFd::new(stream.0.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX));
        let has_sent = match recv(stream.0.as_fd().as_raw_fd(), &mut discarded, MsgFlags::MSG_DONTWAIT) {
            Ok(1..) => true,
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Ok(0) | Err(_) => return,
        };
        if !continues(&mut linger, stream, has_sent) {
            return;
        }
    }
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;
    use crate::net::SocketStream;

    #[tokio::test]
    async fn delivered_response_ends_although_another_process_holds_the_connection() {
        for silence in [Duration::ZERO, Duration::from_millis(20)] {
            let (ours, mut client) = UnixStream::pair().unwrap();
            let _duplicate = ours.try_clone().unwrap();
            let stream = SharedStream(Arc::new(SocketStream::from_fd(OwnedFd::from(ours)).unwrap()));
            deliver(stream, b"response", LingerBounds { silence, total: silence }).await;
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).expect("the end of the stream");
            assert_eq!(received, b"response");
        }
    }
}
