//! Samples a process for a verdict. Only files that every user may read, and only when the process owes an answer.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::plan::Part;
use crate::descriptors;
use crate::liveness::{HeldBy, ProcessSample, SchedStat, ThreadActivity};
use crate::procfs::{self, CGROUP_ROOT, HYBRID_CGROUP_ROOT, Pressure, ProcessStatus, RunTimes};

/// The thread of a worker that answers probes. Before it exists the main thread does.
const CONTROL_THREAD: &str = "control";

/// Samples the process of a part. A file that cannot be read is no excuse; a part without a process has ended. `None` if
/// this process or the machine has no descriptor or memory left to read with: nothing can be said about the part then.
pub(super) fn sample(part: &Part, process: Option<(u32, BorrowedFd<'_>)>) -> Option<ProcessSample> {
    let Some((pid, pidfd)) = process else { return Some(ProcessSample { ended: true, ..ProcessSample::default() }) };
    let dir = procfs::process_dir(pid);
    // Before and after: what is read in between is taken as absent if it cannot be read.
    if is_unreadable(&dir) {
        return None;
    }
    let main_thread = dir.join("task").join(pid.to_string());
    let thread = part.worker().and_then(|_| thread_named(&dir, CONTROL_THREAD));
    let thread = thread.unwrap_or_else(|| main_thread.clone());
    let status = ProcessStatus::read(&thread);
    let is_traced = status.is_traced || (thread != main_thread && ProcessStatus::read(&main_thread).is_traced);
    let is_frozen = || procfs::cgroup(&dir).is_some_and(|group| is_frozen(&group));
    let sample = ProcessSample {
        held_by: if is_traced { Some(HeldBy::Debugger) } else { is_frozen().then_some(HeldBy::Freezer) },
        activity: match activity(status.state) {
            // fork(2) holds the locks of the allocator, and waits for locks of the kernel.
            ThreadActivity::Idle if has_blocked_thread(&dir) => ThreadActivity::Blocked,
            activity => activity,
        },
        sched_stat: run_times(&thread),
        machine_stalled: total(["memory", "io", "cpu"].map(Pressure::of)),
        // Read last: if the process has not ended by now, everything above was read from it and not from a later
        // process with the same pid.
        ended: has_ended(pidfd),
    };
    (!is_unreadable(&dir)).then_some(sample)
}

fn is_unreadable(dir: &Path) -> bool {
    File::open(dir).is_err_and(|error| descriptors::is_shortage(&error))
}

/// The oldest thread of this name: threads that a handler starts are younger.
fn thread_named(process: &Path, name: &str) -> Option<PathBuf> {
    procfs::threads(process).into_iter().find(|thread| procfs::name(thread) == name)
}

fn activity(state: Option<char>) -> ThreadActivity {
    match state {
        Some('R') => ThreadActivity::Runnable,
        Some('D') => ThreadActivity::Blocked,
        _ => ThreadActivity::Idle,
    }
}

/// Whether a thread, whose lock the sampled one may wait for, waits in the kernel.
fn has_blocked_thread(process: &Path) -> bool {
    let is_blocked = |thread: &PathBuf| activity(ProcessStatus::read(thread).state) == ThreadActivity::Blocked;
    procfs::threads(process).iter().any(is_blocked)
}

fn run_times(thread: &Path) -> Option<SchedStat> {
    let times = RunTimes::read(thread).filter(|_| procfs::counts_run_times())?;
    Some(SchedStat { thread: procfs::id_of(thread)?, ran: times.ran, waited: times.waited })
}

/// How long tasks have waited for memory, a device and a processor. The processor counts because a blocked task may
/// wait for a kernel lock, and the holder of that lock for a processor.
fn total(pressures: [Option<Pressure>; 3]) -> Duration {
    pressures.into_iter().flatten().fold(Duration::ZERO, |sum, pressure| sum.saturating_add(pressure.total))
}

/// Whether the process can be reaped (pidfd_open(2)).
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

fn is_frozen(group: &str) -> bool {
    [CGROUP_ROOT, HYBRID_CGROUP_ROOT].iter().any(|root| is_frozen_below(Path::new(root), group))
}

/// Whether a control group, or one above it, is frozen or about to be.
fn is_frozen_below(root: &Path, group: &str) -> bool {
    let group = root.join(group);
    group.ancestors().take_while(|dir| dir.starts_with(root)).any(procfs::cgroup_is_frozen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use nix::unistd::Pid;
    use std::fs;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    #[test]
    fn activity_is_taken_from_the_state() {
        assert_eq!(activity(Some('R')), ThreadActivity::Runnable);
        assert_eq!(activity(Some('D')), ThreadActivity::Blocked);
        assert_eq!(activity(Some('T')), ThreadActivity::Idle);
        assert_eq!(activity(None), ThreadActivity::Idle);
    }

    #[test]
    fn pressures_add_up_and_missing_ones_are_zero() {
        let pressure = |total| Some(Pressure { avg10: 0.0, total: Duration::from_micros(total) });
        assert_eq!(total([None; 3]), Duration::ZERO);
        assert_eq!(total([pressure(70), None, None]), Duration::from_micros(70));
        assert_eq!(total([pressure(70), pressure(5_438_876), pressure(4)]), Duration::from_micros(5_438_950));
    }

    #[test]
    fn a_group_is_frozen_by_itself_or_by_a_group_above_it() {
        let root = std::env::temp_dir().join(format!("patou-freezer-{}", std::process::id()));
        let unit = root.join("patou.slice/web-1.service");
        fs::create_dir_all(&unit).unwrap();
        let group = "patou.slice/web-1.service";
        assert!(!is_frozen_below(&root, group));
        fs::write(unit.join("cgroup.freeze"), "0\n").unwrap();
        fs::write(root.join("patou.slice/cgroup.freeze"), "1\n").unwrap();
        assert!(is_frozen_below(&root, group) && !is_frozen_below(&root, "other.slice"));
        fs::write(root.join("patou.slice/cgroup.freeze"), "0\n").unwrap();
        assert!(!is_frozen_below(&root, group));
        fs::write(unit.join("cgroup.freeze"), "1\n").unwrap();
        assert!(is_frozen_below(&root, group));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_thread_that_waits_in_the_kernel_may_hold_a_lock_of_the_sampled_one() {
        let process = std::env::temp_dir().join(format!("patou-threads-{}", std::process::id()));
        let write = |thread: u32, state: &str| {
            let dir = process.join(format!("task/{thread}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("status"), format!("Name:\tx\nState:\t{state}\n")).unwrap();
        };
        write(5, "S (sleeping)");
        write(6, "R (running)");
        assert!(!has_blocked_thread(&process));
        write(7, "D (disk sleep)");
        assert!(has_blocked_thread(&process));
        fs::remove_dir_all(&process).unwrap();
    }

    /// A child that does not outlive the test.
    struct TestChild(Child);

    impl TestChild {
        fn start(script: &str) -> Self {
            Self(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap())
        }

        fn sample(&self) -> ProcessSample {
            let pidfd = sys::pidfd_open(Pid::from_raw(self.0.id() as i32)).unwrap();
            sample(&Part::Dispatcher, Some((self.0.id(), pidfd.as_fd()))).unwrap()
        }

        fn sample_until(&self, condition: impl Fn(&ProcessSample) -> bool) -> ProcessSample {
            let give_up = Instant::now() + Duration::from_secs(20);
            loop {
                let sample = self.sample();
                if condition(&sample) {
                    return sample;
                }
                assert!(Instant::now() < give_up, "{sample:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    impl Drop for TestChild {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_run_time_of_a_spinning_process_grows_and_a_dead_process_has_ended() {
        let spinning = TestChild::start("while :; do :; done");
        let first = spinning.sample_until(|sample| sample.activity == ThreadActivity::Runnable);
        let ran = |sample: &ProcessSample| sample.sched_stat.map_or(Duration::ZERO, |times| times.ran);
        spinning.sample_until(|sample| ran(sample) >= ran(&first) + Duration::from_millis(50));
        assert!(!first.ended && first.held_by.is_none());
        let dead = TestChild::start("exit 0");
        dead.sample_until(|sample| sample.ended);
        assert!(sample(&Part::Dispatcher, None).unwrap().ended);
    }

    #[test]
    fn the_sampled_thread_is_the_oldest_of_its_name() {
        let (started, start) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let name = "sampled";
        let wait = move || {
            started.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(wait).unwrap();
        let id = start.recv().unwrap();
        let process = procfs::process_dir(std::process::id());
        assert_eq!(thread_named(&process, name).and_then(|thread| procfs::id_of(&thread)), Some(id));
        assert_eq!(thread_named(&process, "no such thread"), None);
        drop(end);
        thread.join().unwrap();
    }
}
