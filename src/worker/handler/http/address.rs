//! The private address of one server.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, bind, connect, getsockname, setsockopt, socket, sockopt,
};
use nix::unistd::{AccessFlags, access};
use tokio::net::TcpStream;

use super::super::child::HandlerProgram;
use crate::config::placeholder;
use crate::held_file::HeldFile;
use crate::net::SocketStream;
use crate::{ipc, procfs, sync};

/// Where a server has to listen. A socket is removed with it.
#[derive(Debug)]
pub(super) enum PrivateAddress {
    Unix {
        path: PathBuf,
        /// The directory that was made for it.
        own_directory: Option<PathBuf>,
        /// The directory in which it is.
        directory: HeldFile,
        /// The socket, once the server listens: it is reached after its name was removed.
        socket: Mutex<Option<HeldFile>>,
    },
    /// The port, and a socket that is bound to it and does not listen, so that no other program gets it.
    Tcp { port: u16, _reserved: OwnedFd },
}

impl PrivateAddress {
    /// The address of the process with this number. `{socket}` is preferred.
    pub(super) fn new(program: &HandlerProgram, sockets: &Path, generation: u64) -> io::Result<Self> {
        if !program.mentions(placeholder::SOCKET) {
            return Self::reserve_port();
        }
        let path = ipc::app_socket(sockets, generation);
        let may_create = path.parent().is_some_and(|dir| access(dir, AccessFlags::W_OK).is_ok());
        // A worker with another user may not write to the runtime directory: its unit has a private /tmp.
        let (path, own_directory) = if may_create { (path, None) } else { private_path(&path)? };
        let directory = HeldFile::open(path.parent().unwrap_or(Path::new("/")))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self::Unix { path, own_directory, directory, socket: Mutex::default() }),
        }
    }

    fn reserve_port() -> io::Result<Self> {
        let reserved = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The server may bind the same port, if it sets the option as well, as nearly every server does (socket(7)).
        setsockopt(&reserved, sockopt::ReuseAddr, &true)?;
        bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        let port = getsockname::<SockaddrIn>(reserved.as_raw_fd())?.port();
        Ok(Self::Tcp { port, _reserved: reserved })
    }

    /// The placeholder, the variable of the environment, and their value.
    pub(super) fn value(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::Unix { path, .. } => (placeholder::SOCKET, "PATOU_SOCKET", path.to_string_lossy().into_owned()),
            Self::Tcp { port, .. } => (placeholder::PORT, "PORT", port.to_string()),
        }
    }

    /// Whether a server that starts, or has started, cannot be reached any more because a file was removed.
    pub(super) fn is_lost(&self) -> bool {
        let Self::Unix { path, directory, socket, .. } = self else { return false };
        let is_unnamed = || !path.exists() && procfs::listening_socket(path.as_os_str().as_bytes()).is_some();
        sync::lock(socket).is_none() && (!directory.is_in_place() || is_unnamed())
    }

    /// Connects. Never waits for a Unix socket: a full queue is an error.
    pub(super) async fn connect(&self) -> io::Result<SocketStream> {
        match self {
            Self::Unix { path, socket, .. } => {
                let mut held = sync::lock(socket);
                if let Some(stream) = held.as_ref().and_then(|held| connect_unix(held).ok()) {
                    return Ok(stream);
                }
                // A server may listen once more, at a new socket.
                let named = HeldFile::open(path)?;
                let stream = connect_unix(&named)?;
                *held = Some(named);
                Ok(stream)
            }
            Self::Tcp { port, .. } => {
                let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).await?;
                stream.set_nodelay(true)?;
                SocketStream::from_fd(stream.into_std()?.into())
            }
        }
    }
}

fn connect_unix(address: &HeldFile) -> io::Result<SocketStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&address.own_descriptor_path())?)?;
    SocketStream::mostly_reading(fd)
}

impl Drop for PrivateAddress {
    fn drop(&mut self) {
        if let Self::Unix { path, own_directory, .. } = self {
            let _ = fs::remove_file(path); // a server may have removed it
            own_directory.iter().for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }
}

/// A path in a new directory to which no other user has access.
pub(in super::super) fn private_path(path: &Path) -> io::Result<(PathBuf, Option<PathBuf>)> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    let directory = std::env::temp_dir().join(format!("patou-{random:016x}"));
    fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let name = path.file_name().unwrap_or("app".as_ref());
    Ok((directory.join(name), Some(directory)))
}
