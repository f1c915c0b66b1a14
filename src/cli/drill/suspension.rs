//! What holds a process from outside: a debugger, or the freezer of its control group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::generator::SetKind;
use crate::procfs::{self, CGROUP_ROOT, HYBRID_CGROUP_ROOT};

/// How often the processes of a group that is being removed are moved out of it.
const MOVE_RETRIES: usize = 50;

/// Threads that this thread traces: ptrace(2) knows tracers by their thread. They continue when it is dropped, or when
/// the thread ends.
pub(super) struct TracedProcess {
    pid: Pid,
    threads: Vec<Pid>,
    is_stopped: bool,
}

impl TracedProcess {
    /// Stops all threads of a process as a debugger does, with a pending SIGSTOP if `stop` is set.
    ///
    /// # Errors
    /// Tracing is not permitted, or the process has ended.
    pub(super) fn attach(pid: u32, stop: bool) -> Result<Self, String> {
        let process = Pid::from_raw(pid as i32);
        let mut traced = Self { pid: process, threads: Vec::new(), is_stopped: stop };
        // A thread that is not traced yet may start another.
        loop {
            let threads = procfs::threads(&procfs::process_dir(pid));
            let threads = threads.iter().filter_map(|dir| procfs::id_of(dir)).map(|id| Pid::from_raw(id as i32));
            let new: Vec<_> = threads.filter(|thread| !traced.threads.contains(thread)).collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                match ptrace::seize(thread, ptrace::Options::empty()).and_then(|()| ptrace::interrupt(thread)) {
                    Ok(()) | Err(Errno::ESRCH) => traced.threads.push(thread),
                    Err(Errno::EPERM) => return Err("ptrace is not permitted".into()),
                    Err(error) => return Err(format!("ptrace: {error}")),
                }
            }
        }
        if stop {
            let _ = kill(process, Signal::SIGSTOP); // it may have ended
        }
        Ok(traced)
    }
}

impl Drop for TracedProcess {
    fn drop(&mut self) {
        let resume = || self.is_stopped.then(|| kill(self.pid, Signal::SIGCONT));
        resume();
        for thread in &self.threads {
            let _ = ptrace::detach(*thread, None); // threads that have not stopped yet are released with this thread
        }
        resume();
    }
}

/// A process in a frozen control group. It continues when this is dropped.
pub(super) struct FrozenGroup {
    group: PathBuf,
    /// Where the process was before, if the group was created for it.
    original: Option<PathBuf>,
}

impl FrozenGroup {
    /// Freezes the control group of a unit, or moves the process into a new group and freezes that.
    ///
    /// # Errors
    /// The control groups of version 2 are not mounted or not writable.
    pub(super) fn freeze(pid: u32, set_kind: SetKind, number: u32) -> Result<Self, String> {
        let is_mounted = |root: &&Path| root.join("cgroup.procs").exists();
        let root = [HYBRID_CGROUP_ROOT, CGROUP_ROOT].map(Path::new).into_iter().find(is_mounted);
        let root = root.ok_or("freezing is not permitted: no control groups of version 2")?;
        let own = procfs::cgroup(&procfs::process_dir(pid)).ok_or("the process has no control group")?;
        let own = root.join(own);
        let frozen = if set_kind == SetKind::Units {
            Self { group: own, original: None }
        } else {
            let group = own.join(format!("patou-drill-{}-{number}", std::process::id()));
            fs::create_dir(&group).map_err(|error| not_permitted(&group, &error))?;
            let frozen = Self { group, original: Some(own) };
            frozen.write("cgroup.procs", &pid.to_string())?;
            frozen
        };
        frozen.write("cgroup.freeze", "1")?;
        Ok(frozen)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        let path = self.group.join(file);
        fs::write(&path, text).map_err(|error| not_permitted(&path, &error))
    }
}

fn not_permitted(path: &Path, error: &io::Error) -> String {
    format!("freezing control groups is not permitted: {}: {error}", path.display())
}

impl Drop for FrozenGroup {
    fn drop(&mut self) {
        let _ = self.write("cgroup.freeze", "0"); // a group whose last process has ended may be gone
        let Some(original) = &self.original else { return };
        for _ in 0..MOVE_RETRIES {
            for pid in procfs::cgroup_pids(&self.group) {
                let _ = fs::write(original.join("cgroup.procs"), pid.to_string()); // it may have ended
            }
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
