//! Errors of commands, and what their exit codes mean.

use std::fmt::Display;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::config::LoadError;
use crate::ipc;

/// Why a command failed. Exit codes are those of sysexits(3) where it has one.
#[derive(Debug)]
pub(super) enum CommandError {
    /// Exit code 1. An empty text is not printed: the watchdog has received the reason and logs it.
    Failed(String),
    /// Exit code 78 (`EX_CONFIG`): the configuration is invalid.
    Config(String),
    /// A unit of a part has failed too often, and exits with [`crate::units::GIVEN_UP`].
    GivenUp(String),
    /// The exit code of a process that did the work, and has printed the error.
    Exited(u8),
}

impl CommandError {
    /// The message.
    pub(super) fn text(&self) -> &str {
        match self {
            CommandError::Failed(text) | CommandError::Config(text) | CommandError::GivenUp(text) => text,
            CommandError::Exited(_) => "",
        }
    }
}

impl From<LoadError> for CommandError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable { .. } => CommandError::Config(format!("patou: {error}")),
            // Every line starts with the file's name already.
            LoadError::Faults(faults) => CommandError::Config(faults.to_string()),
        }
    }
}

/// A failure with this message and exit code 1.
pub(super) fn failed(error: impl Display) -> CommandError {
    CommandError::Failed(error.to_string())
}

/// The command was stopped by SIGINT or SIGTERM.
pub(super) fn interrupted() -> CommandError {
    failed("interrupted")
}

/// Whether this user may not see what is in a directory.
pub(super) fn is_closed(dir: &Path) -> bool {
    fs::metadata(dir.join(".")).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// No watchdog keeps a set in this directory, as far as this user can see.
pub(super) fn no_set(dir: &Path) -> CommandError {
    if is_closed(dir) {
        let dir = dir.display();
        return failed(format!(
            "this user may not look into {dir}, where the set is if it runs: use its user, or root"
        ));
    }
    let is_packaged = ipc::is_directory_of_units(dir) && Path::new("/usr/lib/systemd/system/patou.service").exists();
    if is_packaged && sd_notify::booted().unwrap_or(false) {
        return failed(format!("no set is running in {}: systemctl start patou starts it", dir.display()));
    }
    let dir = dir.display();
    failed(format!("no set is running in {dir}: start it with patou run, or name its configuration with --config"))
}

/// The result of writing a command's output. A closed pipe (`patou status | head`) is not an error.
pub(super) fn ignore_broken_pipe(result: io::Result<()>) -> Result<(), CommandError> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}
