//! Why a command could not reach the dispatcher.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::error::{CommandError, failed, is_closed, no_set};
use crate::ipc::{self, SetLock};

/// The error of a probe, in the terms of an operator.
pub(super) fn dispatcher_error(dir: &Path, error: &io::Error) -> CommandError {
    let socket = dir.join("probe.sock");
    match error.kind() {
        ErrorKind::PermissionDenied if !is_closed(dir) => {
            failed(format!("this user may not use {}: {error}", socket.display()))
        }
        _ if !is_running(dir) => no_set(dir),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            failed("the dispatcher does not answer: see patou status; the watchdog replaces it if it is frozen")
        }
        _ => failed(format!("the dispatcher does not answer on {}: {error}", socket.display())),
    }
}

/// Whether a process or systemd keeps a set in this directory.
pub(super) fn is_running(dir: &Path) -> bool {
    ipc::is_run_by_systemd(dir) || SetLock::holder(dir).is_some()
}
