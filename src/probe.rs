//! The words on `probe.sock`: one JSON object a line, a question and its report.
//!
//! The dispatcher's serving loop answers, so that an answer proves that it serves. The watchdog asks at its
//! interval; `patou status`, `net::discard_until_closed` and `resume` ask when called.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{PoolName, WorkerId};
use crate::stats::Counters;

/// The longest line that is read, in bytes: a question grows with the pools that have failed, a report with the workers.
pub const QUESTION_MAX: usize = 64 << 10;
/// The same for a report: some 200 bytes for each of ten thousand workers.
pub const REPORT_MAX: usize = 4 << 20;

/// A question to the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// Comes back in the report.
    pub nonce: u64,
    /// What to do besides reporting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<ProbeCommand>,
    /// With [`ProbeCommand::Ping`]: the pools of which every worker is given up, and no others are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedPool>,
}

/// A pool that nobody serves any more until somebody mends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedPool {
    /// Which.
    pub pool: PoolName,
    /// What ended one of its workers last.
    pub cause: String,
}

impl ProbeRequest {
    /// As one line of at most [`QUESTION_MAX`] bytes; of failed pools as many as fit.
    ///
    /// # Errors
    /// None in fact: what it consists of can always be written.
    pub fn to_line(mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut line = serde_json::to_vec(&self)?;
            line.push(b'\n');
            if line.len() <= QUESTION_MAX || self.failed.is_empty() {
                return Ok(line);
            }
            self.failed.truncate(self.failed.len() / 2);
        }
    }
}

/// What a question can order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeCommand {
    /// Ask every worker for a sign of life.
    Ping,
    /// Give this worker no new client.
    Drain(WorkerId),
    /// Give it clients again.
    Resume(WorkerId),
    /// Give no client a worker any more: the set is stopping.
    Quiesce,
    /// Accept nobody any more, and serve who is here: all parts are about to be replaced.
    Hold,
}

/// What the dispatcher knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Of the question.
    pub nonce: u64,
    /// The dispatcher's process.
    pub pid: u32,
    /// Its incarnation.
    pub epoch: u32,
    /// Its pools.
    pub pools: Vec<PoolReport>,
    /// Why an order was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The answer to somebody who may not ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRefusal {
    /// Why, and who may.
    pub refused: String,
}

/// One pool of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Which.
    pub name: PoolName,
    /// Clients that wait.
    pub queue: usize,
    /// How long the first of them has, in milliseconds.
    pub oldest_ms: u64,
    /// Its workers, from number 1.
    pub workers: Vec<WorkerReport>,
    /// What this dispatcher has done for it up to now, and how long clients waited until their lease was granted.
    #[serde(default)]
    pub tally: Counters,
}

/// One worker of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its incarnation, 0 if there has been none.
    pub epoch: u32,
    /// Whether it lives and would take a client, now or after the one it has.
    #[serde(default)]
    pub serves: bool,
    /// Whether it missed an offer and has not answered since.
    pub late: bool,
    /// Whether an operator keeps it out of service.
    pub drained: bool,
    /// Whether its claim word holds what no honest writer writes.
    pub corrupt: bool,
    /// Since when a question to it has had no answer, in milliseconds; absent if none is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// Since when nobody has been in its slot who is through with his start, in milliseconds; absent if somebody is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_ms: Option<u64>,
    /// The turns of its control loop, while a question is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticks: Option<u64>,
}

/// Asks once and waits at most `patience` for each step.
///
/// # Errors
/// When nobody listens, nobody answers in time, or what comes is not a report; `PermissionDenied` to users who may
/// not ask.
pub fn ask(socket: &Path, order: Option<ProbeCommand>, patience: Duration) -> io::Result<ProbeReport> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let nonce = u64::from(std::process::id());
    stream.write_all(&ProbeRequest { nonce, order, failed: Vec::new() }.to_line()?)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(REPORT_MAX as u64)).read_until(b'\n', &mut answer)?;
    let report: ProbeReport =
        serde_json::from_slice(&answer).map_err(|error| match serde_json::from_slice(&answer) {
            Ok(ProbeRefusal { refused }) => io::Error::new(io::ErrorKind::PermissionDenied, refused),
            Err(_) => error.into(),
        })?;
    if report.nonce != nonce {
        return Err(io::Error::other("the report answers another question"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_fits_however_much_has_failed() {
        let pool = |n| FailedPool { pool: PoolName::new(&format!("pool_{n}")).unwrap(), cause: "\u{1}".repeat(200) };
        for count in [0, 1, 1000] {
            let question =
                ProbeRequest { nonce: 1, order: Some(ProbeCommand::Ping), failed: (0..count).map(pool).collect() };
            let line = question.clone().to_line().unwrap();
            assert!(line.len() <= QUESTION_MAX && line.ends_with(b"\n"));
            let read: ProbeRequest = serde_json::from_slice(&line).unwrap();
            assert_eq!(read.failed, question.failed[..read.failed.len()]);
            assert!(read.failed.len() >= count.min(30), "{}", read.failed.len());
        }
    }
}
