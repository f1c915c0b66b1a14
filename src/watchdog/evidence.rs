//! Why a process is about to be killed, for whoever asks afterwards: what it was doing, what it held, and how the
//! machine was.
//!
//! The kill does not wait for its evidence: a file in `/proc` of a process that is stuck may take for ever to read.
//! So a thread gathers, and after a bound the record is made of what is there.

mod format;
mod gather;

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::plan::Part;
use crate::clock;
use crate::exchange::RequestNote;
use crate::ids::{Claim, Epoch, Monotonic};
use crate::log::Event;
pub use gather::{ProcessScope, Target};

/// How long a kill may wait for its evidence. It takes a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same soon after a wait that was in vain: many may freeze at once, for one reason.
const IMPATIENCE: Duration = Duration::from_millis(10);
/// How long that is remembered, and how late this process was itself.
const MEMORY: Duration = Duration::from_secs(60);

/// After what was cut.
const CUT: &str = " [cut]";

/// What was seen of a process in the moment before its end. What is missing could not be read, or not in time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Evidence {
    /// How long it has been running.
    age: Option<Duration>,
    /// The first of its threads.
    threads: Vec<Thread>,
    /// How many it has.
    thread_count: usize,
    /// The first of the processes it has started.
    children: Vec<Child>,
    /// How many there are.
    child_count: usize,
    /// What the kernel keeps from this user.
    denied: Vec<&'static str>,
    held: Option<Held>,
    machine: Machine,
    /// Some of it was not read in time.
    cut_short: bool,
}

/// One thread, as `/proc/PID/task/TID` shows it (proc(5)).
#[derive(Clone, Debug, Default, PartialEq)]
struct Thread {
    name: String,
    state: Option<char>,
    /// The function of the kernel that it sleeps in.
    wchan: Option<String>,
    /// The number of the system call that it is in.
    syscall: Option<i64>,
    /// Functions of the kernel, the innermost first.
    stack: Vec<String>,
    /// How long it has run on a processor, and waited for one.
    run: Option<(Duration, Duration)>,
}

/// A process that the accused has started.
#[derive(Clone, Debug, Default, PartialEq)]
struct Child {
    pid: u32,
    state: Option<char>,
    /// The name of its program.
    name: String,
    /// Its command line, where that can be read.
    command: Option<String>,
    age: Option<Duration>,
}

/// What the accused had in its hands.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    /// A worker's slot.
    Slot {
        epoch: Option<Epoch>,
        /// `None`: the claim word holds what no honest writer writes.
        claim: Option<Claim>,
        request: Option<RequestNote>,
    },
    /// A dispatcher's clients: as it said last, and as the slots say.
    Clients { queue: Option<Queue>, leases: usize },
}

/// Who waits for a worker, as the dispatcher has said.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Queue {
    clients: usize,
    /// How long the first of them had waited.
    oldest: Duration,
    at: Monotonic,
}

/// How the machine was.
#[derive(Clone, Debug, Default, PartialEq)]
struct Machine {
    /// Processes that ran or wanted to, over 1, 5 and 15 minutes.
    load: Option<String>,
    /// Percent of the last ten seconds in which somebody waited for a processor, for memory, for a disk.
    pressure: [Option<f64>; 3],
    /// Bytes of memory that can be had, and that there are.
    memory: Option<(u64, u64)>,
    /// The longest that this process ran late, within [`MEMORY`].
    late: Duration,
}

/// Makes the records.
#[derive(Debug, Default)]
pub struct EvidenceRecorder {
    /// When this process was late, and how late: what a later one exceeds is left out.
    late: VecDeque<(Monotonic, Duration)>,
    in_vain: Option<Monotonic>,
}

impl EvidenceRecorder {
    /// This process ran so late.
    pub fn was_late(&mut self, now: Monotonic, late: Duration) {
        while self.late.back().is_some_and(|(_, before)| *before <= late) {
            self.late.pop_back();
        }
        while self.late.front().is_some_and(|(at, _)| now.since(*at) >= MEMORY) {
            self.late.pop_front();
        }
        self.late.push_back((now, late));
    }

    fn latest(&self, now: Monotonic) -> Duration {
        let recent = self.late.iter().find(|(at, _)| now.since(*at) < MEMORY);
        recent.map(|(_, late)| *late).unwrap_or_default()
    }

    /// One record, made before the kill.
    pub fn record(&mut self, part: &Part, why: &str, subject: Option<Target>) {
        let worker = part.worker().map(tracing::field::display);
        let Some(subject) = subject else {
            return tracing::error!(worker, %part, event = %Event::PartKilled, "{part} {why}: killing it");
        };
        let now = clock::now();
        let vain = self.in_vain.is_some_and(|at| now.since(at) < MEMORY);
        let pid = subject.pid;
        let mut evidence = within(if vain { IMPATIENCE } else { PATIENCE }, move |seen| gather::look(subject, seen));
        if evidence.cut_short {
            self.in_vain = Some(now);
        }
        evidence.machine.late = self.latest(now);
        let (held, machine) = (evidence.held.as_ref(), &evidence.machine);
        let (epoch, lease, phase, request) = match held {
            Some(Held::Slot { epoch, claim: Some(Claim::Held(lease, phase)), request }) => {
                (*epoch, Some(*lease), Some(format::phase(*phase)), request.as_ref())
            }
            Some(Held::Slot { epoch, .. }) => (*epoch, None, None, None),
            _ => (None, None, None, None),
        };
        let (queue, leases) = match held {
            Some(Held::Clients { queue, leases }) => (*queue, Some(*leases)),
            _ => (None, None),
        };
        let main = evidence.threads.first();
        let [cpu, memory, io] = machine.pressure;
        tracing::error!(
            worker,
            epoch = epoch.map(tracing::field::display),
            lease = lease.map(tracing::field::display),
            pid,
            why,
            state = main.and_then(|thread| thread.state).map(format::state),
            threads = evidence.thread_count,
            wchan = main.and_then(|thread| thread.wchan.as_deref()),
            doing = format::threads(&evidence),
            children = format::children(&evidence),
            phase,
            claim_age_ms = request.map(|request| now.since(request.claimed_at).as_millis() as u64),
            request = request.map(|request| format::text(&request.text)),
            queue = queue.map(|queue| queue.clients),
            leases,
            load = machine.load.as_deref(),
            pressure_cpu = cpu,
            pressure_memory = memory,
            pressure_io = io,
            memory_available = machine.memory.map(|(available, _)| available),
            late_ms = machine.late.as_millis() as u64,
            %part,
            event = %Event::PartKilled,
            "{part} {why}: killing it\n{}",
            format::story(pid, &evidence, now)
        );
    }
}

/// What `look` has seen when it is through, or when this time is over. It goes on then, for nobody.
fn within(patience: Duration, look: impl FnOnce(&Mutex<Evidence>) + Send + 'static) -> Evidence {
    let seen = Arc::new(Mutex::new(Evidence::default()));
    let (through, end) = channel::<()>();
    let theirs = seen.clone();
    let thread = std::thread::Builder::new().name("evidence".into()).spawn(move || {
        look(&theirs);
        drop(through);
    });
    let whole = thread.is_ok() && end.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected);
    let mut evidence = locked(&seen).clone();
    evidence.cut_short = !whole;
    evidence
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
