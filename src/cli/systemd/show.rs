//! `patou systemd show`: the process of patou.service. It keeps the status of the unit (`STATUS=`, sd_notify(3)) up to
//! date and does nothing else: if it dies, no part notices, and systemd starts it again.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
use sd_notify::NotifyState;

use super::publish::load_published;
use crate::cli::error::{CommandError, failed};
use crate::clock;
use crate::config::Config;
use crate::probe;
use crate::sd_notification::notify;
use crate::signals::Signal;
use crate::status::{self, PROBE_TIMEOUT, ProbeResult, SavedState};
use crate::units::{OWNER, RUNTIME_DIR};

/// The pause between two looks at the set.
const INTERVAL: Duration = Duration::from_secs(2);
/// A look at a set with very many workers takes at most this part of the time.
const TIME_SHARE: u32 = 100;

/// Runs until it is killed.
///
/// # Errors
/// When the account of the segments is missing.
pub(super) fn run() -> Result<Infallible, CommandError> {
    if geteuid().is_root() {
        drop_privileges()?;
    }
    // The package has replaced the program: `patou systemd upgrade` sends SIGHUP.
    let replaced = Signal::reload().map_err(failed)?;
    let mut told = String::new();
    loop {
        let started = Instant::now();
        let line = line();
        if line != told {
            notify(&[NotifyState::Status(&line)]);
            told = line;
        }
        let pause = INTERVAL.max(started.elapsed() * TIME_SHARE);
        let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(replaced.as_fd(), PollFlags::POLLIN)], pause);
        if replaced.take_count() > 0 {
            return Err(failed(execute_again()));
        }
    }
}

/// One line on the set as it is now.
pub(super) fn line() -> String {
    let config = match load_published() {
        Ok(Some(loaded)) => loaded.config,
        Ok(None) => return "nothing is published: restart patou.service".to_owned(),
        Err(_) => return "the published configuration is one of another version: see patou status".to_owned(),
    };
    let Ok(state) = SavedState::read(&config.set.runtime_dir) else {
        return "the watchdog has not reported yet, or is stopped: see systemctl status patou-watchdog".to_owned();
    };
    let view = view(&config, &state);
    status::summary(&view, state.last_restart.as_ref(), clock::since_boot())
}

/// Clients can wait only where no worker is idle, so a dispatcher at rest is not woken.
fn view(config: &Config, state: &SavedState) -> status::StatusView {
    let view = status::collect(config, state, ProbeResult { report: None, responsive: true });
    let has_idle = |pool: &status::PoolView| pool.workers.iter().any(|worker| worker.state == "idle");
    if view.pools.iter().all(has_idle) {
        return view;
    }
    let report = probe::query(&Path::new(RUNTIME_DIR).join("probe.sock"), None, PROBE_TIMEOUT);
    match &report {
        Ok(report) => status::collect(config, state, ProbeResult { report: Some(report), responsive: true }),
        Err(_) => view,
    }
}

/// What other processes have written is read without privileges: as the account that owns the segments.
fn drop_privileges() -> Result<(), CommandError> {
    let user = User::from_name(OWNER).map_err(failed)?;
    let user = user.ok_or_else(|| failed(format!("there is no user {OWNER}")))?;
    let name = std::ffi::CString::new(user.name).map_err(failed)?;
    initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid)).map_err(failed)
}

/// Executes the program that is installed now. Returns the error.
fn execute_again() -> std::io::Error {
    let program = std::env::args_os().next().unwrap_or_default();
    Command::new(program).args(["systemd", "show"]).exec()
}
