//! Listeners and connections, TCP or Unix.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname, getsockopt,
    sendmsg, setsockopt, shutdown, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::coop;

use crate::config::ListenAddress;
use crate::sys;

/// Pause after a failed accept. The usual cause is a lack of descriptors, which only time resolves.
pub(crate) const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Sends as many bytes as the send buffer has room for. MSG_DONTWAIT, because O_NONBLOCK belongs to the open file
/// description: each process that holds the socket can clear it (fcntl(2)).
fn send_vectored(fd: &OwnedFd, bytes: &[io::IoSlice<'_>]) -> nix::Result<usize> {
    sendmsg::<()>(fd.as_raw_fd(), bytes, &[], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL, None)
}

/// Whether [`SocketListener::poll_accept`] failed because the listening socket was shut down and its queue is empty:
/// another has replaced it.
pub(crate) fn is_retired(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ESHUTDOWN as i32)
}

/// For a connection that other processes have held, before it is closed. With SO_LINGER and a time, which any holder can
/// set, close(2) of the last descriptor waits for the client to receive everything, also on a non-blocking socket.
pub(crate) fn close_without_waiting(fd: &impl AsFd) {
    if getsockopt(fd, sockopt::Linger).is_ok_and(|linger| linger.l_onoff != 0 && linger.l_linger > 0) {
        let _ = setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
    }
}

/// A listening socket: IPv4, IPv6 or a Unix stream socket.
#[derive(Debug)]
pub(crate) struct SocketListener {
    registered: AsyncFd<OwnedFd>,
    /// `None` for a Unix socket.
    tcp_address: Option<SocketAddr>,
    /// Sockets of the same address that this one has replaced. Clients may still wait in their queues.
    replaced: Vec<SocketListener>,
}

/// `false` for a Unix socket.
fn is_tcp(fd: &OwnedFd) -> io::Result<bool> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    Ok(address.family() != Some(AddressFamily::Unix))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The peer's TCP address; `None` for a Unix socket.
pub(crate) fn peer_address(fd: &impl AsFd) -> Option<SocketAddr> {
    getpeername(fd.as_fd().as_raw_fd()).ok().as_ref().and_then(tcp_address)
}

/// The local TCP address; `None` for a Unix socket.
pub(crate) fn local_address(fd: &impl AsFd) -> Option<SocketAddr> {
    getsockname(fd.as_fd().as_raw_fd()).ok().as_ref().and_then(tcp_address)
}

/// The peer's user on a Unix socket (`SO_PEERCRED`).
pub(crate) fn peer_user(fd: &impl AsFd) -> Option<u32> {
    getsockopt(fd, sockopt::PeerCredentials).ok().map(|peer| peer.uid())
}

fn tcp_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

impl SocketListener {
    /// Wraps a listening socket that was passed to this process.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let tcp_address = if is_tcp(&fd)? { local_address(&fd) } else { None };
        set_nonblocking(&fd)?;
        if tcp_address.is_some() {
            // Responses are written whole: waiting for more data would only delay them. Accepted sockets inherit the
            // option.
            setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        }
        Ok(Self { registered: sys::when_readable(fd)?, tcp_address, replaced: Vec::new() })
    }

    /// Accepts the clients of `replaced` as well, and before its own: they have waited for longer.
    pub(crate) fn in_place_of(self, replaced: Vec<SocketListener>) -> Self {
        Self { replaced, ..self }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<SocketStream> {
        let (fd, _) = poll_fn(|task| self.poll_accept(task)).await?;
        Ok(SocketStream::new(fd, self.is_tcp()))
    }

    /// The next connection, non-blocking, and its client's TCP address. Wakes one task.
    pub(crate) fn poll_accept(&self, task: &mut Context<'_>) -> Poll<io::Result<(OwnedFd, Option<SocketAddr>)>> {
        for replaced in &self.replaced {
            if let Poll::Ready(Ok(accepted)) = replaced.poll_accept(task) {
                return Poll::Ready(Ok(accepted));
            }
        }
        loop {
            let mut readable = ready!(self.registered.poll_read_ready(task))?;
            match sys::accept(self.as_fd()) {
                Ok((fd, address)) => return Poll::Ready(Ok((fd, address.as_ref().and_then(tcp_address)))),
                Err(Errno::EAGAIN) if readable.ready().is_read_closed() => {
                    return Poll::Ready(Err(Errno::ESHUTDOWN.into()));
                }
                Err(Errno::EAGAIN) => readable.clear_ready(),
                Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// `false` for a Unix socket.
    pub(crate) fn is_tcp(&self) -> bool {
        self.tcp_address.is_some()
    }

    /// The TCP address; `None` for a Unix socket.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp_address
    }

    /// The next connection in its queue and its client's TCP address; `None` if there is none, or it cannot be accepted.
    pub(crate) fn try_accept(&self) -> Option<(OwnedFd, Option<SocketAddr>)> {
        let of_replaced = self.replaced.iter().find_map(Self::try_accept);
        of_replaced.or_else(|| {
            loop {
                match sys::accept(self.as_fd()) {
                    Ok((fd, address)) => return Some((fd, address.as_ref().and_then(tcp_address))),
                    Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                    Err(_) => return None,
                }
            }
        })
    }

    /// Ends it for all processes that hold it: clients are refused, and its address is free.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// Whether it is bound to this address.
    pub(crate) fn is_bound_to(&self, address: &ListenAddress) -> bool {
        let bound = getsockname::<SockaddrStorage>(self.as_fd().as_raw_fd());
        match address {
            ListenAddress::Tcp(tcp) => self.tcp_address() == Some(*tcp),
            ListenAddress::Unix(path) => {
                bound.is_ok_and(|bound| bound.as_unix_addr().and_then(UnixAddr::path) == Some(path))
            }
        }
    }
}

impl AsFd for SocketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.registered.get_ref().as_fd()
    }
}

/// A connection, TCP or Unix. Reads and writes never block, whatever the other holders of the socket do. It is registered with the runtime only when a task first waits for it.
#[derive(Debug)]
pub(crate) struct SocketStream {
    fd: Arc<OwnedFd>,
    is_tcp: bool,
    registered: OnceLock<AsyncFd<Arc<OwnedFd>>>,
    /// For writes, if they have a registration of their own.
    writes: Option<OwnRegistration>,
}

/// A second registration of a connection, which needs a descriptor of its own. It is duplicated at once: a process that has
/// no free one later can still wait.
#[derive(Debug)]
struct OwnRegistration {
    duplicate: Arc<OwnedFd>,
    registered: OnceLock<AsyncFd<Arc<OwnedFd>>>,
}

impl SocketStream {
    /// Wraps a non-blocking connection.
    pub(crate) fn new(fd: impl Into<Arc<OwnedFd>>, is_tcp: bool) -> Self {
        Self { fd: fd.into(), is_tcp, registered: OnceLock::new(), writes: None }
    }

    /// Wraps a non-blocking Unix connection whose task waits for the peer's bytes only. A Unix socket is reported as
    /// writable each time its peer has read, which would wake the thread once more for each request.
    pub(crate) fn mostly_reading(fd: OwnedFd) -> io::Result<Self> {
        let writes = OwnRegistration { duplicate: Arc::new(fd.try_clone()?), registered: OnceLock::new() };
        Ok(Self { writes: Some(writes), ..Self::new(fd, false) })
    }

    /// Wraps a connection that was passed to this process.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let is_tcp = is_tcp(&fd)?;
        Ok(Self::new(fd, is_tcp))
    }

    /// The connection itself.
    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// `false` for a Unix socket.
    pub(crate) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    /// The client's TCP address; `None` for a Unix socket.
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        self.is_tcp.then(|| peer_address(self))?
    }

    /// The local TCP address; `None` for a Unix socket.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.is_tcp.then(|| local_address(self))?
    }

    /// The peer's user on a Unix socket (`SO_PEERCRED`).
    pub(crate) fn peer_user(&self) -> Option<u32> {
        if self.is_tcp { None } else { peer_user(self) }
    }

    /// Writes as many bytes as the send buffer has room for.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send_vectored(&self.fd, &[io::IoSlice::new(bytes)])?)
    }

    /// Registers the connection with the runtime, if it is not yet registered.
    fn register(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        if let Some(registered) = self.registered.get() {
            return Ok(registered);
        }
        let interest = match self.writes {
            Some(_) => Interest::READABLE,
            None => Interest::READABLE | Interest::WRITABLE,
        };
        let registered = sys::when_ready(self.fd.clone(), interest)?;
        Ok(self.registered.get_or_init(|| registered))
    }

    /// As [`Self::register`], for writes.
    fn register_for_writes(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        let Some(OwnRegistration { duplicate, registered }) = &self.writes else { return self.register() };
        if let Some(registered) = registered.get() {
            return Ok(registered);
        }
        let new = sys::when_ready(duplicate.clone(), Interest::WRITABLE)?;
        Ok(registered.get_or_init(|| new))
    }

    fn poll_read(&self, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut readable = match self.registered.get() {
            Some(registered) => Some(ready!(registered.poll_read_ready(task))?),
            None => {
                // Without registration, reads that always find data must still yield to other tasks.
                ready!(coop::poll_proceed(task)).made_progress();
                None
            }
        };
        loop {
            let room = buffer.remaining();
            match sys::recv_into(self.as_fd(), buffer) {
                Ok(read) => {
                    // A short read: epoll reports the next data (epoll(7), question 9).
                    if let Some(readable) = readable.as_mut().filter(|_| 0 < read && read < room) {
                        readable.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    readable.as_mut().into_iter().for_each(|readable| readable.clear_ready());
                    readable = Some(ready!(self.register()?.poll_read_ready(task))?);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_write(&self, task: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let registered = self.writes.as_ref().map_or(&self.registered, |writes| &writes.registered);
        let mut writable = match registered.get() {
            Some(registered) => Some(ready!(registered.poll_write_ready(task))?),
            None => {
                ready!(coop::poll_proceed(task)).made_progress();
                None
            }
        };
        loop {
            match send_vectored(&self.fd, bytes) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(Errno::EINTR) => {}
                // The runtime never clears this state. An ended connection fails with another error: what remains is an
                // error queue (socket(7)), which another holder of the socket can fill.
                Err(Errno::EAGAIN) if writable.as_ref().is_some_and(|writable| writable.ready().is_write_closed()) => {
                    return Poll::Ready(Err(Errno::EPIPE.into()));
                }
                Err(Errno::EAGAIN) => {
                    writable.as_mut().into_iter().for_each(|writable| writable.clear_ready());
                    writable = Some(ready!(self.register_for_writes()?.poll_write_ready(task))?);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsFd for SocketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A connection that hyper reads and writes while other tasks watch it.
#[derive(Clone, Debug)]
pub(crate) struct SharedStream(pub Arc<SocketStream>);

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(task, buffer)
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(task, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(task, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the owner decides how the connection ends ([`super::lingering_close()`]).
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::TimestampingFlag;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn write_fails_on_a_full_socket_with_an_error_queue() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let mut stream = SharedStream(Arc::new(SocketStream::from_fd(tcp.accept().unwrap().0.into()).unwrap()));
        let flags = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
        setsockopt(&*stream.0, sockopt::Timestamping, &flags).unwrap();
        // Without the error the task would poll in a loop for ever.
        let full = timeout(Duration::from_secs(10), async { while stream.write(&[b'x'; 1 << 16]).await.is_ok() {} });
        full.await.expect("the write fails");
        assert!(!crate::net::has_ended(&stream), "the client is connected");
        drop(client);
    }

    #[tokio::test]
    async fn mostly_reading_connection_writes_more_than_its_buffer_holds() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut stream = SharedStream(Arc::new(SocketStream::mostly_reading(ours.into()).unwrap()));
        let mut peer = tokio::net::UnixStream::from_std(theirs).unwrap();
        let sent = vec![b'x'; 4 << 20];
        let peer = tokio::spawn(async move {
            peer.write_all(b"early").await.unwrap();
            let mut received = vec![0; 4 << 20];
            peer.read_exact(&mut received).await.unwrap();
            peer.write_all(b"response").await.unwrap();
            received
        });
        let mut early = [0; 5];
        stream.read_exact(&mut early).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        let mut response = [0; 8];
        stream.read_exact(&mut response).await.unwrap();
        assert_eq!((&early, &response), (b"early", b"response"));
        assert!(peer.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn no_call_blocks_on_a_socket_that_another_holder_made_blocking() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let pairs: [(OwnedFd, OwnedFd); 2] = [
            (tcp.accept().unwrap().0.into(), client.into()),
            UnixStream::pair().map(|(ours, theirs)| (ours.into(), theirs.into())).unwrap(),
        ];
        for (socket, _client) in pairs {
            let hostile = socket.try_clone().unwrap();
            let mut stream = SharedStream(Arc::new(SocketStream::from_fd(socket).unwrap()));
            fcntl(&hostile, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            let bound = Duration::from_millis(50);
            // A call that blocks would never return, whatever the timeout: the runtime has one thread.
            assert!(timeout(bound, stream.read(&mut [0; 16])).await.is_err());
            let full = timeout(bound, async { while stream.write(&[b'x'; 1 << 16]).await.is_ok() {} }).await;
            assert!(full.is_err());
            let full = loop {
                if let Err(error) = stream.0.try_write(&[b'x'; 1 << 16]) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            setsockopt(&hostile, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 60 }).unwrap();
            drop(hostile);
            close_without_waiting(&*stream.0);
            let since = std::time::Instant::now();
            drop(stream);
            assert!(since.elapsed() < Duration::from_secs(10), "the close has waited for the client");
        }
    }
}
