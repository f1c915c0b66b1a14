//! `probe.sock`: the serving loop answers probes itself, which proves that it serves, and executes the commands of
//! operators. Only authorized users may connect.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{User, geteuid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::driver::Driver;
use crate::clock;
use crate::config::Config;
use crate::ids::Monotonic;
use crate::log;
use crate::net::ACCEPT_RETRY_DELAY;
use crate::pool::PoolEvent;
use crate::probe::{ProbeCommand, ProbeRefusal, ProbeReport, ProbeRequest, REQUEST_MAX};

/// A connection that sends no request, or reads no report, for this long is closed. The watchdog probes every
/// `probe_interval`, and connects again.
const IDLE: Duration = Duration::from_secs(60);

/// How long an unauthorized user may take to send the request that is refused.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest interval between two log messages about unauthorized users.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long the look for a listening process may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// The user of the watchdog in a set of units.
const WATCHDOG: &str = "patou-watchdog";
/// The first uid of ordinary users (login.defs(5), `UID_MIN`); the users of units are below.
const UID_MIN: u32 = 1000;

/// The authorized users: root, the dispatcher's own, and the watchdog's where that is another.
///
/// The last applies under systemd, where the dispatcher runs as a system user. A set of an ordinary user, or of root,
/// has one user only.
struct AccessList {
    allowed: Vec<u32>,
    refused: Cell<u64>,
    logged_at: Cell<Option<Monotonic>>,
}

impl AccessList {
    /// Looks up the users, once.
    fn new() -> Self {
        let own = geteuid().as_raw();
        let watchdog = (1..UID_MIN).contains(&own).then(|| User::from_name(WATCHDOG).ok().flatten()).flatten();
        let allowed = [Some(0), Some(own), watchdog.map(|user| user.uid.as_raw())].into_iter().flatten().collect();
        Self { allowed, refused: Cell::new(0), logged_at: Cell::new(None) }
    }

    /// Whether this user is authorized; logs refusals. `None`: the kernel does not report the user.
    fn allows(&self, uid: Option<u32>) -> bool {
        if uid.is_some_and(|uid| self.allowed.contains(&uid)) {
            return true;
        }
        let (refused, now) = (self.refused.get() + 1, clock::now());
        self.refused.set(refused);
        if self.logged_at.get().is_none_or(|at| now.since(at) >= LOG_INTERVAL) {
            self.logged_at.set(Some(now));
            tracing::warn!(uid, refused, "probe.sock: refusing a user that is not authorized");
        }
        false
    }
}

/// Where the socket is bound.
pub(super) fn path(config: &Config) -> PathBuf {
    config.set.runtime_dir.join("probe.sock")
}

/// Whether no process listens at [`path`].
pub(super) async fn is_unreachable(config: &Config) -> bool {
    let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path(config))).await;
    connected.is_ok_and(|result| {
        result.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
    })
}

/// Binds the socket in place of one whose file was removed. Any user may connect; [`AccessList`] decides.
pub(super) fn bind_again(config: &Config) -> Option<UnixListener> {
    let path = path(config);
    let _ = fs::remove_file(&path); // one on which no process listens
    let bound = UnixListener::bind(&path);
    let bound = bound.and_then(|socket| fs::set_permissions(&path, Permissions::from_mode(0o666)).map(|()| socket));
    match bound {
        Ok(socket) => {
            tracing::warn!(event = %log::Event::FilesLost, "probe.sock was removed from outside: bound it again");
            Some(socket)
        }
        Err(error) => {
            tracing::error!(event = %log::Event::FilesLost,
                "probe.sock was removed from outside and cannot be bound again: {error}");
            None
        }
    }
}

pub(super) async fn serve(socket: UnixListener, driver: Rc<Driver>) {
    let access = AccessList::new();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                if access.allows(uid) {
                    tokio::task::spawn_local(serve_connection(stream, driver.clone()));
                } else {
                    tokio::task::spawn_local(tokio::time::timeout(REFUSE_TIMEOUT, refuse(stream)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "probe.sock: accept");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Reads the request first: a client that cannot send it would not read the refusal.
async fn refuse(stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let _ = BufReader::new(read).take(REQUEST_MAX as u64).read_until(b'\n', &mut line).await;
    let refused = "only root and the users of the dispatcher and the watchdog may use the probe socket".to_owned();
    if let Ok(mut answer) = serde_json::to_vec(&ProbeRefusal { refused }) {
        answer.push(b'\n');
        let _ = write.write_all(&answer).await; // fails if the peer has disconnected
    }
}

async fn serve_connection(stream: UnixStream, driver: Rc<Driver>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_MAX as u64);
        match tokio::time::timeout(IDLE, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(n)) if n > 0 && line.last() == Some(&b'\n') => {}
            _ => return, // disconnected, idle, or not a request
        }
        let Ok(request) = serde_json::from_slice::<ProbeRequest>(&line) else { return };
        // Before the command, so that the questions it opens do not count as silence.
        let pools = driver.report();
        driver.notify_status();
        if request.command == Some(ProbeCommand::Ping) {
            driver.set_failed_pools(&request.failed);
        }
        let refused = request.command.and_then(|command| execute(&driver, command));
        let (pid, epoch) = (std::process::id(), driver.epoch().get());
        let report = ProbeReport { nonce: request.nonce, pid, epoch, pools, refused };
        let Ok(mut answer) = serde_json::to_vec(&report) else { return };
        answer.push(b'\n');
        if !matches!(tokio::time::timeout(IDLE, write.write_all(&answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Executes a command; returns the reason if it is refused.
fn execute(driver: &Rc<Driver>, command: ProbeCommand) -> Option<String> {
    match command {
        ProbeCommand::Ping => {
            driver.check_names();
            driver.handle_in_all(PoolEvent::Probe);
        }
        ProbeCommand::Quiesce => driver.handle_in_all(PoolEvent::Quiesce),
        ProbeCommand::Hold => driver.stop_accepting.notify_one(),
        ProbeCommand::Drain(id) | ProbeCommand::Resume(id) if !driver.has_worker(&id) => {
            return Some(format!("the configuration has no worker {id}"));
        }
        // Repeated: nothing changes, but the worker may not have read the first question.
        ProbeCommand::Drain(id) if driver.is_drained(&id) => driver.handle(&id.pool, PoolEvent::Drain(id.number)),
        ProbeCommand::Resume(id) if !driver.is_drained(&id) => {}
        ProbeCommand::Drain(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerDrained, "taken out of service by an operator");
            driver.handle(&id.pool, PoolEvent::Drain(id.number));
            let availability = driver.availability(&id.pool);
            if availability.drained == availability.workers {
                tracing::warn!(pool = %id.pool, "every worker of this pool is out of service: refusing its clients");
            }
        }
        ProbeCommand::Resume(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerResumed, "put back into service by an operator");
            driver.handle(&id.pool, PoolEvent::Resume(id.number));
        }
    }
    None
}
