//! Probes the dispatcher: one request at a time, over one connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::plan::{Part, Plan, PlanKind, WorkerLiveness};
use super::pool_outcomes::PoolOutcomes;
use crate::descriptors::SpareDescriptors;
use crate::held_file::{HeldFile, leads_nowhere};
use crate::ids::{Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::log::{Event, LogThrottle};
use crate::probe::{FailedPool, ProbeCommand, ProbeReport, ProbeRequest, REPORT_MAX};
use crate::stats::CounterTotals;
use crate::{clock, descriptors};

/// How long the quiesce command may take. The set stops without it too: the stopping workers refuse offers.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a dispatcher may take to bind `probe.sock` again, at least: it looks for it every second.
const REBIND_TIME: Duration = Duration::from_secs(3);

/// How often other tasks are run before a buffered answer is assumed not to exist.
const YIELDS: u32 = 3;

/// Length limit of a cause, in characters: clients see it.
const CAUSE_MAX: usize = 200;

/// Where the dispatcher is probed: `probe.sock`, also after the name of the socket that it serves was removed.
#[derive(Clone)]
pub(super) struct ProbeSocket {
    path: PathBuf,
    file: Rc<RefCell<Option<HeldFile>>>,
}

impl ProbeSocket {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: Rc::default() }
    }

    /// Holds the socket's file, which the dispatcher serves.
    pub(super) fn hold(&self) {
        if let Ok(file) = HeldFile::open(&self.path) {
            *self.file.borrow_mut() = Some(file);
        }
    }

    /// The path comes first: a socket that was stopped and started is another file. The held one is used where the path
    /// leads to no socket, or to one that no process listens on, or through a directory that is closed.
    async fn connect(&self) -> io::Result<UnixStream> {
        let error = match UnixStream::connect(&self.path).await {
            Ok(stream) => {
                self.hold();
                return Ok(stream);
            }
            Err(error) => error,
        };
        let held = self.file.borrow().as_ref().filter(|file| !file.is_in_place()).map(HeldFile::descriptor_path);
        match held {
            Some(held) if leads_nowhere(&error) || is_closed(error.kind()) => {
                UnixStream::connect(held).await.map_err(|_| error)
            }
            _ => Err(error),
        }
    }
}

/// Whether no process listens at the path, or its directory does not let this process through.
fn is_closed(error: io::ErrorKind) -> bool {
    matches!(error, io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied)
}

/// Handle of the task that sends the probes.
pub(super) struct Prober {
    requests: mpsc::UnboundedSender<Vec<FailedPool>>,
    reports: mpsc::UnboundedReceiver<io::Result<ProbeReport>>,
    /// Ends an exchange with a process that has ended.
    replaced: Rc<Notify>,
    not_sent: bool,
    /// The directory of `probe.sock`.
    directory: PathBuf,
    /// Since when `probe.sock` has been missing there.
    missing_since: Option<Monotonic>,
    shortages: LogThrottle,
    /// When the unanswered probe was sent.
    pending_since: Option<Monotonic>,
    last_report: Option<(Monotonic, Arc<ProbeReport>)>,
    pool_counters: CounterTotals<PoolName, u32>,
    outcomes: BTreeMap<PoolName, PoolOutcomes>,
    /// Whether the first probe was answered, or has failed.
    has_looked: bool,
}

impl Prober {
    /// Starts the task; no probe is sent yet.
    pub(super) fn start(socket: ProbeSocket) -> Self {
        let (requests, received) = mpsc::unbounded_channel();
        let (answers, reports) = mpsc::unbounded_channel();
        let replaced = Rc::new(Notify::new());
        let directory = socket.path.parent().map(PathBuf::from).unwrap_or_default();
        tokio::task::spawn_local(run(socket, received, answers, replaced.clone()));
        Self {
            requests,
            reports,
            replaced,
            not_sent: false,
            directory,
            missing_since: None,
            shortages: LogThrottle::default(),
            pending_since: None,
            last_report: None,
            pool_counters: CounterTotals::default(),
            outcomes: BTreeMap::new(),
            has_looked: false,
        }
    }

    /// Sends a probe with the failed pools, unless one is unanswered. Returns whether a probe is unanswered now.
    pub(super) fn send_probe(&mut self, failed: Vec<FailedPool>) -> bool {
        if self.pending_since.is_none() && self.requests.send(failed).is_ok() {
            self.pending_since = Some(clock::now());
        }
        self.pending_since.is_some()
    }

    /// The dispatcher is another process now: an unanswered probe waits in a socket that possibly no process accepts from.
    pub(super) fn dispatcher_replaced(&mut self) {
        self.missing_since = None;
        self.replaced.notify_waiters();
    }

    /// Whether a probe could not be sent since the last call: `probe.sock` does not exist, or this process has nothing
    /// left to send it with. That is not the dispatcher's silence, unless it has not bound the socket again meanwhile.
    pub(super) fn take_not_sent(&mut self, dispatcher_timeout: Duration) -> bool {
        let time = dispatcher_timeout.max(REBIND_TIME);
        let is_overdue = self.missing_since.is_some_and(|since| clock::now().since(since) >= time);
        std::mem::take(&mut self.not_sent) && !is_overdue
    }

    /// When the unanswered probe was sent, if there is one.
    pub(super) fn pending_since(&self) -> Option<Monotonic> {
        self.pending_since
    }

    /// Whether the last report has this worker, and no probe is unanswered for longer than `silence`.
    pub(super) fn is_reported(&self, worker: &WorkerId, now: Monotonic, silence: Duration) -> bool {
        let pools = self.last_report.iter().flat_map(|(_, report)| &report.pools);
        let in_report =
            pools.filter(|pool| pool.name == worker.pool).any(|pool| worker.number.index() < pool.workers.len());
        in_report && self.pending_since.is_none_or(|at| now.since(at) < silence)
    }

    /// Whether the dispatcher had a free place for a connection when it reported last.
    pub(super) fn has_free_place(&self) -> bool {
        let connections = self.last_report.as_ref().and_then(|(_, report)| report.connections);
        connections.is_none_or(|connections| connections.used < connections.places)
    }

    /// The last report, and when it arrived.
    pub(super) fn last_report(&self) -> Option<&(Monotonic, Arc<ProbeReport>)> {
        self.last_report.as_ref()
    }

    /// The pools' counters, summed over all incarnations of the dispatcher.
    pub(super) fn pool_counters(&self) -> &CounterTotals<PoolName, u32> {
        &self.pool_counters
    }

    /// A worker of this pool has reported that it can serve.
    pub(super) fn worker_ready(&mut self, now: Monotonic, pool: &PoolName) {
        self.outcomes.entry(pool.clone()).or_default().worker_ready(now);
    }

    /// What the reports say of the clients of each pool.
    pub(super) fn outcomes(&self) -> &BTreeMap<PoolName, PoolOutcomes> {
        &self.outcomes
    }

    /// Whether the first probe was answered, or has failed.
    pub(super) fn has_looked(&self) -> bool {
        self.has_looked
    }

    /// Since when a part has left a probe unanswered, as far as is known.
    pub(super) fn silent_since(&self, part: &Part) -> Option<Monotonic> {
        let Part::Worker(id) = part else { return self.pending_since };
        let (at, report) = self.last_report.as_ref()?;
        WorkerLiveness::from_report(report, *at).into_iter().find(|worker| worker.worker == *id)?.silent_since
    }

    /// Waits for the next report; `None` if a probe could not be sent or its connection was closed.
    pub(super) async fn next_report(&mut self) -> Option<Vec<WorkerLiveness>> {
        let answer = match self.reports.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await, // the task has ended, because the runtime is shutting down
        };
        self.process(answer)
    }

    /// A report that arrived while this process was not run: the task that reads it has not run either.
    pub(super) async fn take_buffered_report(&mut self) -> Option<Vec<WorkerLiveness>> {
        for _ in 0..YIELDS {
            yield_now().await;
        }
        let answer = self.reports.try_recv().ok()?;
        self.process(answer)
    }

    fn process(&mut self, answer: io::Result<ProbeReport>) -> Option<Vec<WorkerLiveness>> {
        (self.pending_since, self.has_looked) = (None, true);
        // From connect(2): there is no `probe.sock`. Without the directory the dispatcher cannot bind it.
        let is_missing = answer.as_ref().is_err_and(leads_nowhere);
        self.not_sent |= is_missing;
        let missing_since = self.missing_since.filter(|_| is_missing && self.directory.is_dir());
        self.missing_since = missing_since.or_else(|| is_missing.then(clock::now));
        if let Err(error) = answer.as_ref()
            && is_own_shortage(error)
        {
            self.not_sent = true;
            if let Some(count) = self.shortages.count() {
                tracing::warn!(%error, count, event = %Event::AcceptFailed,
                    "the watchdog cannot probe the dispatcher: its silence does not count until a probe is sent");
            }
        }
        let (now, report) = (clock::now(), Arc::new(answer.ok()?));
        for pool in &report.pools {
            self.pool_counters.update(&pool.name, report.epoch, pool.counters.clone());
            self.outcomes.entry(pool.name.clone()).or_default().update(now, pool);
        }
        self.outcomes.retain(|name, _| report.pools.iter().any(|pool| pool.name == *name));
        let workers = WorkerLiveness::from_report(&report, now);
        self.last_report = Some((now, report));
        Some(workers)
    }
}

/// The failed pools, for the next probe.
pub(super) fn failed_pools<K: PlanKind>(plan: &Plan<K>) -> Vec<FailedPool> {
    let short = |cause: &str| cause.chars().take(CAUSE_MAX).collect();
    plan.failed_pools()
        .into_iter()
        .map(|(pool, cause)| FailedPool { pool: pool.clone(), cause: short(cause) })
        .collect()
}

/// Each part of a report with its epoch and whether it serves.
pub(super) fn incarnations(report: &ProbeReport) -> Vec<(Part, u32, bool)> {
    let mut all = vec![(Part::Dispatcher, report.epoch, true)];
    for pool in &report.pools {
        let workers = pool.workers.iter().zip(WorkerNumber::up_to(u16::MAX)).map(|(worker, number)| {
            (Part::Worker(WorkerId { pool: pool.name.clone(), number }), worker.epoch, worker.serves)
        });
        all.extend(workers);
    }
    all
}

async fn run(
    socket: ProbeSocket,
    mut requests: mpsc::UnboundedReceiver<Vec<FailedPool>>,
    answers: mpsc::UnboundedSender<io::Result<ProbeReport>>,
    replaced: Rc<Notify>,
) {
    let mut connection = None;
    let mut spare = SpareDescriptors::new(1);
    let mut nonce = 0;
    while let Some(failed) = requests.recv().await {
        nonce += 1;
        let request = ProbeRequest { nonce, command: Some(ProbeCommand::Ping), failed };
        let mut report = tokio::select! {
            report = exchange(&socket, &mut connection, request.clone()) => report,
            () = replaced.notified() => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        if report.as_ref().is_err_and(is_own_shortage) && spare.release() {
            report = exchange(&socket, &mut connection, request).await;
        }
        spare.refill();
        if report.is_err() {
            connection = None;
        }
        if answers.send(report).is_err() {
            return;
        }
    }
}

/// Sends one request and reads its report, over a new connection if there is none.
async fn exchange(
    socket: &ProbeSocket,
    connection: &mut Option<BufReader<UnixStream>>,
    request: ProbeRequest,
) -> io::Result<ProbeReport> {
    let nonce = request.nonce;
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(BufReader::new(socket.connect().await?)),
    };
    stream.write_all(&request.into_line()?).await?;
    let mut line = Vec::new();
    stream.take(REPORT_MAX as u64).read_until(b'\n', &mut line).await?;
    let report: ProbeReport = serde_json::from_slice(&line)?;
    if report.nonce == nonce { Ok(report) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether this process has no descriptor or memory left. EAGAIN says that the dispatcher does not accept.
fn is_own_shortage(error: &io::Error) -> bool {
    descriptors::is_shortage(error) && error.kind() != io::ErrorKind::WouldBlock
}

/// Notifies the dispatcher, over a separate connection, that the set is stopping.
pub(super) fn send_quiesce(socket: ProbeSocket) {
    tokio::task::spawn_local(async move {
        let request = ProbeRequest { nonce: 0, command: Some(ProbeCommand::Quiesce), failed: Vec::new() };
        let _ = timeout(COMMAND_TIMEOUT, exchange(&socket, &mut None, request)).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tokio::net::UnixListener;

    #[test]
    fn the_path_comes_first_and_a_lost_one_is_replaced_by_the_held_socket() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = std::env::temp_dir().join(format!("patou-probe-socket-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("probe.sock");
        runtime.block_on(async {
            let socket = ProbeSocket::new(path.clone());
            let old = UnixListener::bind(&path).unwrap();
            socket.connect().await.unwrap();
            old.accept().await.unwrap();
            fs::remove_file(&path).unwrap();
            socket.connect().await.unwrap();
            old.accept().await.unwrap();
            // A file that no process listens on.
            drop(UnixListener::bind(&path).unwrap());
            socket.connect().await.unwrap();
            old.accept().await.unwrap();
            fs::remove_file(&path).unwrap();
            // Stopped and started: another file, while the old socket still listens, or does not.
            let new = UnixListener::bind(&path).unwrap();
            socket.connect().await.unwrap();
            new.accept().await.unwrap();
            drop(old);
            fs::remove_file(&path).unwrap();
            socket.connect().await.unwrap();
            new.accept().await.unwrap();
            // The directory became something else.
            fs::remove_dir(&dir).unwrap();
            fs::write(&dir, "").unwrap();
            socket.connect().await.unwrap();
            new.accept().await.unwrap();
            fs::remove_file(&dir).unwrap();
            std::os::unix::fs::symlink(&dir, &dir).unwrap();
            socket.connect().await.unwrap();
            new.accept().await.unwrap();
            drop(new);
            assert!(leads_nowhere(&socket.connect().await.unwrap_err()));
        });
        fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn a_missing_socket_is_no_excuse_for_ever_and_a_missing_directory_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = std::env::temp_dir().join(format!("patou-probe-missing-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut prober = Prober::start(ProbeSocket::new(dir.join("probe.sock")));
            let fail = async |prober: &mut Prober| {
                prober.send_probe(Vec::new());
                assert!(prober.next_report().await.is_none());
                prober.take_not_sent(Duration::ZERO)
            };
            assert!(fail(&mut prober).await);
            prober.missing_since = Some(Monotonic(clock::now().0 - REBIND_TIME.as_nanos() as u64));
            assert!(!fail(&mut prober).await);
            fs::remove_dir_all(&dir).unwrap();
            assert!(fail(&mut prober).await);
            fs::write(&dir, "").unwrap();
            prober.missing_since = Some(Monotonic(clock::now().0 - REBIND_TIME.as_nanos() as u64));
            assert!(fail(&mut prober).await);
        });
        fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn an_exchange_with_a_replaced_dispatcher_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = std::env::temp_dir().join(format!("patou-probe-pending-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("probe.sock");
        let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut prober = Prober::start(ProbeSocket::new(path));
            assert!(prober.send_probe(Vec::new()));
            assert!(prober.take_buffered_report().await.is_none() && prober.pending_since().is_some());
            prober.dispatcher_replaced();
            assert!(prober.next_report().await.is_none() && prober.pending_since().is_none());
            assert!(!prober.take_not_sent(Duration::MAX));
        });
        fs::remove_dir_all(&dir).unwrap();
    }
}
