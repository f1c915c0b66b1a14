//! The protocol on `probe.sock`: one JSON object a line, a request and its report.
//!
//! The dispatcher's serving loop answers, so an answer proves that it serves. The watchdog probes at its interval;
//! `patou status`, `drain`, `resume` and `recycle` probe when called.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::ids::{PoolName, WorkerId, WorkerNumber};
use crate::stats::Counters;

/// Longest request line, in bytes: a request grows with the number of failed pools.
pub(crate) const REQUEST_MAX: usize = 64 << 10;
/// Longest report line, in bytes: about 250 bytes for each of ten thousand workers.
pub(crate) const REPORT_MAX: usize = 5 << 20;

/// A request to the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProbeRequest {
    /// The report repeats it.
    pub nonce: u64,
    /// What the dispatcher does besides reporting.
    #[serde(default, rename = "order", skip_serializing_if = "Option::is_none")]
    pub command: Option<ProbeCommand>,
    /// With [`ProbeCommand::Ping`]: exactly the pools of which every worker has failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedPool>,
}

/// A pool whose workers have all failed, so that nothing serves it until the cause is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FailedPool {
    /// Its name.
    pub pool: PoolName,
    /// Cause of the last end of one of its workers.
    pub cause: String,
}

impl ProbeRequest {
    /// One line of at most [`REQUEST_MAX`] bytes, with as many failed pools as fit.
    ///
    /// # Errors
    /// Never in practice: every value can be serialised.
    pub(crate) fn into_line(mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut line = serde_json::to_vec(&self)?;
            line.push(b'\n');
            if line.len() <= REQUEST_MAX || self.failed.is_empty() {
                return Ok(line);
            }
            self.failed.truncate(self.failed.len() / 2);
        }
    }
}

/// A command in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProbeCommand {
    /// Ping every worker.
    Ping,
    /// Give this worker no new clients.
    Drain(WorkerId),
    /// Give this worker clients again.
    Resume(WorkerId),
    /// Recycle these workers of a pool, one after the other.
    Recycle {
        /// The pool.
        pool: PoolName,
        /// Its workers.
        workers: Vec<WorkerNumber>,
    },
    /// Dispatch no more clients: the set is stopping.
    Quiesce,
    /// Accept no more clients, and serve those already accepted: all parts are about to be replaced.
    Hold,
}

/// The state of the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeReport {
    /// As in the request.
    pub nonce: u64,
    /// The dispatcher's process.
    pub pid: u32,
    /// The dispatcher's incarnation.
    pub epoch: u32,
    /// All pools.
    pub pools: Vec<PoolReport>,
    /// Its places for connections; absent from a dispatcher of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionReport>,
    /// Why the command was not executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether the set is stopping, so that clients are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The places for connections of a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionReport {
    /// How many are in use.
    pub used: usize,
    /// How many there are: `front.connections`, or what the limit of open files allows.
    pub places: usize,
}

/// The answer to a user without permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeRefusal {
    /// The reason, with the users that have permission.
    pub refused: String,
}

/// One pool of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolReport {
    /// Its name.
    pub name: PoolName,
    /// Clients that wait for a worker.
    pub queue: usize,
    /// How long the first of them has waited, in milliseconds.
    pub oldest_ms: u64,
    /// Its workers, from number 1.
    pub workers: Vec<WorkerReport>,
    /// Requests with a complete response, of all workers and all their incarnations.
    #[serde(default)]
    pub served: u64,
    /// The counters of this dispatcher for the pool, with the times that clients waited for their lease.
    #[serde(default, rename = "tally")]
    pub counters: Counters,
}

/// One worker of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerReport {
    /// Its incarnation; 0 if there has been none.
    pub epoch: u32,
    /// Whether it lives and accepts a client, now or after its current one.
    #[serde(default)]
    pub serves: bool,
    /// Whether it missed an offer and has not answered since.
    pub late: bool,
    /// Whether an operator has taken it out of service.
    pub drained: bool,
    /// Whether its claim word holds a value that no correct process writes. JSON keeps the earlier name: during an upgrade
    /// a watchdog and a dispatcher of different builds talk.
    #[serde(rename = "garbled")]
    pub corrupt: bool,
    /// Whether an operator has requested that it is recycled, and that has not ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recycle_requested: bool,
    /// How long a question to it has been unanswered, in milliseconds; absent if no question is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// How long its slot has been without a process that has completed its start, in milliseconds; absent if there is
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_ms: Option<u64>,
    /// The progress counter of its control loop, while a question is open.
    #[serde(default, rename = "turns", skip_serializing_if = "Option::is_none")]
    pub ticks: Option<u64>,
    /// Requests that failed through a fault of its handler, of all incarnations.
    #[serde(default, rename = "faults", skip_serializing_if = "is_zero")]
    pub handler_faults: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where the socket is bound.
pub(crate) fn socket_path(config: &Config) -> PathBuf {
    config.set.runtime_dir.join("probe.sock")
}

/// Sends one request and waits for the report, at most `timeout` for each read and write.
///
/// # Errors
/// If no dispatcher listens, it does not answer in time, or the answer is not a report; `PermissionDenied` for users
/// without permission.
pub(crate) fn query(socket: &Path, command: Option<ProbeCommand>, timeout: Duration) -> io::Result<ProbeReport> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let nonce = u64::from(std::process::id());
    stream.write_all(&ProbeRequest { nonce, command, failed: Vec::new() }.into_line()?)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(REPORT_MAX as u64)).read_until(b'\n', &mut line)?;
    let report: ProbeReport = serde_json::from_slice(&line).map_err(|error| match serde_json::from_slice(&line) {
        Ok(ProbeRefusal { refused }) => io::Error::new(io::ErrorKind::PermissionDenied, refused),
        Err(_) => error.into(),
    })?;
    if report.nonce != nonce {
        return Err(io::Error::other("the report belongs to another request"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{POOLS_MAX, PoolConfig, WORKERS_MAX};

    #[test]
    fn report_on_the_largest_set_fits_into_its_limit() {
        fn with_largest_numbers(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::Number(number) => *number = u64::MAX.into(),
                serde_json::Value::Array(items) => items.iter_mut().for_each(with_largest_numbers),
                serde_json::Value::Object(fields) => fields.values_mut().for_each(with_largest_numbers),
                _ => {}
            }
        }
        let worker = WorkerReport {
            epoch: u32::MAX,
            serves: false,
            late: false,
            drained: false,
            corrupt: false,
            recycle_requested: true,
            silent_ms: Some(u64::MAX),
            starting_ms: Some(u64::MAX),
            ticks: Some(u64::MAX),
            handler_faults: u64::MAX,
        };
        let workers = vec![worker; WORKERS_MAX / POOLS_MAX];
        let name = PoolName::new(&"x".repeat(PoolName::MAX)).unwrap();
        let pool = PoolReport { name, queue: 0, oldest_ms: 0, workers, served: 0, counters: Counters::default() };
        let mut pool = serde_json::to_value(pool).unwrap();
        with_largest_numbers(&mut pool);
        let size = POOLS_MAX * (pool.to_string().len() + 1) + 200;
        assert!(size <= REPORT_MAX, "{size}");
    }

    #[test]
    fn request_to_recycle_the_largest_pool_fits_into_its_limit() {
        let pool = PoolName::new(&"x".repeat(PoolName::MAX)).unwrap();
        let workers = vec![WorkerNumber::of(u16::MAX); PoolConfig::WORKERS_MAX.into()];
        let request = ProbeRequest {
            nonce: u64::MAX,
            command: Some(ProbeCommand::Recycle { pool, workers }),
            failed: Vec::new(),
        };
        assert!(request.into_line().unwrap().len() <= REQUEST_MAX);
    }

    #[test]
    fn request_fits_into_its_limit_with_any_number_of_failed_pools() {
        let pool = |n| FailedPool { pool: PoolName::new(&format!("pool_{n}")).unwrap(), cause: "\u{1}".repeat(200) };
        for count in [0, 1, 1000] {
            let request =
                ProbeRequest { nonce: 1, command: Some(ProbeCommand::Ping), failed: (0..count).map(pool).collect() };
            let line = request.clone().into_line().unwrap();
            assert!(line.len() <= REQUEST_MAX && line.ends_with(b"\n"));
            let read: ProbeRequest = serde_json::from_slice(&line).unwrap();
            assert_eq!(read.failed, request.failed[..read.failed.len()]);
            assert!(read.failed.len() >= count.min(30), "{}", read.failed.len());
        }
    }
}
