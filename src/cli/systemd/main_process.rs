//! `patou systemd drain` and `post-stop`: how a unit of a part ends its main process and its sockets.

use std::os::fd::AsFd;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::systemctl::{systemctl, systemctl_output};
use crate::cli::error::{CommandError, failed};
use crate::published::{PublishedSet, describe_end};
use crate::{sys, units};

/// `ExecStop=` of a part: sends SIGTERM to `$MAINPID` and waits for its exit. systemd kills the rest of the unit then.
///
/// The watchdog may kill a process that freezes meanwhile. To `post-stop` that looks like any other death, so the stop
/// of the sockets is queued here; it waits for the end of `unit`.
pub(super) fn drain(unit: Option<&str>) -> Result<(), CommandError> {
    if let Some(unit) = unit {
        let _ = stop_sockets(unit); // the process must end in any case
    }
    let Some(pid) = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) else {
        return Ok(()); // it has exited
    };
    let Ok(process) = sys::pidfd_open(Pid::from_raw(pid)) else { return Ok(()) };
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        if let Err(error) = sys::pidfd_send_signal(process.as_fd(), signal) {
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(failed(error)) };
        }
    }
    // Bounded by TimeoutStopSec= of the unit.
    let _ = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    Ok(())
}

/// `ExecStopPost=` of a part: stops the part's sockets if the part is being stopped, because the next client would
/// start the part again. The sockets stay when the part dies or restarts.
///
/// `StopPropagatedFrom=` in the socket units is no alternative: it also stops them when the service goes down without a
/// job, as after `WatchdogSec=`, and a worker without its socket does not start again.
///
/// How it died is noted for the watchdog: systemd tells it to nothing else, and forgets it with the restart.
pub(super) fn post_stop(unit: &str) -> Result<(), CommandError> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let result = variable("SERVICE_RESULT");
    let end = (result != "success").then(|| describe_end(&result, &variable("EXIT_STATUS")));
    let _ = PublishedSet::of_machine().note_end(unit, end.as_deref()); // the restart matters more
    // A unit that has been given up is not started by the next client.
    if variable("EXIT_STATUS") == units::GIVEN_UP.to_string() {
        return close_sockets(unit);
    }
    // Without a query to systemd, which would delay the restart.
    if end.is_some() {
        return Ok(()); // it died
    }
    stop_sockets(unit)
}

/// Stops the sockets of a unit that is being stopped, and not restarted.
fn stop_sockets(unit: &str) -> Result<(), CommandError> {
    let jobs = systemctl_output(&["list-jobs", "--plain", "--no-legend", unit])?;
    if !jobs.lines().any(|job| job.split_whitespace().nth(2) == Some("stop")) {
        return Ok(()); // it is restarting, or exits by itself
    }
    close_sockets(unit)
}

fn close_sockets(unit: &str) -> Result<(), CommandError> {
    let sockets = systemctl_output(&["show", "--value", "--property=TriggeredBy", unit])?;
    let sockets: Vec<String> = sockets.split_whitespace().map(str::to_owned).collect();
    // Their jobs wait for this unit.
    systemctl(&["stop", "--no-block"], &sockets)
}
