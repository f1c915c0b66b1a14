//! `patou drain` and `patou resume`.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::config_source::load_applied;
use super::dispatcher_error::dispatcher_error;
use super::error::{CommandError, failed, ignore_broken_pipe};
use super::poll::poll_until;
use crate::bounds::BLOCKED_GRACE;
use crate::config::Config;
use crate::exchange::{self, DispatcherSide};
use crate::ids::{Claim, WorkerId};
use crate::ipc;
use crate::probe::{self, ProbeCommand};
use crate::status::SavedState;
use crate::units;

/// How long the dispatcher may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A session is closed after drain_timeout.
const SESSION_GRACE: Duration = BLOCKED_GRACE;

/// Takes a worker out of service and waits, at most for its drain_timeout, until it is free.
pub(super) fn drain(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    let config = load_applied(path)?;
    let was_drained = is_drained(&config, id);
    send_command(&config, ProbeCommand::Drain(id.clone()))?;
    let pool = config.pool(&id.pool).ok_or_else(|| failed(format!("the configuration has no worker {id}")))?;
    let dir = &config.set.runtime_dir;
    let state = SavedState::read(dir).map_err(|error| failed(format!("watchdog.json: {error}")))?;
    let claim = || state.slot(dir, id).as_ref().and_then(exchange::claim);
    let is_free = || claim().and_then(Claim::open).is_none();
    if !poll_until(Instant::now() + pool.drain_timeout + SESSION_GRACE, is_free) {
        return Err(failed(format!("{id} gets no new client, but is still busy after drain_timeout")));
    }
    let state = if was_drained { "is out of service already" } else { "is out of service" };
    print_line(&format!("{id} {state}; patou resume {} puts it back", id.instance()))
}

/// Puts a worker back into service.
pub(super) fn resume(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    let config = load_applied(path)?;
    let was_drained = is_drained(&config, id);
    send_command(&config, ProbeCommand::Resume(id.clone()))?;
    // A worker without a process does not serve, although it may.
    let dir = &config.set.runtime_dir;
    let part = SavedState::read(dir).ok().and_then(|state| state.workers.get(&id.to_string()).cloned());
    if let Some(part) = part.filter(|part| part.state == "failed" || part.state == "stopped") {
        let cause = part.cause.map_or(String::new(), |cause| format!(" (last end: {cause})"));
        let remedy = if ipc::is_run_by_systemd(dir) {
            format!("systemctl start {}", units::worker_service(id))
        } else {
            "reload the set (SIGHUP)".to_owned()
        };
        return Err(failed(format!(
            "{id} may serve again, but it has {}{cause}: repair the cause, then {remedy}",
            part.state
        )));
    }
    print_line(&if was_drained { format!("{id} is back in service") } else { format!("{id} was in service already") })
}

/// Whether an operator has drained the worker.
fn is_drained(config: &Config, id: &WorkerId) -> bool {
    let dir = &config.set.runtime_dir;
    let slot = SavedState::read(dir).ok().and_then(|state| state.slot(dir, id));
    slot.is_some_and(|slot| DispatcherSide::was_drained(&slot))
}

fn print_line(line: &str) -> Result<(), CommandError> {
    ignore_broken_pipe(writeln!(io::stdout(), "{line}"))
}

/// Sends a command to the dispatcher.
fn send_command(config: &Config, command: ProbeCommand) -> Result<(), CommandError> {
    let dir = &config.set.runtime_dir;
    let report = probe::query(&dir.join("probe.sock"), Some(command), PROBE_TIMEOUT);
    let report = report.map_err(|error| dispatcher_error(dir, &error))?;
    report.refused.map_or(Ok(()), |reason| Err(failed(reason)))
}
