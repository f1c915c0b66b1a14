//! Blocking connections of the drill's clients, over TCP and Unix sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// The address of a listener or worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connected stream.
#[derive(Debug)]
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ServerAddress {
    /// Parses `127.0.0.1:80` or `unix:/path`; the unspecified address becomes the loopback address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(ServerAddress::Unix(path.into()));
        }
        let mut address: SocketAddr = text.parse().ok()?;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        Some(ServerAddress::Tcp(address))
    }

    /// The value of `Host`.
    pub(super) fn host(&self) -> String {
        match self {
            ServerAddress::Tcp(address) => address.to_string(),
            ServerAddress::Unix(_) => "localhost".into(),
        }
    }

    /// Connects within `timeout`, which also bounds each read and write.
    pub(super) fn connect(&self, timeout: Duration) -> io::Result<ClientStream> {
        let stream = match self {
            ServerAddress::Tcp(address) => ClientStream::Tcp(TcpStream::connect_timeout(address, timeout)?),
            ServerAddress::Unix(path) => ClientStream::Unix(UnixStream::connect(path)?),
        };
        stream.set_timeout(timeout)?;
        Ok(stream)
    }

    /// As [`connect`](Self::connect), over IPv4 from another local address, which counts as another client.
    pub(super) fn connect_from(&self, from: Ipv4Addr, timeout: Duration) -> io::Result<ClientStream> {
        let ServerAddress::Tcp(SocketAddr::V4(to)) = self else { return self.connect(timeout) };
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
        connect(fd.as_raw_fd(), &SockaddrIn::from(*to))?;
        let stream = ClientStream::Tcp(fd.into());
        stream.set_timeout(timeout)?;
        Ok(stream)
    }
}

impl ClientStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            ClientStream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)))
            }
            ClientStream::Unix(stream) => {
                stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)))
            }
        }
    }

    /// Shuts down both directions, for every handle.
    pub(super) fn shutdown(&self) {
        let _ = match self {
            ClientStream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            ClientStream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// A second handle of the same connection.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            ClientStream::Tcp(stream) => ClientStream::Tcp(stream.try_clone()?),
            ClientStream::Unix(stream) => ClientStream::Unix(stream.try_clone()?),
        })
    }
}

impl Read for ClientStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => stream.read(bytes),
            ClientStream::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for ClientStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => stream.write(bytes),
            ClientStream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        assert_eq!(ServerAddress::parse("0.0.0.0:80").unwrap().host(), "127.0.0.1:80");
        assert_eq!(ServerAddress::parse("unix:/a b"), Some(ServerAddress::Unix("/a b".into())));
        assert_eq!(ServerAddress::parse("nowhere"), None);
    }
}
