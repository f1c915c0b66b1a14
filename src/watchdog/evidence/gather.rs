//! Looks: the files of `/proc` (proc(5)), the slots.
//!
//! First what is read without a lock of the accused: `stat`, `comm`, `schedstat`, and what the machine says of itself.
//! Then `syscall` and `stack`, which wait while the accused is in the middle of execve(2). Last the command lines of
//! its children, which lie in their memory and wait for whoever is changing it. Never the accused's own.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

use super::{CUT, Child, Evidence, Held, Machine, Queue, Thread};
use crate::config::Config;
use crate::exchange::{self, Incarnation, RequestNote};
use crate::ids::{Claim, Monotonic, Phase, WorkerId};
use crate::lock::locked;
use crate::probe::ProbeReport;
use crate::watchdog::plan::Part;
use crate::watchdog::supervisor::cgroup::UnitCgroups;
use crate::{ipc, process_tree};

/// Threads and children that are described; the others are counted.
const MANY: usize = 16;
/// Functions of a kernel stack.
const FRAMES: usize = 8;
/// Bytes of a command line.
const COMMAND: u64 = 160;

/// Who is accused, and where to look.
pub struct Target {
    pub pid: u32,
    family: ProcessScope,
    /// Where the set is.
    dir: PathBuf,
    hands: HeldWork,
}

impl Target {
    /// Process `pid` of a part; `heard` is what the dispatcher has said last, and when.
    pub fn of(
        part: &Part,
        pid: u32,
        family: ProcessScope,
        config: &Config,
        heard: Option<&(Monotonic, Arc<ProbeReport>)>,
    ) -> Self {
        let queue = heard.map(|(at, report)| Queue {
            clients: report.pools.iter().map(|pool| pool.queue).sum(),
            oldest: Duration::from_millis(report.pools.iter().map(|pool| pool.oldest_ms).max().unwrap_or_default()),
            at: *at,
        });
        let hands = match part {
            Part::Worker(id) => HeldWork::Worker(id.clone()),
            Part::Dispatcher => HeldWork::Dispatcher { workers: config.workers().collect(), queue },
        };
        Self { pid, family, dir: config.set.runtime_dir.clone(), hands }
    }
}

/// Who holds what.
#[derive(Clone, Debug)]
enum HeldWork {
    /// A worker its lease.
    Worker(WorkerId),
    /// The dispatcher the leases of all workers, and who waits for one.
    Dispatcher { workers: Vec<WorkerId>, queue: Option<Queue> },
}

/// Where its children are found.
pub enum ProcessScope {
    /// Below it, as descendants.
    Tree,
    /// In the control group of its unit.
    Unit(UnitCgroups, String),
}

impl ProcessScope {
    fn children(&self, of: u32) -> Vec<u32> {
        match self {
            ProcessScope::Tree => process_tree::descendants(Pid::from_raw(of as i32))
                .iter()
                .map(|process| process.pid.as_raw() as u32)
                .collect(),
            ProcessScope::Unit(slice, unit) => slice.pids(unit).into_iter().filter(|pid| *pid != of).collect(),
        }
    }
}

/// Tells all there is to see, as it sees it.
pub fn look(subject: Target, seen: &Mutex<Evidence>) {
    let Target { pid, family, dir, hands } = subject;
    let machine = machine();
    locked(seen).machine = machine;
    if let HeldWork::Worker(id) = &hands {
        let held = slot(&dir, id);
        locked(seen).held = held;
    }
    let up = uptime();
    let home = PathBuf::from(format!("/proc/{pid}"));
    let tasks = tasks(&home);
    {
        let stat = stat(&home);
        let threads = tasks.iter().take(MANY).map(|task| thread(task)).collect();
        let mut seen = locked(seen);
        seen.age = stat.and_then(|stat| up?.checked_sub(stat.started));
        (seen.thread_count, seen.threads) = (tasks.len(), threads);
    }
    let pids = family.children(pid);
    let children: Vec<Child> = pids.iter().filter_map(|pid| child(*pid, up)).take(MANY).collect();
    {
        let mut seen = locked(seen);
        (seen.child_count, seen.children) = (pids.len().max(children.len()), children.clone());
    }
    for (index, task) in tasks.iter().take(MANY).enumerate() {
        deeper(task, index, seen);
    }
    {
        // The kernel shows nobody's then.
        let mut seen = locked(seen);
        if !seen.denied.is_empty() && seen.threads.iter().all(|thread| thread.wchan.is_none()) {
            seen.denied.insert(0, "wait channels");
        }
    }
    for (index, child) in children.iter().enumerate() {
        let command = command(child.pid);
        locked(seen).children[index].command = command;
    }
    if let HeldWork::Dispatcher { workers, queue } = hands {
        let leases = workers.iter().filter(|id| is_leased(&dir, id)).count();
        locked(seen).held = Some(Held::Clients { queue, leases });
    }
}

fn machine() -> Machine {
    let load = fs::read_to_string("/proc/loadavg").ok();
    let load = load.map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" "));
    let pressure = ["cpu", "memory", "io"].map(|of| {
        // Not every kernel keeps it (CONFIG_PSI).
        fs::read_to_string(format!("/proc/pressure/{of}")).ok().as_deref().and_then(some_avg10)
    });
    let memory = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available);
    Machine { load, pressure, memory, late: Duration::ZERO }
}

/// Out of a file of `/proc/pressure`: the line `some`, over ten seconds, in percent.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// Out of `/proc/meminfo`: bytes that can be had, and that there are.
fn available(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    Some((bytes("MemAvailable:")?, bytes("MemTotal:")?))
}

fn slot(dir: &Path, id: &WorkerId) -> Option<Held> {
    let slot = ipc::snapshot(dir, id).ok()?;
    let claim = exchange::claim(&slot);
    let request = match claim {
        Some(Claim::Held(lease, _)) => RequestNote::load(&slot, lease),
        _ => None,
    };
    Some(Held::Slot { epoch: Incarnation::load(&slot).map(|life| life.epoch), claim, request })
}

fn is_leased(dir: &Path, id: &WorkerId) -> bool {
    let claim = ipc::snapshot(dir, id).ok().and_then(|slot| exchange::claim(&slot));
    matches!(claim, Some(Claim::Held(_, Phase::Offered | Phase::Claimed | Phase::Responding)))
}

/// Since boot, as the start times of processes count it.
fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

/// Its threads, the main one first.
fn tasks(home: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut tasks: Vec<PathBuf> =
        fs::read_dir(home.join("task")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    tasks.sort_by_key(number);
    tasks
}

/// What is read of `stat`.
#[derive(Clone, Debug, PartialEq)]
struct Stat {
    name: String,
    state: Option<char>,
    /// Since boot.
    started: Duration,
}

fn stat(home: &Path) -> Option<Stat> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0)?;
    parse_stat(&fs::read(home.join("stat")).ok()?, per_second as u64)
}

/// Reads a line of `stat`; the name in it may hold anything.
fn parse_stat(line: &[u8], per_second: u64) -> Option<Stat> {
    let text = String::from_utf8_lossy(line);
    let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next();
    let ticks: u64 = fields.nth(18)?.parse().ok()?;
    let started = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    Some(Stat { name: name.to_owned(), state, started })
}

fn thread(task: &Path) -> Thread {
    let stat = stat(task);
    let run = fs::read_to_string(task.join("schedstat")).ok();
    let run = run.and_then(|text| {
        let mut times = text.split_whitespace().map(|text| text.parse().map(Duration::from_nanos));
        Some((times.next()?.ok()?, times.next()?.ok()?))
    });
    let wchan = fs::read_to_string(task.join("wchan")).ok().filter(|name| !name.is_empty() && name != "0");
    let (name, state) = stat.map(|stat| (stat.name, stat.state)).unwrap_or_default();
    Thread { name, state, wchan, run, ..Thread::default() }
}

/// What not everybody may read, and what may take its time.
fn deeper(task: &Path, index: usize, seen: &Mutex<Evidence>) {
    let read = |file: &str, what: &'static str| match fs::read_to_string(task.join(file)) {
        Ok(text) => Some(text),
        Err(error) => {
            let mut seen = locked(seen);
            if error.kind() == ErrorKind::PermissionDenied && !seen.denied.contains(&what) {
                seen.denied.push(what);
            }
            None
        }
    };
    let syscall = read("syscall", "system calls").as_deref().and_then(number);
    let stack = read("stack", "kernel stacks").as_deref().map(functions);
    let mut seen = locked(seen);
    seen.threads[index].syscall = syscall;
    seen.threads[index].stack = stack.unwrap_or_default();
}

/// Out of `syscall`: the number; `None` for who is in none, or runs.
fn number(text: &str) -> Option<i64> {
    text.split_whitespace().next()?.parse().ok().filter(|number| *number >= 0)
}

/// Out of `stack`: the functions, without addresses.
fn functions(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.split_whitespace().nth(1)?.split('+').next()?.to_owned());
    text.lines().filter_map(name).take(FRAMES).collect()
}

fn child(pid: u32, up: Option<Duration>) -> Option<Child> {
    let Stat { name, state, started } = stat(&PathBuf::from(format!("/proc/{pid}")))?;
    let age = up.and_then(|up| up.checked_sub(started));
    Some(Child { pid, state, name, command: None, age })
}

/// Its words, cut; a process that is dead has none.
fn command(pid: u32) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.take(COMMAND).read_to_end(&mut bytes).ok()?;
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let text = words.join(" ");
    let cut = if bytes.len() as u64 == COMMAND { CUT } else { "" };
    Some(text.trim_end().to_owned()).filter(|text| !text.is_empty()).map(|text| text + cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read_whatever_is_in_them() {
        let line = b"12 (a) S 1 (\xff) T 3 4 5 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 250 1 2\n";
        let started = Duration::from_millis(2500);
        assert_eq!(parse_stat(line, 100), Some(Stat { name: "a) S 1 (\u{fffd}".into(), state: Some('T'), started }));
        assert_eq!(parse_stat(b"12 (a S 1", 100), None);

        assert_eq!(number("232 0x5 0x7ffd 0x40 0xffffffff 0x0 0x0 0x7ffd 0x7f01\n"), Some(232));
        assert_eq!([number("-1 0x7ffd 0x7f01\n"), number("running\n"), number("")], [None; 3]);

        let stack = "[<0>] do_signal_stop+0xa6/0x1d0\n[<0>] get_signal+0x3f5/0x820\n";
        assert_eq!(functions(stack), ["do_signal_stop", "get_signal"]);

        let text = "some avg10=1.25 avg60=0.30 avg300=0.06 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!((some_avg10(text), some_avg10("")), (Some(1.25), None));
        let text = "MemTotal:        4000 kB\nMemFree:    1 kB\nMemAvailable:    3000 kB\n";
        assert_eq!((available(text), available("MemTotal: 1 kB\n")), (Some((3_072_000, 4_096_000)), None));
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (seen, pid) = (Mutex::new(Evidence::default()), std::process::id());
        let named = |seen: &Evidence| seen.children.iter().any(|c| c.command.as_deref() == Some("sleep 1000"));
        // It has its words when it has executed its program.
        let hands = HeldWork::Worker("default/1".parse().unwrap());
        for _ in 0..1000 {
            let subject = Target { pid, family: ProcessScope::Tree, dir: "/nowhere".into(), hands: hands.clone() };
            look(subject, &seen);
            if named(&locked(&seen)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let seen = locked(&seen);
        assert!(named(&seen), "{seen:?}");
        assert!(seen.thread_count >= 2 && seen.threads.len() >= 2 && seen.age.is_some(), "{seen:?}");
        assert!(seen.threads.iter().any(|thread| thread.state == Some('R')), "{seen:?}");
        assert!(seen.machine.load.is_some() && seen.machine.memory.is_some(), "{seen:?}");
        assert_eq!(seen.held, None);
    }
}
