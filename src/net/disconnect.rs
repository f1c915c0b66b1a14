//! Whether the client is still there, without reading from it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use super::SharedStream;
use crate::sys;

/// An interim response (RFC 9110, section 15.2) that asks nothing of a client and changes nothing for it.
const PROBE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// Waits until the client has gone for good; never returns while it is there.
///
/// A client that has merely ended its own direction after a full request still waits for its answer. TCP
/// does not tell it from one that has closed: the same FIN arrives. Only an answer does, because a closed
/// socket replies to it with a reset. So, where `may_probe` says that nothing has been sent yet and that
/// the client speaks HTTP/1.1 (which must understand any 1xx), one interim response is sent after a FIN.
///
/// The watch is an epoll instance of its own that wakes for the end of the connection and not for data,
/// because nobody may be reading just now.
pub async fn disconnected(stream: &SharedStream, may_probe: &AtomicBool) {
    let Ok((epoll, watch)) = watch(stream) else {
        // Without a descriptor to spare, the deadline of the request is the bound.
        return std::future::pending().await;
    };
    let mut probed = false;
    loop {
        let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
        ready.clear_ready();
        // Taken out, so that the next event wakes us again.
        let _ = epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO);
        if has_ended(stream) {
            return;
        }
        if stream.0.is_tcp() && !probed && may_probe.load(Ordering::Relaxed) {
            probed = true;
            // If it cannot be written, the other direction is full: then the client is there.
            let _ = stream.0.try_write(PROBE);
        }
    }
}

fn watch(stream: &SharedStream) -> std::io::Result<(Epoll, AsyncFd<OwnedFd>)> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(stream.0.as_fd(), EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, 0))?;
    let watch = sys::when_readable(epoll.0.try_clone()?)?;
    Ok((epoll, watch))
}

/// Whether both directions are over: closed by the other side (Unix) or reset (TCP).
fn has_ended(stream: &SharedStream) -> bool {
    let mut fds = [PollFd::new(stream.0.as_fd(), PollFlags::empty())];
    let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|found| found.intersects(ended))
}
