//! Finds, kills and reaps what this process's children have started.
//!
//! Worker and watchdog are *child subreapers* (`prctl(2)`, PR_SET_CHILD_SUBREAPER): when a process dies, its children
//! become theirs and not those of init, also after `setsid` and any number of forks. So no process can leave the tree,
//! and two facts make a complete kill possible: a process that is not yet a child becomes one when its parent is
//! killed, and when `waitid(2)` returns ECHILD no process is left.
//!
//! Killing is repeated until no process is left, since a process may fork before its signal arrives.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::time::{Instant, sleep};

use crate::procfs::{self, PROC, ProcessStat, ResidentMemory};
use crate::{log, sys};

/// How long [`kill`] waits for the killed processes to die. Only uninterruptible sleep takes longer than a moment.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Some processes could not be killed in time: they sleep in the kernel or belong to another user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of the handler's processes survive SIGKILL (first: {})", .0.len(), .0[0])]
pub(crate) struct Survivors(pub Vec<Pid>);

/// Whether this process has any child, alive or zombie. One system call.
pub(crate) fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

/// All descendants of `root`, without itself, parents before their children.
pub(crate) fn descendants(root: Pid) -> Vec<ProcessStat> {
    by_children_files(Path::new(PROC), root).unwrap_or_else(|| below(&procfs::processes(), root))
}

/// Kills and reaps those children of this process that `chosen` selects (alive or zombie), with all their descendants.
///
/// Orphans that they leave become children of this process, and `chosen` decides about them too. No other code may
/// wait for a selected process if it takes ECHILD for an error. `log` receives each process, and its name, before its
/// first signal.
///
/// # Errors
/// [`Survivors`] when some of them are not dead after five seconds.
pub(crate) async fn kill(
    chosen: impl Fn(&ProcessStat) -> bool,
    log: impl Fn(&ProcessStat, &str),
) -> Result<(), Survivors> {
    let mut logged = HashSet::new();
    let give_up = Instant::now() + KILL_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    let mut read_all = false;
    // ECHILD ends the search: every descendant that is not our child has a parent that is.
    while has_children() {
        let all = if read_all { below(&procfs::processes(), getpid()) } else { descendants(getpid()) };
        let roots: Vec<_> = all.iter().filter(|p| p.parent == getpid() && chosen(p)).copied().collect();
        if roots.is_empty() {
            // A process may be missing if its parent died during the search: read the whole process table once.
            if read_all {
                return Ok(());
            }
            read_all = true;
            continue;
        }
        read_all = false;
        let mut alive = Vec::new();
        for root in roots {
            let tree: Vec<_> = std::iter::once(root).chain(below(&all, root.pid)).filter(|p| !p.is_zombie()).collect();
            for process in tree.iter().filter(|p| logged.insert(p.id())) {
                log(process, &procfs::name(&procfs::process_dir(process.id().pid)));
            }
            kill_group(&root);
            for process in tree {
                kill_one(&process);
                alive.push(process.pid);
            }
            reap(root.pid);
        }
        if alive.is_empty() {
            continue;
        }
        if Instant::now() > give_up {
            return Err(Survivors(alive));
        }
        // Death takes a moment, and the kernel notifies only the parent.
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends SIGTERM to those children of this process that `chosen` selects, each with its process group if it leads one, and
/// waits until they have ended, for `grace` at most. [`kill`] then ends and reaps what remains.
pub(crate) async fn terminate(chosen: impl Fn(&ProcessStat) -> bool, grace: Duration) {
    let give_up = Instant::now() + grace;
    let children = descendants(getpid()).into_iter().filter(|p| p.parent == getpid() && !p.is_zombie() && chosen(p));
    let children: Vec<_> = children.collect();
    for child in children.iter().filter(|_| !grace.is_zero()) {
        // Not reaped, so its number still refers to it.
        let _ = if child.group == child.pid {
            killpg(child.group, Signal::SIGTERM)
        } else {
            nix::sys::signal::kill(child.pid, Signal::SIGTERM)
        };
    }
    let mut pause = Duration::from_millis(1);
    let is_alive = |child: &ProcessStat| ProcessStat::of_id(child.id()).is_some_and(|found| !found.is_zombie());
    while Instant::now() < give_up && children.iter().any(is_alive) {
        sleep(pause.min(give_up - Instant::now())).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Reaps the zombies among the children of this process, except those of `spared`: their owners wait for them. One
/// system call if there is none.
pub(crate) fn reap_orphans(spared: impl Fn(Pid) -> bool) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT).map(|s| s.pid()) {
            Ok(Some(pid)) if !spared(pid) => reap(pid),
            // A dead `spared` hides the zombies behind it; its owner is about to notice and reaps the rest.
            Ok(_) | Err(Errno::ECHILD) => return,
            // nix cannot represent a death by a real-time signal: search for the zombies instead.
            Err(_) => {
                let zombies = procfs::processes().into_iter().filter(|p| p.is_zombie() && p.parent == getpid());
                return zombies.filter(|p| !spared(p.pid)).for_each(|p| reap(p.pid));
            }
        }
    }
}

/// The memory of this process and its descendants in bytes, if it is more than `max`; a page that they share counts once.
///
/// That number costs a walk through their page tables, so the resident memory, which is not smaller, is read first.
pub(crate) fn memory_above(max: u64) -> Option<u64> {
    let pids = || std::iter::once(getpid()).chain(descendants(getpid()).into_iter().map(|process| process.pid));
    let all: Vec<_> = pids().filter_map(|pid| Some((pid, ResidentMemory::of(pid)?))).collect();
    if all.iter().map(|(_, resident)| resident.total).sum::<u64>() <= max {
        return None;
    }
    let memory = all.into_iter().map(|(pid, resident)| {
        procfs::proportional_memory(pid).unwrap_or_else(|error| {
            static LOG: Once = Once::new();
            // A process that has ended meanwhile has no memory.
            let resident = ResidentMemory::of(pid).unwrap_or(ResidentMemory { total: 0, ..resident });
            if resident.total > 0 {
                LOG.call_once(|| {
                    tracing::warn!(%error, "/proc/PID/smaps_rollup cannot be read: max_memory counts resident memory \
                        without shared files, and what processes share since a fork once for each");
                });
            }
            resident.total.saturating_sub(resident.shared)
        })
    });
    let memory = memory.sum();
    (memory > max).then_some(memory)
}

/// Kills the whole process group if `root`, our unreaped child, leads it: the group's number cannot be reused until we
/// reap the leader, and no fork inside a group escapes the signal, as it could escape a walk.
fn kill_group(root: &ProcessStat) {
    if root.group == root.pid {
        let _ = killpg(root.group, Signal::SIGKILL);
    }
}

/// Kills one process: through a pidfd, and only if the pid has not been reused.
fn kill_one(process: &ProcessStat) {
    let Ok(pidfd) = sys::pidfd_open(process.pid) else { return };
    let id = process.id();
    if ProcessStat::of_id(id).is_some()
        && let Err(error) = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL)
        && error.raw_os_error() != Some(nix::libc::ESRCH)
    {
        tracing::error!(pid = id.pid, %error, event = %log::Event::ProcessSurvived,
            "cannot kill a process of the handler");
    }
}

fn reap(pid: Pid) {
    // Not dead yet, or reaped by its owner: both are fine.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}

/// The descendants of `root` by `/proc/PID/task/TID/children`; `None` if the kernel lacks these files
/// (CONFIG_PROC_CHILDREN). May miss a process while others exit: [`kill`] searches again.
fn by_children_files(proc: &Path, root: Pid) -> Option<Vec<ProcessStat>> {
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        for thread in procfs::threads(&proc.join(pid.to_string())) {
            let children = match procfs::children(&thread) {
                Ok(children) => children,
                // If the thread still exists, it is the file that is missing.
                Err(error) if error.kind() == io::ErrorKind::NotFound && thread.join("stat").exists() => return None,
                Err(_) => continue,
            };
            for child in children {
                if let Some(process) = ProcessStat::read(&proc.join(child.to_string())) {
                    found.push(process);
                    next.push(child);
                }
            }
        }
    }
    Some(found)
}

/// The part of `table` that descends from `root`, parents before their children. Pure.
fn below(table: &[ProcessStat], root: Pid) -> Vec<ProcessStat> {
    let mut children: HashMap<Pid, Vec<ProcessStat>> = HashMap::new();
    for process in table {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found: Vec<ProcessStat> = children.remove(&root).unwrap_or_default();
    let mut at = 0;
    while at < found.len() {
        // Removed, not read: a table that changed while it was read may contain a cycle.
        found.extend(children.remove(&found[at].pid).unwrap_or_default());
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handler::test_process::in_own_process;
    use std::fs;
    use std::process::{Command, Stdio};

    fn process(pid: i32, parent: i32) -> ProcessStat {
        let [pid, parent] = [pid, parent].map(Pid::from_raw);
        ProcessStat { pid, parent, group: pid, state: 'S', is_exiting: false, start_time: 7 }
    }

    #[test]
    fn below_follows_generations_and_survives_a_cycle() {
        let table = [process(5, 4), process(2, 1), process(4, 2), process(3, 9), process(9, 3)];
        assert_eq!(below(&table, Pid::from_raw(1)), [process(2, 1), process(4, 2), process(5, 4)]);
        assert_eq!(below(&table, Pid::from_raw(3)), [process(9, 3), process(3, 9)]);
    }

    #[test]
    fn children_files_are_walked_and_their_absence_is_noticed() {
        let proc = std::env::temp_dir().join(format!("patou-tree-{}", std::process::id()));
        let stat = |pid: i32, parent: i32| format!("{pid} (x) S {parent} {pid} 5 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 7 1");
        for (pid, parent, children) in [(1, 0, "2 3 "), (2, 1, ""), (3, 1, "4 "), (4, 3, "")] {
            let task = proc.join(format!("{pid}/task/{pid}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(proc.join(format!("{pid}/stat")), stat(pid, parent)).unwrap();
            fs::write(task.join("stat"), "").unwrap();
            fs::write(task.join("children"), children).unwrap();
        }
        let found = by_children_files(&proc, Pid::from_raw(1)).unwrap();
        assert_eq!(found, [process(2, 1), process(3, 1), process(4, 3)]);
        fs::remove_file(proc.join("3/task/3/children")).unwrap();
        assert_eq!(by_children_files(&proc, Pid::from_raw(1)), None);
        fs::remove_dir_all(&proc).unwrap();
    }

    #[test]
    fn only_selected_processes_are_killed_and_all_of_them_are_reaped() {
        in_own_process(async {
            let start = |script: &str| {
                Command::new("sh")
                    .args(["-c", script])
                    .stdin(Stdio::null())
                    .spawn()
                    .map(|c| Pid::from_raw(c.id() as i32))
            };
            let kept = start("sleep 1000 & wait").unwrap();
            let stubborn = start("trap '' TERM HUP INT; setsid sleep 1000 & sleep 1000; sleep 1000").unwrap();
            while descendants(getpid()).len() < 5 {
                sleep(Duration::from_millis(2)).await;
            }
            let memory = memory_above(100_000).unwrap();
            assert_eq!((memory_above(memory * 10), memory_above(1 << 40)), (None, None));
            let killed = std::cell::RefCell::new(Vec::new());
            kill(|p| p.pid != kept, |process, name| killed.borrow_mut().push((process.pid, name.to_owned())))
                .await
                .unwrap();
            let left = descendants(getpid());
            assert!(left.iter().all(|p| p.pid == kept || p.parent == kept), "{left:?}");
            let killed = killed.take();
            assert_eq!(killed.len(), 3, "{killed:?}");
            assert!(killed.iter().any(|(pid, _)| *pid == stubborn) && killed.iter().all(|(_, name)| !name.is_empty()));
            kill(|_| true, |_, _| {}).await.unwrap();
            assert!(!has_children());
        });
    }

    #[test]
    fn memory_that_forked_children_share_counts_once() {
        in_own_process(async {
            let script =
                "v=$(head -c 30000000 /dev/zero | tr '\\0' x); for i in 1 2 3 4; do (sleep 1000; :) & done; wait";
            let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
            // The shell, and four copies of it with their sleep.
            while descendants(getpid()).len() < 9 {
                sleep(Duration::from_millis(2)).await;
            }
            let resident = |p: &ProcessStat| ResidentMemory::of(p.pid).unwrap().total;
            assert!(descendants(getpid()).iter().map(resident).sum::<u64>() > 150_000_000);
            let memory = memory_above(25_000_000).unwrap();
            assert!((30_000_000..130_000_000).contains(&memory), "{memory}");
            kill(|_| true, |_, _| {}).await.unwrap();
            assert!(shell.wait().is_err(), "it is reaped");
        });
    }

    #[test]
    fn orphans_are_reaped_but_the_spared_child_is_not() {
        in_own_process(async {
            let mut spared = Command::new("true").spawn().unwrap();
            let spared_pid = Pid::from_raw(spared.id() as i32);
            let mut parent = Command::new("sh").args(["-c", "true & kill -35 $$"]).spawn().unwrap();
            parent.wait().unwrap();
            while descendants(getpid()).iter().any(|p| !p.is_zombie()) {
                sleep(Duration::from_millis(2)).await;
            }
            // The spared child may hide the orphan, which is then reaped after it.
            reap_orphans(|pid| pid == spared_pid);
            assert!(spared.wait().unwrap().success());
            reap_orphans(|pid| pid == spared_pid);
            assert!(!has_children());
        });
    }
}
