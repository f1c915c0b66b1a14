//! What a worker's handlers have started: find it, kill it, reap it.
//!
//! The worker is a *child subreaper* (`prctl(2)`, PR_SET_CHILD_SUBREAPER): a process whose parent dies
//! becomes the worker's child and not init's, also after `setsid` and any number of forks. So nothing can
//! leave the tree, and two facts make a complete kill possible: everything that is not yet a child becomes
//! one when its parent is killed, and when `waitid(2)` answers ECHILD nothing at all is left.
//!
//! Killing is repeated until nothing is left, since what is killed may have forked meanwhile.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::time::{Instant, sleep};

use crate::{log, sys};

/// How long a kill waits for the killed to die. Only a process in uninterruptible sleep takes longer than
/// moments, and nothing but the end of that sleep ends it.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// One process, as read from `/proc/PID/stat` (`proc(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    /// The process that reaps it.
    pub parent: Pid,
    /// Its process group.
    pub group: Pid,
    /// When it started, in clock ticks since boot: with `pid` it names one process for ever.
    pub started: u64,
    /// Dead and not yet reaped.
    pub zombie: bool,
    /// Stopped by a signal or a debugger.
    pub stopped: bool,
}

/// One process, if there is one of this number.
pub fn read_process(pid: u32) -> Option<Process> {
    read_stat(Path::new("/proc"), Pid::from_raw(i32::try_from(pid).ok()?))
}

/// Resident bytes of one process, without its descendants.
pub fn resident_alone(pid: u32) -> Option<u64> {
    pages(Pid::from_raw(i32::try_from(pid).ok()?)).map(|pages| pages * page_size())
}

fn pages(pid: Pid) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split(' ').nth(1)?.parse().ok()
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}

/// Some processes could not be killed in time: they sleep in the kernel or belong to another user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of the handler's processes survive SIGKILL (first: {})", .0.len(), .0[0])]
pub struct Survivors(pub Vec<Pid>);

/// Whether this process has any child, alive or zombie. One system call.
pub fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

/// All descendants of `root`, without itself, parents before their children.
pub fn descendants(root: Pid) -> Vec<Process> {
    by_children_files(Path::new("/proc"), root).unwrap_or_else(|| below(&table(Path::new("/proc")), root))
}

/// Kills and reaps those children of this process that `chosen` picks (alive or zombie), with everything
/// below them.
///
/// Orphans that they leave are children of this process from then on, and `chosen` is asked about them too.
/// The picked must not be awaited by anybody who takes ECHILD for an error.
///
/// # Errors
/// [`Survivors`] when some of them are not dead after five seconds.
pub async fn kill(chosen: impl Fn(&Process) -> bool) -> Result<(), Survivors> {
    let give_up = Instant::now() + LAST_WAIT;
    let mut pause = Duration::from_millis(1);
    let mut sure = false;
    // With ECHILD there is nothing to look for: what is not our child has a parent that is.
    while has_children() {
        let family = if sure { below(&table(Path::new("/proc")), getpid()) } else { descendants(getpid()) };
        let roots: Vec<_> = family.iter().filter(|p| p.parent == getpid() && chosen(p)).copied().collect();
        if roots.is_empty() {
            // A process whose parent died while we looked was nobody's child: look once more, at all.
            if sure {
                return Ok(());
            }
            sure = true;
            continue;
        }
        sure = false;
        let mut alive = Vec::new();
        for root in roots {
            strike_group(&root);
            for process in std::iter::once(root).chain(below(&family, root.pid)).filter(|p| !p.zombie) {
                strike(&process);
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
        // Death takes a moment, and for what is not our child nobody tells us.
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Reaps the zombies among the children of this process, but for `spared`, whose owner waits for it.
/// One system call when there is none.
pub fn reap_orphans(spared: Pid) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT).map(|s| s.pid()) {
            Ok(Some(pid)) if pid != spared => reap(pid),
            // The spared one hides those behind it; its owner is about to find out and clears the rest.
            Ok(_) | Err(Errno::ECHILD) => return,
            // A death by a real-time signal, which has no name in nix: look for the zombies one by one.
            Err(_) => {
                let zombies = table(Path::new("/proc")).into_iter().filter(|p| p.zombie && p.parent == getpid());
                return zombies.filter(|p| p.pid != spared).for_each(|p| reap(p.pid));
            }
        }
    }
}

/// The memory that `root` and its descendants have resident, in bytes; pages they share count once for
/// each. `None` when `root` is gone.
pub fn resident(root: Pid) -> Option<u64> {
    let own = pages(root)?;
    let others: u64 = descendants(root).iter().filter_map(|p| pages(p.pid)).sum();
    Some((own + others) * page_size())
}

/// Kills the whole group at once if `root`, our unreaped child, leads it: the group's number is safe while
/// we have not reaped the leader, and inside a group no fork can outrun the signal, as it could a walk.
fn strike_group(root: &Process) {
    if root.group == root.pid {
        let _ = killpg(root.group, Signal::SIGKILL);
    }
}

/// Kills one process: through a pidfd, and only if it still is the one that was seen.
fn strike(process: &Process) {
    let Ok(pidfd) = sys::pidfd_open(process.pid) else { return };
    if read_stat(Path::new("/proc"), process.pid).is_some_and(|now| now.started == process.started)
        && let Err(error) = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL)
        && error.raw_os_error() != Some(nix::libc::ESRCH)
    {
        tracing::error!(pid = process.pid.as_raw(), %error, event = %log::Event::ProcessSurvived,
            "cannot kill a process of the handler");
    }
}

fn reap(pid: Pid) {
    // Not dead yet, or reaped by its owner: both are fine.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}

/// The descendants by `/proc/PID/task/TID/children`, which not every kernel has (CONFIG_PROC_CHILDREN):
/// then `None`. It may miss a process while others exit; whoever kills by it looks again.
fn by_children_files(proc: &Path, root: Pid) -> Option<Vec<Process>> {
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let Ok(tasks) = fs::read_dir(proc.join(format!("{pid}/task"))) else { continue };
        for task in tasks.flatten() {
            let children = match fs::read_to_string(task.path().join("children")) {
                Ok(children) => children,
                // Only when the task itself is still there is it the file that is missing.
                Err(error) if error.kind() == io::ErrorKind::NotFound && task.path().join("stat").exists() => {
                    return None;
                }
                Err(_) => continue,
            };
            for child in children.split_whitespace().filter_map(|text| text.parse().ok()).map(Pid::from_raw) {
                if let Some(process) = read_stat(proc, child) {
                    found.push(process);
                    next.push(child);
                }
            }
        }
    }
    Some(found)
}

/// All processes of the machine.
fn table(proc: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    pids.filter_map(|pid| read_stat(proc, pid)).collect()
}

fn read_stat(proc: &Path, pid: Pid) -> Option<Process> {
    parse_stat(&fs::read(proc.join(format!("{pid}/stat"))).ok()?)
}

/// Reads one line of `/proc/PID/stat`; the name in it may hold anything, also spaces, `)` and half a character.
fn parse_stat(line: &[u8]) -> Option<Process> {
    let open = line.iter().position(|&b| b == b'(')?;
    let close = line.iter().rposition(|&b| b == b')')?;
    let number = |text: &str| text.parse().ok().map(Pid::from_raw);
    let pid = number(std::str::from_utf8(line.get(..open)?).ok()?.trim())?;
    let mut fields = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_whitespace();
    let state = fields.next()?;
    let (zombie, stopped) = (matches!(state, "Z" | "X"), matches!(state, "T" | "t"));
    let (parent, group) = (number(fields.next()?)?, number(fields.next()?)?);
    let started = fields.nth(16)?.parse().ok()?;
    Some(Process { pid, parent, group, started, zombie, stopped })
}

/// The part of `table` that descends from `root`, parents before their children. Pure.
fn below(table: &[Process], root: Pid) -> Vec<Process> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for process in table {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found: Vec<Process> = children.remove(&root).unwrap_or_default();
    let mut at = 0;
    while at < found.len() {
        // Removed, not read: a table that changed while it was read may hold a cycle.
        found.extend(children.remove(&found[at].pid).unwrap_or_default());
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handler::test_process::in_own_process;
    use std::process::{Command, Stdio};

    fn process(pid: i32, parent: i32) -> Process {
        let [pid, parent] = [pid, parent].map(Pid::from_raw);
        Process { pid, parent, group: pid, started: 7, zombie: false, stopped: false }
    }

    #[test]
    fn a_name_with_everything_in_it_does_not_mislead() {
        let line = b"12 (a) S 1 2 (\xff) Z 3 4 5 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 99887 1 2\n";
        let parsed = parse_stat(line).unwrap();
        let expected = Process { zombie: true, started: 99887, group: Pid::from_raw(4), ..process(12, 3) };
        assert_eq!(parsed, expected);
        assert_eq!(parse_stat(b"12 (a S 1"), None);
        assert_eq!(parse_stat(b""), None);
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
    fn kills_only_what_was_chosen_and_reaps_it() {
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
            assert!(resident(stubborn).unwrap() > 100_000);
            kill(|p| p.pid != kept).await.unwrap();
            let left = descendants(getpid());
            assert!(left.iter().all(|p| p.pid == kept || p.parent == kept), "{left:?}");
            kill(|_| true).await.unwrap();
            assert!(!has_children());
            assert_eq!(resident(kept), None);
        });
    }

    #[test]
    fn orphans_are_reaped_and_the_spared_is_not() {
        in_own_process(async {
            let mut spared = Command::new("true").spawn().unwrap();
            let spared_pid = Pid::from_raw(spared.id() as i32);
            let mut parent = Command::new("sh").args(["-c", "true & kill -35 $$"]).spawn().unwrap();
            parent.wait().unwrap();
            while descendants(getpid()).iter().any(|p| !p.zombie) {
                sleep(Duration::from_millis(2)).await;
            }
            // The spared may hide the orphan: then it goes with the spared one's end.
            reap_orphans(spared_pid);
            assert!(spared.wait().unwrap().success());
            reap_orphans(spared_pid);
            assert!(!has_children());
        });
    }
}
