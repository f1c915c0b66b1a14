//! `watchdog.json`: what the watchdog knows, for `patou status`, readable also while the watchdog is frozen.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plan::{Part, Plan};
use crate::{ipc, log, tree, units};

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The set's name.
    pub set: String,
    /// The watchdog's process.
    pub pid: u32,
    /// Its start time in clock ticks since boot.
    pub started: u64,
    /// Whether the set is being stopped.
    pub stopping: bool,
    /// Where clients arrive, with the ports that the kernel chose.
    pub listeners: Vec<String>,
    /// The dispatcher.
    pub dispatcher: PartState,
    /// The workers by name.
    pub workers: BTreeMap<String, PartState>,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// Its process, if it has one.
    pub pid: Option<u32>,
    /// `starting`, `up`, `starved`, `suspended`, `frozen`, `gone`, `draining`, `failed` or `stopped`.
    pub state: String,
    /// Unplanned restarts.
    pub restarts: u32,
    /// What ended it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

const FILE: &str = "watchdog.json";

impl State {
    /// What `plan` says now.
    pub fn of(plan: &Plan, set: &str, process: (u32, u64), listeners: Vec<String>) -> Self {
        let mut parts: Vec<(&Part, PartState)> = plan
            .status()
            .map(|(part, s)| {
                (part, PartState { pid: s.pid, state: s.state.into(), restarts: s.restarts, cause: s.cause })
            })
            .collect();
        let (_, dispatcher) = parts.remove(0); // the dispatcher comes first in the order of parts
        let workers = parts.into_iter().filter_map(|(part, state)| match part {
            Part::Worker(id) => Some((id.to_string(), state)),
            Part::Dispatcher => None,
        });
        let (pid, started) = process;
        let stopping = plan.is_stopping();
        Self { set: set.into(), pid, started, stopping, listeners, dispatcher, workers: workers.collect() }
    }

    /// Reads the file of the set in `dir`, whose watchdog has a directory of its own where the parts are units.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let dir = if ipc::is_units(dir) { Path::new(units::WATCHDOG_DIR) } else { dir };
        Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?)
    }

    /// The watchdog's process, if it is still there.
    pub fn watchdog(&self) -> Option<tree::Process> {
        tree::look(self.pid).filter(|process| process.started == self.started && !process.zombie)
    }

    /// Writes it whole.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("watchdog.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(FILE))
    }
}

/// The file as it was written last.
#[derive(Debug, Default)]
pub struct Written {
    state: Option<State>,
    failing: bool,
}

impl Written {
    /// Writes the state if it has changed, or could not be written the last time; says whether it had to.
    pub fn keep(&mut self, state: &State, dir: &Path) -> bool {
        if self.state.as_ref() == Some(state) {
            return false;
        }
        match state.write(dir) {
            Ok(()) => {
                self.state = Some(state.clone());
                if std::mem::take(&mut self.failing) {
                    tracing::info!("watchdog.json can be written again");
                }
            }
            // Said once: it is tried again with every answer of the dispatcher.
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                tracing::error!(event = %log::Event::RuntimeFault, "cannot write watchdog.json, patou status is out of date: {error}");
            }
            Err(_) => {}
        }
        true
    }
}
