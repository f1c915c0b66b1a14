//! `patou reload`: has a set of `patou run` apply its configuration, and waits for the result.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::config_source::load;
use super::duration_arg::duration;
use super::error::{CommandError, failed, ignore_broken_pipe, no_set};
use super::poll::poll_until;
use super::status;
use crate::status::{SavedReloads, SavedState, StatusView};
use crate::{ipc, sys};

/// How long the result may take: more than the watchdog takes to give up reading the file.
const RESULT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Wait also until every part is up, at most this long in all; exit code 1 if not
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

pub(super) fn run(path: Option<&Path>, args: &ReloadArgs) -> Result<(), CommandError> {
    let config = load(path)?.config;
    let (dir, name) = (&config.set.runtime_dir, &config.set.name);
    if ipc::is_run_by_systemd(dir) {
        return Err(failed(format!("the set in {} runs as systemd units: systemctl reload patou", dir.display())));
    }
    let deadline = Instant::now() + args.wait.unwrap_or(RESULT_TIMEOUT);
    let state = || SavedState::read(dir).map_err(|_| no_set(dir));
    let reloads = || Ok(state()?.reloads);
    // A read that is in progress may have begun before the file was changed.
    let before = until(deadline, reloads, |reloads| !reloads.is_reading)?;
    request(&state()?, dir)?;
    let result = until(deadline, reloads, |reloads| reloads.completed > before.completed)?;
    if let Some(reason) = result.refused {
        return Err(failed(format!("reload refused, nothing has changed: {reason}")));
    }
    ignore_broken_pipe(writeln!(io::stdout(), "set {name}: configuration applied"))?;
    if args.wait.is_none() {
        return Ok(());
    }
    let is_up = || status::view(&config).is_ok_and(|view: StatusView| view.is_up());
    if poll_until(deadline, is_up) {
        return Ok(());
    }
    Err(failed(format!("not every part is up: {}", status::view(&config)?.not_up().join(", "))))
}

/// Reads until `is_done`.
fn until(
    deadline: Instant,
    read: impl Fn() -> Result<SavedReloads, CommandError>,
    is_done: impl Fn(&SavedReloads) -> bool,
) -> Result<SavedReloads, CommandError> {
    let mut last = read();
    let is_over = || {
        last = read();
        last.as_ref().map_or(true, &is_done)
    };
    if poll_until(deadline, is_over) {
        return last;
    }
    Err(failed("the watchdog has not applied the configuration in time: it is busy, stopping or frozen (patou status)"))
}

/// Sends SIGHUP to the watchdog.
fn request(state: &SavedState, dir: &Path) -> Result<(), CommandError> {
    let pid = state.pid;
    // Opened before the check: the number may be that of another process now.
    let process = sys::pidfd_open(Pid::from_raw(pid as i32)).map_err(|_| no_set(dir))?;
    state.watchdog().ok_or_else(|| no_set(dir))?;
    sys::pidfd_send_signal(process.as_fd(), Signal::SIGHUP).map_err(|error| match error.raw_os_error() {
        Some(errno) if errno == Errno::EPERM as i32 => {
            failed(format!("this user may not reload the set in {} (pid {pid}): use its user, or root", dir.display()))
        }
        _ => failed(format!("cannot signal the watchdog (pid {pid}): {error}")),
    })
}
