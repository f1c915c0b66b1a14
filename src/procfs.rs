//! Reads `/proc` (proc(5)) and the files of control groups (cgroups(7), version 2).
//!
//! These functions read and parse, and decide nothing. A value is absent when its file is missing, unreadable or
//! malformed: processes end while they are read, and not every kernel has every file. A process (`/proc/PID`) and
//! its threads (`/proc/PID/task/TID`) have the same files, so most functions take the directory.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::ids::ProcessId;

/// Where the kernel shows all processes.
pub(crate) const PROC: &str = "/proc";
/// Where control groups of version 2 are mounted.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where they are mounted if version 1 is in use beside them.
pub(crate) const HYBRID_CGROUP_ROOT: &str = "/sys/fs/cgroup/unified";

/// One process or thread, from its `stat` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// Its number; for a thread, the thread's.
    pub pid: Pid,
    /// The process that reaps it.
    pub parent: Pid,
    /// Its process group.
    pub group: Pid,
    /// The letter of its state.
    pub state: char,
    /// Whether it is ending: it may have closed its descriptors, and is not a zombie yet.
    pub is_exiting: bool,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// `PF_EXITING` of the kernel's `include/linux/sched.h`, in field 9 of `stat`. The kernel sets it before it closes the
/// descriptors of a thread.
const PF_EXITING: u32 = 4;

impl ProcessStat {
    /// Process `pid`, if it exists.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::read(&process_dir(pid))
    }

    /// The process of this identity, unless it has been reaped.
    pub(crate) fn of_id(id: ProcessId) -> Option<Self> {
        Self::of(id.pid).filter(|stat| stat.id() == id)
    }

    /// The process or thread of this directory.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read(dir.join("stat")).ok()?)
    }

    /// Field 2, the name, may contain anything: spaces, `)`, invalid UTF-8.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&b| b == b'(')?;
        let close = line.iter().rposition(|&b| b == b')')?;
        let number = |text: &str| text.parse().ok().map(Pid::from_raw);
        let pid = number(std::str::from_utf8(line.get(..open)?).ok()?.trim())?;
        let mut fields = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let (parent, group) = (number(fields.next()?)?, number(fields.next()?)?);
        let is_exiting = fields.nth(3)?.parse::<u32>().ok()? & PF_EXITING != 0;
        let start_time = fields.nth(12)?.parse().ok()?;
        Some(Self { pid, parent, group, state, is_exiting, start_time })
    }

    /// Its identity.
    pub(crate) fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid.as_raw() as u32, start_time: self.start_time }
    }

    /// Dead and not yet reaped.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Stopped by a signal or a debugger.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// How long it has been running, if the machine has been up for `uptime`.
    pub(crate) fn age(&self, uptime: Duration) -> Option<Duration> {
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0)?;
        uptime.checked_sub(ticks(self.start_time, per_second as u64))
    }
}

fn ticks(count: u64, per_second: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1000) / per_second)
}

/// The identity of this process.
pub(crate) fn this_process() -> ProcessId {
    let pid = std::process::id();
    ProcessStat::of(pid).map_or(ProcessId { pid, start_time: 0 }, |stat| stat.id())
}

/// The directory of process `pid`.
pub(crate) fn process_dir(pid: u32) -> PathBuf {
    Path::new(PROC).join(pid.to_string())
}

/// All processes of the machine.
pub(crate) fn processes() -> Vec<ProcessStat> {
    numbered(Path::new(PROC)).filter_map(|dir| ProcessStat::read(&dir)).collect()
}

/// The directories of a process's threads in the order of their start, the main thread first.
pub(crate) fn threads(process: &Path) -> Vec<PathBuf> {
    numbered(&process.join("task")).collect()
}

/// The entries of `dir` with a numeric name, in the kernel's order.
fn numbered(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let is_number = |path: &PathBuf| path.file_name().and_then(number).is_some();
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_number)
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// The number of the process or thread that this directory belongs to.
pub(crate) fn id_of(dir: &Path) -> Option<u32> {
    dir.file_name().and_then(number)
}

/// The numbers of the open descriptors of a process; empty for processes of other users.
pub(crate) fn descriptor_numbers(process: &Path) -> Vec<u32> {
    numbered(&process.join("fd")).filter_map(|path| id_of(&path)).collect()
}

/// Those of the descriptors that are sockets.
pub(crate) fn sockets(process: &Path) -> Vec<u32> {
    let dir = process.join("fd");
    let target = |number: &u32| fs::read_link(dir.join(number.to_string()));
    let mut numbers = descriptor_numbers(process);
    numbers.retain(|number| target(number).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
    numbers
}

/// The processes that a thread has started and that have not been reaped.
///
/// # Errors
/// `NotFound` if the thread has ended, or the kernel lacks the file (CONFIG_PROC_CHILDREN).
pub(crate) fn children(thread: &Path) -> io::Result<Vec<Pid>> {
    let pids = fs::read_to_string(thread.join("children"))?;
    Ok(pids.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
}

/// The name of a process or thread, at most 15 bytes; empty if it cannot be read.
pub(crate) fn name(dir: &Path) -> String {
    let name = fs::read(dir.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned()
}

/// At most `max` bytes of the arguments of a process, each terminated by a zero byte; empty for a zombie. Waits while
/// the process's memory map is locked.
pub(crate) fn arguments(process: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(process.join("cmdline")).ok()?.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The resident memory of a process, and how much of it is shared: files and shared memory, but not what it has in common
/// with a parent since fork(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResidentMemory {
    /// All of it in bytes.
    pub total: u64,
    /// The shared part in bytes.
    pub shared: u64,
}

impl ResidentMemory {
    /// Process `pid`, if it exists.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let statm = fs::read_to_string(format!("{PROC}/{pid}/statm")).ok()?;
        let page_size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64);
        let mut pages = statm.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
        Some(Self { total: pages.next()? * page_size, shared: pages.next()? * page_size })
    }
}

/// The memory of a process in bytes, in which a page that is shared by `n` processes counts as an `n`th (Pss, proc(5)).
/// The kernel walks the page tables of the process for it.
///
/// # Errors
/// `PermissionDenied` for processes of other users; `NotFound` before Linux 4.14, or if the process has ended.
pub(crate) fn proportional_memory(pid: Pid) -> io::Result<u64> {
    let text = fs::read_to_string(format!("{PROC}/{pid}/smaps_rollup"))?;
    parse_proportional(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_proportional(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// How many descriptors a process has open, and its limit (`RLIMIT_NOFILE`).
///
/// # Errors
/// `PermissionDenied` before Linux 6.2 for processes of other users.
pub(crate) fn descriptors(process: &Path) -> io::Result<(u64, u64)> {
    let fds = process.join("fd");
    let used = match fs::metadata(&fds)?.len() {
        0 => fs::read_dir(&fds)?.count() as u64, // before Linux 6.2
        count => count,
    };
    let limits = fs::read_to_string(process.join("limits"))?;
    let limit = parse_descriptor_limit(&limits).ok_or(io::ErrorKind::InvalidData)?;
    Ok((used, limit))
}

fn parse_descriptor_limit(limits: &str) -> Option<u64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// A variable of the environment that a process was started with. `None` without permission.
pub(crate) fn environment_variable(process: &Path, name: &str) -> Option<Vec<u8>> {
    let environment = fs::read(process.join("environ")).ok()?;
    let value = |entry: &[u8]| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    environment.split(|&byte| byte == 0).find_map(value)
}

/// The pid namespace of this process, in which pids have a meaning; `None` if `/proc` does not show this process.
pub(crate) fn pid_namespace() -> Option<String> {
    // A process cannot leave it.
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let own = fs::read_link("/proc/self").ok()?;
        let is_this = own.to_str()?.parse() == Ok(std::process::id());
        let namespace = fs::read_link("/proc/self/ns/pid").ok().filter(|_| is_this)?;
        Some(namespace.to_string_lossy().into_owned())
    };
    OWN.get_or_init(read).clone()
}

/// Whether paths mean the same to a process as to this one: same mount namespace, same root. False without permission.
pub(crate) fn sees_same_files(process: &Path) -> bool {
    let own = Path::new("/proc/self");
    ["ns/mnt", "root"].iter().all(|link| {
        fs::read_link(process.join(link))
            .is_ok_and(|theirs| fs::read_link(own.join(link)).is_ok_and(|ours| ours == theirs))
    })
}

/// What is used here of a `status` file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessStatus {
    /// The letter of its state.
    pub state: Option<char>,
    /// A debugger is attached.
    pub is_traced: bool,
    /// The real user id.
    pub uid: Option<u32>,
}

impl ProcessStatus {
    /// The process or thread of this directory.
    pub(crate) fn read(dir: &Path) -> Self {
        Self::parse(&fs::read_to_string(dir.join("status")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        Self {
            state: field("State:").and_then(|state| state.chars().next()),
            is_traced: field("TracerPid:").is_some_and(|tracer| tracer != "0"),
            uid: field("Uid:").and_then(|uid| uid.parse().ok()),
        }
    }
}

/// What the scheduler counts for a thread (`schedstat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunTimes {
    /// Time on a processor.
    pub ran: Duration,
    /// Time spent runnable, waiting for a processor.
    pub waited: Duration,
    /// How often it was given a processor.
    pub timeslices: u64,
}

impl RunTimes {
    /// The thread of this directory.
    pub(crate) fn read(thread: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(thread.join("schedstat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
        let [ran, waited, timeslices] = [numbers.next()??, numbers.next()??, numbers.next()??];
        Some(Self { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited), timeslices })
    }
}

/// Whether the kernel counts run times. If it does not, every file holds zeros, also that of the calling thread.
pub(crate) fn counts_run_times() -> bool {
    RunTimes::read(Path::new("/proc/thread-self")).is_some_and(|times| times.timeslices != 0)
}

/// The kernel function that a thread sleeps in; absent if it does not sleep or the kernel does not show it.
pub(crate) fn wait_channel(thread: &Path) -> Option<String> {
    fs::read_to_string(thread.join("wchan")).ok().filter(|name| !name.is_empty() && name != "0")
}

/// The number of the system call that a thread is in; `None` if it is in none, or runs. Waits during its execve(2).
///
/// # Errors
/// `PermissionDenied` for threads of other users.
pub(crate) fn system_call(thread: &Path) -> io::Result<Option<i64>> {
    fs::read_to_string(thread.join("syscall")).map(|text| parse_system_call(&text))
}

fn parse_system_call(text: &str) -> Option<i64> {
    text.split_whitespace().next()?.parse().ok().filter(|number| *number >= 0)
}

/// The functions of a thread's kernel stack, innermost first, at most `max`. Waits during its execve(2).
///
/// # Errors
/// `PermissionDenied` without CAP_SYS_ADMIN.
pub(crate) fn kernel_stack(thread: &Path, max: usize) -> io::Result<Vec<String>> {
    fs::read_to_string(thread.join("stack")).map(|text| parse_stack(&text).take(max).collect())
}

/// Lines such as `[<0>] do_signal_stop+0xa6/0x1d0`.
fn parse_stack(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.split('+').next()?.to_owned()))
}

/// The share and the total of time in which at least one task waited for a resource (`/proc/pressure`, line `some`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pressure {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Since boot.
    pub total: Duration,
}

impl Pressure {
    /// For `cpu`, `memory` or `io`. Not every kernel has it (CONFIG_PSI).
    pub(crate) fn of(resource: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("{PROC}/pressure/{resource}")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let value = |key| some.split_whitespace().find_map(|pair| pair.strip_prefix(key));
        let total = Duration::from_micros(value("total=")?.parse().ok()?);
        Some(Self { avg10: value("avg10=")?.parse().ok()?, total })
    }
}

/// The numbers of runnable processes over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    Some(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

/// Available and total memory in bytes.
pub(crate) fn memory() -> Option<(u64, u64)> {
    parse_memory(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_memory(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    Some((bytes("MemAvailable:")?, bytes("MemTotal:")?))
}

/// Time since boot, on the clock that start times of processes are measured on.
pub(crate) fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

/// The control group of a process, relative to the root of the hierarchy.
pub(crate) fn cgroup(process: &Path) -> Option<String> {
    let groups = fs::read_to_string(process.join("cgroup")).ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::/")).map(str::to_owned)
}

/// The processes of the control group of this directory, without those of groups below it.
pub(crate) fn cgroup_pids(group: &Path) -> Vec<u32> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether the control group of this directory is itself frozen or about to be.
pub(crate) fn cgroup_is_frozen(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|freeze| freeze.trim() == "1")
}

/// How `/proc/net/unix` shows a listening socket (`__SO_ACCEPTCON`).
const LISTENS: &str = "00010000";

/// The inode of the Unix socket that listens at `address`: the path at which it was bound, which may be gone, or `@` and
/// an abstract name (proc(5), `/proc/net/unix`).
pub(crate) fn listening_socket(address: &[u8]) -> Option<u64> {
    let table = fs::read("/proc/net/unix").ok()?;
    let ending = [b" ", address].concat();
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let fields = std::str::from_utf8(line.strip_suffix(ending.as_slice())?).ok()?;
        // Num RefCount Protocol Flags Type St Inode; accepted connections have the same name.
        let fields: Vec<_> = fields.split_whitespace().collect();
        (fields.get(3) == Some(&LISTENS)).then(|| fields.last()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_parsed_whatever_the_name_contains() {
        let line = b"12 (a) S 1 2 (\xff) Z 3 4 5 0 -1 4194308 0 0 0 0 1 2 3 4 20 0 1 0 99887 1 2\n";
        let [pid, parent, group] = [12, 3, 4].map(Pid::from_raw);
        let stat = ProcessStat::parse(line).unwrap();
        assert_eq!(stat, ProcessStat { pid, parent, group, state: 'Z', is_exiting: true, start_time: 99887 });
        assert!(stat.is_zombie() && !stat.is_stopped());
        assert_eq!(stat.id(), ProcessId { pid: 12, start_time: 99887 });
        assert!(!ProcessStat::of(std::process::id()).unwrap().is_exiting);
        assert_eq!(ProcessStat::parse(b"12 (a S 1"), None);
        assert_eq!(ProcessStat::parse(b""), None);
        assert_eq!(ticks(250, 100), Duration::from_millis(2500));
    }

    #[test]
    fn status_fields_are_parsed_and_may_be_missing() {
        let text = "Name:\tpatou\nState:\tR (running)\nTgid:\t1\nTracerPid:\t0\nUid:\t0\t1\t2\t3\n";
        let status = ProcessStatus { state: Some('R'), is_traced: false, uid: Some(0) };
        assert_eq!(ProcessStatus::parse(text), status);
        assert!(ProcessStatus::parse("TracerPid:\t77\n").is_traced);
        assert_eq!(ProcessStatus::parse(""), ProcessStatus::default());
    }

    #[test]
    fn run_times_are_parsed() {
        let [ran, waited] = [5, 6].map(Duration::from_nanos);
        assert_eq!(RunTimes::parse("5 6 70\n"), Some(RunTimes { ran, waited, timeslices: 70 }));
        assert_eq!((RunTimes::parse(""), RunTimes::parse("5 x 1")), (None, None));
    }

    #[test]
    fn system_calls_and_kernel_stacks_are_parsed() {
        assert_eq!(parse_system_call("232 0x5 0x7ffd 0x40 0xffffffff 0x0 0x0 0x7ffd 0x7f01\n"), Some(232));
        assert_eq!(["-1 0x7ffd 0x7f01\n", "running\n", ""].map(parse_system_call), [None; 3]);
        let stack = "[<0>] do_signal_stop+0xa6/0x1d0\n[<0>] get_signal+0x3f5/0x820\n";
        assert_eq!(parse_stack(stack).collect::<Vec<_>>(), ["do_signal_stop", "get_signal"]);
    }

    #[test]
    fn pressure_and_memory_are_parsed() {
        let text = "some avg10=1.25 avg60=0.30 avg300=0.06 total=70\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(Pressure::parse(text), Some(Pressure { avg10: 1.25, total: Duration::from_micros(70) }));
        assert_eq!(Pressure::parse(""), None);
        let text = "MemTotal:        4000 kB\nMemFree:    1 kB\nMemAvailable:    3000 kB\n";
        assert_eq!((parse_memory(text), parse_memory("MemTotal: 1 kB\n")), (Some((3_072_000, 4_096_000)), None));
    }

    #[test]
    fn proportional_memory_and_the_limit_of_open_files_are_parsed() {
        let text = "5582-7ffd ---p 00000000 00:00 0   [rollup]\nRss:    1480 kB\nPss:     200 kB\nPss_Dirty: 1 kB\n";
        assert_eq!((parse_proportional(text), parse_proportional("Rss: 1 kB\n")), (Some(200 << 10), None));
        let text = "Max processes   9   9   processes\nMax open files            300                  4096     files\n";
        assert_eq!((parse_descriptor_limit(text), parse_descriptor_limit("")), (Some(300), None));
        let this = process_dir(std::process::id());
        let (used, limit) = descriptors(&this).unwrap();
        assert!(3 <= used && used <= limit);
    }

    #[test]
    fn this_process_is_read() {
        let this = process_dir(std::process::id());
        let stat = ProcessStat::read(&this).unwrap();
        assert_eq!((stat.id(), id_of(&this)), (this_process(), Some(std::process::id())));
        assert!(ProcessStat::of_id(stat.id()).is_some());
        assert_eq!(ProcessStat::of_id(ProcessId { start_time: stat.start_time + 1, ..stat.id() }), None);
        assert!(stat.age(uptime().unwrap()).is_some());
        let (resident, proportional) = (ResidentMemory::of(stat.pid).unwrap(), proportional_memory(stat.pid).unwrap());
        assert!(resident.total > resident.shared && resident.shared > 0 && proportional > 100_000, "{resident:?}");
        assert!(processes().contains(&stat) || processes().iter().any(|p| p.id() == stat.id()));
        assert_eq!(threads(&this).first().and_then(|main| id_of(main)), Some(std::process::id()));
        assert!(!name(&this).is_empty() && !arguments(&this, 9).unwrap().is_empty());
        assert!(load_average().is_some() && memory().is_some());
    }
}
