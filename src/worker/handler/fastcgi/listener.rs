//! The socket on which one application listens.

use std::fs;
use std::io;
use std::iter;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket};

use super::super::http::private_path;
use super::feed::REQUEST_ID;
use crate::held_file::HeldFile;
use crate::ipc;
use crate::net::PeekedRequest;

/// The listening socket, which the application inherits. It has no name that could be removed, or reached by others.
#[derive(Debug)]
pub(super) struct ApplicationListener {
    listening: UnixListener,
    address: HeldFile,
}

impl ApplicationListener {
    /// The socket of the process with this number. `sockets` is a path without the number at its end.
    pub(super) fn new(sockets: &Path, generation: u64) -> io::Result<Self> {
        let path = ipc::app_socket(sockets, generation);
        Self::bind(&path).or_else(|_| {
            // A worker with another user may not write to the runtime directory, which may also have been removed.
            let (path, directory) = private_path(&path)?;
            let bound = Self::bind(&path);
            directory.iter().for_each(|directory| drop(fs::remove_dir(directory)));
            bound
        })
    }

    fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listening = UnixListener::bind(path)?;
        let address = HeldFile::open(path);
        fs::remove_file(path)?;
        Ok(Self { listening, address: address? })
    }

    /// The descriptor for the application. It is blocking, as applications expect.
    pub(super) fn for_application(&self) -> io::Result<OwnedFd> {
        Ok(self.listening.try_clone()?.into())
    }

    /// Connects; never waits: a full queue is an error. This succeeds before the application accepts, and after its end.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.address.own_descriptor_path())?)?;
        Ok(fd.into())
    }

    /// Whether the application has not accepted the last connection. It accepts one after the other.
    pub(super) fn has_pending(&self) -> bool {
        let mut polled = [PollFd::new(self.listening.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether the connection of a request is still in the queue, after the end of the application. Takes it out: a
    /// descendant that lives on cannot accept it any more, nor any other.
    pub(super) fn take_back(&self) -> bool {
        let is_request = |connection: UnixStream| {
            let (mut start, flags) = ([0; PeekedRequest::BYTES], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
            let start =
                recv(connection.as_raw_fd(), &mut start, flags).map(|count| PeekedRequest::parse(&start[..count]));
            start == Ok(PeekedRequest::Id(REQUEST_ID))
        };
        // The descendants share this flag.
        self.listening.set_nonblocking(true).is_ok()
            && iter::from_fn(|| self.listening.accept().ok()).any(|(connection, _)| is_request(connection))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::feed;
    use super::*;

    #[test]
    fn request_in_the_queue_is_taken_back_once_and_reaches_no_descendant() {
        let dir = std::env::temp_dir().join(format!("patou-take-back-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let listener = ApplicationListener::new(&dir.join("1.a00"), 1).unwrap();
        fs::remove_dir(&dir).unwrap();
        let descendant = UnixListener::from(listener.for_application().unwrap());
        let start = feed::encode_start(b"", false, false);
        let connect = |bytes: &[u8]| {
            let mut connection = listener.connect().unwrap();
            connection.write_all(bytes).unwrap();
            connection
        };
        // Behind the connection of a probe.
        let _probe = connect(b"\x01\x09\0\0\0\0\0\0");
        let mut request = connect(&start);
        assert!(listener.take_back());
        request.set_nonblocking(false).unwrap();
        assert!(request.read(&mut [0]).is_err() || request.read(&mut [0]).is_ok_and(|count| count == 0));
        assert!(descendant.accept().is_err() && !listener.take_back());
        // One that a descendant has accepted.
        let _request = connect(&start);
        descendant.accept().unwrap();
        let _probe = connect(b"\x01\x09\0\0\0\0\0\0");
        assert!(!listener.take_back());
    }

    #[test]
    fn connection_is_pending_until_it_is_accepted_and_needs_no_file() {
        let dir = std::env::temp_dir().join(format!("patou-fastcgi-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let listener = ApplicationListener::new(&dir.join("1.a00"), 1).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
        assert!(!listener.has_pending());
        let _connections = [listener.connect().unwrap(), listener.connect().unwrap()];
        for pending in [true, true, false] {
            assert_eq!(listener.has_pending(), pending);
            if pending {
                UnixListener::from(listener.for_application().unwrap()).accept().unwrap();
            }
        }
        // Without the directory as well.
        ApplicationListener::new(&dir.join("1.a00"), 2).unwrap().connect().unwrap();
    }
}
