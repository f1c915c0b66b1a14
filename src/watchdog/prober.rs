//! Asks the dispatcher, one question at a time, over a connection that is kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::plan::{Part, Plan, Sign};
use crate::clock;
use crate::ids::{Monotonic, PoolName, WorkerId, WorkerNumber};
use crate::probe::{FailedPool, ProbeCommand, ProbeReport, ProbeRequest, REPORT_MAX};
use crate::stats::CounterTotals;

/// How long an order of ours may take on its way: what it asks happens anyway, only later.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the other tasks are let run before it is believed that there is no answer.
const TICKS: u32 = 3;

/// Characters of a cause: what clients are told is no log.
const CAUSE_MAX: usize = 200;

/// The asking task.
pub struct Prober {
    questions: mpsc::UnboundedSender<Vec<FailedPool>>,
    reports: mpsc::UnboundedReceiver<Option<ProbeReport>>,
    /// Since when an answer is owed.
    asked: Option<Monotonic>,
    heard: Option<(Monotonic, Arc<ProbeReport>)>,
    pools: CounterTotals<PoolName, u32>,
}

impl Prober {
    /// Starts it; nobody is asked yet.
    pub fn start(socket: PathBuf) -> Self {
        let (questions, asked) = mpsc::unbounded_channel();
        let (answers, reports) = mpsc::unbounded_channel();
        tokio::task::spawn_local(run(socket, asked, answers));
        Self { questions, reports, asked: None, heard: None, pools: CounterTotals::default() }
    }

    /// Asks, and says which pools have failed, unless an answer is still owed. Whether a question is open now.
    pub fn ask(&mut self, failed: Vec<FailedPool>) -> bool {
        if self.asked.is_none() && self.questions.send(failed).is_ok() {
            self.asked = Some(clock::now());
        }
        self.asked.is_some()
    }

    /// Since when an answer is owed, if one is.
    pub fn asked(&self) -> Option<Monotonic> {
        self.asked
    }

    /// The last report, and when it came.
    pub fn heard(&self) -> Option<&(Monotonic, Arc<ProbeReport>)> {
        self.heard.as_ref()
    }

    /// What the dispatchers have counted, one after the other.
    pub fn pools(&self) -> &CounterTotals<PoolName, u32> {
        &self.pools
    }

    /// Since when a part owes an answer, as far as is known.
    pub fn silent_since(&self, part: &Part) -> Option<Monotonic> {
        let Part::Worker(id) = part else { return self.asked };
        let (at, report) = self.heard.as_ref()?;
        Sign::all(report, *at).into_iter().find(|sign| sign.worker == *id)?.silent_since
    }

    /// The next answer as signs of life; `None` for a question that could not be put or was cut off.
    pub async fn answer(&mut self) -> Option<Vec<Sign>> {
        let answer = match self.reports.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await, // the task has ended: so has everything
        };
        self.take_in(answer)
    }

    /// An answer that has come while this process did not run: neither has the task that reads it.
    pub async fn waiting(&mut self) -> Option<Vec<Sign>> {
        for _ in 0..TICKS {
            yield_now().await;
        }
        let answer = self.reports.try_recv().ok()?;
        self.take_in(answer)
    }

    fn take_in(&mut self, answer: Option<ProbeReport>) -> Option<Vec<Sign>> {
        self.asked = None;
        let (now, report) = (clock::now(), Arc::new(answer?));
        for pool in &report.pools {
            self.pools.update(&pool.name, report.epoch, pool.tally.clone());
        }
        let signs = Sign::all(&report, now);
        self.heard = Some((now, report));
        Some(signs)
    }
}

/// The pools that have failed, in the words of a question.
pub fn failed(plan: &Plan) -> Vec<FailedPool> {
    let short = |cause: &str| cause.chars().take(CAUSE_MAX).collect();
    plan.failed_pools()
        .into_iter()
        .map(|(pool, cause)| FailedPool { pool: pool.clone(), cause: short(cause) })
        .collect()
}

/// Each part with its incarnation, and whether it serves.
pub fn incarnations(report: &ProbeReport) -> Vec<(Part, u32, bool)> {
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
    socket: PathBuf,
    mut asked: mpsc::UnboundedReceiver<Vec<FailedPool>>,
    answers: mpsc::UnboundedSender<Option<ProbeReport>>,
) {
    let mut connection = None;
    let mut nonce = 0;
    while let Some(failed) = asked.recv().await {
        nonce += 1;
        let report =
            ask(&socket, &mut connection, ProbeRequest { nonce, order: Some(ProbeCommand::Ping), failed }).await;
        if report.is_none() {
            connection = None;
        }
        if answers.send(report).is_err() {
            return;
        }
    }
}

async fn ask(
    socket: &PathBuf,
    connection: &mut Option<BufReader<UnixStream>>,
    question: ProbeRequest,
) -> Option<ProbeReport> {
    let nonce = question.nonce;
    if connection.is_none() {
        *connection = Some(BufReader::new(UnixStream::connect(socket).await.ok()?));
    }
    let stream = connection.as_mut()?;
    stream.write_all(&question.to_line().ok()?).await.ok()?;
    let mut answer = Vec::new();
    stream.take(REPORT_MAX as u64).read_until(b'\n', &mut answer).await.ok()?;
    let report: ProbeReport = serde_json::from_slice(&answer).ok()?;
    (report.nonce == nonce).then_some(report)
}

/// Tells the dispatcher, on a connection of its own, that the set is stopping.
pub fn quiesce(socket: PathBuf) {
    tokio::task::spawn_local(async move {
        let question = ProbeRequest { nonce: 0, order: Some(ProbeCommand::Quiesce), failed: Vec::new() };
        // A dispatcher that does not hear it cannot give anybody a worker either: the workers refuse.
        let _ = timeout(ORDER_TIMEOUT, ask(&socket, &mut None, question)).await;
    });
}
