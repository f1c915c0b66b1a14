//! The listening sockets of the set. The watchdog owns them, so they outlive the dispatcher and the workers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReuseAddr, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect, listen, setsockopt, socket,
};
use nix::unistd::{Gid, Uid, chown, getegid, geteuid};

use crate::config::{AdminConfig, Config, ListenAddress, ListenerConfig};
use crate::held_file::HeldFile;
use crate::ids::WorkerId;

/// A listening socket.
pub(super) struct ListeningSocket {
    fd: OwnedFd,
    /// The address as configured.
    pub configured: ListenAddress,
    /// The bound address: port 0 is replaced by the port that the kernel chose.
    pub address: ListenAddress,
    /// The file of a Unix socket.
    pub file: Option<HeldFile>,
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        // Another socket may have replaced it.
        if let Some(file) = self.file.as_ref().filter(|file| file.is_in_place()) {
            let _ = fs::remove_file(file.path());
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ListeningSocket {
    /// Binds an address that `old` sockets of this set have now, or that conflicts with theirs. They stay as they are, but
    /// a Unix socket has no file any more. Whatever another process has bound is still in the way.
    fn bind_beside(configured: &ListenAddress, old: &[&ListeningSocket]) -> io::Result<Self> {
        let ListenAddress::Tcp(address) = configured else {
            for file in old.iter().filter_map(|socket| socket.file.as_ref()).filter(|file| file.is_in_place()) {
                fs::remove_file(file.path())?;
            }
            return Self::bind(configured);
        };
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, ReuseAddr, &true)?;
        // Only sockets that all have the option, of one user, may share a port; it is set for this moment.
        let share = |is_shared: bool| {
            let all = old.iter().map(|socket| &socket.fd).chain([&fd]);
            all.map(|fd| setsockopt(fd, ReusePort, &is_shared)).collect::<nix::Result<Vec<_>>>()
        };
        let bound = share(true).and_then(|_| {
            bind(fd.as_raw_fd(), &SockaddrStorage::from(*address))?;
            listen(&fd, Backlog::MAXCONN)
        });
        share(false)?;
        bound?;
        Ok(Self { fd, configured: configured.clone(), address: configured.clone(), file: None })
    }

    /// The same socket for another use. Not for one with a file.
    pub(super) fn share(&self) -> Result<Self, SocketError> {
        let fd = self.fd.try_clone().map_err(|cause| SocketError::bind(&self.configured, "a new use", &cause))?;
        Ok(Self { fd, configured: self.configured.clone(), address: self.address.clone(), file: None })
    }

    fn bind(configured: &ListenAddress) -> io::Result<Self> {
        let (fd, address, file): (OwnedFd, _, _) = match configured {
            ListenAddress::Tcp(address) => {
                let socket = std::net::TcpListener::bind(address)?;
                let address = ListenAddress::Tcp(socket.local_addr()?);
                (socket.into(), address, None)
            }
            ListenAddress::Unix(path) => (bind_unix(path)?.into(), configured.clone(), Some(HeldFile::open(path)?)),
        };
        // The standard library sets a backlog of 128. Connections wait in it while a part restarts.
        listen(&fd, Backlog::MAXCONN)?;
        Ok(Self { fd, configured: configured.clone(), address, file })
    }

    /// Whether clients that look for it find it.
    pub(super) fn is_in_place(&self) -> bool {
        self.file.as_ref().is_none_or(HeldFile::is_in_place)
    }

    /// Binds the address of a Unix socket again, with the mode and owner of the file that was removed.
    pub(super) fn rebind(&self) -> io::Result<Self> {
        let new = Self::bind(&self.configured)?;
        if let (Some(old), Some(file)) = (&self.file, &new.file) {
            let status = nix::sys::stat::fstat(old.get())?;
            let path = file.own_descriptor_path();
            chown(&path, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(status.st_mode & 0o7777))?;
        }
        Ok(new)
    }

    /// Ends the accepting of all holders, once they have emptied the queue.
    pub(super) fn retire(&self) {
        let _ = nix::sys::socket::shutdown(self.fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// Applies the listener's mode and owner to the socket's file, if it has one.
    pub(super) fn apply_access(&self, listener: &ListenerConfig) -> Result<(), SocketError> {
        self.set_access(&SocketAccess::of(listener).with_defaults())
    }

    /// The same for `admin.sock`.
    pub(super) fn apply_admin_access(&self, admin: &AdminConfig) -> Result<(), SocketError> {
        self.set_access(&SocketAccess::of_admin(admin).with_defaults())
    }

    /// The name may lead to a file of another user by now: the descriptor leads to the socket. If the socket's file was
    /// removed, [`Self::rebind`] takes mode and owner from it.
    fn set_access(&self, access: &SocketAccess) -> Result<(), SocketError> {
        let Some(file) = &self.file else { return Ok(()) };
        access
            .apply(&file.own_descriptor_path())
            .map_err(|failed| SocketError::access(&self.configured, access.section, failed))
    }
}

/// Mode and owner of a socket's file.
struct SocketAccess {
    /// The section of the configuration, for error messages.
    section: &'static str,
    mode: u32,
    owner: Option<String>,
    group: Option<String>,
}

impl SocketAccess {
    fn of(listener: &ListenerConfig) -> Self {
        let ListenerConfig { mode, owner, group, .. } = listener.clone();
        Self { section: "the listener", mode, owner, group }
    }

    fn of_admin(admin: &AdminConfig) -> Self {
        let AdminConfig { mode, owner, group, .. } = admin.clone();
        Self { section: "[admin]", mode, owner, group }
    }

    /// An owner or group that is not configured becomes that of a new file.
    fn with_defaults(self) -> Self {
        let (user, group) = (geteuid().to_string(), getegid().to_string());
        Self { owner: self.owner.or(Some(user)), group: self.group.or(Some(group)), ..self }
    }

    /// An error names the key that caused it.
    fn apply(&self, path: &Path) -> Result<(), (&'static str, io::Error)> {
        let of = |key| move |error: io::Error| (key, error);
        let uid = self.owner.as_deref().map(number).transpose().map_err(of("owner"))?.map(Uid::from_raw);
        let gid = self.group.as_deref().map(number).transpose().map_err(of("group"))?.map(Gid::from_raw);
        if uid.is_some() {
            chown(path, uid, None).map_err(|error| ("owner", error.into()))?;
        }
        if gid.is_some() {
            chown(path, None, gid).map_err(|error| ("group", error.into()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode)).map_err(of("mode"))
    }
}

/// The configuration in force has no names: see [`super::accounts`].
fn number(account: &str) -> io::Result<u32> {
    account.parse().map_err(|_| io::Error::other(format!("{account} is not the number of an account")))
}

/// Binds a Unix socket; replaces a socket file on which no process listens.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_socket());
            if !is_socket || is_served(path)? {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Whether a process listens on this socket file. Does not wait for one whose queue is full.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    Ok(connect(fd.as_raw_fd(), &UnixAddr::new(path)?) != Err(Errno::ECONNREFUSED))
}

/// A socket that cannot be bound or set up.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct SocketError {
    text: String,
    address: ListenAddress,
}

impl SocketError {
    fn bind(address: &ListenAddress, purpose: &str, cause: &io::Error) -> Self {
        let remedy = match (cause.kind(), address) {
            (io::ErrorKind::AddrInUse, ListenAddress::Tcp(tcp)) => {
                let port = tcp.port();
                format!(
                    "; stop the process that uses it (ss -ltnp 'sport = {port}' shows it), or choose another address"
                )
            }
            (io::ErrorKind::AddrInUse, ListenAddress::Unix(_)) => {
                "; stop the process that listens there, or choose another address".to_owned()
            }
            _ => String::new(),
        };
        Self { text: format!("cannot listen on {address} ({purpose}): {cause}{remedy}"), address: address.clone() }
    }

    /// Mode or owner of a socket's file cannot be set, `failed` says which and why.
    pub(super) fn access(address: &ListenAddress, section: &str, (key, cause): (&str, io::Error)) -> Self {
        let text = format!("cannot set the {key} of {address}: {cause}; check `{key}` of {section}");
        Self { text, address: address.clone() }
    }

    /// Adds the other addresses that are in use.
    fn with_others(mut self, in_use: &[ListenAddress]) -> Self {
        let others: Vec<_> = in_use.iter().filter(|other| **other != self.address).map(ToString::to_string).collect();
        if !others.is_empty() {
            self.text = format!("{}; also in use: {}", self.text, others.join(", "));
        }
        self
    }
}

fn open(
    address: &ListenAddress,
    purpose: impl FnOnce() -> String,
    old: &[&ListeningSocket],
) -> Result<ListeningSocket, SocketError> {
    let bound =
        if old.is_empty() { ListeningSocket::bind(address) } else { ListeningSocket::bind_beside(address, old) };
    bound.map_err(|cause| SocketError::bind(address, &purpose(), &cause))
}

/// The TCP addresses of a configuration that other processes use.
fn addresses_in_use(config: &Config) -> Vec<ListenAddress> {
    let in_use = |address: &ListenAddress| match address {
        ListenAddress::Tcp(tcp) => {
            std::net::TcpListener::bind(tcp).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        }
        ListenAddress::Unix(_) => false,
    };
    config.addresses().filter(in_use).collect()
}

/// The address of `probe.sock`.
fn probe_address(config: &Config) -> ListenAddress {
    ListenAddress::Unix(config.set.runtime_dir.join("probe.sock"))
}

/// All listening sockets of a set.
pub(super) struct SetSockets {
    /// In the order of the configuration.
    pub listeners: Vec<ListeningSocket>,
    pub workers: BTreeMap<WorkerId, ListeningSocket>,
    pub probe: ListeningSocket,
    /// `admin.sock`.
    pub admin: ListeningSocket,
    /// The TCP address of `[admin]`, if one is configured.
    pub admin_tcp: Option<ListeningSocket>,
}

impl SetSockets {
    /// Binds all sockets of a configuration.
    pub(super) fn open(config: &Config) -> Result<Self, SocketError> {
        // On an error the sockets bound so far are closed before the other addresses are tried.
        Self::open_all(config).map_err(|error| error.with_others(&addresses_in_use(config)))
    }

    fn open_all(config: &Config) -> Result<Self, SocketError> {
        let probe = probe_address(config);
        Ok(Self {
            listeners: config
                .listeners
                .iter()
                .map(|listener| open_listener(listener, &[]))
                .collect::<Result<_, _>>()?,
            workers: config
                .workers()
                .map(|id| Ok((id.clone(), open_worker(config, &id, &[])?)))
                .collect::<Result<_, _>>()?,
            probe: open(&probe, || "probe".into(), &[])?,
            admin: open_admin(config)?,
            admin_tcp: config.admin.address.as_ref().map(|address| open_admin_tcp(address, &[])).transpose()?,
        })
    }

    /// Duplicates of the admin sockets.
    pub(super) fn clone_admin(&self) -> io::Result<Vec<OwnedFd>> {
        std::iter::once(&self.admin).chain(&self.admin_tcp).map(|socket| socket.fd.try_clone()).collect()
    }
}

/// Binds a listener and applies its mode and owner. `old`, here and below: sockets of this set that are in the way.
pub(super) fn open_listener(
    listener: &ListenerConfig,
    old: &[&ListeningSocket],
) -> Result<ListeningSocket, SocketError> {
    let socket = open(&listener.address, || "listener".to_owned(), old)?;
    socket.set_access(&SocketAccess::of(listener))?;
    Ok(socket)
}

/// Binds `admin.sock`.
fn open_admin(config: &Config) -> Result<ListeningSocket, SocketError> {
    let socket = open(&AdminConfig::socket(&config.set.runtime_dir), || "admin".to_owned(), &[])?;
    socket.set_access(&SocketAccess::of_admin(&config.admin))?;
    Ok(socket)
}

/// Binds the TCP address of `[admin]`.
pub(super) fn open_admin_tcp(
    address: &ListenAddress,
    old: &[&ListeningSocket],
) -> Result<ListeningSocket, SocketError> {
    open(address, || "admin.address".to_owned(), old)
}

/// Binds the socket of one worker.
pub(super) fn open_worker(
    config: &Config,
    id: &WorkerId,
    old: &[&ListeningSocket],
) -> Result<ListeningSocket, SocketError> {
    let pool = config.pool(&id.pool).expect("the worker is of this configuration");
    open(&pool.worker_address(id.number), || format!("worker {id}"), old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_a_lost_socket_is_not_followed() {
        let dir = std::env::temp_dir().join(format!("patou-sockets-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (path, other) = (dir.join("socket"), dir.join("other"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let listener = |mode: u32| ListenerConfig {
            address: ListenAddress::Unix(path.clone()),
            mode,
            ..Config::default().listeners[0].clone()
        };
        let socket = open_listener(&listener(0o600), &[]).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::write(&other, "").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o640)).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        socket.apply_access(&listener(0o606)).unwrap();
        assert_eq!(mode(&other), 0o640);
        // The socket that replaces it has the mode that was set meanwhile.
        fs::remove_file(&path).unwrap();
        let new = socket.rebind().unwrap();
        assert_eq!(mode(&path), 0o606);
        drop((socket, new));
        fs::remove_dir_all(&dir).unwrap();
    }
}
