//! `patou launch` (hidden): the step between the fork in the watchdog and the exec of a part.

use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::error::{CommandError, failed};
use crate::descriptors;

#[derive(Debug, Args)]
pub(super) struct LaunchArgs {
    /// Process id of the watchdog: the part ends when this process ends
    #[arg(long)]
    parent: i32,
    /// Soft and hard limit of open files (RLIMIT_NOFILE)
    #[arg(long, value_name = "SOFT:HARD", value_parser = pair)]
    open_files: Option<(u64, u64)>,
    /// Limit of private writable memory in bytes (RLIMIT_DATA)
    #[arg(long, value_name = "BYTES")]
    data: Option<u64>,
    /// The command to execute
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(u64, u64), String> {
    let pair = text.split_once(':').and_then(|(soft, hard)| Some((soft.parse().ok()?, hard.parse().ok()?)));
    pair.ok_or_else(|| format!("{text} is not SOFT:HARD"))
}

/// Limits the private writable memory of this process and its children. As in systemd, the hard limit of the process
/// bounds it.
fn limit_data(bytes: u64) -> nix::Result<()> {
    match setrlimit(Resource::RLIMIT_DATA, bytes, bytes) {
        Err(Errno::EPERM) => {
            let (_, highest) = getrlimit(Resource::RLIMIT_DATA)?;
            setrlimit(Resource::RLIMIT_DATA, bytes.min(highest), bytes.min(highest))
        }
        result => result,
    }
}

/// Executes the part's command with its own pid in `LISTEN_PID` (sd_listen_fds(3)), which the parent cannot know before
/// the fork, and with SIGTERM as its parent-death signal.
pub(super) fn run(args: &LaunchArgs) -> Result<(), CommandError> {
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(failed)?;
    // The signal is not sent for a death before the prctl(2).
    if getppid() != Pid::from_raw(args.parent) {
        return Err(failed("the watchdog has died meanwhile"));
    }
    if let Some((soft, hard)) = args.open_files {
        descriptors::set_limits(soft, hard).map_err(|e| failed(format!("limits.open_files: {e}")))?;
    }
    if let Some(bytes) = args.data {
        limit_data(bytes).map_err(|e| failed(format!("limits.memory_max: {e}")))?;
    }
    let pid = std::process::id().to_string();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("patou").args(&args.command).env("LISTEN_PID", &pid);
    // A watchdog that systemd watches (sd_watchdog_enabled(3)) has started the watchdog as its child: cli/init.rs.
    if std::env::var("WATCHDOG_PID").is_ok_and(|watched| watched == args.parent.to_string()) {
        command.env("WATCHDOG_PID", pid);
    }
    Err(failed(command.exec()))
}
