//! Notifications to the supervisor (sd_notify(3)), sent without waiting for it: systemd may be busy, and a watchdog may be
//! stopped, but no thread that decides waits for either.

use std::collections::VecDeque;
use std::fmt::Write;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, UnixAddr, sendto};
use sd_notify::NotifyState;

use crate::sync::lock;

/// What comes before the reason in the status of a worker (`STATUS=`) that tells why a request has failed.
pub(crate) const FAULT_STATUS: &str = "; last error: ";

/// Notifications that may wait for the supervisor. A part sends four of them in its life, and two for each reload.
const BACKLOG_MAX: usize = 32;

/// A process that ends tries to send its last notification this often, with this pause.
const LAST_TRIES: u32 = 20;
const LAST_PAUSE: Duration = Duration::from_millis(10);

/// Notifications that the supervisor had no room for, oldest first. While there are any, one thread sends them.
static BACKLOG: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Notifies the supervisor, if there is one. If it has no room now, a thread delivers the notification later, in order;
/// `WATCHDOG=1` and a lone `STATUS=` are discarded, because the next one replaces them.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    let message = encode(states);
    let mut backlog = lock(&BACKLOG);
    if backlog.is_empty() && !matches!(try_send(&message), Err(Errno::EAGAIN)) {
        return; // sent, or there is no supervisor
    }
    let is_replaced = |state: &NotifyState<'_>| matches!(state, NotifyState::Watchdog | NotifyState::Status(_));
    if states.iter().all(is_replaced) || backlog.len() >= BACKLOG_MAX {
        return;
    }
    backlog.push_back(message);
    if backlog.len() == 1 && std::thread::Builder::new().name("notify".to_owned()).spawn(deliver_backlog).is_err() {
        backlog.clear();
    }
}

/// `RELOADING=1` with the time that `Type=notify-reload` requires.
pub(crate) fn notify_reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// Sends the last notification of this process within a bound.
///
/// # Errors
/// When there is no supervisor, or it has no room in time.
pub(crate) fn notify_before_exit(states: &[NotifyState<'_>]) -> io::Result<()> {
    let message = encode(states);
    for _ in 1..LAST_TRIES {
        match try_send(&message) {
            Err(Errno::EAGAIN) => std::thread::sleep(LAST_PAUSE),
            result => return Ok(result?),
        }
    }
    Ok(try_send(&message)?)
}

fn encode(states: &[NotifyState<'_>]) -> String {
    states.iter().fold(String::new(), |mut message, state| {
        let _ = writeln!(message, "{state}"); // a String has room
        message
    })
}

/// Waits for the supervisor, in a thread of its own.
fn deliver_backlog() {
    let mut next = lock(&BACKLOG).front().cloned();
    while let Some(message) = next {
        let _ = sd_notify::notify(&[NotifyState::Custom(message.trim_end())]);
        let mut backlog = lock(&BACKLOG);
        backlog.pop_front();
        next = backlog.front().cloned();
    }
}

/// sd_notify's own call blocks while the queue of the supervisor's socket is full.
fn try_send(message: &str) -> nix::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or(Errno::ENOENT)?;
    let path = path.as_encoded_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(path)?,
    };
    // Opened once: later there may be no free descriptor, and WATCHDOG=1 must not be lost for that.
    static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();
    let socket = match SOCKET.get() {
        Some(socket) => socket,
        None => {
            let new = UnixDatagram::unbound().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
            SOCKET.get_or_init(|| new)
        }
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendto(socket.as_raw_fd(), message.as_bytes(), &address, flags).map(drop)
}
