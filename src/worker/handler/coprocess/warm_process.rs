//! One process of a co-process handler.

use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use tokio::net::unix::pipe::Sender;
use tokio::time::{Instant, timeout};

use super::super::child::{HandlerProcess, HandlerProgram};
use super::super::output_log::{LeaseLabel, LogPipe, OutputLog, OutputStream};
use super::super::response_reader::{NotIdle, ReaderEvent, ResponseReader};

/// The descriptor from which a co-process reads requests.
const REQUESTS_FD: i32 = 3;
/// The descriptor to which it writes responses.
const RESPONSES_FD: i32 = 4;
/// How long a co-process may take to exit after its descriptor 3 has been closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The variable that distinguishes a co-process and its descendants from those of its successor.
const GENERATION_VARIABLE: &str = "PATOU_COPROCESS";
/// Faults of a co-process, for the log and the client.
pub(super) const REQUESTS_CLOSED: &str = "it closed descriptor 3 (requests)";
pub(super) const RESPONSES_CLOSED: &str = "it closed descriptor 4 (responses)";

/// A running process.
#[derive(Debug)]
pub(super) struct WarmProcess {
    /// The process and our end of its descriptor 4.
    pub reader: ResponseReader,
    /// Our end of its descriptor 3; `None` while a request is being written.
    pub requests: Option<Sender>,
    pub started: Instant,
    pub generation: u64,
}

impl WarmProcess {
    /// Starts a process, and logs what it prints with `lease`.
    pub(super) fn spawn(
        program: &HandlerProgram,
        generation: u64,
        log: &Arc<OutputLog>,
        lease: &LeaseLabel,
    ) -> io::Result<(Self, Vec<Weak<LogPipe>>)> {
        let (requests, our_requests) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_responses, responses) = pipe2(OFlag::O_CLOEXEC)?;
        let mut command = program.command(vec![(requests, REQUESTS_FD), (responses, RESPONSES_FD)])?;
        command.env("PATOU_WORKER", log.worker().to_string()).env(GENERATION_VARIABLE, generation.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let requests = Some(Sender::from_owned_fd(our_requests)?);
        let mut child = HandlerProcess::spawn(&mut command)?;
        let [_, stdout, stderr] = child.pipes();
        let mut log_pipes = Vec::new();
        for (pipe, stream) in [(stdout, OutputStream::Stdout), (stderr, OutputStream::Stderr)] {
            if let Some(pipe) = pipe {
                // The task ends when the last process closes the pipe.
                let (log_pipe, _) = LogPipe::start(pipe, log.clone(), stream, lease.clone())?;
                log_pipes.push(log_pipe);
            }
        }
        let reader = ResponseReader::new(child, our_responses)?;
        Ok((Self { reader, requests, started: Instant::now(), generation }, log_pipes))
    }

    pub(super) fn pid(&self) -> Pid {
        self.reader.child.pid()
    }

    /// Checks that the process can take a request; the reason if not.
    pub(super) fn check_idle(&mut self) -> Result<(), String> {
        if self.requests.is_none() {
            return Err(REQUESTS_CLOSED.to_owned());
        }
        self.reader.check_idle().map_err(|fault| match fault {
            NotIdle::Exited(exit) => format!("it {exit}"),
            NotIdle::PipeClosed => RESPONSES_CLOSED.to_owned(),
            NotIdle::UnexpectedData => "it wrote more than its Content-Length, or without a request".to_owned(),
        })
    }

    /// Closes descriptor 3, which means that there are no more requests, and waits for the exit until
    /// [`EXIT_TIMEOUT`].
    pub(super) async fn close_and_wait(self) {
        let Self { mut reader, requests, .. } = self;
        drop(requests);
        // Reads on, so that the process cannot block on a full pipe.
        let exit = async { while !matches!(reader.next().await, ReaderEvent::Exited(_)) {} };
        let _ = timeout(EXIT_TIMEOUT, exit).await;
    }
}

/// Whether the co-process of this generation has started the process, according to its environment. A process that has
/// cleared its environment is not recognised; the next kill of all processes ends it.
pub(super) fn belongs_to_generation(pid: Pid, generation: u64) -> bool {
    let variable = format!("{GENERATION_VARIABLE}={generation}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|&b| b == 0).any(|v| v == variable.as_bytes()))
}
