//! No process is killed because the machine is slow: under four times more work than the processors can do, on one
//! processor with 16 busy processes, with a hundredth of a processor, under memory and disk pressure, while a worker gets
//! no processor for seconds, or while a debugger holds it. A frozen worker is detected even then.
//!
//! The load lasts a few seconds, or `PATOU_STRESS` for each kind:
//! `PATOU_STRESS=10m cargo test --test overload -- --nocapture stress`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use support::*;

/// Processes that use all the processor time they get. They end when this value is dropped or the test process exits.
struct CpuLoad(Vec<Child>);

impl CpuLoad {
    /// Starts `per_cpu` processes for each processor.
    fn start(per_cpu: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self((0..per_cpu * cores).map(|_| Self::busy_loop()).collect())
    }

    /// Starts `count` processes on these processors.
    fn pinned(count: usize, cpus: &CpuSet) -> Self {
        let cpu_load = Self((0..count).map(|_| Self::busy_loop()).collect());
        for process in &cpu_load.0 {
            sched_setaffinity(Pid::from_raw(process.id() as i32), cpus).unwrap();
        }
        cpu_load
    }

    fn busy_loop() -> Child {
        let script = format!(
            "while [ -d /proc/{} ]; do i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; done",
            std::process::id()
        );
        Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Clients that send requests back to back and count the outcomes.
struct OverloadClients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcomes>>,
}

#[derive(Debug, Default)]
struct Outcomes {
    served: u64,
    /// 503 `not-started`.
    refused: u64,
    longest: Duration,
    /// Any other result.
    unexplained: Vec<String>,
}

impl OverloadClients {
    fn start(address: std::net::SocketAddr, count: usize) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |_| {
            let (stop, counter) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut outcomes = Outcomes::default();
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    match get(address, "/x") {
                        Ok(response) if response.status == 200 => {
                            outcomes.served += 1;
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(response)
                            if response.status == 503 && response.header("patou-outcome") == Some("not-started") =>
                        {
                            outcomes.refused += 1;
                        }
                        other => outcomes.unexplained.push(format!("{other:?}")),
                    }
                    outcomes.longest = outcomes.longest.max(since.elapsed());
                }
                outcomes
            })
        };
        let threads = (0..count).map(client).collect();
        Self { stop, served, threads }
    }

    fn wait_for(&self, more: u64) {
        let target = self.served.load(Ordering::Relaxed) + more;
        wait_until("the clients are served", || self.served.load(Ordering::Relaxed) >= target);
    }

    fn stop(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Outcomes::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            sum.served += one.served;
            sum.refused += one.refused;
            sum.longest = sum.longest.max(one.longest);
            sum.unexplained.extend(one.unexplained);
        }
        sum
    }
}

/// A set of four workers that does not log each request.
fn quiet_set() -> TestSet {
    let mut set = TestSet::prepare(&ECHO.replace("workers = 2", "workers = 4"));
    set.run_with_log_level("info");
    set.wait_until_up();
    set
}

/// The pid and the restarts of the dispatcher and of each worker.
fn pids_and_restarts(status: &Value) -> Vec<(u64, u64)> {
    let pid_and_restarts = |part: &Value| (part["pid"].as_u64().unwrap_or(0), part["restarts"].as_u64().unwrap_or(99));
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    std::iter::once(&status["dispatcher"]).chain(workers).map(pid_and_restarts).collect()
}

const STARVED: &str = "because the machine does not run it";
const RESUMED: &str = "its timeouts apply again";

/// Serialises the tests that load the machine.
fn lock_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_count(set: &TestSet) -> usize {
    set.log().lines().filter(|line| line.contains(": killing it")).count()
}

/// Lets the process, with all its threads, run on these processors only.
fn pin(pid: u32, cpus: &CpuSet) {
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let task = task.file_name().to_str().unwrap().parse().unwrap();
        sched_setaffinity(Pid::from_raw(task), cpus).unwrap();
    }
}

/// Leaves the process, with all its threads, only the idle time of these processors.
fn starve(pid: u32, cpus: &CpuSet) {
    pin(pid, cpus);
    let chrt = Command::new("chrt").args(["--idle", "--all-tasks", "--pid", "0", &pid.to_string()]).output().unwrap();
    assert!(chrt.status.success(), "{}", text(&chrt.stderr));
}

/// The first processor that this process may use.
fn first_allowed_cpu() -> CpuSet {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    one
}

/// How long a load lasts.
fn stress_time() -> Duration {
    let text = std::env::var("PATOU_STRESS").unwrap_or_else(|_| "4s".into());
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "m" => 60,
        "" | "s" => 1,
        _ => panic!("PATOU_STRESS={text} is not a number of seconds or minutes, such as 90s or 10m"),
    };
    Duration::from_secs(seconds * number.parse::<u64>().unwrap())
}

/// Sends requests to a set for [`stress_time`] while the value that `load` returns exists. No part may be killed or
/// restarted.
fn assert_no_kill_under<L>(name: &str, clients: usize, load: impl FnOnce(&TestSet) -> L) {
    let _machine = lock_machine();
    let set = quiet_set();
    let before = pids_and_restarts(&set.status());
    let address = set.address(0);
    let load = load(&set);
    let clients = OverloadClients::start(address, clients);
    let time = stress_time();
    // Not a wait: the duration of the load.
    std::thread::sleep(time);
    drop(load);
    clients.wait_for(1);
    let outcomes = clients.stop();
    let after = set.wait_for("every part responds again", |status| {
        let workers = status["pools"][0]["workers"].as_array().cloned().unwrap_or_default();
        status["dispatcher"]["state"] == "up" && workers.iter().all(|worker| worker["state"] == "idle")
    });
    let restarts: u64 = pids_and_restarts(&after).iter().map(|(_, restarts)| restarts).sum();
    eprintln!(
        "{name}, {time:?}: {} served, {} refused, {} other, longest wait {:?}, {} times starved, {} killed, {restarts} \
         restarts",
        outcomes.served,
        outcomes.refused,
        outcomes.unexplained.len(),
        outcomes.longest,
        set.log().matches(STARVED).count(),
        kill_count(&set),
    );
    assert_eq!(outcomes.unexplained, Vec::<String>::new(), "{}", set.log());
    assert_eq!((pids_and_restarts(&after), kill_count(&set)), (before, 0), "{}", set.log());
    set.stop();
}

/// A control group of a controller for the processes of a set, which return to their group when it is dropped.
struct ResourceGroup {
    dir: PathBuf,
    own: PathBuf,
}

impl ResourceGroup {
    /// Creates a group below that of this process. `settings` are the files and values of version 1 and 2. `None` if the
    /// controller is not available.
    fn create(controller: &str, v1: &[(&str, &str)], v2: &[(&str, &str)]) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = |controllers: &str| {
            let mut lines = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
            lines.find(|line| line[1] == controllers).map(|line| line[2].trim_start_matches('/').to_owned())
        };
        let (root, own, settings) = match own(controller) {
            Some(own) => (format!("/sys/fs/cgroup/{controller}"), own, v1),
            None => ("/sys/fs/cgroup".into(), own("")?, v2),
        };
        let own = Path::new(&root).join(own);
        let dir = own.join(format!("patou-test-{controller}-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let group = Self { dir, own };
        settings.iter().all(|(file, value)| fs::write(group.dir.join(file), value).is_ok()).then_some(group)
    }

    fn add(&self, pid: u32) {
        let _ = fs::write(self.dir.join("cgroup.procs"), pid.to_string()); // it may have ended
    }
}

impl Drop for ResourceGroup {
    fn drop(&mut self) {
        wait_until("the control group is empty", || {
            for pid in fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(self.own.join("cgroup.procs"), pid); // it may have ended
            }
            fs::remove_dir(&self.dir).is_ok() || !self.dir.exists()
        });
    }
}

/// Four busy processes for each processor.
#[test]
fn stress_no_process_is_killed_under_overload() {
    assert_no_kill_under("4x CPU overload", 4, |_| CpuLoad::start(4));
}

#[test]
fn stress_no_process_is_killed_on_one_processor_with_sixteen_busy_processes() {
    assert_no_kill_under("one processor, 16 busy processes", 4, |set| {
        let one = first_allowed_cpu();
        set.processes().into_iter().for_each(|pid| pin(pid, &one));
        CpuLoad::pinned(16, &one)
    });
}

/// A hundredth of a processor for the whole set; where no controller can limit it, only the idle time of a busy one.
#[test]
fn stress_no_process_is_killed_with_a_hundredth_of_a_processor() {
    let quota = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "1000")];
    let group = ResourceGroup::create("cpu", &quota, &[("cpu.max", "1000 100000")]);
    if group.is_none() && !is_installed("chrt") {
        return;
    }
    let name = if group.is_some() { "CPU quota of 1 %" } else { "idle time of a busy processor" };
    assert_no_kill_under(name, 1, |set| {
        let cpu_load = match &group {
            Some(group) => {
                set.processes().into_iter().for_each(|pid| group.add(pid));
                CpuLoad(Vec::new())
            }
            None => {
                let one = first_allowed_cpu();
                set.processes().into_iter().for_each(|pid| starve(pid, &one));
                CpuLoad::pinned(16, &one)
            }
        };
        (group, cpu_load)
    });
}

/// Processes that write and read files, in a control group with too little memory for these files where possible.
#[test]
fn stress_no_process_is_killed_under_memory_and_disk_pressure() {
    const LIMIT: &str = "67108864";
    let group = ResourceGroup::create("memory", &[("memory.limit_in_bytes", LIMIT)], &[("memory.max", LIMIT)]);
    let name = if group.is_some() { "memory and disk pressure" } else { "disk pressure" };
    assert_no_kill_under(name, 4, |set| {
        let write = |number: usize| {
            let file = set.test_dir().join(format!("load{number}"));
            let script = format!(
                "while [ -d /proc/{} ]; do dd if=/dev/zero of={file} bs=1M count=256 conv=fsync; cat {file}; done \
                 >/dev/null 2>&1; rm -f {file}",
                std::process::id(),
                file = file.display()
            );
            Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
        };
        let writers = CpuLoad((0..4).map(write).collect());
        if let Some(group) = &group {
            let processes = set.processes().into_iter().chain(writers.0.iter().map(Child::id));
            processes.for_each(|pid| group.add(pid));
        }
        (writers, group)
    });
}

/// One worker gets only idle processor time, which is none for seconds; another one is stopped.
#[test]
fn starved_worker_is_kept_while_a_frozen_one_is_detected() {
    if !is_installed("chrt") {
        return;
    }
    let _machine = lock_machine();
    let set = quiet_set();
    let (starved, stopped) = (set.worker_pid("default/1"), set.worker_pid("default/2"));
    let one = first_allowed_cpu();
    let cpu_load = (CpuLoad::start(4), CpuLoad::pinned(40, &one));
    let clients = OverloadClients::start(set.address(0), 2);
    starve(starved, &one);
    set.wait_for_log(&["worker default/1", STARVED]);
    let since = Instant::now();
    signal_to(stopped, Signal::SIGSTOP);
    set.wait_for_log(&["worker default/2 is frozen", "killing it"]);
    eprintln!("detected frozen under overload after {:?}", since.elapsed());
    // worker_timeout, one probe before and one after it, and a margin for the overloaded machine.
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(set.worker_pid("default/1"), starved, "{}", set.log());
    drop(cpu_load);
    let outcomes = clients.stop();
    set.wait_for_worker("default/1", "idle");
    set.wait_for_log(&["worker default/1", RESUMED]);
    assert_eq!(kill_count(&set), 1, "{}", set.log());
    // At most one client had a lease of the stopped worker.
    assert!(outcomes.unexplained.len() <= 1, "{:?}", outcomes.unexplained);
    set.stop();
}

/// The serving thread of a worker gets only idle processor time, which is none for longer than `request_timeout`, while its
/// control thread runs.
#[test]
fn worker_whose_serving_thread_is_starved_does_not_take_it_for_blocked() {
    if !is_installed("chrt") {
        return;
    }
    let _machine = lock_machine();
    let mut set = TestSet::prepare(&ECHO.replace("[[pool]]", "[[pool]]\nrequest_timeout = \"500ms\""));
    set.run_with_log_level("info");
    set.wait_until_up();
    let starved = set.worker_pid("default/1");
    let one = first_allowed_cpu();
    let cpu_load = CpuLoad::pinned(40, &one);
    // The first thread is the serving thread.
    sched_setaffinity(Pid::from_raw(starved as i32), &one).unwrap();
    let chrt = Command::new("chrt").args(["--idle", "--pid", "0", &starved.to_string()]).output().unwrap();
    assert!(chrt.status.success(), "{}", text(&chrt.stderr));
    let clients = OverloadClients::start(set.address(0), 4);
    set.wait_for_log(&["worker=default/1", "serving thread is blocked"]);
    // Not a wait: longer than request_timeout and its grace, which must not apply.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(set.worker_pid("default/1"), starved, "{}", set.log());
    drop(cpu_load);
    clients.wait_for(10);
    let outcomes = clients.stop();
    set.wait_for_worker("default/1", "idle");
    assert_eq!((set.worker_pid("default/1"), kill_count(&set)), (starved, 0), "{}", set.log());
    // A request that the thread had claimed when it lost its processor.
    assert!(outcomes.unexplained.len() <= 1, "{:?}", outcomes.unexplained);
    set.stop();
}

/// A debugger holds the control thread for longer than any timeout.
#[test]
fn worker_held_by_a_debugger_is_not_killed() {
    if !is_installed("perl") {
        return;
    }
    let set = quiet_set();
    let worker = set.worker_pid("default/1");
    let tasks = fs::read_dir(format!("/proc/{worker}/task")).unwrap().flatten().map(|task| task.path());
    let is_control = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default() == "control\n";
    let control = tasks.into_iter().find(is_control).unwrap();
    let control = control.file_name().unwrap().to_str().unwrap();
    // PTRACE_SEIZE and PTRACE_INTERRUPT (ptrace(2)); the thread continues when the tracer exits.
    let hold = format!(
        "$n = {}; syscall($n, 0x4206, {control}, 0, 0) == 0 && syscall($n, 0x4207, {control}, 0, 0) == 0 or exit 1; sleep 60",
        nix::libc::SYS_ptrace
    );
    let mut tracer = CpuLoad(vec![Command::new("perl").args(["-e", &hold]).stdin(Stdio::null()).spawn().unwrap()]);
    set.wait_for_worker("default/1", "suspended");
    set.wait_for_log(&["worker default/1", "held by a debugger"]);
    // Not a wait: longer than worker_timeout, which must not apply.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(tracer.0[0].try_wait().unwrap(), None, "ptrace is not permitted");
    assert_eq!(set.worker_pid("default/1"), worker, "{}", set.log());
    drop(tracer);
    set.wait_for_worker("default/1", "idle");
    set.wait_for_log(&["worker default/1", RESUMED]);
    assert_eq!((set.worker_pid("default/1"), kill_count(&set)), (worker, 0), "{}", set.log());
    set.stop();
}
