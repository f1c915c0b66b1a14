//! `probe.sock`: the serving loop answers for itself, and takes an operator's orders, from those who may give them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{User, geteuid};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::driver::Driver;
use crate::clock;
use crate::ids::Monotonic;
use crate::log;
use crate::pool::PoolEvent;
use crate::probe::{ProbeCommand, ProbeRefusal, ProbeReport, ProbeRequest, QUESTION_MAX};

/// Whoever asks nothing, or takes no answer, for so long is let go. The watchdog asks every `probe_interval`, and connects anew.
const IDLE: Duration = Duration::from_secs(60);

/// Pause after a failed accept: out of descriptors, most likely, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long one who may not ask has for the question that is refused.
const REFUSING: Duration = Duration::from_secs(1);
/// How often at most it is logged that somebody was refused.
const TELLING: Duration = Duration::from_secs(60);

/// The account of the watchdog where the set is one of units.
const WATCHDOG: &str = "patou-watchdog";
/// The first number of an ordinary user (login.defs(5), `UID_MIN`): the accounts of units are below.
const ORDINARY: u32 = 1000;

/// Who may ask and order: root, the dispatcher's own user, and the watchdog's where that is another one.
///
/// That is so under systemd, where the dispatcher runs as a system account: the set of an ordinary user, or of
/// root, is nobody else's.
struct AccessList {
    allowed: Vec<u32>,
    refused: Cell<u64>,
    told: Cell<Option<Monotonic>>,
}

impl AccessList {
    /// Looks the accounts up, once.
    fn invite() -> Self {
        let own = geteuid().as_raw();
        let watchdog = (1..ORDINARY).contains(&own).then(|| User::from_name(WATCHDOG).ok().flatten()).flatten();
        let allowed = [Some(0), Some(own), watchdog.map(|user| user.uid.as_raw())].into_iter().flatten().collect();
        Self { allowed, refused: Cell::new(0), told: Cell::new(None) }
    }

    /// Whether this user may ask. `None`: the kernel does not say who it is.
    fn admit(&self, uid: Option<u32>) -> bool {
        if uid.is_some_and(|uid| self.allowed.contains(&uid)) {
            return true;
        }
        let (refused, now) = (self.refused.get() + 1, clock::now());
        self.refused.set(refused);
        if self.told.get().is_none_or(|told| now.since(told) >= TELLING) {
            self.told.set(Some(now));
            tracing::warn!(uid, refused, "probe.sock: a user who may not ask is refused");
        }
        false
    }
}

pub async fn serve(socket: UnixListener, desk: Rc<Driver>) {
    let guests = AccessList::invite();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                if guests.admit(uid) {
                    tokio::task::spawn_local(converse(stream, desk.clone()));
                } else {
                    tokio::task::spawn_local(tokio::time::timeout(REFUSING, refuse(stream)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "probe.sock: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Hears the question, so that the answer is read, and says no.
async fn refuse(stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let _ = BufReader::new(read).take(QUESTION_MAX as u64).read_until(b'\n', &mut line).await;
    let refused = "only root, the user of the dispatcher and that of the watchdog may ask or order".to_owned();
    if let Ok(mut answer) = serde_json::to_vec(&ProbeRefusal { refused }) {
        answer.push(b'\n');
        let _ = write.write_all(&answer).await; // it has gone, which is all the same
    }
}

async fn converse(stream: UnixStream, desk: Rc<Driver>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut asked = (&mut read).take(QUESTION_MAX as u64);
        match tokio::time::timeout(IDLE, asked.read_until(b'\n', &mut line)).await {
            Ok(Ok(n)) if n > 0 && line.last() == Some(&b'\n') => {}
            _ => return, // gone, asleep, or not a question
        }
        let Ok(question) = serde_json::from_slice::<ProbeRequest>(&line) else { return };
        // Reported first: whom the order has us ask owes nothing yet.
        let pools = desk.report();
        desk.tell_status();
        if question.order == Some(ProbeCommand::Ping) {
            desk.hear_failed(&question.failed);
        }
        let refused = question.order.and_then(|order| obey(&desk, order));
        let (pid, epoch) = (std::process::id(), desk.epoch().get());
        let report = ProbeReport { nonce: question.nonce, pid, epoch, pools, refused };
        let Ok(mut answer) = serde_json::to_vec(&report) else { return };
        answer.push(b'\n');
        if !matches!(tokio::time::timeout(IDLE, write.write_all(&answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Carries out an order; why not, if not.
fn obey(desk: &Driver, order: ProbeCommand) -> Option<String> {
    match order {
        ProbeCommand::Ping => desk.tell_all(PoolEvent::Probe),
        ProbeCommand::Quiesce => desk.tell_all(PoolEvent::Quiesce),
        ProbeCommand::Hold => desk.hold.notify_one(),
        ProbeCommand::Drain(id) | ProbeCommand::Resume(id) if !desk.has(&id) => {
            return Some(format!("the configuration has no worker {id}"));
        }
        // Told again: nothing changes, and the worker may not have heard the first order.
        ProbeCommand::Drain(id) if desk.is_drained(&id) => desk.tell(&id.pool, PoolEvent::Drain(id.number.get())),
        ProbeCommand::Resume(id) if !desk.is_drained(&id) => {}
        ProbeCommand::Drain(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerDrained, "taken out of service by an operator");
            desk.tell(&id.pool, PoolEvent::Drain(id.number.get()));
            let staff = desk.staff(&id.pool);
            if staff.drained == staff.workers {
                tracing::warn!(pool = %id.pool, "every worker of this pool is out of service: its clients are refused");
            }
        }
        ProbeCommand::Resume(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerResumed, "put back into service by an operator");
            desk.tell(&id.pool, PoolEvent::Resume(id.number.get()));
        }
    }
    None
}
