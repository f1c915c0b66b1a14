//! Calls of systemctl(1).

use std::collections::BTreeSet;
use std::process::Command;

use crate::cli::error::{CommandError, failed};
use crate::ids::WorkerId;
use crate::units::{restart_batches, worker_of_service, worker_service};

/// Runs systemctl on units, with this process's output streams. Without units it does nothing.
pub(super) fn systemctl(args: &[&str], units: &[String]) -> Result<(), CommandError> {
    if units.is_empty() { Ok(()) } else { run(args, units) }
}

/// Has systemd call the generators and read all units again.
pub(super) fn daemon_reload() -> Result<(), CommandError> {
    run(&["daemon-reload"], &[])
}

/// Restarts a unit that is running; another one stays as it is.
pub(super) fn restart_if_running(unit: &str) -> Result<(), CommandError> {
    systemctl(&["try-restart"], &[unit.to_owned()])
}

/// The batches in which the running ones of these workers may restart.
pub(super) fn batches_of(workers: &[WorkerId]) -> Result<Vec<Vec<WorkerId>>, CommandError> {
    let units = ["--state=active,reloading", "--full", "--plain", "--no-legend", "patou-worker@*.service"];
    let list = systemctl_output(&[&["list-units"], units.as_slice()].concat())?;
    let unit = |line: &str| worker_of_service(line.split_whitespace().next()?);
    Ok(restart_batches(workers, &list.lines().filter_map(unit).collect()))
}

/// Restarts workers, one batch after the other. If one does not start, the others keep their processes.
pub(super) fn restart_in_batches(batches: &[Vec<WorkerId>]) -> Result<(), CommandError> {
    let units = |batch: &Vec<WorkerId>| batch.iter().map(worker_service).collect::<Vec<_>>();
    batches.iter().try_for_each(|batch| systemctl(&["try-restart"], &units(batch)))
}

/// The services and sockets of the set that have failed.
pub(super) fn failed_units() -> Result<BTreeSet<String>, CommandError> {
    let list = systemctl_output(&["list-units", "--failed", "--full", "--plain", "--no-legend", "patou-*"])?;
    Ok(list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

pub(super) fn is_active(unit: &str) -> bool {
    are_any_active(&[unit.to_owned()])
}

pub(super) fn are_any_active(units: &[String]) -> bool {
    systemctl(&["--quiet", "is-active"], units).is_ok()
}

fn run(args: &[&str], units: &[String]) -> Result<(), CommandError> {
    let status = Command::new("systemctl").args(args).args(units).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("systemctl {} {} failed: {status}", args.join(" "), units.join(" ")))),
        Err(error) => Err(failed(format!("systemctl: {error}"))),
    }
}

/// The standard output of systemctl.
pub(in crate::cli) fn systemctl_output(args: &[&str]) -> Result<String, CommandError> {
    let output = Command::new("systemctl").args(args).output();
    let output = output.map_err(|error| failed(format!("systemctl: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(format!("systemctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
}
