//! The server side of `NOTIFY_SOCKET` as systemd implements it (sd_notify(3)): READY and the descriptor store.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use crate::config::LISTENERS_MAX;
use crate::held_file::HeldFile;
use crate::log::{Event, LogThrottle};
use crate::{net, sys};

/// Size limit of a message, in bytes; the rest is cut off.
const MESSAGE_MAX: usize = 4096;
/// Descriptors received with one message at most.
const FDS_MAX: usize = 16;

/// The names of all stored descriptors, in bytes. The next dispatcher gets them, and those of the listeners, in one
/// variable of its environment (`LISTEN_FDNAMES`), and execve(2) passes at most 128 KiB in one.
const NAMES_MAX: usize = (128 - 24) << 10;
const _: () = assert!(NAMES_MAX + LISTENERS_MAX * "listener-999:".len() < (128 << 10) - 1024);

/// A message from a child.
#[derive(Debug)]
pub(crate) struct NotifyMessage {
    /// The sender, from the kernel's credentials.
    pub pid: u32,
    /// The content.
    pub fields: NotifyFields,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// The fields of a message that the watchdog understands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NotifyFields {
    /// `READY=1`.
    pub ready: bool,
    /// `FDSTORE=1`.
    pub store: bool,
    /// `FDSTOREREMOVE=1`.
    pub remove: bool,
    /// `FDNAME=`.
    pub name: Option<String>,
    /// `STATUS=`: what the sender does, for operators.
    pub status: Option<String>,
    /// `X_PATOU_FAILURE=`: why the sender, a part of patou, is about to exit.
    pub failure: Option<String>,
}

impl NotifyFields {
    /// Parses the lines of a message; unknown fields are ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let mut fields = NotifyFields::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => fields.ready = true,
                Some(("FDSTORE", "1")) => fields.store = true,
                Some(("FDSTOREREMOVE", "1")) => fields.remove = true,
                Some(("FDNAME", name)) if is_valid_name(name) => fields.name = Some(name.to_owned()),
                // Both are printed, possibly to a terminal.
                Some(("STATUS", text)) => fields.status = Some(text.replace(char::is_control, " ")),
                Some(("X_PATOU_FAILURE", why)) => fields.failure = Some(why.replace(char::is_control, " ")),
                _ => {}
            }
        }
        fields
    }
}

/// Whether sd_pid_notify_with_fds(3) allows this name for a descriptor; it is passed on in `LISTEN_FDNAMES`.
fn is_valid_name(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b':')
}

/// The socket.
pub(crate) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    file: HeldFile,
}

impl NotifySocket {
    /// Binds the socket; an old file at this path is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self { socket: sys::when_readable(socket.into())?, file: HeldFile::open(path)? })
    }

    /// Receives on another socket. Parts that reach the file by its descriptor reach the new one.
    pub(crate) fn replace(&mut self, new: Self) {
        self.socket = new.socket;
        self.file.replace(new.file);
    }

    /// The socket's file.
    pub(crate) fn file(&self) -> &HeldFile {
        &self.file
    }

    /// The next message, if one has arrived.
    pub(crate) fn try_receive(&self) -> Option<NotifyMessage> {
        loop {
            match receive(self.socket.get_ref()) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn receive(&self) -> io::Result<NotifyMessage> {
        loop {
            let mut ready = self.socket.readable().await?;
            match receive(self.socket.get_ref()) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Receives one message; `None` if it has no sender.
fn receive(socket: &OwnedFd) -> io::Result<Option<NotifyMessage>> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut control = cmsg_space!(UnixCredentials, [libc::c_int; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let (mut pid, mut fds) = (None, Vec::new());
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmCredentials(sender) => pid = u32::try_from(sender.pid()).ok(),
            // Owned now, so that they are closed even if the message is ignored.
            ControlMessageOwned::ScmRights(passed) => fds.extend(sys::own_fds(passed)),
            _ => {}
        }
    }
    let length = received.bytes;
    let fields = NotifyFields::parse(&String::from_utf8_lossy(&bytes[..length]));
    Ok(pid.map(|pid| NotifyMessage { pid, fields, fds }))
}

/// The descriptor store: connections by name.
#[derive(Default)]
pub(crate) struct FdStore {
    fds: BTreeMap<String, Arc<OwnedFd>>,
    refused: LogThrottle,
}

impl FdStore {
    /// Stores or removes a descriptor as a message requests. At most `max` descriptors are kept.
    pub(crate) fn apply(&mut self, fields: &NotifyFields, fds: Vec<OwnedFd>, max: usize) {
        let Some(name) = &fields.name else { return };
        if fields.remove {
            if let Some(fd) = self.fds.remove(name) {
                net::close_without_waiting(&fd); // a worker may have held it
            }
        } else if fields.store {
            // Without a free descriptor the kernel drops the one in the message (MSG_CTRUNC, recvmsg(2)).
            match fds.into_iter().next() {
                Some(fd) if self.fds.len() < max && self.names_size() + name.len() < NAMES_MAX => {
                    drop(self.fds.insert(name.clone(), Arc::new(fd)))
                }
                fd => self.log_refused(fd.is_some().then_some(max)),
            }
        }
    }

    fn log_refused(&mut self, max: Option<usize>) {
        let Some(count) = self.refused.count() else { return };
        let why = max.map_or("the watchdog has no free descriptor".to_owned(), |max| {
            format!("the watchdog keeps {max} at most, as its limit of open files and front.connections allow")
        });
        tracing::warn!(count, event = %Event::ConnectionsLimited,
            "a waiting connection would not survive the dispatcher: {why}");
    }

    /// The length of all names, each with its separator.
    fn names_size(&self) -> usize {
        self.fds.keys().map(|name| name.len() + 1).sum()
    }

    /// The stored descriptors. The next dispatcher receives all of them and removes those that it has processed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<OwnedFd>)> {
        self.fds.iter().map(|(name, fd)| (name.as_str(), fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_store_fit_into_the_environment_of_a_process() {
        let mut store = FdStore::default();
        let socket = OwnedFd::from(UnixDatagram::unbound().unwrap());
        for number in 0..1500 {
            let name = format!("handed-{number:0>90}");
            let fields = NotifyFields { store: true, name: Some(name), ..NotifyFields::default() };
            store.apply(&fields, vec![socket.try_clone().unwrap()], usize::MAX);
        }
        let names: Vec<_> = store.iter().map(|(name, _)| name).collect();
        assert!((1000..1500).contains(&names.len()), "{} are kept", names.len());
        let mut program = std::process::Command::new("true");
        assert!(program.env("LISTEN_FDNAMES", names.join(":")).status().unwrap().success());
    }
}
