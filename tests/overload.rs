//! Nothing is killed for the machine's fault: not under four times more work than there are processors, not when no
//! processor runs a worker for seconds, not in a debugger. And who is frozen meanwhile is found nevertheless.

mod support;

use std::path::PathBuf;
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

/// Processes that compute for nothing. They end with this value, and by themselves when the test has gone.
struct Hogs(Vec<Child>);

impl Hogs {
    /// So many for each processor.
    fn start(each: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self((0..each * cores).map(|_| Self::one()).collect())
    }

    /// So many in all, on one processor.
    fn crowd(many: usize, on: &CpuSet) -> Self {
        let hogs = Self((0..many).map(|_| Self::one()).collect());
        for hog in &hogs.0 {
            sched_setaffinity(Pid::from_raw(hog.id() as i32), on).unwrap();
        }
        hogs
    }

    fn one() -> Child {
        let script = format!(
            "while [ -d /proc/{} ]; do i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; done",
            std::process::id()
        );
        Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

/// Clients that ask one after the other, and what became of it.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcomes>>,
}

#[derive(Debug, Default)]
struct Outcomes {
    answered: u64,
    /// 503 with the reason.
    refused: u64,
    longest: Duration,
    /// Neither: no answer, half of one, or one that says nothing.
    silent: Vec<String>,
}

impl Clients {
    fn start(address: std::net::SocketAddr, count: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |_| {
            let (stop, counter) = (stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut outcomes = Outcomes::default();
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    match get(address, "/x") {
                        Ok(answer) if answer.status == 200 => {
                            outcomes.answered += 1;
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) if answer.status == 503 && answer.header("patou-outcome") == Some("not-started") => {
                            outcomes.refused += 1;
                        }
                        other => outcomes.silent.push(format!("{other:?}")),
                    }
                    outcomes.longest = outcomes.longest.max(since.elapsed());
                }
                outcomes
            })
        };
        let threads = (0..count).map(client).collect();
        Self { stop, answered, threads }
    }

    fn wait_for(&self, more: u64) {
        let until = self.answered.load(Ordering::Relaxed) + more;
        wait_until("clients are answered", || self.answered.load(Ordering::Relaxed) >= until);
    }

    fn stop(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Outcomes::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            sum.answered += one.answered;
            sum.refused += one.refused;
            sum.longest = sum.longest.max(one.longest);
            sum.silent.extend(one.silent);
        }
        sum
    }
}

/// A set of four workers whose log is not drowned in requests.
fn set() -> TestSet {
    let mut set = TestSet::prepare(&ECHO.replace("workers = 2", "workers = 4"));
    set.run_with_log_level("info");
    set.wait_until_up();
    set
}

/// Process and restarts of each part.
fn lives(status: &Value) -> Vec<(u64, u64)> {
    let life = |part: &Value| (part["pid"].as_u64().unwrap_or(0), part["restarts"].as_u64().unwrap_or(99));
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    std::iter::once(&status["dispatcher"]).chain(workers).map(life).collect()
}

const STARVED: &str = "because the machine does not run it";
const RESUMED: &str = "its timeouts apply again";

/// One test at a time has the machine.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accusations(set: &TestSet) -> usize {
    set.log().lines().filter(|line| line.contains(": killing it")).count()
}

/// Only what nobody else wants of one processor is left to the process, all its threads.
fn starve(pid: u32, on: &CpuSet) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let task = task.file_name().to_str().unwrap().parse().unwrap();
        sched_setaffinity(Pid::from_raw(task), on).unwrap();
    }
    let chrt = Command::new("chrt").args(["--idle", "--all-tasks", "--pid", "0", &pid.to_string()]).output().unwrap();
    assert!(chrt.status.success(), "{}", text(&chrt.stderr));
}

/// The first processor that this process may use.
fn a_processor() -> CpuSet {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    one
}

/// Four times more to do than processors, for seconds here and for `PATOU_OVERLOAD_SECONDS` on demand.
#[test]
fn nobody_is_killed_under_overload() {
    let seconds = std::env::var("PATOU_OVERLOAD_SECONDS").ok().map_or(4, |seconds| seconds.parse().unwrap());
    let _alone = alone();
    let set = set();
    let before = lives(&set.status());
    let hogs = Hogs::start(4);
    let clients = Clients::start(set.address(0), 4);
    // How long is what is tested.
    std::thread::sleep(Duration::from_secs(seconds));
    clients.wait_for(1);
    let outcomes = clients.stop();
    drop(hogs);
    eprintln!(
        "{seconds} s of overload: {} answered, {} refused, longest {:?}, {} starved, {} accused",
        outcomes.answered,
        outcomes.refused,
        outcomes.longest,
        set.log().matches(STARVED).count(),
        accusations(&set),
    );
    assert_eq!(outcomes.silent, Vec::<String>::new());
    assert_eq!(lives(&set.status()), before, "{}", set.log());
    assert_eq!(accusations(&set), 0, "{}", set.log());
    set.stop();
}

/// One worker gets what nobody else wants of the processors, which is nothing for seconds; another one is stopped.
#[test]
fn a_starved_worker_lives_and_a_frozen_one_is_found_meanwhile() {
    if !is_installed("chrt") {
        return;
    }
    let _alone = alone();
    let set = set();
    let (starved, stopped) = (set.worker_pid("default/1"), set.worker_pid("default/2"));
    let one = a_processor();
    let hogs = (Hogs::start(4), Hogs::crowd(40, &one));
    let clients = Clients::start(set.address(0), 2);
    starve(starved, &one);
    set.wait_for_log(&["worker default/1", STARVED]);
    let since = Instant::now();
    signal_to(stopped, Signal::SIGSTOP);
    set.wait_for_log(&["worker default/2 is frozen", "killing it"]);
    eprintln!("found frozen under overload after {:?}", since.elapsed());
    // The bound, one question before and one after, and how late a machine may be that has much too much to do.
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(set.worker_pid("default/1"), starved, "{}", set.log());
    drop(hogs);
    let outcomes = clients.stop();
    set.wait_for_worker("default/1", "idle");
    set.wait_for_log(&["worker default/1", RESUMED]);
    assert_eq!(accusations(&set), 1, "{}", set.log());
    // Who had been told to go to the stopped worker, at most one at a time.
    assert!(outcomes.silent.len() <= 1, "{:?}", outcomes.silent);
    set.stop();
}

/// A debugger holds the thread that answers, for longer than any bound.
#[test]
fn a_worker_in_a_debugger_is_not_killed() {
    if !is_installed("perl") {
        return;
    }
    let set = set();
    let worker = set.worker_pid("default/1");
    let tasks = std::fs::read_dir(format!("/proc/{worker}/task")).unwrap().flatten().map(|task| task.path());
    let is_control = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap_or_default() == "control\n";
    let control = tasks.into_iter().find(is_control).unwrap();
    let control = control.file_name().unwrap().to_str().unwrap();
    // Seized and interrupted (ptrace(2)); when the tracer has gone it runs again.
    let hold = format!(
        "$n = {}; syscall($n, 0x4206, {control}, 0, 0) == 0 && syscall($n, 0x4207, {control}, 0, 0) == 0 or exit 1; sleep 60",
        nix::libc::SYS_ptrace
    );
    let mut tracer = Hogs(vec![Command::new("perl").args(["-e", &hold]).stdin(Stdio::null()).spawn().unwrap()]);
    set.wait_for_worker("default/1", "suspended");
    set.wait_for_log(&["worker default/1", "held by a debugger"]);
    // Longer than its bound, which is what is tested.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(tracer.0[0].try_wait().unwrap(), None, "it may not trace");
    assert_eq!(set.worker_pid("default/1"), worker, "{}", set.log());
    drop(tracer);
    set.wait_for_worker("default/1", "idle");
    set.wait_for_log(&["worker default/1", RESUMED]);
    assert_eq!((set.worker_pid("default/1"), accusations(&set)), (worker, 0), "{}", set.log());
    set.stop();
}
