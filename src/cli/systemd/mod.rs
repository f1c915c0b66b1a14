//! `patou systemd`: what the units and the package run. An operator uses systemctl.

mod generate;
mod listening_sockets;
mod main_process;
mod pool_files;
mod publish;
mod reload;
mod restore;
mod show;
mod start_stop;
mod systemctl;
mod upgrade;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::error::CommandError;
use crate::ids::WorkerId;
pub(super) use pool_files::unusable_files;
pub(super) use publish::refusals;
pub(super) use systemctl::systemctl_output;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum SystemdCommand {
    /// Copy the published drop-ins of the units (a systemd generator)
    Generate {
        /// Directory to write to (systemd.generator(7))
        normal: PathBuf,
        /// Not used
        early: Option<PathBuf>,
        /// Not used
        late: Option<PathBuf>,
    },
    /// Publish the configuration, start the units, and then do as show
    Start,
    /// Keep the status of patou.service up to date
    Show,
    /// Publish a changed configuration and apply it to the units
    Reload,
    /// Stop the units and withdraw the configuration
    Stop,
    /// Drain the main process of the calling unit: send SIGTERM and wait for its exit
    Drain {
        /// Name of the unit
        unit: Option<String>,
    },
    /// After the exit of the calling unit: if the unit is stopping, stop its sockets too
    PostStop {
        /// Name of the unit
        unit: String,
    },
    /// Before the start of a worker: create its segment and doorbells again if their files were removed
    Restore {
        /// The worker
        #[arg(value_name = "POOL-N")]
        worker: WorkerId,
    },
    /// After an upgrade of the package: restart the running units, no more than half of each pool at once
    Upgrade,
}

pub(super) fn run(path: Option<&Path>, command: &SystemdCommand) -> Result<(), CommandError> {
    match command {
        SystemdCommand::Generate { normal, .. } => generate::run(normal),
        SystemdCommand::Start => start_stop::start(path).and_then(|()| show::run()).map(|never| match never {}),
        SystemdCommand::Show => show::run().map(|never| match never {}),
        SystemdCommand::Reload => reload::run(path),
        SystemdCommand::Stop => start_stop::stop_if_requested(),
        SystemdCommand::Drain { unit } => main_process::drain(unit.as_deref()),
        SystemdCommand::PostStop { unit } => main_process::post_stop(unit),
        SystemdCommand::Restore { worker } => restore::run(path, worker),
        SystemdCommand::Upgrade => upgrade::run(),
    }
}
