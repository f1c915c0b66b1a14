//! The state of the parts in `watchdog.json`, for `patou status`.

use std::path::Path;
use std::sync::Arc;

use super::plan::{Part, Plan, PlanKind};
use crate::ids::{ProcessId, ProgramVersion};
use crate::status::{SavedPart, SavedReloads, SavedState};
use crate::{log, procfs};

/// The current state of `plan`, without what its supervisor adds; `process` is the watchdog.
pub(super) fn saved_state<K: PlanKind>(plan: &Plan<K>, set: &str, process: ProcessId) -> SavedState {
    let mut parts: Vec<(&Part, SavedPart)> = plan
        .status()
        .map(|(part, s)| {
            (
                part,
                SavedPart {
                    pid: s.pid,
                    state: s.state.into(),
                    restarts: s.restarts,
                    cause: s.cause,
                    status: None,
                    segment_fd: None,
                },
            )
        })
        .collect();
    let (_, dispatcher) = parts.remove(0); // the dispatcher is the first part in order
    let workers = parts.into_iter().filter_map(|(part, state)| match part {
        Part::Worker(id) => Some((id.to_string(), state)),
        Part::Dispatcher | Part::StandIn(_) => None,
    });
    let ProcessId { pid, start_time: started } = process;
    SavedState {
        set: set.into(),
        pid,
        started,
        pid_namespace: procfs::pid_namespace(),
        version: Some(ProgramVersion::own().to_string()),
        stopping: plan.is_stopping(),
        listeners: Vec::new(),
        problems: Vec::new(),
        reloads: SavedReloads::default(),
        last_restart: None,
        dispatcher,
        workers: workers.collect(),
    }
}

/// Writes the state file when the state has changed.
#[derive(Debug, Default)]
pub(super) struct StateWriter {
    last: Option<Arc<SavedState>>,
    failing: bool,
}

impl StateWriter {
    /// The last state, whether or not it could be written.
    pub(super) fn last(&self) -> Option<Arc<SavedState>> {
        self.last.clone()
    }

    /// Writes the last state again if the file is missing, and returns whether it was.
    pub(super) fn restore(&mut self, dir: &Path) -> bool {
        let is_missing = !SavedState::path(dir).exists();
        if let (true, Some(last)) = (is_missing, &self.last) {
            self.failing |= last.write(dir).is_err();
        }
        is_missing
    }

    /// Writes the state if it has changed or the last write failed, and returns it in that case. Without a directory it
    /// is not written.
    pub(super) fn write_if_changed(&mut self, state: SavedState, dir: Option<&Path>) -> Option<&SavedState> {
        if !self.failing && self.last.as_deref() == Some(&state) {
            return None;
        }
        match dir.map(|dir| state.write(dir)) {
            Some(Ok(())) if std::mem::take(&mut self.failing) => {
                tracing::info!("watchdog.json is writable again: patou status is up to date");
            }
            // Logged once; retried with every answer of the dispatcher.
            Some(Err(error)) if !std::mem::replace(&mut self.failing, true) => {
                tracing::error!(event = %log::Event::RuntimeDirError,
                    "cannot write watchdog.json: {error}; patou status is out of date until a retry succeeds");
            }
            None => self.failing = true, // the file may be there and is outdated
            Some(Ok(()) | Err(_)) => {}
        }
        Some(self.last.insert(Arc::new(state)))
    }
}
