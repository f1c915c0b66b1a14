//! `patou systemd upgrade`: replace the processes of a running set after an upgrade of the package.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::publish::{load_published, publish, stage};
use super::reload::UNREADABLE;
use super::systemctl::{batches_of, restart_if_running, restart_in_batches, systemctl_output};
use crate::cli::error::{CommandError, failed};
use crate::cli::poll::poll_until;
use crate::config::{COPY_HEAD, Config, Loaded};
use crate::ids::WorkerId;
use crate::probe::{self, ProbeCommand};
use crate::units::{self, APPLIED, DISPATCHER, IPC, RUNTIME_DIR, SET, WATCHDOG};
use crate::{ipc, sys};

/// How long the dispatcher may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Restarts the workers in batches, then the dispatcher and the watchdog, so that clients are served throughout. If the
/// segment layout has changed, all parts restart together, while new clients wait in the backlog of the listening sockets.
pub(super) fn run() -> Result<(), CommandError> {
    let published = load_published().map_err(|error| failed(format!("{error}; {UNREADABLE}")))?;
    let Some(Loaded { config, text, .. }) = published else {
        return Ok(()); // not running
    };
    if let Err(unknown) = Config::parse(text.as_str().strip_prefix(COPY_HEAD).unwrap_or(text.as_str()), APPLIED) {
        println!(
            "the set was configured by another version, and this one ignores some keys until it is installed again:\n{unknown}"
        );
    }
    // As the other version has published it: another upgrade may need what this version does not know.
    publish(&stage(&config, text.as_str())?)?;
    if !ipc::is_current(Path::new(RUNTIME_DIR)) {
        println!("the segments have another layout: all workers finish their requests and restart");
        empty_queues(&config);
        restart_if_running(IPC)?;
        return execute_again_if_running(SET);
    }
    let batches = batches_of(&config.workers().collect::<Vec<_>>())?;
    announce(&config, &batches);
    restart_in_batches(&batches)?;
    restart_if_running(DISPATCHER)?;
    restart_if_running(WATCHDOG)?;
    execute_again_if_running(SET)
}

/// Has the main process of `unit` execute the program that is installed now. A package without that process may be the one
/// that was running.
fn execute_again_if_running(unit: &str) -> Result<(), CommandError> {
    let pid = systemctl_output(&["show", "--value", "--property=MainPID", unit])?;
    let pid = pid.trim().parse().ok().filter(|pid| *pid > 0);
    let process = pid.and_then(|pid| sys::pidfd_open(Pid::from_raw(pid)).ok());
    process.map_or(Ok(()), |process| sys::pidfd_send_signal(process.as_fd(), Signal::SIGHUP)).map_err(failed)
}

/// Says what the upgrade does, and how long dpkg may wait for it.
fn announce(config: &Config, batches: &[Vec<WorkerId>]) {
    let (all, most) = (batches.iter().map(Vec::len).sum::<usize>(), batches.iter().map(Vec::len).max().unwrap_or(0));
    let bound = Duration::from_secs(units::restart_bound(config, batches).as_secs() + 1);
    println!(
        "restarting {all} workers, at most {most} at once and no more than half of a pool, then the dispatcher and the \
         watchdog: at most {}, as their requests end",
        humantime::format_duration(bound)
    );
}

/// Has the dispatcher stop accepting, and waits until its queues are empty: later clients wait in the kernel's backlog
/// for the next dispatcher. A dispatcher that does not know the command or does not answer is restarted as it is, and
/// rejects its queued clients.
fn empty_queues(config: &Config) {
    let socket = Path::new(RUNTIME_DIR).join("probe.sock");
    let longest = config.pools.iter().map(|pool| pool.queue_timeout).max().unwrap_or_default();
    let deadline = Instant::now() + longest;
    let mut command = Some(ProbeCommand::Hold);
    poll_until(deadline, || match probe::query(&socket, command.take(), PROBE_TIMEOUT) {
        Ok(report) => report.pools.iter().all(|pool| pool.queue == 0),
        Err(_) => true,
    });
}
