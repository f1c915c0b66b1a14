//! Reads the evidence from `/proc` and the slots, and stores each finding at once.
//!
//! First come the files that need no lock of the process: `stat`, `comm`, `schedstat`, and those of the machine. Then
//! `syscall` and `stack`, which wait while the process executes execve(2). Last come the command lines of its children,
//! which lie in their memory and wait for its lock. The command line of the process itself is never read.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::Pid;

use super::findings::{ChildEvidence, Evidence, HeldWork, MachineEvidence, QueueReport, ThreadEvidence};
use super::format::CUT;
use crate::config::Config;
use crate::exchange::{self, Incarnation, RequestNote};
use crate::ids::{Claim, Monotonic, WorkerId};
use crate::probe::ProbeReport;
use crate::procfs::{self, Pressure, ProcessStat, RunTimes};
use crate::sync;
use crate::watchdog::plan::Part;
use crate::watchdog::supervisor::cgroup::UnitCgroups;
use crate::{ipc, process_tree};

/// Threads and children that are described; the others are counted.
const DESCRIBED_MAX: usize = 16;
/// Functions of a kernel stack.
const FRAMES_MAX: usize = 8;
/// Bytes of a command line.
const COMMAND_MAX: u64 = 160;

/// The process to describe.
pub(crate) struct EvidenceTarget {
    pub pid: u32,
    scope: ProcessScope,
    runtime_dir: PathBuf,
    role: EvidenceRole,
}

impl EvidenceTarget {
    /// Process `pid` of `part`. `last_report` is the dispatcher's last report and its time.
    pub(crate) fn of(
        part: &Part,
        pid: u32,
        scope: ProcessScope,
        config: &Config,
        last_report: Option<&(Monotonic, Arc<ProbeReport>)>,
    ) -> Self {
        let queue = last_report.map(|(at, report)| QueueReport {
            clients: report.pools.iter().map(|pool| pool.queue).sum(),
            oldest: Duration::from_millis(report.pools.iter().map(|pool| pool.oldest_ms).max().unwrap_or_default()),
            at: *at,
        });
        let role = match part {
            Part::Worker(id) => EvidenceRole::Worker(id.clone()),
            Part::StandIn(_) => EvidenceRole::StandIn,
            Part::Dispatcher => EvidenceRole::Dispatcher { workers: config.workers().collect(), queue },
        };
        Self { pid, scope, runtime_dir: config.set.runtime_dir.clone(), role }
    }
}

/// Where the work that the process held can be found.
#[derive(Clone, Debug)]
enum EvidenceRole {
    /// In its slot.
    Worker(WorkerId),
    /// In the slots of all workers, and in the last report.
    Dispatcher { workers: Vec<WorkerId>, queue: Option<QueueReport> },
    /// It holds no work.
    StandIn,
}

/// Where the processes that the part has started can be found.
pub(crate) enum ProcessScope {
    /// Among its descendants.
    Tree,
    /// In the control group of its unit.
    Unit(UnitCgroups, String),
}

impl ProcessScope {
    fn children(&self, pid: u32) -> Vec<u32> {
        match self {
            ProcessScope::Tree => {
                process_tree::descendants(Pid::from_raw(pid as i32)).iter().map(|process| process.id().pid).collect()
            }
            ProcessScope::Unit(cgroups, unit) => cgroups.pids(unit).into_iter().filter(|other| *other != pid).collect(),
        }
    }
}

/// Stores in `found` what can be read about `target`.
pub(super) fn gather(target: EvidenceTarget, found: &Mutex<Evidence>) {
    let EvidenceTarget { pid, scope, runtime_dir, role } = target;
    let machine = machine();
    sync::lock(found).machine = machine;
    if let EvidenceRole::Worker(id) = &role {
        let held = lease(&runtime_dir, id);
        sync::lock(found).held = held;
    }
    let uptime = procfs::uptime();
    let process = procfs::process_dir(pid);
    let threads = procfs::threads(&process);
    {
        let stat = ProcessStat::read(&process);
        let described = threads.iter().take(DESCRIBED_MAX).map(|dir| thread(dir)).collect();
        let mut found = sync::lock(found);
        found.age = stat.and_then(|stat| stat.age(uptime?));
        (found.thread_count, found.threads) = (threads.len(), described);
    }
    let descriptors = permitted(procfs::descriptors(&process), "descriptors", found);
    sync::lock(found).descriptors = descriptors;
    let pids = scope.children(pid);
    let children: Vec<_> = pids.iter().filter_map(|pid| child(*pid, uptime)).take(DESCRIBED_MAX).collect();
    {
        let mut found = sync::lock(found);
        (found.child_count, found.children) = (pids.len().max(children.len()), children.clone());
    }
    for (index, thread) in threads.iter().take(DESCRIBED_MAX).enumerate() {
        kernel_side(thread, index, found);
    }
    {
        let mut found = sync::lock(found);
        // The kernel shows the wait channels to the same users as system calls, but reports no error.
        let is_denied = found.denied.iter().any(|what| *what != "descriptors");
        if is_denied && found.threads.iter().all(|thread| thread.wait_channel.is_none()) {
            found.denied.insert(0, "wait channels");
        }
    }
    for (index, child) in children.iter().enumerate() {
        let command = command(child.pid);
        sync::lock(found).children[index].command = command;
    }
    if let EvidenceRole::Dispatcher { workers, queue } = role {
        let leases = workers.iter().filter(|id| is_leased(&runtime_dir, id)).count();
        sync::lock(found).held = Some(HeldWork::Clients { queue, leases });
    }
}

fn machine() -> MachineEvidence {
    MachineEvidence {
        load: procfs::load_average(),
        pressure: ["cpu", "memory", "io"].map(|resource| Pressure::of(resource).map(|pressure| pressure.avg10)),
        memory: procfs::memory(),
        watchdog_late: Duration::ZERO,
    }
}

fn lease(runtime_dir: &Path, id: &WorkerId) -> Option<HeldWork> {
    let slot = ipc::snapshot(runtime_dir, id).ok()?;
    let claim = exchange::claim(&slot);
    let request = match claim {
        Some(Claim::Held(lease, _)) => RequestNote::load(&slot, lease),
        _ => None,
    };
    let epoch = Incarnation::load(&slot).map(|incarnation| incarnation.epoch);
    Some(HeldWork::Lease { epoch, claim, request })
}

fn is_leased(runtime_dir: &Path, id: &WorkerId) -> bool {
    let claim = ipc::snapshot(runtime_dir, id).ok().and_then(|slot| exchange::claim(&slot));
    claim.and_then(Claim::open).is_some()
}

fn thread(dir: &Path) -> ThreadEvidence {
    ThreadEvidence {
        name: procfs::name(dir),
        state: ProcessStat::read(dir).map(|stat| stat.state),
        wait_channel: procfs::wait_channel(dir),
        run_times: RunTimes::read(dir).map(|times| (times.ran, times.waited)),
        ..ThreadEvidence::default()
    }
}

/// `None` if it cannot be read; a denial is noted.
fn permitted<T>(read: io::Result<T>, what: &'static str, found: &Mutex<Evidence>) -> Option<T> {
    read.inspect_err(|error| {
        let mut found = sync::lock(found);
        if error.kind() == ErrorKind::PermissionDenied && !found.denied.contains(&what) {
            found.denied.push(what);
        }
    })
    .ok()
}

/// What needs rights, and may take time to read: system call and kernel stack of thread `index`.
fn kernel_side(dir: &Path, index: usize, found: &Mutex<Evidence>) {
    let system_call = permitted(procfs::system_call(dir), "system calls", found).flatten();
    let stack = permitted(procfs::kernel_stack(dir, FRAMES_MAX), "kernel stacks", found).unwrap_or_default();
    let mut found = sync::lock(found);
    found.threads[index].system_call = system_call;
    found.threads[index].stack = stack;
}

fn child(pid: u32, uptime: Option<Duration>) -> Option<ChildEvidence> {
    let dir = procfs::process_dir(pid);
    let stat = ProcessStat::read(&dir)?;
    let age = uptime.and_then(|uptime| stat.age(uptime));
    Some(ChildEvidence { pid, state: Some(stat.state), name: procfs::name(&dir), command: None, age })
}

/// The command line of a process; `None` for a zombie, which has none.
fn command(pid: u32) -> Option<String> {
    let bytes = procfs::arguments(&procfs::process_dir(pid), COMMAND_MAX)?;
    let arguments: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let text = arguments.join(" ");
    let cut = if bytes.len() as u64 == COMMAND_MAX { CUT } else { "" };
    Some(text.trim_end().to_owned()).filter(|text| !text.is_empty()).map(|text| text + cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described_with_its_child() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (found, pid) = (Mutex::new(Evidence::default()), std::process::id());
        let has_child = |found: &Evidence| found.children.iter().any(|c| c.command.as_deref() == Some("sleep 1000"));
        let role = EvidenceRole::Worker("default/1".parse().unwrap());
        // The child has this command line only after its execve(2).
        for _ in 0..1000 {
            let (scope, role) = (ProcessScope::Tree, role.clone());
            gather(EvidenceTarget { pid, scope, runtime_dir: "/nowhere".into(), role }, &found);
            if has_child(&sync::lock(&found)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let found = sync::lock(&found);
        assert!(has_child(&found), "{found:?}");
        assert!(found.thread_count >= 2 && found.threads.len() >= 2 && found.age.is_some(), "{found:?}");
        assert!(found.threads.iter().any(|thread| thread.state == Some('R')), "{found:?}");
        assert!(found.descriptors.is_some_and(|(used, limit)| 3 <= used && used <= limit), "{found:?}");
        assert!(found.machine.load.is_some() && found.machine.memory.is_some(), "{found:?}");
        assert_eq!(found.held, None);
    }
}
