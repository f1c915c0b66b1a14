//! The processes of a unit, by its control group (cgroups(7)): a process cannot move itself into another unit.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::procfs::{self, CGROUP_ROOT, ProcessStat, ProcessStatus};
use crate::sys;

/// How often the processes of a killed unit are listed again: they may fork meanwhile.
const KILL_ROUNDS: usize = 16;

/// The control groups of the units of one slice.
#[derive(Clone, Debug)]
pub(crate) struct UnitCgroups(PathBuf);

/// The main process of a unit.
pub(crate) struct MainProcess {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

impl UnitCgroups {
    /// Those of the slice that contains this process. `None` without a hierarchy of version 2.
    pub(crate) fn of_own_slice() -> Option<Self> {
        let own = procfs::cgroup(Path::new("/proc/self"))?;
        Some(Self(Path::new(CGROUP_ROOT).join(own).parent()?.to_owned()))
    }

    /// All processes of a unit.
    pub(crate) fn pids(&self, unit: &str) -> Vec<u32> {
        procfs::cgroup_pids(&self.0.join(unit))
    }

    /// The main process of a unit: the oldest living one that systemd has started in it. Commands such as `ExecStop=`
    /// and `ExecStartPre=` run in the same group; they do not count.
    pub(crate) fn main_process(&self, unit: &str) -> Option<MainProcess> {
        let pids = self.pids(unit);
        let started_by_systemd = |p: &ProcessStat| !pids.contains(&(p.parent.as_raw() as u32));
        let found = pids.iter().filter_map(|pid| ProcessStat::of(*pid));
        let oldest = found.filter(|p| !p.is_zombie() && started_by_systemd(p)).min_by_key(|p| (p.start_time, p.pid))?;
        let id = oldest.id();
        let pidfd = sys::pidfd_open(oldest.pid).ok()?;
        // Checked after the descriptor is open: the pid may have been reused before.
        let is_same = ProcessStat::of_id(id).is_some();
        (is_same && !is_control_command(id.pid)).then_some(MainProcess { pid: id.pid, pidfd })
    }

    /// Kills all processes of a unit.
    pub(crate) fn kill(&self, unit: &str) {
        for _ in 0..KILL_ROUNDS {
            let pids = self.pids(unit);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let Ok(pidfd) = sys::pidfd_open(Pid::from_raw(pid as i32)) else { continue };
                // The pid may have been reused before the descriptor was open.
                if self.pids(unit).contains(&pid) {
                    let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL); // ESRCH: it has ended
                }
            }
        }
    }
}

/// Whether the process is root's and none of `patou worker` and `patou dispatcher`: a command like `patou systemd drain`,
/// which `ExecStop=+` runs as root, or a child of systemd that has not executed its program yet. The command line alone is
/// no proof: a worker could set its own to hide.
fn is_control_command(pid: u32) -> bool {
    let dir = procfs::process_dir(pid);
    let is_part = |argument: &[u8]| argument == b"worker" || argument == b"dispatcher";
    // The uid in `status`: the owner of the directory can be root for any user's process (prctl(2), PR_SET_DUMPABLE).
    ProcessStatus::read(&dir).uid == Some(0)
        && !procfs::arguments(&dir, u64::MAX).is_some_and(|arguments| arguments.split(|&byte| byte == 0).any(is_part))
}
