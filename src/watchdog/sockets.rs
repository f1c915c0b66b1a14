//! The listening sockets of the set: they belong to the watchdog and outlive dispatcher and workers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{Backlog, listen};
use nix::unistd::{Gid, Group, Uid, User, chown};

use crate::config::{Address, Config, Listener};
use crate::ids::WorkerId;

/// A listening socket.
pub struct Socket {
    fd: OwnedFd,
    /// The address as configured.
    pub wanted: Address,
    /// The address it has: port 0 has become another.
    pub address: Address,
    path: Option<PathBuf>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    fn bind(wanted: &Address) -> io::Result<Self> {
        let (fd, address, path): (OwnedFd, _, _) = match wanted {
            Address::Tcp(address) => {
                let socket = std::net::TcpListener::bind(address)?;
                let address = Address::Tcp(socket.local_addr()?);
                (socket.into(), address, None)
            }
            Address::Unix(path) => (bind_unix(path)?.into(), wanted.clone(), Some(path.clone())),
        };
        // The standard library asks for a queue of 128; who waits here while a part restarts is served.
        listen(&fd, Backlog::MAXCONN)?;
        Ok(Self { fd, wanted: wanted.clone(), address, path })
    }
}

/// Binds a Unix socket, in place of one that nobody listens on any more.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_socket());
            let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
            if !is_socket || !UnixStream::connect(path).is_err_and(refused) {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// All of them.
pub struct Sockets {
    /// In the order of the configuration.
    pub listeners: Vec<Socket>,
    pub workers: BTreeMap<WorkerId, Socket>,
    pub probe: Socket,
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({what}): {cause}")]
pub struct SocketError {
    address: Address,
    what: String,
    cause: io::Error,
}

fn bind(address: &Address, what: impl FnOnce() -> String) -> Result<Socket, SocketError> {
    Socket::bind(address).map_err(|cause| SocketError { address: address.clone(), what: what(), cause })
}

/// The address of `probe.sock`.
fn probe_address(config: &Config) -> Address {
    Address::Unix(config.set.runtime_dir.join("probe.sock"))
}

impl Sockets {
    /// Binds everything a configuration asks for.
    pub fn open(config: &Config) -> Result<Self, SocketError> {
        let probe = probe_address(config);
        Ok(Self {
            listeners: config.listeners.iter().map(open_listener).collect::<Result<_, _>>()?,
            workers: config
                .workers()
                .map(|id| Ok((id.clone(), open_worker(config, &id)?)))
                .collect::<Result<_, _>>()?,
            probe: bind(&probe, || "probe".into())?,
        })
    }
}

/// Binds a listener and gives its file, if it is one, the mode and owner of the configuration.
pub fn open_listener(listener: &Listener) -> Result<Socket, SocketError> {
    let what = || "listener".to_owned();
    let socket = bind(&listener.address, what)?;
    if let Some(path) = &socket.path {
        let owned = own(path, listener);
        owned.map_err(|cause| SocketError { address: listener.address.clone(), what: what(), cause })?;
    }
    Ok(socket)
}

/// Binds the socket of one worker.
pub fn open_worker(config: &Config, id: &WorkerId) -> Result<Socket, SocketError> {
    let pool = config.pool(&id.pool).expect("the worker is of this configuration");
    bind(&pool.worker_address(id.number), || format!("worker {id}"))
}

fn own(path: &Path, listener: &Listener) -> io::Result<()> {
    let uid = listener.owner.as_deref().map(user).transpose()?;
    let gid = listener.group.as_deref().map(group).transpose()?;
    if uid.is_some() || gid.is_some() {
        chown(path, uid, gid)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(listener.mode))
}

fn user(name: &str) -> io::Result<Uid> {
    if let Ok(number) = name.parse() {
        return Ok(Uid::from_raw(number));
    }
    User::from_name(name)?.map(|user| user.uid).ok_or_else(|| io::Error::other(format!("there is no user {name}")))
}

fn group(name: &str) -> io::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    Group::from_name(name)?.map(|g| g.gid).ok_or_else(|| io::Error::other(format!("there is no group {name}")))
}
