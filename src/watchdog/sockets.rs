//! The listening sockets of the set: they belong to the watchdog and outlive dispatcher and workers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{Backlog, listen};
use nix::unistd::{Gid, Group, Uid, User, chown, getegid, geteuid};

use crate::config::{AdminConfig, Config, ListenAddress, ListenerConfig};
use crate::ids::WorkerId;

/// A listening socket.
pub struct Socket {
    fd: OwnedFd,
    /// The address as configured.
    pub wanted: ListenAddress,
    /// The address it has: port 0 has become another.
    pub address: ListenAddress,
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
    fn bind(wanted: &ListenAddress) -> io::Result<Self> {
        let (fd, address, path): (OwnedFd, _, _) = match wanted {
            ListenAddress::Tcp(address) => {
                let socket = std::net::TcpListener::bind(address)?;
                let address = ListenAddress::Tcp(socket.local_addr()?);
                (socket.into(), address, None)
            }
            ListenAddress::Unix(path) => (bind_unix(path)?.into(), wanted.clone(), Some(path.clone())),
        };
        // The standard library asks for a queue of 128; who waits here while a part restarts is served.
        listen(&fd, Backlog::MAXCONN)?;
        Ok(Self { fd, wanted: wanted.clone(), address, path })
    }
}

/// Who may use the file of a socket, and whose words these are.
struct Access {
    whose: &'static str,
    mode: u32,
    owner: Option<String>,
    group: Option<String>,
}

impl Access {
    fn of(listener: &ListenerConfig) -> Self {
        let ListenerConfig { mode, owner, group, .. } = listener.clone();
        Self { whose: "the listener", mode, owner, group }
    }

    fn of_admin(admin: &AdminConfig) -> Self {
        let AdminConfig { mode, owner, group, .. } = admin.clone();
        Self { whose: "[admin]", mode, owner, group }
    }

    /// What is not named becomes what it is for a new file.
    fn anew(self) -> Self {
        let (me, mine) = (geteuid().to_string(), getegid().to_string());
        Self { owner: self.owner.or(Some(me)), group: self.group.or(Some(mine)), ..self }
    }
}

impl Socket {
    /// Gives its file, if it has one, mode and owner of this listener, which has its address.
    pub fn own(&self, listener: &ListenerConfig) -> Result<(), SocketError> {
        self.give(&Access::of(listener).anew())
    }

    /// The same for `admin.sock`.
    pub fn own_as_admin(&self, admin: &AdminConfig) -> Result<(), SocketError> {
        self.give(&Access::of_admin(admin).anew())
    }

    fn give(&self, access: &Access) -> Result<(), SocketError> {
        let Some(path) = &self.path else { return Ok(()) };
        own(path, access).map_err(|(key, cause)| SocketError {
            text: format!("cannot give {} its {key}: {cause}: see `{key}` of {}", self.wanted, access.whose),
            address: self.wanted.clone(),
        })
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
    /// `admin.sock`, and the TCP address if there is one.
    pub admin: (Socket, Option<Socket>),
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct SocketError {
    text: String,
    address: ListenAddress,
}

impl SocketError {
    fn new(address: &ListenAddress, what: &str, cause: &io::Error) -> Self {
        let remedy = match (cause.kind(), address) {
            (io::ErrorKind::AddrInUse, ListenAddress::Tcp(tcp)) => {
                format!(": ss -ltnp 'sport = {}' shows whose it is; or choose another", tcp.port())
            }
            (io::ErrorKind::AddrInUse, ListenAddress::Unix(_)) => ": somebody listens there; choose another".to_owned(),
            _ => String::new(),
        };
        Self { text: format!("cannot listen on {address} ({what}): {cause}{remedy}"), address: address.clone() }
    }

    /// Adds the other addresses of which the same is true.
    fn with(mut self, taken: &[ListenAddress]) -> Self {
        let others: Vec<_> = taken.iter().filter(|other| **other != self.address).map(ToString::to_string).collect();
        if !others.is_empty() {
            self.text = format!("{}; taken as well: {}", self.text, others.join(", "));
        }
        self
    }
}

fn bind(address: &ListenAddress, what: impl FnOnce() -> String) -> Result<Socket, SocketError> {
    Socket::bind(address).map_err(|cause| SocketError::new(address, &what(), &cause))
}

/// Those of the TCP addresses of a configuration that somebody else has.
fn taken(config: &Config) -> Vec<ListenAddress> {
    let listeners = config.listeners.iter().map(|listener| listener.address.clone());
    let workers = config.workers().filter_map(|id| Some(config.pool(&id.pool)?.worker_address(id.number)));
    let admin = config.admin.address.clone();
    let in_use = |address: &ListenAddress| match address {
        ListenAddress::Tcp(tcp) => {
            std::net::TcpListener::bind(tcp).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        }
        ListenAddress::Unix(_) => false,
    };
    listeners.chain(workers).chain(admin).filter(in_use).collect()
}

/// The address of `probe.sock`.
fn probe_address(config: &Config) -> ListenAddress {
    ListenAddress::Unix(config.set.runtime_dir.join("probe.sock"))
}

impl Sockets {
    /// Binds everything a configuration asks for.
    pub fn open(config: &Config) -> Result<Self, SocketError> {
        // What was bound is closed again before the others are looked at.
        Self::open_all(config).map_err(|error| error.with(&taken(config)))
    }

    fn open_all(config: &Config) -> Result<Self, SocketError> {
        let probe = probe_address(config);
        Ok(Self {
            listeners: config.listeners.iter().map(open_listener).collect::<Result<_, _>>()?,
            workers: config
                .workers()
                .map(|id| Ok((id.clone(), open_worker(config, &id)?)))
                .collect::<Result<_, _>>()?,
            probe: bind(&probe, || "probe".into())?,
            admin: (open_admin(config)?, config.admin.address.as_ref().map(open_admin_tcp).transpose()?),
        })
    }

    /// Copies of the sockets on which it is told how the set is.
    pub fn admin(&self) -> io::Result<Vec<OwnedFd>> {
        let (unix, tcp) = &self.admin;
        std::iter::once(unix).chain(tcp).map(|socket| socket.fd.try_clone()).collect()
    }
}

/// Binds a listener and gives its file, if it is one, the mode and owner of the configuration.
pub fn open_listener(listener: &ListenerConfig) -> Result<Socket, SocketError> {
    let socket = bind(&listener.address, || "listener".to_owned())?;
    socket.give(&Access::of(listener))?;
    Ok(socket)
}

/// Binds `admin.sock`.
fn open_admin(config: &Config) -> Result<Socket, SocketError> {
    let socket = bind(&AdminConfig::socket(&config.set.runtime_dir), || "admin".to_owned())?;
    socket.give(&Access::of_admin(&config.admin))?;
    Ok(socket)
}

/// Binds the TCP address of `[admin]`.
pub fn open_admin_tcp(address: &ListenAddress) -> Result<Socket, SocketError> {
    bind(address, || "admin.address".to_owned())
}

/// Binds the socket of one worker.
pub fn open_worker(config: &Config, id: &WorkerId) -> Result<Socket, SocketError> {
    let pool = config.pool(&id.pool).expect("the worker is of this configuration");
    bind(&pool.worker_address(id.number), || format!("worker {id}"))
}

/// What cannot be done comes with the key that asks for it.
fn own(path: &Path, access: &Access) -> Result<(), (&'static str, io::Error)> {
    let of = |key| move |error: io::Error| (key, error);
    let uid = access.owner.as_deref().map(user).transpose().map_err(of("owner"))?;
    let gid = access.group.as_deref().map(group).transpose().map_err(of("group"))?;
    if uid.is_some() {
        chown(path, uid, None).map_err(|error| ("owner", error.into()))?;
    }
    if gid.is_some() {
        chown(path, None, gid).map_err(|error| ("group", error.into()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode)).map_err(of("mode"))
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
