//! The faults themselves: signals, slots, bells, hogs. Each is bounded, and undone where it does not undo itself.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, write};

use super::bad_clients;
use super::checker::Breach;
use super::generator::{Fault, Kind, Part, Random, Target};
use super::set::{self, LOOK, Set};
use super::traffic::Traffic;
use super::watch::held;
use crate::clock;
use crate::exchange::LINES;
use crate::ipc;
use crate::probe::{self, ProbeCommand};
use crate::{signals, sys};

/// How long the dispatcher may take to take an order.
const PATIENCE: Duration = Duration::from_secs(1);

/// Carries faults out.
pub struct Injector<'a> {
    pub traffic: &'a Traffic<'a>,
    /// Processes that were stopped: continued in the end, should they still be there.
    stopped: Mutex<Vec<OwnedFd>>,
    /// SIGINT or SIGTERM has come.
    pub stop: signals::SignalFlag,
    /// What was found to be wrong on the way.
    pub complaints: Mutex<Vec<Breach>>,
}

impl<'a> Injector<'a> {
    pub fn new(traffic: &'a Traffic<'a>, stop: signals::SignalFlag) -> Self {
        Self { traffic, stopped: Mutex::default(), stop, complaints: Mutex::default() }
    }

    pub fn complain(&self, promise: &'static str, what: String) {
        held(&self.complaints).push(Breach { promise, what, story: Vec::new() });
    }

    /// Sleeps, but not past a signal to stop.
    pub fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.stop.is_set() {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
    }

    /// Whose process a fault may harm.
    pub fn part_of(target: Target) -> Option<Part> {
        match target {
            Target::Part(part) => Some(part),
            Target::Slot(worker) => Some(Part::Worker(worker)),
            Target::Door(_) | Target::Machine => None,
        }
    }

    /// Injects one fault now. What takes longer goes on in a thread of `scope`.
    ///
    /// # Errors
    /// When it cannot be done, in words: then nothing was.
    pub fn inject<'s>(&'s self, set: &mut Set, fault: &Fault, scope: &'s Scope<'s, '_>) -> Result<(), String> {
        let (watch, settle) = (self.traffic.watch, set.settle());
        let strike = || watch.tracker().strike(clock::now(), fault, Self::part_of(fault.target));
        let relax = move |index| watch.tracker().relax(clock::now(), index, settle);
        match (fault.kind, fault.target) {
            (Kind::Kill, Target::Part(Part::Watchdog)) if set.keeper == super::generator::Keeper::Own => {
                strike();
                return self.end_watchdog(set, fault);
            }
            (Kind::Restart, Target::Part(part)) => {
                let unit = set::unit(set, part);
                strike();
                systemctl(&unit)?;
            }
            (Kind::Pause, Target::Part(part)) => self.pause(set, fault, part, strike())?,
            (Kind::Reload, Target::Part(part)) => {
                let process = self.process(part)?;
                let index = strike();
                send(&process, Signal::SIGHUP)?;
                relax(index);
            }
            (Kind::Drain, Target::Part(Part::Worker(worker))) => {
                let (id, socket) = (set.workers[worker].clone(), set.dir().join("probe.sock"));
                let (index, time) = (strike(), fault.amount);
                scope.spawn(move || {
                    let ordered = probe::ask(&socket, Some(ProbeCommand::Drain(id.clone())), PATIENCE).is_ok();
                    self.sleep(time);
                    let give_up = Instant::now() + Duration::from_secs(20);
                    // A dispatcher that is away has to be asked again: a worker must not stay out of service.
                    while probe::ask(&socket, Some(ProbeCommand::Resume(id.clone())), PATIENCE).is_err()
                        && Instant::now() < give_up
                    {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    if !ordered {
                        watch.tracker().excuse(index, "the dispatcher took no order");
                    }
                    relax(index);
                });
            }
            (kind, Target::Part(part)) => {
                let process = self.process(part)?;
                strike();
                send(&process, signal_of(kind))?;
                if kind == Kind::Freeze {
                    let mut stopped = held(&self.stopped);
                    stopped.retain(|process| !has_ended(process));
                    stopped.push(process);
                }
            }
            (kind, Target::Slot(worker)) => {
                let index = strike();
                self.spoil(set, kind, worker, fault)?;
                match kind {
                    // An answer that is overwritten before it is read is missed by a worker whose control loop turns,
                    // and that has four bounds.
                    Kind::Scribble => {
                        let settle = settle + set.config.watchdog.worker_timeout * 3;
                        watch.tracker().relax(clock::now(), index, settle);
                    }
                    _ => relax(index),
                }
            }
            (_, Target::Door(door)) => {
                let (fault, index) = (fault.clone(), strike());
                scope.spawn(move || {
                    bad_clients::run(self.traffic, &fault, door);
                    watch.tracker().relax(clock::now(), index, Duration::ZERO);
                });
            }
            (_, Target::Machine) => {
                let index = strike();
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let hogs = cores * (1 + Random::new(fault.seed).below(4) as usize);
                let time = fault.amount;
                scope.spawn(move || {
                    let hogs: Vec<_> = (0..hogs).filter_map(|_| hog(time).ok()).collect();
                    self.sleep(time);
                    for mut hog in hogs {
                        let _ = hog.kill().and_then(|()| hog.wait()); // it may have ended by itself
                    }
                    // Who was starved catches up.
                    relax(index);
                });
            }
        }
        Ok(())
    }

    /// The process of a part, which cannot be another one that got its number.
    fn process(&self, part: Part) -> Result<OwnedFd, String> {
        let (pid, started) = self.traffic.watch.identity(part).ok_or("it has no process")?;
        // The descriptor is opened before the identity is checked: it cannot become another process then.
        let process = sys::pidfd_open(Pid::from_raw(pid as i32)).map_err(|error| format!("pid {pid}: {error}"))?;
        set::is_still(pid, started).then_some(process).ok_or_else(|| "it has just ended".into())
    }

    fn pause(&self, set: &Set, fault: &Fault, part: Part, index: usize) -> Result<(), String> {
        let watch = self.traffic.watch;
        let process = self.process(part).inspect_err(|_| watch.tracker().excuse(index, "it had no process"))?;
        let bound = match part {
            Part::Worker(_) => set.config.watchdog.worker_timeout,
            Part::Dispatcher => set.config.watchdog.dispatcher_timeout,
            Part::Watchdog => Duration::MAX,
        };
        let before = Instant::now();
        send(&process, Signal::SIGSTOP)?;
        std::thread::sleep(fault.amount);
        let _ = send(&process, Signal::SIGCONT); // killed meanwhile: the judge is told
        // It may have been silent before, and needs a moment to answer after.
        if before.elapsed() > bound.mul_f64(0.75) {
            watch.tracker().excuse(index, "the drill itself was late with SIGCONT");
        }
        watch.tracker().relax(clock::now(), index, set.settle());
        Ok(())
    }

    /// kill -9 of the watchdog of the drill's own set, and another `patou run` - now, or when all have left.
    fn end_watchdog(&self, set: &mut Set, fault: &Fault) -> Result<(), String> {
        let watch = self.traffic.watch;
        let frozen: Vec<u32> = set.processes().into_iter().filter(|pid| is_stopped(*pid)).collect();
        set.kill_watchdog().map_err(|_| "the watchdog cannot be killed")?;
        watch.tracker().sweep(clock::now());
        if fault.seed & 1 == 0 {
            let give_up = Instant::now() + set.bounds().leave;
            let left = || set.processes().into_iter().filter(|pid| !frozen.contains(pid)).collect::<Vec<_>>();
            while !left().is_empty() && Instant::now() < give_up {
                std::thread::sleep(LOOK * 5);
            }
            let left = left();
            if !left.is_empty() {
                let what = format!("fault {}: {left:?} did not leave when their watchdog was killed", fault.number);
                self.complain("P6", what);
            }
        }
        set.start_again().map_err(|_| "patou run cannot be started again")?;
        if !set.wait_until_up(set.bounds().watchdog) {
            return Err(format!("patou run does not come up again: {}", set.log_fatal()));
        }
        Ok(())
    }

    fn spoil(&self, set: &Set, kind: Kind, worker: usize, fault: &Fault) -> Result<(), String> {
        let id = &set.workers[worker];
        let told = |error: &dyn std::fmt::Display| format!("{id}: {error}");
        let mut random = Random::new(fault.seed);
        if matches!(kind, Kind::FillBells | Kind::EmptyBells) {
            let parts = ipc::open_unchecked(&set.config, id).map_err(|e| told(&e))?;
            for bell in [&parts.to_worker, &parts.to_dispatcher] {
                match kind {
                    Kind::FillBells => while write(bell, &[1; 4096]).is_ok() {},
                    _ => while bell.clear() {},
                }
            }
            return Ok(());
        }
        let name = ipc::segment_name(set.dir(), id).map_err(|e| told(&e))?;
        let path = std::path::Path::new("/dev/shm").join(name.trim_start_matches('/'));
        let file = File::options().read(true).write(true).open(path).map_err(|e| told(&e))?;
        let size = file.metadata().map_err(|e| told(&e))?.len();
        match kind {
            Kind::Cut => file.set_len(0).map_err(|e| told(&e))?,
            Kind::CutAndMend => {
                file.set_len(0).map_err(|e| told(&e))?;
                std::thread::sleep(fault.amount);
                file.set_len(size).map_err(|e| told(&e))?;
            }
            _ => {
                // The header is line 0 of the file, the slot begins behind it.
                let line = random.below(LINES as u64 + 1);
                for _ in 0..1 + random.below(8) {
                    let value = match random.below(4) {
                        0 => 0,
                        1 => u64::MAX,
                        2 => random.below(256),
                        _ => random.next(),
                    };
                    let at = line * 64 + random.below(8) * 8;
                    file.write_all_at(&value.to_ne_bytes(), at.min(size - 8)).map_err(|e| told(&e))?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        for process in held(&self.stopped).drain(..) {
            let _ = send(&process, Signal::SIGCONT); // most have been replaced long ago
        }
    }
}

fn signal_of(kind: Kind) -> Signal {
    match kind {
        Kind::Freeze => Signal::SIGSTOP,
        Kind::Abort => Signal::SIGABRT,
        Kind::Crash => Signal::SIGILL,
        Kind::Leave => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    }
}

fn send(process: &OwnedFd, signal: Signal) -> Result<(), String> {
    sys::pidfd_send_signal(process.as_fd(), signal).map_err(|error| format!("{signal}: {error}"))
}

/// A descriptor of a process is readable when that has ended (pidfd_open(2)).
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn is_stopped(pid: u32) -> bool {
    crate::process_tree::read_process(pid).is_some_and(|process| process.stopped)
}

fn systemctl(unit: &str) -> Result<(), String> {
    let output = Command::new("systemctl").args(["restart", "--no-block", unit]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("systemctl: {error}"))?;
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// A process that keeps a core busy. It ends by itself, and with the thread that started it.
fn hog(time: Duration) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["record", "--spin", &format!("{}ms", time.as_millis())]).stdin(Stdio::null());
    sys::die_with_parent(&mut command);
    command.spawn()
}
