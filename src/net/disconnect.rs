//! Detects that a client has disconnected, without reading from the connection.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use super::SharedStream;
use crate::sys;

/// An interim response (RFC 9110, section 15.2), which requires nothing of a client and changes nothing for it.
const PROBE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// What the end of a client's sending direction means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfClose {
    /// That the client has closed the connection, or waits for its response: an interim response finds out.
    Probe,
    /// That it has closed the connection: it is a proxy, which never ends one direction alone.
    Closed,
    /// Nothing, and nothing may be sent to find out.
    Unknown,
}

/// Completes when the client has disconnected; stays pending while it is connected.
///
/// A client that has shut down only its sending direction after a full request still waits for its response. Over TCP
/// its FIN looks like that of a close. Only data distinguishes them, because a closed socket replies to it with a
/// reset. So one interim response is sent after a FIN if `on_half_close` permits it: nothing has been sent yet, and the
/// client speaks HTTP/1.1, in which every client must understand 1xx.
///
/// A separate epoll instance watches the connection. It wakes for the end of the connection and not for data, because
/// no task may be reading at the time.
pub(crate) async fn disconnected(stream: &SharedStream, on_half_close: impl Fn() -> HalfClose) {
    let Ok((epoll, readiness)) = watch_for_end(stream) else {
        // Without a free descriptor the deadline of the request is the bound.
        return std::future::pending().await;
    };
    let mut probed = false;
    loop {
        let Ok(mut ready) = readiness.readable().await else { return std::future::pending().await };
        ready.clear_ready();
        // Consumes the event, so that the next one wakes this task again.
        let mut event = [EpollEvent::empty()];
        let _ = epoll.wait(&mut event, EpollTimeout::ZERO);
        let is_half_closed = event[0].events().contains(EpollFlags::EPOLLRDHUP);
        if has_ended(stream) {
            return;
        }
        match on_half_close() {
            HalfClose::Closed if is_half_closed => return,
            HalfClose::Probe if !probed => probed = probe_half_closed(stream, true),
            _ => {}
        }
    }
}

/// Makes the kernel of a client that has closed its socket, and not only its sending direction, reset the connection;
/// see [`disconnected`]. Returns whether the interim response was due.
pub(crate) fn probe_half_closed(stream: &SharedStream, may_probe: bool) -> bool {
    let is_due = stream.0.is_tcp() && may_probe;
    if is_due {
        // If it cannot be written, the send buffer is full and the client is connected.
        let _ = stream.0.try_write(PROBE);
    }
    is_due
}

fn watch_for_end(stream: &SharedStream) -> std::io::Result<(Epoll, AsyncFd<OwnedFd>)> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(stream.0.as_fd(), EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, 0))?;
    let readiness = sys::when_readable(epoll.0.try_clone()?)?;
    Ok((epoll, readiness))
}

/// Whether both directions have ended: closed by the peer (Unix) or reset (TCP).
pub(crate) fn has_ended(stream: &SharedStream) -> bool {
    let mut fds = [PollFd::new(stream.0.as_fd(), PollFlags::empty())];
    // Not POLLERR: another holder of the socket can fill its error queue. An error that ends the connection sets both.
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))
}
