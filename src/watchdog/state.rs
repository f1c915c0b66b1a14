//! What the watchdog tells of its parts, kept for `patou status` in `watchdog.json`.

use std::path::Path;
use std::sync::Arc;

use super::plan::{Part, Plan};
use crate::ids::ProcessId;
use crate::log;
use crate::status::{SavedPart, SavedState};

/// What `plan` says now.
pub fn state_of(plan: &Plan, set: &str, process: ProcessId, listeners: Vec<String>) -> SavedState {
    let mut parts: Vec<(&Part, SavedPart)> = plan
        .status()
        .map(|(part, s)| (part, SavedPart { pid: s.pid, state: s.state.into(), restarts: s.restarts, cause: s.cause }))
        .collect();
    let (_, dispatcher) = parts.remove(0); // the dispatcher comes first in the order of parts
    let workers = parts.into_iter().filter_map(|(part, state)| match part {
        Part::Worker(id) => Some((id.to_string(), state)),
        Part::Dispatcher => None,
    });
    let ProcessId { pid, start_time: started } = process;
    let stopping = plan.is_stopping();
    SavedState { set: set.into(), pid, started, stopping, listeners, dispatcher, workers: workers.collect() }
}

/// The state as it was told last, and whether it is in the file.
#[derive(Debug, Default)]
pub struct Written {
    state: Option<Arc<SavedState>>,
    failing: bool,
}

impl Written {
    /// The last one.
    pub fn state(&self) -> Option<Arc<SavedState>> {
        self.state.clone()
    }

    /// Writes the state if it has changed, or could not be written the last time; returns it then.
    pub fn keep(&mut self, state: SavedState, dir: &Path) -> Option<&SavedState> {
        if !self.failing && self.state.as_deref() == Some(&state) {
            return None;
        }
        let written = state.write(dir);
        match written {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("watchdog.json can be written again");
                }
            }
            // Said once: it is tried again with every answer of the dispatcher.
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                tracing::error!(event = %log::Event::RuntimeDirError, "cannot write watchdog.json, patou status is out of date: {error}");
            }
            Err(_) => {}
        }
        Some(self.state.insert(Arc::new(state)))
    }
}
