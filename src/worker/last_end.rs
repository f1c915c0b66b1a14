//! Why the previous process of a worker ended, as `ExecStopPost=` of its unit has noted it.

use std::fs;
use std::path::Path;

use crate::ids::WorkerId;
use crate::ipc::RUNTIME_DIR;

/// The notes, a file per unit: see `PublishedSet::note_end`.
const ENDS: &str = "/run/patou-applied/ends";

/// How a process of `worker` ended last, unless that was planned. `None` under `patou run`, where the status of a worker is
/// not shown.
pub(super) fn last_end(worker: &WorkerId) -> Option<String> {
    if std::env::var_os(RUNTIME_DIR).is_some() {
        return None;
    }
    let file = Path::new(ENDS).join(format!("patou-worker@{}.service", worker.instance()));
    Some(fs::read_to_string(file).ok()?.replace(char::is_control, " "))
}
