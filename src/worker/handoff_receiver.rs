//! Connections that the dispatcher hands over.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::handoff::{self, HandoffMessage, MESSAGE_MAX};
use crate::log::Event;
use crate::net::ACCEPT_RETRY_DELAY;
use crate::sys;

/// The worker's end.
pub struct HandoffReceiver {
    listener: AsyncFd<Arc<OwnedFd>>,
    /// The last dispatcher that has connected; there is one at a time.
    dispatcher: Option<AsyncFd<OwnedFd>>,
    /// Room for a message.
    room: Vec<u8>,
}

impl HandoffReceiver {
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self {
            listener: sys::when_ready(Arc::new(listener), Interest::READABLE)?,
            dispatcher: None,
            room: vec![0; MESSAGE_MAX],
        })
    }

    /// The socket it listens on.
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.listener.get_ref().clone()
    }

    /// The next connection. May be dropped and called again.
    pub async fn next(&mut self) -> (HandoffMessage, OwnedFd) {
        loop {
            match poll_fn(|task| self.poll_next(task)).await {
                Ok(come) => return come,
                Err(error) => {
                    tracing::warn!(%error, event = %Event::AcceptFailed, "accept");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<io::Result<(HandoffMessage, OwnedFd)>> {
        loop {
            match self.poll_dispatcher(task) {
                Poll::Ready(Some(come)) => return Poll::Ready(Ok(come)),
                Poll::Ready(None) => self.dispatcher = None,
                Poll::Pending => {
                    let Poll::Ready(Ok(mut ready)) = self.listener.poll_read_ready(task) else {
                        return Poll::Pending; // an error: the runtime is going down
                    };
                    match ready.try_io(|listener| handoff::accept(listener.as_fd())) {
                        Ok(accepted) => self.dispatcher = Some(sys::when_readable(accepted?)?),
                        Err(_would_block) => {}
                    }
                }
            }
        }
    }

    /// The next one of the present dispatcher; `None` once that has gone.
    fn poll_dispatcher(&mut self, task: &mut Context<'_>) -> Poll<Option<(HandoffMessage, OwnedFd)>> {
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
