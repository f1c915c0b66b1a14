//! A worker that misuses the socket of its client. The flags of a socket belong to the file description, which the
//! dispatcher shares.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, SockaddrIn, UnixAddr, getpeername, send, shutdown};
use nix::unistd::Pid;

use super::connection::{ClientStream, ServerAddress};
use super::raw_http;
use super::traffic::{DrillRequest, PROXY_CLIENT, Traffic};
use crate::procfs;
use crate::sys;

/// How often the workers are searched for the socket.
const INTERVAL: Duration = Duration::from_millis(2);

/// The length of a body of which only the first byte is sent.
const BODY: usize = 1000;

/// A client of a handoff listener that has sent a part of its request and does not read.
pub(super) struct StalledClient {
    stream: ClientStream,
}

impl StalledClient {
    /// Connects and sends a request without the end of its body.
    pub(super) fn start(
        traffic: &Traffic<'_>,
        request: &DrillRequest,
        address: &ServerAddress,
    ) -> std::io::Result<Self> {
        let mut stream = address.connect(traffic.timeout)?;
        let (target, host) = (traffic.target(request, 1), traffic.host(request.listener, address));
        let mut bytes = traffic.proxy_header(request.listener, request.id, PROXY_CLIENT);
        bytes.extend(raw_http::last_head("POST", &target, &host, BODY));
        bytes.push(b'x');
        stream.write_all(&bytes)?;
        Ok(Self { stream })
    }

    /// Waits until one of these processes holds the connection. Returns its index and a duplicate of its socket.
    ///
    /// # Errors
    /// The descriptors of the processes may not be duplicated.
    pub(super) fn find_holder(&self, pids: &[u32], timeout: Duration) -> Result<Option<(usize, OwnedFd)>, String> {
        let ClientStream::Tcp(stream) = &self.stream else { return Ok(None) };
        let own = stream.local_addr().map_err(|error| error.to_string())?.port();
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            for (index, pid) in pids.iter().enumerate() {
                match socket_of(*pid, own) {
                    Ok(Some(socket)) => return Ok(Some((index, socket))),
                    Err(Errno::EPERM) => return Err("pidfd_getfd is not permitted".into()),
                    Err(Errno::ENOSYS) => return Err("pidfd_getfd is not permitted: the kernel lacks it".into()),
                    _ => {} // the process has just ended
                }
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(None)
    }
}

/// A duplicate of the socket of this process that is connected to TCP port `peer`.
fn socket_of(pid: u32, peer: u16) -> nix::Result<Option<OwnedFd>> {
    find_socket(pid, |socket| getpeername::<SockaddrIn>(socket.as_raw_fd()).is_ok_and(|address| address.port() == peer))
}

/// Shuts down the connections of this process to a Unix socket, as far as that is permitted.
pub(super) fn break_connection(pid: u32, socket: &Path) {
    let is_connected =
        |fd: &OwnedFd| getpeername::<UnixAddr>(fd.as_raw_fd()).is_ok_and(|address| address.path() == Some(socket));
    if let Ok(Some(connection)) = find_socket(pid, is_connected) {
        let _ = shutdown(connection.as_raw_fd(), Shutdown::Both); // it may have ended
    }
}

/// A duplicate of the first socket of this process that fulfils the condition.
fn find_socket(pid: u32, condition: impl Fn(&OwnedFd) -> bool) -> nix::Result<Option<OwnedFd>> {
    let process = sys::pidfd_open(Pid::from_raw(pid as i32)).map_err(errno)?;
    for number in procfs::sockets(&procfs::process_dir(pid)) {
        let socket = match sys::pidfd_getfd(process.as_fd(), number) {
            Ok(socket) => socket,
            Err(error) if errno_is(&error, Errno::EBADF) => continue, // it has just been closed
            Err(error) => return Err(errno(error)),
        };
        if condition(&socket) {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn errno_is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Makes a socket blocking for all its holders, and fills it.
pub(super) fn make_blocking(socket: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    let bytes = [b'x'; 65536];
    // The peer's buffer grows once.
    for _ in 0..2 {
        while send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok() {}
        std::thread::sleep(INTERVAL);
    }
    while send(socket.as_raw_fd(), b"x", MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok() {}
    Ok(())
}
