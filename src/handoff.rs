//! How an accepted connection comes to its worker: one message with the socket beside it (`SCM_RIGHTS`, unix(7)), on
//! `<runtime_dir>/<pool>/<n>.sock`, a `SOCK_SEQPACKET` socket of the worker's that outlives its incarnations.
//!
//! The message carries the lease and its token, which nobody else has been told: what does not fit the slot any more
//! is closed by the worker, and never shut down. Both ends send and receive without blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
    UnixAddr, accept4, bind, connect, getsockname, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};

use crate::ids::{LeaseId, Token};
use crate::sys;

/// Largest message: the names of `allowed_hosts` are most of it.
pub const MESSAGE_MAX: usize = 16 * 1024;
/// First byte of a message; another one is another version's.
const VERSION: u8 = 2;

/// What a worker must know of a connection besides the connection.
#[derive(Clone, Debug)]
pub struct HandoffMessage {
    /// The lease, which names worker and dispatcher incarnation in the slot.
    pub lease: LeaseId,
    /// The proof that the dispatcher has sent it.
    pub token: Token,
    /// The client's TCP address, or what a proxy told in its place; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The TCP address that the client has connected to; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    /// The listener that accepted it.
    pub entrance: ListenerInfo,
}

/// What holds for all connections of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerInfo {
    /// The address it listens on; `None` for a Unix socket.
    pub listens_on: Option<IpAddr>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// The names a Host header may carry, as in the configuration.
    pub allowed_hosts: Vec<String>,
}

impl HandoffMessage {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.lease.get().to_le_bytes());
        for word in self.token.words() {
            bytes.extend(word.to_le_bytes());
        }
        for end in [self.peer, self.server] {
            put_ip(&mut bytes, end.map(|end| end.ip()));
            bytes.extend(end.map_or(0, |end| end.port()).to_le_bytes());
        }
        put_ip(&mut bytes, self.entrance.listens_on);
        bytes.push(self.entrance.access_log.into());
        for host in &self.entrance.allowed_hosts {
            bytes.extend(u16::try_from(host.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(host.as_bytes());
        }
        bytes
    }

    /// Reads a message; `None` if it is not one that [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [VERSION] {
            return None;
        }
        let lease = LeaseId::new(u64::from_le_bytes(take(&mut rest)?))?;
        let token = Token::from_words([u64::from_le_bytes(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?)]);
        let mut end = || {
            let (ip, port) = (take_ip(&mut rest)?, u16::from_le_bytes(take(&mut rest)?));
            Some(ip.map(|ip| SocketAddr::new(ip, port)))
        };
        let (peer, server) = (end()?, end()?);
        let listens_on = take_ip(&mut rest)?;
        let access_log = take::<1>(&mut rest)? == [1];
        let mut allowed_hosts = Vec::new();
        while !rest.is_empty() {
            let length = u16::from_le_bytes(take(&mut rest)?);
            let (host, after) = rest.split_at_checked(length.into())?;
            allowed_hosts.push(std::str::from_utf8(host).ok()?.to_owned());
            rest = after;
        }
        Some(Self { lease, token, peer, server, entrance: ListenerInfo { listens_on, access_log, allowed_hosts } })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

fn put_ip(bytes: &mut Vec<u8>, ip: Option<IpAddr>) {
    match ip {
        None => bytes.push(0),
        Some(IpAddr::V4(ip)) => {
            bytes.push(4);
            bytes.extend(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            bytes.push(6);
            bytes.extend(ip.octets());
        }
    }
}

fn take_ip(rest: &mut &[u8]) -> Option<Option<IpAddr>> {
    Some(match take::<1>(rest)? {
        [0] => None,
        [4] => Some(Ipv4Addr::from(take::<4>(rest)?).into()),
        [6] => Some(Ipv6Addr::from(take::<16>(rest)?).into()),
        _ => return None,
    })
}

/// Makes the socket of one worker, in place of one that nobody listens on.
pub fn bind_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// Whether this is such a socket, among those that a supervisor has passed.
pub fn is_handoff_socket(fd: &impl std::os::fd::AsFd) -> bool {
    let unix = getsockname::<SockaddrStorage>(fd.as_fd().as_raw_fd()).is_ok_and(|a| a.as_unix_addr().is_some());
    unix && getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket)
}

/// The dispatcher's end towards one worker.
#[derive(Debug)]
pub struct HandoffSender {
    path: PathBuf,
    connected: Option<OwnedFd>,
}

impl HandoffSender {
    /// Connects when there is something to send.
    pub fn new(path: PathBuf) -> Self {
        Self { path, connected: None }
    }

    /// Passes `connection` on.
    ///
    /// Returns whether the worker is the one that took the last; if not, it has been started anew, or is to be.
    ///
    /// # Errors
    /// Nobody listens, or so much waits there that a worker which lives cannot be reading.
    pub fn send(&mut self, message: &[u8], connection: BorrowedFd<'_>) -> io::Result<bool> {
        if let Some(socket) = &self.connected {
            match pass(socket, message, connection) {
                // Its other end was an incarnation that is over.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN | Errno::ECONNREFUSED) => self.connected = None,
                result => return Ok(result.map(|()| true)?),
            }
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
        pass(&fd, message, connection)?;
        self.connected = Some(fd);
        Ok(false)
    }
}

fn pass(socket: &OwnedFd, message: &[u8], connection: BorrowedFd<'_>) -> nix::Result<()> {
    let fds = [connection.as_raw_fd()];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], &control, flags, None).map(drop)
}

/// Takes a connection from a listening [`bind_at`] socket.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    sys::own_fds(vec![fd]).next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What has come: `None` at the end of the dispatcher's life, otherwise a message that may be nonsense. `bytes` is room
/// for [`MESSAGE_MAX`] of them.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<Option<(Option<HandoffMessage>, Option<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let (length, fds) = {
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let fds: Vec<OwnedFd> = received
            .cmsgs()?
            .filter_map(|part| if let ControlMessageOwned::ScmRights(fds) = part { Some(fds) } else { None })
            .flat_map(sys::own_fds)
            .collect();
        (received.bytes, fds)
    };
    if length == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some((HandoffMessage::decode(&bytes[..length]), fds.into_iter().next())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    fn message(peer: Option<&str>, listens_on: Option<&str>, hosts: &[&str]) -> HandoffMessage {
        HandoffMessage {
            lease: LeaseId::of(Epoch::FIRST, 7),
            token: Token::new(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
            peer: peer.map(|peer| peer.parse().unwrap()),
            server: listens_on.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)),
            entrance: ListenerInfo {
                listens_on: listens_on.map(|ip| ip.parse().unwrap()),
                access_log: true,
                allowed_hosts: hosts.iter().map(|host| host.to_string()).collect(),
            },
        }
    }

    #[test]
    fn a_message_reads_what_it_writes_and_refuses_the_rest() {
        for message in [
            message(None, None, &[]),
            message(Some("192.0.2.1:80"), Some("127.0.0.1"), &["a", "b.example"]),
            message(Some("[2001:db8::1]:1"), Some("::"), &[""]),
        ] {
            let bytes = message.encode();
            let read = HandoffMessage::decode(&bytes).unwrap();
            assert!(read.token.matches(message.token));
            assert_eq!((read.lease, read.peer, read.server), (message.lease, message.peer, message.server));
            assert_eq!(read.entrance, message.entrance);
            // Hosts are whatever is left: only before them is every end too early.
            for end in 0..bytes.len().min(32) {
                assert!(HandoffMessage::decode(&bytes[..end]).is_none(), "{end}");
            }
        }
        let mut other = message(None, None, &[]).encode();
        other[0] = VERSION + 1;
        assert!(HandoffMessage::decode(&other).is_none() && HandoffMessage::decode(&[]).is_none());
    }

    #[test]
    fn a_connection_arrives_and_the_next_incarnation_gets_the_next_one() {
        let dir = std::env::temp_dir().join(format!("patou-handoff-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("1.sock");
        let listener = bind_at(&path).unwrap();
        assert!(is_handoff_socket(&listener));
        let mut post = HandoffSender::new(path.clone());
        let sent = message(None, None, &[]);
        for _ in 0..2 {
            let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
            post.send(&sent.encode(), server.as_fd()).unwrap();
            drop(server);
            let socket = accept(listener.as_fd()).unwrap();
            let (message, connection) = receive(socket.as_fd(), &mut [0; MESSAGE_MAX]).unwrap().unwrap();
            assert_eq!(message.map(|message| message.lease), Some(sent.lease));
            let mut connection = std::os::unix::net::UnixStream::from(connection.unwrap());
            connection.write_all(b"hello").unwrap();
            drop(connection);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            // This incarnation is over.
        }
        assert!(accept(listener.as_fd()).is_err(), "a socket is kept while it is good");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
