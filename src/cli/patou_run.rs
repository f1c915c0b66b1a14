//! Starts `patou run` as a child, for a private set of the drill or of a benchmark.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cli::error::{CommandError, failed};
use crate::status::SavedState;

/// How often a condition is checked while waiting for it.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Starts `patou run` on `patou.toml` in `dir`, with its log to `log`. It stops when this process dies; its own process
/// group keeps signals of the terminal away.
pub(super) fn launch(dir: &Path, log: Stdio) -> Result<Child, CommandError> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("patou").args(["launch", "--parent", &std::process::id().to_string(), "--", "run", "--config"]);
    command.arg(dir.join("patou.toml")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(|error| failed(format!("cannot start patou run: {error}")))
}

/// Whether the dispatcher and all workers are up, and the set is not stopping.
pub(super) fn all_parts_up(state: &SavedState) -> bool {
    !state.stopping && state.dispatcher.state == "up" && state.workers.values().all(|part| part.state == "up")
}
