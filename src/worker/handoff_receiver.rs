//! The sockets on which clients reach this worker: its own listener, and the socket on which the dispatcher hands
//! connections over.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use super::error::{ServeError, system};
use crate::handoff::{self, HandoffMessage, MESSAGE_MAX};
use crate::log::{Event, LogThrottle};
use crate::net::{ACCEPT_RETRY_DELAY, SocketListener};
use crate::{descriptors, sys};

/// How long a worker may be without a free descriptor before it exits between two requests. Its connections cannot cause
/// that, but a program that does not close what it opens can: its next incarnation serves again.
pub(super) const EXHAUSTED_GRACE: Duration = Duration::from_secs(1);

/// One for each delivery.
pub(super) struct WorkerListeners {
    pub redirect: SocketListener,
    pub handoff: Option<HandoffReceiver>,
}

impl WorkerListeners {
    /// The first socket of each kind among those that the supervisor has passed. Further listening sockets are those that
    /// the first one has replaced.
    pub(super) fn from_passed(sockets: Vec<(OwnedFd, String)>) -> Result<Self, ServeError> {
        let sockets = sockets.into_iter().map(|(socket, _)| socket);
        let (handoff, redirect): (Vec<_>, Vec<_>) = sockets.partition(handoff::is_handoff_socket);
        let listeners: Result<Vec<_>, _> = redirect.into_iter().map(SocketListener::from_fd).collect();
        let mut listeners = listeners.map_err(system("the listening socket"))?.into_iter();
        let redirect = listeners.next().ok_or(ServeError::NoSocket)?;
        let handoff = handoff.into_iter().next();
        Ok(Self {
            redirect: redirect.in_place_of(listeners.collect()),
            handoff: handoff.map(HandoffReceiver::new).transpose().map_err(system("the handoff socket"))?,
        })
    }
}

/// The worker's end of the handoff socket.
pub(super) struct HandoffReceiver {
    listener: AsyncFd<Arc<OwnedFd>>,
    /// The dispatcher that connected last; there is one at a time.
    dispatcher: Option<AsyncFd<OwnedFd>>,
    message_buffer: Vec<u8>,
    failures: LogThrottle,
    exhausted_since: Option<Instant>,
    /// Whether an invalid message of this dispatcher has been logged.
    invalid_logged: bool,
}

impl HandoffReceiver {
    pub(super) fn new(listener: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self {
            listener: sys::when_ready(Arc::new(listener), Interest::READABLE)?,
            dispatcher: None,
            message_buffer: vec![0; MESSAGE_MAX],
            failures: LogThrottle::default(),
            exhausted_since: None,
            invalid_logged: false,
        })
    }

    /// The listening socket.
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        self.listener.get_ref().clone()
    }

    /// The next connection; `None` if there was no free descriptor for one for [`EXHAUSTED_GRACE`]. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(HandoffMessage, OwnedFd)> {
        loop {
            let error = match poll_fn(|task| self.poll_next(task)).await {
                Ok(next) => {
                    self.exhausted_since = None;
                    return Some(next);
                }
                Err(error) => error,
            };
            if let Some(count) = self.failures.count() {
                tracing::warn!(%error, count, event = %Event::AcceptFailed,
                    "cannot receive a connection from the dispatcher, which offers it to another worker");
            }
            if !descriptors::is_exhausted() {
                self.exhausted_since = None;
            } else if self.exhausted_since.get_or_insert(Instant::now()).elapsed() >= EXHAUSTED_GRACE {
                return None;
            }
            sleep(ACCEPT_RETRY_DELAY).await;
        }
    }

    /// Closes the connection of the dispatcher, which connects again for its next message: to the process that serves
    /// then.
    pub(super) fn disconnect(&mut self) {
        self.dispatcher = None;
    }

    /// As [`Self::next`].
    pub(super) fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<io::Result<(HandoffMessage, OwnedFd)>> {
        loop {
            match self.poll_dispatcher(task) {
                Poll::Ready(Some(next)) => return Poll::Ready(next),
                Poll::Ready(None) => self.dispatcher = None,
                Poll::Pending => {
                    let Poll::Ready(Ok(mut ready)) = self.listener.poll_read_ready(task) else {
                        return Poll::Pending; // an error means that the runtime shuts down
                    };
                    match ready.try_io(|listener| handoff::accept(listener.as_fd())) {
                        Ok(accepted) => {
                            self.dispatcher = Some(sys::when_readable(accepted?)?);
                            self.invalid_logged = false;
                        }
                        Err(_would_block) => {}
                    }
                }
            }
        }
    }

    /// The next connection from the current dispatcher; `None` once that has closed.
    fn poll_dispatcher(&mut self, task: &mut Context<'_>) -> Poll<Option<io::Result<(HandoffMessage, OwnedFd)>>> {
        let Some(dispatcher) = &self.dispatcher else { return Poll::Pending };
        while let Poll::Ready(ready) = dispatcher.poll_read_ready(task) {
            let received = match ready {
                Ok(mut ready) => ready.try_io(|socket| handoff::receive(socket.as_fd(), &mut self.message_buffer)),
                Err(error) => Ok(Err(error)),
            };
            match received {
                Ok(Ok(Some((Some(message), Some(connection))))) => return Poll::Ready(Some(Ok((message, connection)))),
                // Without a free descriptor the kernel drops the one in the message (MSG_CTRUNC, recvmsg(2)). The
                // dispatcher has another and revokes the offer.
                Ok(Ok(Some((Some(_), None)))) => return Poll::Ready(Some(Err(Errno::EMFILE.into()))),
                // An invalid message is discarded, and its socket closed.
                Ok(Ok(Some((message, connection)))) => {
                    if !std::mem::replace(&mut self.invalid_logged, true) {
                        let (decoded, with_socket) = (message.is_some(), connection.is_some());
                        tracing::warn!(decoded, with_socket, event = %Event::AcceptFailed,
                            "a message of the dispatcher cannot be used: its connections go to other workers; restart \
                             this worker if patou was upgraded");
                    }
                }
                Ok(Ok(None) | Err(_)) => return Poll::Ready(None),
                Err(_would_block) => {}
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

    use super::*;
    use crate::handoff::{HandoffSender, ListenerInfo, bind_handoff_socket};
    use crate::ids::{Epoch, LeaseId, Token};
    use crate::net::WireProtocol;

    #[tokio::test]
    async fn message_that_cannot_be_decoded_is_logged_and_the_next_one_received() {
        let path = std::env::temp_dir().join(format!("patou-receiver-{}.sock", std::process::id()));
        let mut receiver = HandoffReceiver::new(bind_handoff_socket(&path).unwrap()).unwrap();
        let other = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(other.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::unistd::write(&other, b"of another version").unwrap();
        let pending = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(pending, receiver.next()).await.is_err());
        assert!(receiver.invalid_logged);
        drop(other);
        let lease = LeaseId::of(Epoch::FIRST, 1);
        let token = Token::from_words([1, 2]);
        let message = HandoffMessage {
            lease,
            token,
            peer: None,
            server: None,
            is_https: false,
            wire: WireProtocol::Http,
            listener: ListenerInfo::default(),
        };
        let (_client, connection) = std::os::unix::net::UnixStream::pair().unwrap();
        HandoffSender::new(path.clone(), None).send(&message.encode(), connection.as_fd()).unwrap();
        assert_eq!(receiver.next().await.unwrap().0.lease, lease);
        std::fs::remove_file(path).unwrap();
    }
}
