//! Connections that the dispatcher hands over.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::unix::AsyncFd;

use crate::handoff::{self, MESSAGE_MAX, Message};
use crate::sys;

/// The worker's end.
pub struct Inbox {
    listener: AsyncFd<Arc<OwnedFd>>,
    /// The last dispatcher that has connected; there is one at a time.
    dispatcher: Option<AsyncFd<OwnedFd>>,
    /// Room for a message.
    room: Vec<u8>,
}

impl Inbox {
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self { listener: sys::when_ready(Arc::new(listener))?, dispatcher: None, room: vec![0; MESSAGE_MAX] })
    }

    /// The socket it listens on.
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.listener.get_ref().clone()
    }

    /// The next connection. May be dropped and called again.
    pub async fn next(&mut self) -> (Message, OwnedFd) {
        poll_fn(|task| {
            loop {
                match self.poll_dispatcher(task) {
                    Poll::Ready(Some(come)) => return Poll::Ready(come),
                    Poll::Ready(None) => self.dispatcher = None,
                    Poll::Pending => match self.listener.poll_read_ready(task) {
                        Poll::Ready(Ok(mut ready)) => {
                            if let Ok(Ok(socket)) = ready.try_io(|listener| handoff::accept(listener.as_fd()))
                                && let Ok(dispatcher) = sys::when_readable(socket)
                            {
                                self.dispatcher = Some(dispatcher);
                            }
                        }
                        // An error: the runtime is going down.
                        Poll::Ready(Err(_)) | Poll::Pending => return Poll::Pending,
                    },
                }
            }
        })
        .await
    }

    /// The next one of the present dispatcher; `None` once that has gone.
    fn poll_dispatcher(&mut self, task: &mut Context<'_>) -> Poll<Option<(Message, OwnedFd)>> {
        let Some(dispatcher) = &self.dispatcher else { return Poll::Pending };
        while let Poll::Ready(ready) = dispatcher.poll_read_ready(task) {
            let received = match ready {
                Ok(mut ready) => ready.try_io(|socket| handoff::receive(socket.as_fd(), &mut self.room)),
                Err(error) => Ok(Err(error)),
            };
            match received {
                Ok(Ok(Some((Some(message), Some(connection))))) => return Poll::Ready(Some((message, connection))),
                // Nonsense is closed and forgotten; so is one that came without its socket.
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) => return Poll::Ready(None),
                Err(_would_block) => {}
            }
        }
        Poll::Pending
    }
}
