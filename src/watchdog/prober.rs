//! Asks the dispatcher, one question at a time, over a connection that is kept.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::plan::{Plan, Sign};
use crate::clock;
use crate::probe::{FailedPool, Order, Question, REPORT_MAX, Report};

/// How long an order of ours may take on its way: what it asks happens anyway, only later.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);

/// Characters of a cause: what clients are told is no log.
const CAUSE_MAX: usize = 200;

/// The asking task.
pub struct Prober {
    questions: mpsc::UnboundedSender<Vec<FailedPool>>,
    reports: mpsc::UnboundedReceiver<Option<Report>>,
    waiting: bool,
}

impl Prober {
    /// Starts it; nobody is asked yet.
    pub fn start(socket: PathBuf) -> Self {
        let (questions, asked) = mpsc::unbounded_channel();
        let (answers, reports) = mpsc::unbounded_channel();
        tokio::task::spawn_local(run(socket, asked, answers));
        Self { questions, reports, waiting: false }
    }

    /// Asks, and says which pools have failed, unless an answer is still owed. Whether a question is open now.
    pub fn ask(&mut self, failed: Vec<FailedPool>) -> bool {
        if !self.waiting {
            self.waiting = self.questions.send(failed).is_ok();
        }
        self.waiting
    }

    /// The next answer as signs of life; `None` for a question that could not be put or was cut off.
    pub async fn answer(&mut self) -> Option<Vec<Sign>> {
        let answer = match self.reports.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await, // the task has ended: so has everything
        };
        self.waiting = false;
        answer.map(|report| Sign::all(&report, clock::now()))
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

async fn run(
    socket: PathBuf,
    mut asked: mpsc::UnboundedReceiver<Vec<FailedPool>>,
    answers: mpsc::UnboundedSender<Option<Report>>,
) {
    let mut connection = None;
    let mut nonce = 0;
    while let Some(failed) = asked.recv().await {
        nonce += 1;
        let report = ask(&socket, &mut connection, Question { nonce, order: Some(Order::Ping), failed }).await;
        if report.is_none() {
            connection = None;
        }
        if answers.send(report).is_err() {
            return;
        }
    }
}

async fn ask(socket: &PathBuf, connection: &mut Option<BufReader<UnixStream>>, question: Question) -> Option<Report> {
    let nonce = question.nonce;
    if connection.is_none() {
        *connection = Some(BufReader::new(UnixStream::connect(socket).await.ok()?));
    }
    let stream = connection.as_mut()?;
    stream.write_all(&question.to_line().ok()?).await.ok()?;
    let mut answer = Vec::new();
    stream.take(REPORT_MAX as u64).read_until(b'\n', &mut answer).await.ok()?;
    let report: Report = serde_json::from_slice(&answer).ok()?;
    (report.nonce == nonce).then_some(report)
}

/// Tells the dispatcher, on a connection of its own, that the set is stopping.
pub fn quiesce(socket: PathBuf) {
    tokio::task::spawn_local(async move {
        let question = Question { nonce: 0, order: Some(Order::Quiesce), failed: Vec::new() };
        // A dispatcher that does not hear it cannot give anybody a worker either: the workers refuse.
        let _ = timeout(ORDER_TIMEOUT, ask(&socket, &mut None, question)).await;
    });
}
