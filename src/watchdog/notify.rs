//! `NOTIFY_SOCKET` as systemd serves it (sd_notify(3)): READY, and the descriptor store.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Longest message that is read, in bytes.
const MESSAGE_MAX: usize = 4096;
/// Descriptors taken from one message.
const FDS_MAX: usize = 16;

/// What a child said.
#[derive(Debug)]
pub struct Message {
    /// Its process, as the kernel says.
    pub pid: u32,
    /// What it says.
    pub words: Words,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// The words of a message that mean something here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// `READY=1`.
    pub ready: bool,
    /// `FDSTORE=1`.
    pub store: bool,
    /// `FDSTOREREMOVE=1`.
    pub remove: bool,
    /// `FDNAME=`.
    pub name: Option<String>,
    /// Why it is about to end: a word of our own parts.
    pub failure: Option<String>,
}

impl Words {
    /// Reads the lines of a message; what means nothing here is skipped.
    pub fn parse(text: &str) -> Self {
        let mut words = Words::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => words.ready = true,
                Some(("FDSTORE", "1")) => words.store = true,
                Some(("FDSTOREREMOVE", "1")) => words.remove = true,
                Some(("FDNAME", name)) if is_name(name) => words.name = Some(name.to_owned()),
                // For the log, and so perhaps for a terminal.
                Some(("X_PATOU_FAILURE", why)) => words.failure = Some(why.replace(char::is_control, " ")),
                _ => {}
            }
        }
        words
    }
}

/// Whether a descriptor may have this name, as in sd_pid_notify_with_fds(3): it goes through `LISTEN_FDNAMES`.
fn is_name(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b':')
}

/// The socket.
pub struct Notify(AsyncFd<OwnedFd>);

impl Notify {
    /// Binds it; a file of that name from a former life is replaced.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self(sys::when_readable(socket.into())?))
    }

    /// A message that has come already.
    pub fn waiting(&self) -> Option<Message> {
        loop {
            match receive(self.0.get_ref()) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn receive(&self) -> io::Result<Message> {
        loop {
            let mut ready = self.0.readable().await?;
            match receive(self.0.get_ref()) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// One message, or `None` for one without a sender.
fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut control = cmsg_space!(UnixCredentials, [libc::c_int; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let (mut pid, mut fds) = (None, Vec::new());
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmCredentials(sender) => pid = u32::try_from(sender.pid()).ok(),
            // Owned at once: whatever becomes of the message, they are closed.
            ControlMessageOwned::ScmRights(passed) => fds.extend(sys::own_fds(passed)),
            _ => {}
        }
    }
    let length = received.bytes;
    let words = Words::parse(&String::from_utf8_lossy(&bytes[..length]));
    Ok(pid.map(|pid| Message { pid, words, fds }))
}

/// The descriptor store: connections by name.
#[derive(Default)]
pub struct Store(BTreeMap<String, OwnedFd>);

impl Store {
    /// Carries out what a message says. At most `bound` descriptors are kept.
    pub fn obey(&mut self, words: &Words, fds: Vec<OwnedFd>, bound: usize) {
        let Some(name) = &words.name else { return };
        if words.remove {
            self.0.remove(name);
        } else if words.store
            && let Some(fd) = fds.into_iter().next()
            && self.0.len() < bound
        {
            self.0.insert(name.clone(), fd);
        }
    }

    /// What is in it, for the next dispatcher, which takes out what it has dealt with.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.0.iter().map(|(name, fd)| (name.as_str(), fd))
    }
}
