//! Plain HTTP/1.1 over a blocking socket, so that every end of a connection can be told apart.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connected stream, whatever carries it.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Place {
    /// `127.0.0.1:80` or `unix:/path`; who listens everywhere is reached here.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Place::Unix(path.into()));
        }
        let mut address: SocketAddr = text.parse().ok()?;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        Some(Place::Tcp(address))
    }

    /// What stands in `Host`.
    pub fn host(&self) -> String {
        match self {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(_) => "localhost".into(),
        }
    }

    /// Connects within `patience`, which also bounds each read and write from then on.
    pub fn connect(&self, patience: Duration) -> io::Result<Stream> {
        let stream = match self {
            Place::Tcp(address) => Stream::Tcp(TcpStream::connect_timeout(address, patience)?),
            Place::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        stream.bound(patience)?;
        Ok(stream)
    }

    /// As another client: over IPv4 from another address of this machine, which counts as another peer.
    pub fn connect_as(&self, from: Ipv4Addr, patience: Duration) -> io::Result<Stream> {
        let Place::Tcp(SocketAddr::V4(to)) = self else { return self.connect(patience) };
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0)))?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(*to))?;
        let stream = Stream::Tcp(fd.into());
        stream.bound(patience)?;
        Ok(stream)
    }
}

impl Stream {
    fn bound(&self, patience: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)))
            }
        }
    }

    /// Ends both directions, for every handle.
    pub fn shut(&self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// A second handle of the same connection.
    pub fn again(&self) -> io::Result<Self> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(bytes),
            Stream::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The head of a request that is the last on its connection.
pub fn head(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    any_head("1.1", method, target, host, length, "Connection: close\r\n")
}

/// The head of one after which the connection may go on.
pub fn going_on(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    any_head("1.1", method, target, host, length, "")
}

/// The head of a last one whose body is held back until it is wanted (RFC 9110, section 10.1.1).
pub fn expecting(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    any_head("1.1", method, target, host, length, "Connection: close\r\nExpect: 100-continue\r\n")
}

/// The head of one of HTTP/1.0.
pub fn old(method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
    any_head("1.0", method, target, host, length, "")
}

fn any_head(version: &str, method: &str, target: &str, host: &str, length: usize, more: &str) -> Vec<u8> {
    let length = if method == "GET" { String::new() } else { format!("Content-Length: {length}\r\n") };
    format!("{method} {target} HTTP/{version}\r\nHost: {host}\r\n{more}{length}\r\n").into_bytes()
}

/// What a proxy writes before everything else, for a client with this address: the PROXY protocol, version 2 or 1.
pub fn proxied(from: Ipv4Addr, binary: bool) -> Vec<u8> {
    const PORTS: [u16; 2] = [40_000, 80];
    if !binary {
        return format!("PROXY TCP4 {from} 127.0.0.1 {} {}\r\n", PORTS[0], PORTS[1]).into_bytes();
    }
    let addresses = [from.octets(), Ipv4Addr::LOCALHOST.octets()].concat();
    let ports = PORTS.map(u16::to_be_bytes).concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses, &ports].concat()
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// The connection ended before a byte.
    Nothing,
    /// Nothing more came in time.
    Silence,
    /// It ended before the end of a head or body, or could not be read as HTTP.
    Part,
    Whole(Answer),
}

/// A response that is whole by what it says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Reads the first head. What was read, and whether it says that the body may come; `None` if nothing came in time.
pub fn first_head(stream: &mut impl Read) -> Option<(Vec<u8>, bool)> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return None,
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend(&piece[..n]),
        }
    }
    let may = bytes.starts_with(b"HTTP/1.1 100 ");
    Some((bytes, may))
}

/// Reads to the end of the connection, or to silence.
pub fn receive(stream: &mut impl Read) -> Came {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Came::Silence,
        ended => take_apart(bytes, ended.is_ok()),
    }
}

/// Reads one response, after which the connection may go on. `held` is what was read behind the one before.
pub fn next(stream: &mut impl Read, held: &mut Vec<u8>) -> Came {
    let (mut bytes, mut piece) = (std::mem::take(held), vec![0; 64 * 1024]);
    loop {
        if let Some(length) = measure(&bytes) {
            *held = bytes.split_off(length);
            return take_apart(bytes, true);
        }
        let ended = match stream.read(&mut piece) {
            Ok(0) => Some(true),
            Ok(n) => {
                bytes.extend(&piece[..n]);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Came::Silence;
            }
            Err(_) => Some(false),
        };
        if let Some(regular) = ended.filter(|_| measure(&bytes).is_none()) {
            return take_apart(bytes, regular);
        }
    }
}

/// How long the first response is, interim ones before it included, if it says so and is there.
fn measure(bytes: &[u8]) -> Option<usize> {
    let body = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..body]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    if (100..200).contains(&status) {
        return Some(body + measure(&bytes[body..])?);
    }
    let answer = Answer { status, head, body: Vec::new() };
    if answer.header("transfer-encoding").is_some() {
        let mut at = body;
        loop {
            let end = at + bytes[at..].windows(2).position(|window| window == b"\r\n")?;
            let size = std::str::from_utf8(&bytes[at..end]).ok()?.split(';').next()?.trim();
            let size = usize::from_str_radix(size, 16).ok()?;
            at = end.checked_add(size)?.checked_add(4)?;
            if at > bytes.len() {
                return None;
            }
            if size == 0 {
                return Some(at);
            }
        }
    }
    let whole = body.checked_add(answer.header("content-length")?.parse().ok()?)?;
    (whole <= bytes.len()).then_some(whole)
}

/// `regular`: the connection ended with a FIN, and not with a reset.
fn take_apart(mut bytes: Vec<u8>, regular: bool) -> Came {
    loop {
        if bytes.is_empty() {
            return Came::Nothing;
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Came::Part };
        let body = bytes.split_off(end + 4);
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let Some(status) = head.split(' ').nth(1).and_then(|status| status.parse().ok()) else { return Came::Part };
        if (100..200).contains(&status) {
            bytes = body; // interim (RFC 9110, 15.2)
            continue;
        }
        let answer = Answer { status, head, body };
        let whole = match (answer.header("transfer-encoding"), answer.header("content-length")) {
            (Some(_), _) => match unchunk(&answer.body) {
                Some(body) => return Came::Whole(Answer { body, ..answer }),
                None => false,
            },
            (None, Some(length)) => length.parse() == Ok(answer.body.len()),
            (None, None) => regular,
        };
        return if whole { Came::Whole(answer) } else { Came::Part };
    }
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return (bytes == b"\r\n").then_some(body);
        }
        body.extend(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(text: &str, regular: bool) -> Came {
        take_apart(text.as_bytes().to_vec(), regular)
    }

    #[test]
    fn what_is_whole_says_so_itself() {
        let whole = |text, regular| match came(text, regular) {
            Came::Whole(answer) => (answer.status, String::from_utf8(answer.body).unwrap()),
            other => panic!("{other:?}"),
        };
        assert_eq!(whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false), (200, "hi".into()));
        assert_eq!(
            whole("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", true),
            (503, "".into())
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        assert_eq!(whole(chunked, false), (200, "hi".into()));
        assert_eq!(whole("HTTP/1.1 200 OK\r\n\r\nhi", true), (200, "hi".into()));
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhi",
            &chunked[..chunked.len() - 2],
            &chunked[..chunked.len() - 7],
            "HTTP/1.1 200 OK\r\nContent-",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP",
        ] {
            assert_eq!(came(cut, true), Came::Part, "{cut}");
        }
        assert_eq!(came("HTTP/1.1 200 OK\r\n\r\nhi", false), Came::Part);
        assert_eq!(came("HTTP/1.1 100 Continue\r\n\r\n", true), Came::Nothing);
    }

    #[test]
    fn one_response_is_told_from_the_next_by_its_framing() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        for text in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", chunked, interim] {
            assert_eq!(measure(text.as_bytes()), Some(text.len()));
            assert_eq!(measure(format!("{text}HTTP").as_bytes()), Some(text.len()));
            assert_eq!(measure(&text.as_bytes()[..text.len() - 1]), None);
            let mut held = Vec::new();
            let Came::Whole(answer) = next(&mut text.as_bytes(), &mut held) else { panic!("{text}") };
            assert_eq!(answer.body, b"hi");
            let two = format!("{text}{text}");
            let (mut two, mut held) = (two.as_bytes(), Vec::new());
            for behind in [text.len(), 0] {
                let Came::Whole(answer) = next(&mut two, &mut held) else { panic!("{text}") };
                assert_eq!((answer.body.as_slice(), held.len()), (&b"hi"[..], behind));
            }
            assert_eq!(next(&mut &text.as_bytes()[..text.len() - 1], &mut held), Came::Part);
        }
        assert_eq!(next(&mut &b""[..], &mut Vec::new()), Came::Nothing);
        // Without a length the end of the connection is its end.
        let Came::Whole(answer) = next(&mut &b"HTTP/1.1 200 OK\r\n\r\nhi"[..], &mut Vec::new()) else { panic!() };
        assert_eq!(answer.body, b"hi");
    }

    #[test]
    fn a_proxys_header_is_what_the_dispatcher_reads() {
        use crate::net::{ProxyHeader, parse_proxy_header as read};
        for binary in [false, true] {
            let header = proxied(Ipv4Addr::new(192, 0, 2, 1), binary);
            let address = Some("192.0.2.1:40000".parse().unwrap());
            assert_eq!(read(&header), ProxyHeader::Complete(header.len(), address));
        }
    }

    #[test]
    fn a_body_comes_only_when_it_is_wanted() {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".as_slice();
        assert_eq!(first_head(&mut &*interim), Some((interim.to_vec(), true)));
        let last = b"HTTP/1.1 503 X\r\n\r\nno".as_slice();
        assert_eq!(first_head(&mut &*last), Some((last.to_vec(), false)));
        assert_eq!(first_head(&mut &interim[..9]), Some((interim[..9].to_vec(), false)));
    }

    #[test]
    fn places_are_read() {
        assert_eq!(Place::parse("0.0.0.0:80").unwrap().host(), "127.0.0.1:80");
        assert_eq!(Place::parse("unix:/a b"), Some(Place::Unix("/a b".into())));
        assert_eq!(Place::parse("nowhere"), None);
    }
}
