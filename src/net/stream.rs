//! TCP or Unix, listening or connected: one type each.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{AddressFamily, SockFlag, SockaddrLike, SockaddrStorage, accept4, getsockname};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::sys;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

impl Listener {
    /// Takes a listening socket that was passed to this process.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let address: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd))?;
        if address.family() == Some(AddressFamily::Unix) {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        } else {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(TcpListener::from_std(listener)?))
        }
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        poll_fn(|task| self.poll_accept(task)).await
    }

    /// The next connection; wakes one task.
    pub fn poll_accept(&self, task: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        Poll::Ready(Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, _) = ready!(listener.poll_accept(task))?;
                // Answers are written whole; waiting for more to send would only delay them.
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Listener::Unix(listener) => Stream::Unix(ready!(listener.poll_accept(task))?.0),
        }))
    }

    /// The next connection if one waits, non-blocking and watched by nobody.
    pub fn accept_now(&self) -> io::Result<OwnedFd> {
        let fd = accept4(self.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        sys::adopt(vec![fd]).next().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The TCP address it listens on; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Stream {
    /// Takes a connection that was passed to this process.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let address: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd))?;
        if address.family() == Some(AddressFamily::Unix) {
            let stream = std::os::unix::net::UnixStream::from(fd);
            stream.set_nonblocking(true)?;
            Ok(Stream::Unix(UnixStream::from_std(stream)?))
        } else {
            let stream = std::net::TcpStream::from(fd);
            stream.set_nonblocking(true)?;
            Ok(Stream::Tcp(TcpStream::from_std(stream)?))
        }
    }

    /// The client's TCP address.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// This end's TCP address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// The user at the other end of a Unix socket (`SO_PEERCRED`).
    pub fn peer_user(&self) -> Option<u32> {
        match self {
            Stream::Tcp(_) => None,
            Stream::Unix(stream) => stream.peer_cred().ok().map(|peer| peer.uid()),
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_write_ready(cx),
            Stream::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Writes what fits at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Unix(stream) => stream.try_write(bytes),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A connection that hyper reads and writes while others keep an eye on it.
#[derive(Clone, Debug)]
pub struct Shared(pub Arc<Stream>);

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let read = match &*self.0 {
                Stream::Tcp(stream) => stream.try_read_buf(buf),
                Stream::Unix(stream) => stream.try_read_buf(buf),
            };
            match read {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            let written = match &*self.0 {
                Stream::Tcp(stream) => stream.try_write_vectored(bytes),
                Stream::Unix(stream) => stream.try_write_vectored(bytes),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: how a connection ends is decided by who holds it ([`super::linger()`]).
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
