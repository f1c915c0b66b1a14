//! A look at a process for a verdict: only what any user may read of it, and only when it owes an answer.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::plan::Part;
use crate::liveness::{HeldBy, ProcessSample, SchedStat, ThreadActivity};
use crate::{clock, log};

/// The thread of a worker that owes the answers; whoever has none yet starts in its first.
const CONTROL: &str = "control";
/// Where the kernel shows the control groups: version 2 alone, or beside the older ones.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// A machine that slept for less has nobody's answer on its conscience.
const NAP: Duration = Duration::from_secs(1);

/// Looks at the process of a part. What cannot be read excuses nobody, and who has no process any more has ended.
pub fn sample(part: &Part, process: Option<(u32, BorrowedFd<'_>)>) -> ProcessSample {
    let Some((pid, pidfd)) = process else { return ProcessSample { ended: true, ..ProcessSample::default() } };
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let thread = part.worker().and_then(|_| thread_named(&tasks, CONTROL)).unwrap_or(pid);
    let status = status_of(&tasks, thread);
    let traced = is_traced(&status) || (thread != pid && is_traced(&status_of(&tasks, pid)));
    ProcessSample {
        held_by: if traced { Some(HeldBy::Debugger) } else { is_frozen(pid).then_some(HeldBy::Freezer) },
        activity: activity(&status),
        sched_stat: account_of(&tasks, thread),
        machine_stalled: stalled(Path::new("/proc/pressure")),
        // Last: what was read above was of this process, and of no later one of its number, if it still lives.
        ended: has_ended(pidfd),
    }
}

fn status_of(tasks: &Path, thread: u32) -> String {
    fs::read_to_string(tasks.join(thread.to_string()).join("status")).unwrap_or_default()
}

fn account_of(tasks: &Path, thread: u32) -> Option<SchedStat> {
    let schedstat = fs::read_to_string(tasks.join(thread.to_string()).join("schedstat")).ok()?;
    account(thread, &schedstat).filter(|_| keeps_accounts())
}

/// The oldest thread of this name: what a handler starts comes later.
fn thread_named(tasks: &Path, name: &str) -> Option<u32> {
    let ids = fs::read_dir(tasks).ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is = |id: &u32| fs::read_to_string(tasks.join(id.to_string()).join("comm")).is_ok_and(|c| c.trim_end() == name);
    // The kernel lists them in the order of their start.
    ids.into_iter().find(is)
}

/// Whether it can be reaped (pidfd_open(2)).
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn activity(status: &str) -> ThreadActivity {
    match field(status, "State").and_then(|state| state.chars().next()) {
        Some('R') => ThreadActivity::Runnable,
        Some('D') => ThreadActivity::Blocked,
        _ => ThreadActivity::Idle,
    }
}

fn is_traced(status: &str) -> bool {
    field(status, "TracerPid").is_some_and(|tracer| tracer != "0")
}

/// `/proc/PID/task/TID/schedstat`: time run and time waited, in nanoseconds, and how often it got a processor.
fn account(thread: u32, schedstat: &str) -> Option<SchedStat> {
    let mut words = schedstat.split_whitespace().map(|word| word.parse().ok().map(Duration::from_nanos));
    Some(SchedStat { thread, ran: words.next()??, waited: words.next()?? })
}

/// Whether the kernel writes accounts at all: without, all are zero, also ours.
fn keeps_accounts() -> bool {
    let own = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    own.split_whitespace().nth(2).is_some_and(|times| times != "0")
}

/// For how long some task has waited for memory, a device or a processor, each by itself. The last because whoever is
/// blocked may wait for a lock of the kernel whose holder waits for a processor.
fn stalled(pressure: &Path) -> Duration {
    let total = |what| {
        let text = fs::read_to_string(pressure.join(what)).unwrap_or_default();
        let some = text.lines().find(|line| line.starts_with("some "));
        some.and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok()).unwrap_or(0)
    };
    Duration::from_micros(["memory", "io", "cpu"].map(total).into_iter().fold(0, u64::saturating_add))
}

/// Whether its control group, or one above it, is frozen, or about to be (cgroups(7), version 2).
fn is_frozen(pid: u32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    group.is_some_and(|group| CGROUPS.iter().any(|root| freezes(Path::new(root), group)))
}

fn freezes(root: &Path, group: &str) -> bool {
    let within = root.join(group);
    within
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        .any(|dir| fs::read_to_string(dir.join("cgroup.freeze")).is_ok_and(|freeze| freeze.trim() == "1"))
}

/// Notices that the machine was suspended: the clock that counts such times has gone ahead of ours.
pub struct SuspendDetector(Duration);

impl SuspendDetector {
    pub fn new() -> Self {
        Self(clock::suspended_for())
    }

    /// Whether there was one since the last look.
    pub fn over(&mut self) -> bool {
        self.grown(clock::suspended_for())
    }

    fn grown(&mut self, asleep: Duration) -> bool {
        let nap = asleep.saturating_sub(self.0);
        if nap < NAP {
            return false;
        }
        self.0 = asleep;
        let nap = humantime::format_duration(Duration::from_millis(nap.as_millis() as u64)).to_string();
        tracing::warn!(event = %log::Event::MachineSuspended,
            "the machine was suspended for {nap}: nobody is blamed for that, everybody begins anew");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use nix::unistd::Pid;
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    const STATUS: &str = "Name:\tpatou\nState:\tR (running)\nTgid:\t1\nTracerPid:\t0\n";

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(activity(STATUS), ThreadActivity::Runnable);
        assert_eq!(activity("State:\tD (disk sleep)\n"), ThreadActivity::Blocked);
        assert_eq!(activity("State:\tT (stopped)\n"), ThreadActivity::Idle);
        assert_eq!(activity(""), ThreadActivity::Idle);
        assert!(!is_traced(STATUS) && is_traced("TracerPid:\t77\n") && !is_traced(""));
        let known = SchedStat { thread: 7, ran: Duration::from_nanos(5), waited: Duration::from_nanos(6) };
        assert_eq!(account(7, "5 6 70\n"), Some(known));
        assert_eq!((account(7, ""), account(7, "5 x 1")), (None, None));
    }

    #[test]
    fn pressure_is_what_some_wait_for_and_missing_pressure_is_none() {
        let dir = std::env::temp_dir().join(format!("patou-pressure-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(stalled(&dir), Duration::ZERO);
        let text = |total| format!("some avg10=0.00 avg60=0.00 avg300=0.43 total={total}\nfull avg10=0.00 total=9\n");
        fs::write(dir.join("memory"), text(70)).unwrap();
        assert_eq!(stalled(&dir), Duration::from_micros(70));
        fs::write(dir.join("io"), text(5_438_876)).unwrap();
        assert_eq!(stalled(&dir), Duration::from_micros(5_438_946));
        fs::write(dir.join("cpu"), text(4)).unwrap();
        assert_eq!(stalled(&dir), Duration::from_micros(5_438_950));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_group_is_frozen_by_itself_or_from_above() {
        let root = std::env::temp_dir().join(format!("patou-freezer-{}", std::process::id()));
        let deep = root.join("patou.slice/web-1.service");
        fs::create_dir_all(&deep).unwrap();
        let group = "patou.slice/web-1.service";
        assert!(!freezes(&root, group));
        fs::write(deep.join("cgroup.freeze"), "0\n").unwrap();
        fs::write(root.join("patou.slice/cgroup.freeze"), "1\n").unwrap();
        assert!(freezes(&root, group) && !freezes(&root, "other.slice"));
        fs::write(root.join("patou.slice/cgroup.freeze"), "0\n").unwrap();
        assert!(!freezes(&root, group));
        fs::write(deep.join("cgroup.freeze"), "1\n").unwrap();
        assert!(freezes(&root, group));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_suspend_is_noticed_once() {
        let mut naps = SuspendDetector(Duration::from_secs(5));
        assert!(!naps.grown(Duration::from_millis(5900)));
        assert!(naps.grown(Duration::from_secs(65)));
        assert!(!naps.grown(Duration::from_secs(65)));
        assert!(!SuspendDetector::new().over());
    }

    /// A child of the test, which it does not outlive.
    struct Running(Child);

    impl Running {
        fn start(script: &str) -> Self {
            Self(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap())
        }

        fn look(&self) -> ProcessSample {
            let pidfd = sys::pidfd_open(Pid::from_raw(self.0.id() as i32)).unwrap();
            sample(&Part::Dispatcher, Some((self.0.id(), pidfd.as_fd())))
        }

        fn until(&self, what: impl Fn(&ProcessSample) -> bool) -> ProcessSample {
            let give_up = Instant::now() + Duration::from_secs(20);
            loop {
                let look = self.look();
                if what(&look) {
                    return look;
                }
                assert!(Instant::now() < give_up, "{look:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn who_spins_has_an_account_that_grows_and_who_has_ended_has_ended() {
        let spins = Running::start("while :; do :; done");
        let first = spins.until(|look| look.activity == ThreadActivity::Runnable);
        let ran = |look: &ProcessSample| look.sched_stat.map_or(Duration::ZERO, |account| account.ran);
        spins.until(|look| ran(look) >= ran(&first) + Duration::from_millis(50));
        assert!(!first.ended && first.held_by.is_none());
        let ended = Running::start("exit 0");
        ended.until(|look| look.ended);
        assert!(sample(&Part::Dispatcher, None).ended);
    }

    #[test]
    fn the_thread_that_owes_the_answers_is_the_oldest_of_its_name() {
        let (begun, begin) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let name = "looked-at";
        let wait = move || {
            begun.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(wait).unwrap();
        let id = begin.recv().unwrap();
        let tasks = PathBuf::from(format!("/proc/{}/task", std::process::id()));
        assert_eq!(thread_named(&tasks, name), Some(id));
        assert_eq!(thread_named(&tasks, "nobody"), None);
        drop(end);
        thread.join().unwrap();
    }
}
