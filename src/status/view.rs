//! The state of a set as `patou status --json` and `/status` show it.

use serde::Serialize;

use crate::ids::{PoolName, WorkerId};
use crate::stats::Counters;

/// The states of a worker that serves, now or after its current request.
pub(crate) const SERVING: [&str; 3] = ["idle", "leased", "busy"];

/// A whole set.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    /// Name of the set.
    pub set: String,
    /// Addresses of the listeners.
    pub listeners: Vec<String>,
    /// What is missing outside the parts, and what is done about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The watchdog.
    pub watchdog: WatchdogView,
    /// The dispatcher.
    pub dispatcher: DispatcherView,
    /// In the order of the configuration.
    pub pools: Vec<PoolView>,
    /// The parts that run the program of another version than the reader, and that version.
    #[serde(skip)]
    pub other_versions: Vec<(String, String)>,
}

/// The watchdog.
#[derive(Debug, Serialize)]
pub(crate) struct WatchdogView {
    /// Its process.
    pub pid: Option<u32>,
    /// `up`, `late`, `frozen`, `stopping` or `gone`.
    pub state: &'static str,
    /// The version of its program, if it is known.
    pub version: Option<String>,
    /// Unplanned restarts.
    pub restarts: u32,
}

/// The dispatcher.
#[derive(Debug, Serialize)]
pub(crate) struct DispatcherView {
    /// Its process.
    pub pid: Option<u32>,
    /// One of the states in patou(7).
    pub state: String,
    /// The version of its program, if it is known.
    pub version: Option<String>,
    /// Unplanned restarts.
    pub restarts: u32,
    /// Clients that wait for a worker, in all pools.
    pub queue: usize,
    /// Cause of its last unplanned end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Whether it has responded a moment ago: if it is being restarted, its clients wait in the listen queue.
    #[serde(skip)]
    pub was_up: bool,
}

/// A pool.
#[derive(Debug, Serialize)]
pub(crate) struct PoolView {
    /// Its name.
    pub name: PoolName,
    /// Clients that wait for a worker.
    pub queue: usize,
    /// How long the first of them has waited, in milliseconds.
    #[serde(skip)]
    pub oldest_ms: u64,
    /// Whether one of its workers was in service a moment ago: if all are being restarted, its clients wait in the queue.
    #[serde(skip)]
    pub was_in_service: bool,
    /// Its workers, from number 1.
    pub workers: Vec<WorkerView>,
}

/// A worker.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerView {
    /// Pool and number.
    pub id: WorkerId,
    /// Its process.
    pub pid: Option<u32>,
    /// One of the states in patou(7); `up` for a user that may see neither its slot nor the dispatcher's report.
    pub state: String,
    /// Its incarnation; 0 if there has been none.
    pub epoch: u32,
    /// The version of its program, or of the library in a program of its own; absent if it is not known.
    pub version: Option<String>,
    /// The lease that it holds.
    pub lease: Option<String>,
    /// The address it listens on.
    pub address: String,
    /// Requests served, by all incarnations.
    pub served: u64,
    /// Requests failed, by all incarnations.
    pub failed: u64,
    /// Unplanned restarts.
    pub restarts: u32,
    /// Cause of its last unplanned end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Whether an operator has taken it out of service.
    #[serde(skip)]
    pub drained: bool,
    /// The counters in its slot, if the slot can be read.
    #[serde(skip)]
    pub counters: Option<Counters>,
}

impl StatusView {
    /// Whether every part is up.
    pub(crate) fn is_up(&self) -> bool {
        self.not_up().is_empty()
    }

    /// The parts that are not up, each with its state.
    pub(crate) fn not_up(&self) -> Vec<String> {
        let parts = [("watchdog".to_owned(), self.watchdog.state), ("dispatcher".to_owned(), &self.dispatcher.state)];
        let down = parts.into_iter().filter(|(_, state)| *state != "up");
        let is_up = |worker: &WorkerView| {
            SERVING.contains(&worker.state.as_str()) || ["draining", "up"].contains(&worker.state.as_str())
        };
        let workers = self.pools.iter().flat_map(|pool| &pool.workers).filter(|worker| !is_up(worker));
        down.chain(workers.map(|worker| (format!("worker {}", worker.id), worker.state.as_str())))
            .map(|(part, state)| format!("{part} is {state}"))
            .collect()
    }
}

#[cfg(test)]
impl StatusView {
    /// A set with its parts in these states; `drained` is the state of a worker that an operator has drained.
    pub(super) fn of_states(watchdog: &'static str, dispatcher: &str, pools: &[&[&str]]) -> StatusView {
        let worker = |state: &&str, id: String| WorkerView {
            id: id.parse().unwrap(),
            pid: None,
            state: (*state).to_owned(),
            epoch: 1,
            version: None,
            lease: None,
            address: String::new(),
            served: 0,
            failed: 0,
            restarts: 0,
            cause: (*state == "failed").then(|| "exit code 1".to_owned()),
            drained: *state == "drained",
            counters: None,
        };
        let pool = |(states, name): (&&[&str], &str)| PoolView {
            name: PoolName::new(name).unwrap(),
            queue: 0,
            oldest_ms: 0,
            was_in_service: false,
            workers: states.iter().zip(1..).map(|(state, n)| worker(state, format!("{name}/{n}"))).collect(),
        };
        StatusView {
            set: "s".into(),
            listeners: Vec::new(),
            problems: Vec::new(),
            watchdog: WatchdogView { pid: None, state: watchdog, version: None, restarts: 0 },
            dispatcher: DispatcherView {
                pid: None,
                state: dispatcher.into(),
                version: None,
                restarts: 0,
                queue: 0,
                cause: None,
                was_up: false,
            },
            pools: pools.iter().zip(["a", "b"]).map(pool).collect(),
            other_versions: Vec::new(),
        }
    }
}
