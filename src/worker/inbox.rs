//! Connections that the dispatcher hands over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use crate::handoff::{self, Message};
use crate::sys;

/// The worker's end.
pub struct Inbox {
    listener: AsyncFd<OwnedFd>,
    /// The last dispatcher that has connected; there is one at a time.
    dispatcher: Option<AsyncFd<OwnedFd>>,
}

impl Inbox {
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self { listener: sys::when_readable(listener)?, dispatcher: None })
    }

    /// The next connection. May be dropped and called again.
    pub async fn next(&mut self) -> (Message, OwnedFd) {
        loop {
            let from = async {
                match &self.dispatcher {
                    Some(dispatcher) => dispatcher.readable().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = from => {
                    let received = match ready {
                        Ok(mut ready) => ready.try_io(|socket| handoff::receive(socket.as_fd())),
                        Err(error) => Ok(Err(error)),
                    };
                    match received {
                        Ok(Ok(Some((Some(message), Some(connection))))) => return (message, connection),
                        // Nonsense is closed and forgotten; so is one that came without its socket.
                        Ok(Ok(Some(_))) => {}
                        Ok(Ok(None) | Err(_)) => self.dispatcher = None,
                        Err(_would_block) => {}
                    }
                }
                ready = self.listener.readable() => {
                    let accepted = match ready {
                        Ok(mut ready) => ready.try_io(|listener| handoff::accept(listener.as_fd())),
                        Err(_) => std::future::pending().await, // the runtime is going down
                    };
                    if let Ok(Ok(socket)) = accepted
                        && let Ok(dispatcher) = sys::when_readable(socket)
                    {
                        self.dispatcher = Some(dispatcher);
                    }
                }
            }
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.get_ref().as_fd()
    }
}
