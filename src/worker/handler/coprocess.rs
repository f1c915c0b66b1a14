//! The handler `coprocess`: one warm process per worker.
//!
//! It reads requests on descriptor 3 and writes responses on descriptor 4 (see [`super::framing`]), one after
//! the other. Whoever has the [`IdleProcess`] process has the right to speak with it: it lies in its place between
//! requests, a request takes it away, and puts it back only when request and response were both
//! complete. So a cancelled request, whose exchange is simply dropped, leaves an empty place, and
//! [`Coprocess::end`] knows that what was there has lost step and must go.

mod exchange;
mod restart;

use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use http::StatusCode;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use tokio::net::unix::pipe::Sender;
use tokio::time::{Instant, sleep_until, timeout};

use super::Failure;
use super::cgi_response::{Event, Output};
use super::child::{Child, Program, StartError};
use super::output_log::{Lease, OutputLog, Relay, Stream};
use crate::ids::WorkerId;
use crate::log::Event as Mark;
use crate::process_tree;
use crate::procfs::ProcessStat;
use crate::sync;
use exchange::{Feed, FeedError};
use restart::Restart;

/// Where the co-process reads requests.
const REQUESTS: i32 = 3;
/// Where it writes responses.
const RESPONSES: i32 = 4;
/// How long a co-process that is let go may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(1);
/// What is wrong with a process whose descriptor 3 cannot be written.
const DEAF: &str = "closed its descriptor for requests";
/// Tells a co-process and its descendants from those of its successor.
const MARK: &str = "PATOU_COPROCESS";

/// The handler: a program and its one process.
#[derive(Debug)]
pub struct Coprocess {
    program: Program,
    voice: Arc<OutputLog>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// The process in the place or on its way back to it.
    pid: Option<Pid>,
    generation: u64,
    restart: Restart,
    /// The request in hand.
    lease: Lease,
    /// What still reads the streams of a process.
    relays: Vec<Weak<Relay>>,
}

/// Where the process is between requests.
#[derive(Debug)]
enum Place {
    /// Here, in step.
    IdleProcess(IdleProcess),
    /// Here, but with a rest of the last request still to be written, in so much time at most.
    Fed(IdleProcess, Feed, Duration),
    /// Out on a request, or lost.
    Empty,
}

/// A running process that waits for a request.
#[derive(Debug)]
struct IdleProcess {
    /// The process and its descriptor 4.
    output: Output,
    /// Its descriptor 3; away while a request is written.
    requests: Option<Sender>,
    started: Instant,
    generation: u64,
}

impl Coprocess {
    /// Starts the process.
    pub(super) fn start(program: Program, worker: WorkerId) -> Result<Arc<Self>, StartError> {
        let (place, restart) = (Place::Empty, Restart::default());
        let state = State { place, pid: None, generation: 0, restart, lease: None, relays: Vec::new() };
        let coprocess = Self { program, voice: OutputLog::new(worker), state: Mutex::new(state) };
        let warm = coprocess.spawn()?;
        coprocess.put(Place::IdleProcess(warm));
        Ok(Arc::new(coprocess))
    }

    /// After a request: finishes feeding what the co-process did not wait for, or replaces it.
    pub(super) async fn end(&self) {
        self.settle().await;
        self.turn_to(None);
    }

    /// The process speaks under this lease from now on, and what it has printed so far was under the one before.
    fn turn_to(&self, lease: Lease) {
        let relays = {
            let mut state = self.lock();
            state.lease.clone_from(&lease);
            state.relays.retain(|relay| relay.strong_count() > 0);
            state.relays.clone()
        };
        relays.iter().filter_map(Weak::upgrade).for_each(|relay| relay.turn_to(lease.clone()));
    }

    async fn settle(&self) {
        let warm = match self.take() {
            Place::IdleProcess(warm) => Some(warm),
            Place::Fed(mut warm, mut feed, patience) => match timeout(patience, feed.outcome()).await {
                Ok(Ok(requests)) => {
                    warm.requests = Some(requests);
                    Some(warm)
                }
                Ok(Err(FeedError::Deaf)) => {
                    self.fault(&warm, &DEAF);
                    None
                }
                // It answered without reading everything, and the rest does not come: not its fault.
                Ok(Err(FeedError::Client(_))) | Err(_) => None,
            },
            Place::Empty => None,
        };
        if let Some(warm) = warm.and_then(|warm| self.sound(warm)) {
            let pid = warm.output.child.pid();
            self.put(Place::IdleProcess(warm));
            return process_tree::reap_orphans(pid);
        }
        match self.renew().await {
            Ok(warm) => self.put(Place::IdleProcess(warm)),
            Err(error) => {
                tracing::error!(worker = %self.voice.worker(), event = %Mark::HandlerUnavailable, "{error}");
            }
        }
    }

    /// Clears away what a failed request has left, and leaves the start of the next process to [`Self::end`].
    pub(super) async fn clear(&self) {
        if matches!(self.lock().place, Place::Empty) {
            self.kill(|_| true).await;
        }
    }

    /// Replaces a process that dies between requests. Never returns.
    pub(super) async fn watch(&self) {
        loop {
            let gone = match &self.lock().place {
                Place::IdleProcess(warm) => Some(warm.output.child.gone()),
                Place::Fed(..) | Place::Empty => None,
            };
            if let Some(gone) = gone {
                gone.await;
            }
            self.end().await;
        }
    }

    /// First the successor, then the farewell.
    pub(super) async fn recycle(&self) -> Result<(), StartError> {
        // Settles what the last request left, so that the old one is in step or already new.
        self.end().await;
        let successor = self.spawn()?;
        let new = successor.output.child.pid();
        if let Place::IdleProcess(old) = self.swap(Place::IdleProcess(successor)) {
            let (pid, generation) = (old.output.child.pid(), old.generation);
            farewell(old).await;
            let its =
                move |p: &ProcessStat| p.pid == pid || p.pid != new && (p.is_zombie() || marked(p.pid, generation));
            self.kill(its).await;
        }
        Ok(())
    }

    /// Resident bytes of the process and its descendants.
    pub(super) fn memory(&self) -> Option<u64> {
        let pid = self.lock().pid?;
        process_tree::resident(pid)
    }

    /// Lets the process go and leaves nothing.
    pub(super) async fn stop(&self) {
        if let Place::IdleProcess(warm) = self.take() {
            farewell(warm).await;
        }
        self.kill(|_| true).await;
        self.lock().pid = None;
        self.turn_to(None);
        self.voice.confess();
    }

    /// The process for a request: the warm one, or a new one if that is lost.
    async fn ready(&self) -> Result<IdleProcess, Failure> {
        if let Place::IdleProcess(warm) = self.take()
            && let Some(warm) = self.sound(warm)
        {
            return Ok(warm);
        }
        let failed = |error: StartError| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        self.renew().await.map_err(|error| failed(error).not_started())
    }

    /// The process if it is alive and in step; otherwise records that it is not.
    fn sound(&self, mut warm: IdleProcess) -> Option<IdleProcess> {
        let state = if warm.requests.is_some() { warm.output.quiet() } else { Err(DEAF.to_owned()) };
        match state {
            Ok(()) => Some(warm),
            Err(why) => {
                self.fault(&warm, &why);
                None
            }
        }
    }

    /// The co-process died or broke the framing: says so and has the restart wait if it keeps doing that.
    fn fault(&self, warm: &IdleProcess, why: &dyn std::fmt::Display) {
        let (worker, pid) = (self.voice.worker(), warm.output.child.pid().as_raw());
        let lease = self.lock().lease.clone();
        tracing::warn!(%worker, lease = lease.as_deref(), pid, event = %Mark::HandlerFault,
            "the co-process `{}` {why}", self.program.name());
        self.lock().restart.fault(Instant::now(), warm.started);
    }

    /// Kills what is left of the last process and starts another, after the delay it has earned.
    async fn renew(&self) -> Result<IdleProcess, StartError> {
        self.kill(|_| true).await;
        let not_before = self.lock().restart.not_before();
        if let Some(not_before) = not_before {
            sleep_until(not_before).await;
        }
        self.spawn().inspect_err(|_| {
            let now = Instant::now();
            self.lock().restart.fault(now, now);
        })
    }

    fn spawn(&self) -> Result<IdleProcess, StartError> {
        let generation = {
            let mut state = self.lock();
            state.generation += 1;
            state.generation
        };
        let warm = self.process(generation).map_err(|e| StartError::Spawn(self.program.name().to_owned(), e))?;
        self.lock().pid = Some(warm.output.child.pid());
        Ok(warm)
    }

    fn process(&self, generation: u64) -> io::Result<IdleProcess> {
        let (requests, our_requests) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_responses, responses) = pipe2(OFlag::O_CLOEXEC)?;
        let mut command = self.program.command(vec![(requests, REQUESTS), (responses, RESPONSES)])?;
        command.env("PATOU_WORKER", self.voice.worker().to_string()).env(MARK, generation.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let requests = Some(Sender::from_owned_fd(our_requests)?);
        let mut child = Child::spawn(&mut command)?;
        let [_, stdout, stderr] = child.pipes();
        let lease = self.lock().lease.clone();
        for (pipe, stream) in [(stdout, Stream::Output), (stderr, Stream::Errors)] {
            if let Some(pipe) = pipe {
                // The task ends by itself, with the last process that holds the pipe.
                let (relay, _) = Relay::start(pipe, self.voice.clone(), stream, lease.clone())?;
                self.lock().relays.push(relay);
            }
        }
        Ok(IdleProcess { output: Output::new(child, our_responses)?, requests, started: Instant::now(), generation })
    }

    async fn kill(&self, chosen: impl Fn(&ProcessStat) -> bool) {
        if let Err(survivors) = process_tree::kill(chosen).await {
            tracing::error!(worker = %self.voice.worker(), event = %Mark::ProcessSurvived, "{survivors}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }

    fn swap(&self, place: Place) -> Place {
        std::mem::replace(&mut self.lock().place, place)
    }

    fn take(&self) -> Place {
        self.swap(Place::Empty)
    }

    fn put(&self, place: Place) {
        drop(self.swap(place));
    }
}

/// Closes descriptor 3, which says "no more requests", and waits for the end, for a while.
async fn farewell(warm: IdleProcess) {
    let IdleProcess { mut output, requests, .. } = warm;
    drop(requests);
    // Reads on, lest it hangs on a full pipe.
    let end = async { while !matches!(output.next().await, Event::Ended(_)) {} };
    let _ = timeout(FAREWELL, end).await;
}

/// Whether a process was started by the co-process of this generation, as its environment says. One that
/// cleared its environment is not recognised; it goes with the next kill of all.
fn marked(pid: Pid, generation: u64) -> bool {
    let mark = format!("{MARK}={generation}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|&b| b == 0).any(|v| v == mark.as_bytes()))
}

#[cfg(test)]
mod tests;
