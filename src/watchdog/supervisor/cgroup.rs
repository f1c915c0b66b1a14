//! The processes of a unit, by its control group (cgroups(7)): what a process writes of itself is not believed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::{process_tree, sys};

/// Where the kernel shows the hierarchy.
const ROOT: &str = "/sys/fs/cgroup";
/// A killed unit may have forked meanwhile: it is looked at again so often.
const ROUNDS: usize = 16;

/// The control groups of the units of one slice.
#[derive(Clone, Debug)]
pub struct Slice(PathBuf);

/// The main process of a unit.
pub struct Main {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

impl Slice {
    /// The slice that this process is in.
    pub fn own() -> Option<Self> {
        let group = fs::read_to_string("/proc/self/cgroup").ok()?;
        let group = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Self(Path::new(ROOT).join(group).parent()?.to_owned()))
    }

    /// All processes of a unit.
    pub fn pids(&self, unit: &str) -> Vec<u32> {
        let procs = fs::read_to_string(self.0.join(unit).join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The main process of a unit: the first that systemd has started in it and that still runs. Commands such as
    /// `ExecStop=` run in the same group and are not it.
    pub fn main(&self, unit: &str) -> Option<Main> {
        let pids = self.pids(unit);
        let started_by_systemd = |p: &process_tree::Process| !pids.contains(&(p.parent.as_raw() as u32));
        let found = pids.iter().filter_map(|pid| process_tree::read_process(*pid));
        let first = found.filter(|p| !p.zombie && started_by_systemd(p)).min_by_key(|p| (p.started, p.pid))?;
        let pid = first.pid.as_raw() as u32;
        let pidfd = sys::pidfd_open(first.pid).ok()?;
        // Still the process that was looked at, and not a command of the unit.
        let same = process_tree::read_process(pid).is_some_and(|now| now.started == first.started);
        (same && !is_control(pid)).then_some(Main { pid, pidfd })
    }

    /// Kills everything in the unit.
    pub fn kill(&self, unit: &str) {
        for _ in 0..ROUNDS {
            let pids = self.pids(unit);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let Ok(pidfd) = sys::pidfd_open(Pid::from_raw(pid as i32)) else { continue };
                // Its number may have gone to somebody else before the descriptor was made.
                if self.pids(unit).contains(&pid) {
                    let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL); // ESRCH: it has gone
                }
            }
        }
    }
}

/// Whether the process is one of `patou systemd ...`, which `ExecStop=+` runs as root: what a process says of itself
/// is not enough, for a worker could hide behind it.
fn is_control(pid: u32) -> bool {
    // Not the owner of the directory, which a process can make root's (prctl(2), PR_SET_DUMPABLE).
    let uid = |status: &str| status.lines().find_map(|line| Some(line.strip_prefix("Uid:")?.trim_start().to_owned()));
    let is_root = fs::read_to_string(format!("/proc/{pid}/status")).ok().and_then(|status| uid(&status));
    is_root.is_some_and(|uids| uids.starts_with("0\t"))
        && fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|words| words.split(|&byte| byte == 0).nth(1).is_some_and(|word| word == b"systemd"))
}
