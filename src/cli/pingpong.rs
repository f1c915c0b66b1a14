//! `patou pingpong`: questions and answers between two processes, over a segment and bells of their own.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{Pid, geteuid};

use super::{Failure, duration, failed, load};
use crate::clock;
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::exchange::{DispatcherSide, QuestionKind, Reply, SlotMemory, SpinBudget, Word, WorkerSide};
use crate::ids::{Epoch, Lifecycle, WorkerId};
use crate::ipc::{self, Modes, SetLock, WorkerIpc};
use crate::signals::Signal;
use crate::sys;

#[derive(Debug, Args)]
pub struct Pingpong {
    /// How many exchanges
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: u64,
    /// Also measure both sides spinning on the slot, and the bare named pipes without a slot
    #[arg(long)]
    compare: bool,
    /// Pause after each exchange, so that the other end is at rest when the next one comes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pause: Duration,
}

/// The other end.
#[derive(Debug, Args)]
pub struct Pong {
    /// The configuration of the private set
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    count: u64,
    #[arg(long)]
    mode: Mode,
}

/// How the two ends wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mode {
    /// On the bells, asleep.
    Asleep,
    /// As the dispatcher: on the slot for as long as that is likely to pay, then on the bell. The other end sleeps.
    Watching,
    /// The same without a look at the cores or at what it brought before: what that is worth.
    Blind,
    /// On the slot, each on a core of its own.
    Spinning,
    /// On the bells alone: the baseline of sleeping.
    Bare,
    /// On one word for each direction, each end on a core of its own: the baseline of spinning.
    Words,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Asleep => "exchange, both ends asleep",
            Mode::Watching => "exchange, watched while it pays",
            Mode::Blind => "exchange, watched blindly",
            Mode::Spinning => "exchange, both ends spinning",
            Mode::Bare => "bare named pipes and epoll",
            Mode::Words => "one bare word each, spinning",
        }
    }

    fn spins(self) -> bool {
        matches!(self, Mode::Spinning | Mode::Words)
    }
}

/// The words of [`Mode::Words`]: of the asking end's line and of the answering end's, which nothing here needs.
const WORDS: (Word, Word) = (Word::DISPATCHER_LAST_START, Word::WORKER_LAST_START);

/// How long one end waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(path: Option<&Path>, pingpong: &Pingpong) -> Result<(), Failure> {
    apart(path, |apart| measure_all(apart, pingpong))
}

/// What both ends exchange over, apart from any set that runs.
pub(super) struct Apart {
    config: Config,
    /// The same as a file.
    file: PathBuf,
    stop: Signal,
}

/// Makes a directory of its own inside the runtime directory's parent for `work`, and removes it.
pub(super) fn apart(path: Option<&Path>, work: impl FnOnce(&Apart) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut config = load(path)?.config;
    let beside = |of: &str| config.set.runtime_dir.with_extension(format!("pingpong-{of}"));
    let (dir, dead) = (beside(&std::process::id().to_string()), beside(""));
    config.set.runtime_dir = dir.clone();
    let stop = Signal::stop().map_err(failed)?;
    clear_dead(&dead);
    ipc::prepare(&config, &Modes::default()).map_err(failed)?;
    let lock = ipc::lock_set(&dir, ipc::SetOwner::Process).map_err(failed)?;
    let file = dir.join("pingpong.toml");
    let written = std::fs::write(&file, config.to_toml()).map_err(failed);
    let result = written.and_then(|()| work(&Apart { config, file, stop }));
    result.and(remove(&dir, lock))
}

fn remove(dir: &Path, lock: SetLock) -> Result<(), Failure> {
    let removed = ipc::remove(dir).map_err(failed);
    let _ = std::fs::remove_file(dir.join("pingpong.toml"));
    lock.remove(dir);
    removed
}

/// Removes what earlier ones left that were killed: directories of ours whose names begin like `dead` and whose lock
/// nobody holds. What cannot be removed harms nobody.
fn clear_dead(dead: &Path) {
    let (Some(parent), Some(prefix)) = (dead.parent(), dead.file_name().and_then(|name| name.to_str())) else { return };
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = |status: &std::fs::Metadata| status.is_dir() && status.uid() == geteuid().as_raw();
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        // Its status is that of the entry itself: a link is no directory.
        if named
            && entry.metadata().is_ok_and(|status| ours(&status))
            && let Ok(lock) = ipc::lock_set(&entry.path(), ipc::SetOwner::Process)
        {
            let _ = remove(&entry.path(), lock);
        }
    }
}

fn measure_all(apart: &Apart, pingpong: &Pingpong) -> Result<(), Failure> {
    let modes: &[Mode] = match pingpong.compare {
        true => &[Mode::Asleep, Mode::Watching, Mode::Blind, Mode::Bare, Mode::Spinning],
        false => &[Mode::Asleep],
    };
    let mut out = io::stdout().lock();
    for mode in modes {
        let times = measure(apart, *mode, pingpong.count, pingpong.pause)?;
        print(&mut out, mode.name(), times).map_err(failed)?;
    }
    Ok(())
}

fn print(out: &mut impl Write, what: &str, mut times: Vec<u32>) -> io::Result<()> {
    times.sort_unstable();
    let at = |share: f64| f64::from(times[((times.len() - 1) as f64 * share) as usize]) / 1000.0;
    let (count, p50, p90, p99, p999) = (times.len(), at(0.5), at(0.9), at(0.99), at(0.999));
    let max = at(1.0);
    writeln!(
        out,
        "{what:<30} {count:>9} round trips  p50 {p50:.2} us  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.1}"
    )
}

fn worker() -> WorkerId {
    "pingpong-1".parse().expect("a valid name")
}

/// Round trips in nanoseconds.
pub(super) fn measure(apart: &Apart, mode: Mode, count: u64, pause: Duration) -> Result<Vec<u32>, Failure> {
    let Apart { config, file, stop } = apart;
    ipc::create_worker(config, &worker(), clock::now().0, &Modes::default()).map_err(failed)?;
    let parts = ipc::open(config, &worker()).map_err(failed)?;
    // What an earlier measurement has left there would be taken for an answer.
    parts.segment.store(WORDS.0, 0, Ordering::Relaxed);
    parts.segment.store(WORDS.1, 0, Ordering::Relaxed);
    let value = clap::ValueEnum::to_possible_value(&mode).map(|v| v.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new("/proc/self/exe");
    sys::die_with_parent(&mut command);
    let mut child = command
        .args(["pong", "--count", &count.to_string(), "--mode", &value, "--file"])
        .arg(file)
        .spawn()
        .map_err(failed)?;
    let pinned = pin(mode, 0);
    let times = ask_all(&parts, mode, count, pause, stop);
    if let Some(before) = pinned {
        let _ = sched_setaffinity(Pid::from_raw(0), &before);
    }
    let ended = end(&mut child, times.is_ok());
    let times = times?;
    ended?;
    Ok(times)
}

/// Waits for the other end, which leaves by itself after the last exchange.
fn end(child: &mut Child, cleanly: bool) -> Result<(), Failure> {
    if !cleanly {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    if cleanly && !status.success() {
        return Err(failed(format!("the answering end did not stop cleanly: {status}")));
    }
    Ok(())
}

fn ask_all(parts: &WorkerIpc, mode: Mode, count: u64, pause: Duration, stop: &Signal) -> Result<Vec<u32>, Failure> {
    let mut asker = DispatcherSide::attach(parts.segment.clone(), Epoch::FIRST, (std::process::id(), 0), None);
    // The other end rings once when it is there.
    wait(&parts.to_dispatcher, Some(stop))?;
    let mut times = Vec::with_capacity(count as usize);
    let mut patience = SpinBudget::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pipe = Pipe::watch(&parts.to_dispatcher)?;
    for turn in 1..=count {
        let since = Instant::now();
        match mode {
            Mode::Bare => {
                parts.to_worker.ring();
                pipe.read(Some(stop))?;
            }
            Mode::Asleep => {
                asker.write_question(QuestionKind::Ping, None);
                parts.to_worker.ring();
                while asker.answer().is_none() {
                    wait(&parts.to_dispatcher, Some(stop))?;
                }
            }
            Mode::Watching | Mode::Blind => {
                asker.write_question(QuestionKind::Ping, None);
                parts.to_worker.ring();
                let here = sched_getcpu().ok().map(|core| core as u64);
                let shared = cores == 1 || asker.core().is_none_or(|core| Some(core) == here);
                let longest = if mode == Mode::Blind { SpinBudget::MAX } else { patience.next(shared) };
                if !watch(&mut asker, longest, &mut patience) {
                    while asker.answer().is_none() {
                        wait(&parts.to_dispatcher, Some(stop))?;
                    }
                }
            }
            Mode::Spinning => {
                asker.write_question(QuestionKind::Ping, None);
                spin_until(|| asker.answer().is_some(), Some(stop))?;
            }
            Mode::Words => {
                parts.segment.store(WORDS.0, turn, Ordering::Release);
                spin_until(|| parts.segment.load(WORDS.1, Ordering::Acquire) == turn, Some(stop))?;
            }
        }
        times.push(u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok(times)
}

/// Watches the slot for the answer; whether it came.
fn watch<M: SlotMemory>(asker: &mut DispatcherSide<M>, longest: Duration, patience: &mut SpinBudget) -> bool {
    let since = Instant::now();
    while !longest.is_zero() {
        for _ in 0..32 {
            if asker.answer().is_some() {
                patience.record(Some(since.elapsed()));
                return true;
            }
            std::hint::spin_loop();
        }
        if since.elapsed() >= longest {
            patience.record(None);
            break;
        }
    }
    false
}

/// Answers exactly as many questions as it was told, and ends.
pub fn pong(pong: &Pong) -> Result<(), Failure> {
    let config = load(Some(&pong.file))?.config;
    let parts = ipc::open(&config, &worker()).map_err(failed)?;
    let respondent = WorkerSide::attach(parts.segment.clone(), std::process::id(), 0, None, clock::now());
    let _ = pin(pong.mode, 1);
    let mut answered = respondent.answered();
    let pipe = Pipe::watch(&parts.to_worker)?;
    parts.to_dispatcher.ring();
    for turn in 1..=pong.count {
        let question = match pong.mode {
            Mode::Bare => {
                pipe.read(None)?;
                parts.to_dispatcher.ring();
                continue;
            }
            Mode::Words => {
                spin_until(|| parts.segment.load(WORDS.0, Ordering::Acquire) == turn, None)?;
                parts.segment.store(WORDS.1, turn, Ordering::Release);
                continue;
            }
            Mode::Asleep | Mode::Watching | Mode::Blind => loop {
                if let Some(question) = respondent.question(answered) {
                    break question;
                }
                wait(&parts.to_worker, None)?;
            },
            Mode::Spinning => {
                let mut question = None;
                spin_until(
                    || {
                        question = respondent.question(answered);
                        question.is_some()
                    },
                    None,
                )?;
                question.ok_or_else(|| failed("no question"))?
            }
        };
        respondent.set_core(sched_getcpu().unwrap_or_default());
        debug_assert_eq!(respondent.decide(&question, Lifecycle::Ready), Reply::Pong);
        respondent.reply(&question, Reply::Pong);
        answered = question.sequence;
        if !pong.mode.spins() {
            parts.to_dispatcher.ring();
        }
    }
    Ok(())
}

/// A named pipe and nothing else: epoll_wait(2), then read(2).
struct Pipe<'a> {
    bell: &'a Doorbell,
    epoll: Epoll,
}

impl<'a> Pipe<'a> {
    fn watch(bell: &'a Doorbell) -> Result<Self, Failure> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        Ok(Self { bell, epoll })
    }

    fn read(&self, stop: Option<&Signal>) -> Result<(), Failure> {
        let patience = EpollTimeout::try_from(PATIENCE).unwrap_or(EpollTimeout::MAX);
        loop {
            match self.epoll.wait(&mut [EpollEvent::empty()], patience) {
                Ok(0) => return Err(failed("the other end does not answer")),
                Ok(_) => return nix::unistd::read(self.bell, &mut [0; 1]).map(drop).map_err(failed),
                Err(Errno::EINTR) => check(stop)?,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// Waits for a ring, or until this end is told to stop. The answering end is stopped by the asking one.
fn wait(bell: &Doorbell, stop: Option<&Signal>) -> Result<(), Failure> {
    loop {
        if bell.clear() {
            return Ok(());
        }
        check(stop)?;
        let bell = PollFd::new(bell.as_fd(), PollFlags::POLLIN);
        let stop = stop.map(|stop| PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = std::iter::once(bell).chain(stop).collect();
        let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, patience) {
            Ok(0) => return Err(failed("the other end does not answer")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn check(stop: Option<&Signal>) -> Result<(), Failure> {
    match stop.map_or(0, Signal::take) {
        0 => Ok(()),
        _ => Err(failed("interrupted")),
    }
}

fn spin_until(mut done: impl FnMut() -> bool, stop: Option<&Signal>) -> Result<(), Failure> {
    let mut rounds = 0u32;
    while !done() {
        std::hint::spin_loop();
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(1 << 20) {
            check(stop)?;
        }
        // Asking for the time at every turn would be what is measured.
        if rounds == 0 {
            return Err(failed("the other end does not answer"));
        }
    }
    Ok(())
}

/// Keeps a spinning end on a core of its own, where there are two; the set of cores before.
fn pin(mode: Mode, end: usize) -> Option<CpuSet> {
    if !mode.spins() {
        return None;
    }
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let core = (0..CpuSet::count()).filter(|core| before.is_set(*core).unwrap_or(false)).nth(end)?;
    let mut one = CpuSet::new();
    one.set(core).ok()?;
    sched_setaffinity(Pid::from_raw(0), &one).ok()?;
    Some(before)
}
