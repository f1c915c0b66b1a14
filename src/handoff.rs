//! Passes an accepted connection to its worker: one message with the socket beside it (`SCM_RIGHTS`, unix(7)), over
//! `<runtime_dir>/<pool>/<n>.sock`, a `SOCK_SEQPACKET` socket of the worker that outlives its incarnations.
//!
//! The message carries the lease and its token, which only this worker receives. If the lease is no longer in the slot,
//! the worker closes the connection without shutting it down. Both ends send and receive without blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use http::HeaderName;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
    UnixAddr, accept4, bind, connect, getsockname, getsockopt, listen, recvmsg, sendmsg, socket, socketpair, sockopt,
};

use crate::config::{ForwardedHeaders, IpNetwork, ListenerConfig, ProxyTrust, TrustedProxies};
use crate::held_file::HeldFile;
use crate::ids::{LeaseId, Token};
use crate::net::WireProtocol;
use crate::sys;

/// The largest message in bytes. The names of `allowed_hosts` are most of it.
pub(crate) const MESSAGE_MAX: usize = 20 * 1024;
/// The largest address: a byte for its kind, and its own.
const IP_MAX: usize = 1 + 16;
/// The largest message without names: version, lease, token, two addresses with their ports, the listener's address, its
/// flag, the FastCGI request with its mark.
const FIXED_MAX: usize = 1 + 8 + 16 + 2 * (IP_MAX + 2) + IP_MAX + 1 + 2 + 2;
/// The largest list of trusted proxies: its mark, its flags, the name of a header, and networks.
const PROXIES_MAX: usize = 2 + 1 + (2 + ProxyTrust::HEADER_MAX) + TrustedProxies::NETWORKS_MAX * (IP_MAX + 1);
const _: () =
    assert!(FIXED_MAX + ListenerConfig::HOSTS_MAX + PROXIES_MAX <= MESSAGE_MAX, "every valid configuration fits");
/// Stands in the place of a name's length before the trusted proxies. A worker of a version that does not know them
/// rejects the message, as it could not do what the listener requires, and the connection goes to another worker.
const PROXIES: u16 = u16::MAX;
/// As [`PROXIES`], before the id of a FastCGI request.
const FASTCGI: u16 = u16::MAX - 1;
/// Flags of the trusted proxies: peers on Unix sockets, and `Forwarded` instead of `X-Forwarded-For`.
const UNIX: u8 = 1;
const RFC7239: u8 = 2;
/// The first byte of a message. A message with another one comes from another version.
const VERSION: u8 = 2;

/// What a worker needs to know about a connection.
#[derive(Clone, Debug)]
pub(crate) struct HandoffMessage {
    /// The lease. The slot holds its terms.
    pub lease: LeaseId,
    /// The proof that the dispatcher sent the message.
    pub token: Token,
    /// The client's TCP address, or the one that a proxy reported; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The TCP address to which the client has connected; `None` on a Unix socket.
    pub server: Option<SocketAddr>,
    /// Whether a PROXY header says that the client has used TLS.
    pub is_https: bool,
    /// What the client speaks.
    pub wire: WireProtocol,
    /// The listener that accepted it.
    pub listener: ListenerInfo,
}

/// The settings of a listener that its workers apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenerInfo {
    /// The listener's address; `None` for a Unix socket.
    pub listens_on: Option<IpAddr>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// The permitted names in a Host header, as in the configuration.
    pub allowed_hosts: Vec<String>,
    /// The proxies in front of the listener.
    pub proxies: ProxyTrust,
}

impl HandoffMessage {
    /// The bytes on the wire.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.lease.get().to_le_bytes());
        for word in self.token.words() {
            bytes.extend(word.to_le_bytes());
        }
        for end in [self.peer, self.server] {
            write_ip(&mut bytes, end.map(|end| end.ip()));
            bytes.extend(end.map_or(0, |end| end.port()).to_le_bytes());
        }
        write_ip(&mut bytes, self.listener.listens_on);
        // An older worker reads the access log alone, and none with the other flag.
        bytes.push(u8::from(self.listener.access_log) | u8::from(self.is_https) << 1);
        for host in &self.listener.allowed_hosts {
            bytes.extend(u16::try_from(host.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(host.as_bytes());
        }
        if let WireProtocol::Fastcgi(request) = self.wire {
            bytes.extend([FASTCGI.to_le_bytes(), request.to_le_bytes()].concat());
        }
        if !self.listener.proxies.trusted.is_empty() {
            write_proxies(&mut bytes, &self.listener.proxies);
        }
        bytes
    }

    /// Decodes a message; `None` if [`Self::encode`] never writes it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if read_array::<1>(&mut rest)? != [VERSION] {
            return None;
        }
        let lease = LeaseId::new(u64::from_le_bytes(read_array(&mut rest)?))?;
        let token =
            Token::from_words([u64::from_le_bytes(read_array(&mut rest)?), u64::from_le_bytes(read_array(&mut rest)?)]);
        let mut end = || {
            let (ip, port) = (read_ip(&mut rest)?, u16::from_le_bytes(read_array(&mut rest)?));
            Some(ip.map(|ip| SocketAddr::new(ip, port)))
        };
        let (peer, server) = (end()?, end()?);
        let listens_on = read_ip(&mut rest)?;
        let [flags] = read_array::<1>(&mut rest)?;
        let (access_log, is_https) = (flags & 1 != 0, flags & 2 != 0);
        let (mut allowed_hosts, mut wire, mut proxies) = (Vec::new(), WireProtocol::Http, ProxyTrust::default());
        while !rest.is_empty() {
            let length = u16::from_le_bytes(read_array(&mut rest)?);
            if length == PROXIES {
                proxies = read_proxies(rest)?;
                break;
            }
            if length == FASTCGI {
                wire = WireProtocol::Fastcgi(u16::from_le_bytes(read_array(&mut rest)?));
                continue;
            }
            let (host, after) = rest.split_at_checked(length.into())?;
            allowed_hosts.push(std::str::from_utf8(host).ok()?.to_owned());
            rest = after;
        }
        let listener = ListenerInfo { listens_on, access_log, allowed_hosts, proxies };
        Some(Self { lease, token, peer, server, is_https, wire, listener })
    }
}

fn read_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*array)
}

fn write_ip(bytes: &mut Vec<u8>, ip: Option<IpAddr>) {
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

fn read_ip(rest: &mut &[u8]) -> Option<Option<IpAddr>> {
    Some(match read_array::<1>(rest)? {
        [0] => None,
        [4] => Some(Ipv4Addr::from(read_array::<4>(rest)?).into()),
        [6] => Some(Ipv6Addr::from(read_array::<16>(rest)?).into()),
        _ => return None,
    })
}

fn write_proxies(bytes: &mut Vec<u8>, proxies: &ProxyTrust) {
    let ProxyTrust { trusted, forwarded, user_header } = proxies;
    let family = if *forwarded == ForwardedHeaders::Rfc7239 { RFC7239 } else { 0 };
    let header = user_header.as_ref().map_or("", |name| name.as_str());
    bytes.extend(PROXIES.to_le_bytes());
    bytes.push(family | if trusted.unix { UNIX } else { 0 });
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    for network in &trusted.networks {
        write_ip(bytes, Some(network.address()));
        bytes.push(network.prefix());
    }
}

/// The rest of a message, from the flags on.
fn read_proxies(mut rest: &[u8]) -> Option<ProxyTrust> {
    let [flags] = read_array(&mut rest).filter(|[flags]| flags & !(UNIX | RFC7239) == 0)?;
    let length = u16::from_le_bytes(read_array(&mut rest)?);
    let (header, mut rest) = rest.split_at_checked(length.into())?;
    let user_header = if header.is_empty() { None } else { Some(HeaderName::from_bytes(header).ok()?) };
    let mut networks = Vec::new();
    while !rest.is_empty() {
        let address = read_ip(&mut rest)??;
        networks.push(IpNetwork::new(address, read_array::<1>(&mut rest)?[0])?);
    }
    let forwarded = if flags & RFC7239 == 0 { ForwardedHeaders::XForwarded } else { ForwardedHeaders::Rfc7239 };
    let trusted = TrustedProxies { unix: flags & UNIX != 0, networks };
    Some(ProxyTrust { trusted, forwarded, user_header }).filter(|proxies| !proxies.trusted.is_empty())
}

/// Creates the socket of one worker, in place of an old one without a listening process.
pub(crate) fn bind_handoff_socket(path: &Path) -> io::Result<OwnedFd> {
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

/// Whether a socket that the supervisor passed is a handoff socket.
pub(crate) fn is_handoff_socket(fd: &impl std::os::fd::AsFd) -> bool {
    let unix = getsockname::<SockaddrStorage>(fd.as_fd().as_raw_fd()).is_ok_and(|a| a.as_unix_addr().is_some());
    unix && getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket)
}

/// The dispatcher's connection to the socket of one worker.
#[derive(Debug)]
pub(crate) struct HandoffSender {
    path: PathBuf,
    /// The socket's file, for the case that its name is removed.
    file: Option<HeldFile>,
    connected: Option<OwnedFd>,
}

impl HandoffSender {
    /// Connects at the first message. `passed` leads to the socket if its name was removed.
    pub(crate) fn new(path: PathBuf, passed: Option<&Path>) -> Self {
        let passed = || HeldFile::open_descriptor(path.clone(), passed?).ok();
        let file = HeldFile::open(&path).ok().or_else(passed);
        Self { path, file, connected: None }
    }

    /// Sends `connection` to the worker.
    ///
    /// Returns whether the same incarnation of the worker received the previous message. If not, the worker has
    /// restarted, or must restart.
    ///
    /// # Errors
    /// When no process listens, or when the receive buffer is full because the worker does not read.
    pub(crate) fn send(&mut self, message: &[u8], connection: BorrowedFd<'_>) -> io::Result<bool> {
        if let Some(socket) = &self.connected {
            match send_fd(socket, message, connection) {
                // The incarnation at the other end has ended.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN | Errno::ECONNREFUSED) => self.connected = None,
                result => return Ok(result.map(|()| true)?),
            }
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        match connect(fd.as_raw_fd(), &UnixAddr::new(&self.path)?) {
            Ok(()) => self.file = HeldFile::open(&self.path).ok().or(self.file.take()),
            Err(error) => {
                let file = self.file.as_ref().ok_or(error)?;
                connect(fd.as_raw_fd(), &UnixAddr::new(&file.descriptor_path())?)?;
            }
        }
        send_fd(&fd, message, connection)?;
        self.connected = Some(fd);
        Ok(false)
    }
}

fn send_fd(socket: &OwnedFd, message: &[u8], connection: BorrowedFd<'_>) -> nix::Result<()> {
    let fds = [connection.as_raw_fd()];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], &control, flags, None).map(drop)
}

/// Accepts the dispatcher's connection on a [`bind_handoff_socket`] socket.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    sys::own_fds(vec![fd]).next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Receives a message, which is `None` if it is invalid, and its connection. Returns `None` when the dispatcher has
/// ended. `bytes`: a buffer of [`MESSAGE_MAX`].
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<Option<(Option<HandoffMessage>, Option<OwnedFd>)>> {
    let (length, fd) = receive_fd(socket, bytes)?;
    if length == 0 && fd.is_none() {
        return Ok(None);
    }
    Ok(Some((HandoffMessage::decode(&bytes[..length]), fd)))
}

fn receive_fd(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let fds: Vec<OwnedFd> = received
        .cmsgs()?
        .filter_map(|part| if let ControlMessageOwned::ScmRights(fds) = part { Some(fds) } else { None })
        .flat_map(sys::own_fds)
        .collect();
    Ok((received.bytes, fds.into_iter().next()))
}

/// A pair of connected sockets for [`send_listener`] and [`receive_listener`].
pub(crate) fn listener_channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Passes a listening socket or another descriptor to a running process, under the name that it would have in `LISTEN_FDNAMES`.
pub(crate) fn send_listener(channel: &OwnedFd, name: &str, listener: BorrowedFd<'_>) -> io::Result<()> {
    Ok(send_fd(channel, name.as_bytes(), listener)?)
}

/// Receives what [`send_listener`] has sent; `None` at the end of the channel.
pub(crate) fn receive_listener(channel: BorrowedFd<'_>) -> io::Result<Option<(String, OwnedFd)>> {
    let mut bytes = [0; 256];
    let (length, fd) = receive_fd(channel, &mut bytes)?;
    Ok(fd.map(|fd| (String::from_utf8_lossy(&bytes[..length]).into_owned(), fd)))
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
            is_https: hosts.len() == 1,
            wire: WireProtocol::Http,
            listener: ListenerInfo {
                listens_on: listens_on.map(|ip| ip.parse().unwrap()),
                access_log: true,
                allowed_hosts: hosts.iter().map(|host| host.to_string()).collect(),
                proxies: ProxyTrust::default(),
            },
        }
    }

    #[test]
    fn an_encoded_message_decodes_and_every_other_one_is_rejected() {
        for message in [
            message(None, None, &[]),
            message(Some("192.0.2.1:80"), Some("127.0.0.1"), &["a", "b.example"]),
            message(Some("[2001:db8::1]:1"), Some("::"), &[""]),
        ] {
            let bytes = message.encode();
            let read = HandoffMessage::decode(&bytes).unwrap();
            assert!(read.token.matches(message.token));
            assert_eq!((read.lease, read.peer, read.server), (message.lease, message.peer, message.server));
            assert_eq!(read.is_https, message.is_https);
            assert_eq!(read.listener, message.listener);
            // The hosts come last and may be missing; a message that ends before them is incomplete.
            for end in 0..bytes.len().min(32) {
                assert!(HandoffMessage::decode(&bytes[..end]).is_none(), "{end}");
            }
        }
        let mut other = message(None, None, &[]).encode();
        other[0] = VERSION + 1;
        assert!(HandoffMessage::decode(&other).is_none() && HandoffMessage::decode(&[]).is_none());
    }

    #[test]
    fn trusted_proxies_travel_and_cannot_be_mistaken_for_names() {
        let networks: Vec<IpNetwork> = ["10.0.0.0/8", "2001:db8::/32", "::1"].map(|text| text.parse().unwrap()).into();
        let user_header = Some(HeaderName::from_static("x-remote-user"));
        let all = ProxyTrust {
            trusted: TrustedProxies { unix: true, networks },
            forwarded: ForwardedHeaders::Rfc7239,
            user_header,
        };
        let unix = ProxyTrust { trusted: TrustedProxies { unix: true, networks: vec![] }, ..ProxyTrust::default() };
        for proxies in [all, unix] {
            let mut sent = message(None, Some("::"), &["a"]);
            let names_end = sent.encode().len();
            sent.listener.proxies = proxies;
            let bytes = sent.encode();
            assert_eq!(HandoffMessage::decode(&bytes).unwrap().listener, sent.listener);
            // A worker without them takes the mark for the length of a name that the message does not hold.
            let length = u16::from_le_bytes([bytes[names_end], bytes[names_end + 1]]);
            assert!(usize::from(length) > MESSAGE_MAX);
            assert!(HandoffMessage::decode(&bytes[..names_end + 4]).is_none());
        }
    }

    #[test]
    fn the_id_of_a_fastcgi_request_travels_and_cannot_be_mistaken_for_a_name() {
        for id in [0, 1, u16::MAX] {
            let mut sent = message(None, None, &["a"]);
            sent.listener.proxies.trusted.unix = true;
            let without = sent.encode().len();
            sent.wire = WireProtocol::Fastcgi(id);
            let bytes = sent.encode();
            assert_eq!(bytes.len(), without + 4);
            let read = HandoffMessage::decode(&bytes).unwrap();
            assert_eq!((read.wire, read.listener), (sent.wire, sent.listener));
        }
        assert!(usize::from(FASTCGI) > MESSAGE_MAX, "an older worker finds no name of this length");
    }

    #[test]
    fn a_new_incarnation_receives_the_next_connection() {
        let dir = std::env::temp_dir().join(format!("patou-handoff-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("1.sock");
        let listener = bind_handoff_socket(&path).unwrap();
        assert!(is_handoff_socket(&listener));
        let mut sender = HandoffSender::new(path.clone(), None);
        let sent = message(None, None, &[]);
        for _ in 0..2 {
            let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
            sender.send(&sent.encode(), server.as_fd()).unwrap();
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
            // This incarnation ends here.
        }
        assert!(accept(listener.as_fd()).is_err(), "the connection to the worker is kept while it works");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
