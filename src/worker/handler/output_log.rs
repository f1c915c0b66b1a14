//! What a program prints besides its responses, written to the log line by line: with the lease of the current request,
//! within a rate limit, and with control characters escaped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use super::log_rate_limit::{LINES_PER_SECOND, LineVerdict, REPORT_AFTER, RateLimit};
use crate::clock;
use crate::ids::WorkerId;
use crate::log::{Event, escape_control_chars};
use crate::{sync, sys};

/// Longer lines are truncated; in bytes, before escaping.
const MAX_LINE_BYTES: usize = 4096;
/// The size of a read, in bytes.
const READ_SIZE: usize = 4096;
/// How many lines are kept, and how much of each.
const LAST_LINES: usize = 5;
const LAST_LINE_CHARS: usize = 160;
/// The lease of the current request as text; `None` between requests.
pub(crate) type LeaseLabel = Option<Arc<str>>;

/// The log of one worker's handler.
#[derive(Debug)]
pub(crate) struct OutputLog {
    worker: WorkerId,
    budget: Mutex<LogBudget>,
    /// The last lines, oldest first, for the error of a program that cannot run.
    last_lines: Mutex<VecDeque<String>>,
}

/// How much the handler may still print, and the last suppressed line, which the report quotes: the last line is the
/// most likely to explain why a program died.
#[derive(Debug, Default)]
struct LogBudget {
    limit: RateLimit,
    last_suppressed: (LeaseLabel, String),
}

/// A stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputStream {
    /// Standard output, logged at level info.
    Stdout,
    /// Standard error, logged at level warn.
    Stderr,
}

impl OutputLog {
    pub(super) fn new(worker: WorkerId) -> Arc<Self> {
        Arc::new(Self { worker, budget: Mutex::default(), last_lines: Mutex::default() })
    }

    /// The worker of the handler.
    pub(super) fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The last lines that the handler has printed, oldest first.
    pub(super) fn last_lines(&self) -> Vec<String> {
        sync::lock(&self.last_lines).iter().cloned().collect()
    }

    /// The next lines are those of another process.
    pub(super) fn forget_lines(&self) {
        sync::lock(&self.last_lines).clear();
    }

    fn write_line(self: &Arc<Self>, stream: OutputStream, lease: &LeaseLabel, line: &str) {
        {
            let mut last_lines = sync::lock(&self.last_lines);
            if last_lines.len() == LAST_LINES {
                last_lines.pop_front();
            }
            last_lines.push_back(line.chars().take(LAST_LINE_CHARS).collect());
        }
        {
            let mut budget = sync::lock(&self.budget);
            let verdict = budget.limit.check(clock::now());
            if verdict == LineVerdict::SuppressFirst {
                let log = Arc::downgrade(self);
                tokio::spawn(async move {
                    sleep(REPORT_AFTER).await;
                    if let Some(log) = log.upgrade() {
                        log.report_suppressed();
                    }
                });
            }
            if verdict != LineVerdict::Write {
                budget.last_suppressed.0.clone_from(lease);
                budget.last_suppressed.1.clear();
                budget.last_suppressed.1.push_str(line);
                return;
            }
        }
        let worker = &self.worker;
        let lease = lease.as_deref();
        match stream {
            OutputStream::Stderr => tracing::warn!(%worker, lease, event = %Event::HandlerOutput, "{line}"),
            OutputStream::Stdout => tracing::info!(%worker, lease, event = %Event::HandlerOutput, "{line}"),
        }
    }

    /// Reports how many lines were suppressed, if any, and quotes the last of them.
    pub(super) fn report_suppressed(&self) {
        let (suppressed, (lease, last)) = {
            let mut budget = sync::lock(&self.budget);
            (budget.limit.take_suppressed(), std::mem::take(&mut budget.last_suppressed))
        };
        if suppressed > 0 {
            let (worker, lease, event) = (&self.worker, lease.as_deref(), Event::HandlerSuppressed);
            tracing::warn!(%worker, lease, suppressed, %event,
                "the handler prints more than {LINES_PER_SECOND} lines per second: {suppressed} lines were suppressed, \
                 the last of them: {last}");
        }
    }
}

/// A pipe that a program prints to.
#[derive(Debug)]
pub(crate) struct LogPipe {
    pipe: AsyncFd<OwnedFd>,
    log: Arc<OutputLog>,
    stream: OutputStream,
    state: Mutex<LogPipeState>,
}

#[derive(Debug, Default)]
struct LogPipeState {
    lines: LineSplitter,
    /// The lease of the current request.
    lease: LeaseLabel,
}

/// The result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PipeRead {
    Data,
    Empty,
    /// The last writer has closed the pipe.
    Eof,
}

impl LogPipe {
    /// Starts a task that logs what arrives in `pipe` until end of file. It never waits for a reader of the log, so no
    /// program waits for one.
    pub(super) fn start(
        pipe: OwnedFd,
        log: Arc<OutputLog>,
        stream: OutputStream,
        lease: LeaseLabel,
    ) -> io::Result<(Weak<Self>, JoinHandle<()>)> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let state = Mutex::new(LogPipeState { lines: LineSplitter::default(), lease });
        let log_pipe = Arc::new(Self { pipe: sys::when_readable(pipe)?, log, stream, state });
        let weak = Arc::downgrade(&log_pipe);
        let task = tokio::spawn(async move {
            while let Ok(mut ready) = log_pipe.pipe.readable().await {
                match log_pipe.read() {
                    // A program that prints without pause must not starve the other tasks.
                    PipeRead::Data => yield_now().await,
                    PipeRead::Empty => ready.clear_ready(),
                    PipeRead::Eof => break,
                }
            }
            log_pipe.flush();
        });
        Ok((weak, task))
    }

    /// Attributes what the program prints from now on to `lease`. What it has printed so far belongs to the previous
    /// one.
    pub(super) fn set_lease(&self, lease: LeaseLabel) {
        self.drain();
        sync::lock(&self.state).lease = lease;
    }

    /// Logs what is still in the pipe, after the last process that should write to it has ended.
    pub(super) fn close(&self) {
        self.drain();
        self.flush();
    }

    /// Logs what was written before this call. Directly from the pipe: tokio may not have seen its readiness yet.
    fn drain(&self) {
        // The pipe held at most its capacity before this call, however much is written meanwhile (pipe(7)).
        let capacity = fcntl(&self.pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |bytes| bytes.unsigned_abs() as usize);
        for _ in 0..capacity.div_ceil(READ_SIZE) {
            if self.read() != PipeRead::Data {
                break;
            }
        }
    }

    fn flush(&self) {
        let LogPipeState { lines, lease } = &mut *sync::lock(&self.state);
        lines.flush(lease, |line, lease| self.log.write_line(self.stream, lease, line));
    }

    fn read(&self) -> PipeRead {
        let mut buffer = [0; READ_SIZE];
        // Locked while reading, so that lines keep their order.
        let LogPipeState { lines, lease } = &mut *sync::lock(&self.state);
        match nix::unistd::read(&self.pipe, &mut buffer) {
            Ok(count @ 1..) => {
                lines.push(&buffer[..count], lease, |line, lease| self.log.write_line(self.stream, lease, line));
                PipeRead::Data
            }
            Err(Errno::EINTR) => PipeRead::Data,
            Err(Errno::EAGAIN) => PipeRead::Empty,
            Ok(0) | Err(_) => PipeRead::Eof,
        }
    }
}

/// What a program prints through its protocol instead of a pipe, as its standard error.
#[derive(Debug)]
pub(super) struct LogLines {
    log: Arc<OutputLog>,
    lines: LineSplitter,
}

impl LogLines {
    pub(super) fn new(log: Arc<OutputLog>) -> Self {
        Self { log, lines: LineSplitter::default() }
    }

    /// Logs the lines in `bytes`. An incomplete last line waits for its rest.
    pub(super) fn push(&mut self, bytes: &[u8], lease: &LeaseLabel) {
        self.lines.push(bytes, lease, |line, lease| self.log.write_line(OutputStream::Stderr, lease, line));
    }

    /// Logs an incomplete last line.
    pub(super) fn end_line(&mut self) {
        self.lines.flush(&None, |line, lease| self.log.write_line(OutputStream::Stderr, lease, line));
    }
}

/// Splits bytes into lines of at most [`MAX_LINE_BYTES`], each with the lease under which it started. Replaces what is
/// not UTF-8 and escapes control characters. Pure.
#[derive(Debug, Default)]
struct LineSplitter {
    line: Vec<u8>,
    lease: LeaseLabel,
}

impl LineSplitter {
    fn push(&mut self, bytes: &[u8], lease: &LeaseLabel, mut emit: impl FnMut(&str, &LeaseLabel)) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            if self.line.is_empty() {
                self.lease.clone_from(lease);
            }
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            // One byte more than fits marks the line as truncated.
            let capacity = (MAX_LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(capacity)]);
            if text.len() < piece.len() {
                self.end_line(&mut emit);
            }
        }
    }

    /// Emits an incomplete last line.
    fn flush(&mut self, lease: &LeaseLabel, mut emit: impl FnMut(&str, &LeaseLabel)) {
        if !self.line.is_empty() {
            self.end_line(&mut emit);
        }
        self.lease.clone_from(lease);
    }

    fn end_line(&mut self, emit: &mut impl FnMut(&str, &LeaseLabel)) {
        let truncated = self.line.len() > MAX_LINE_BYTES;
        self.line.truncate(MAX_LINE_BYTES);
        let line = String::from_utf8_lossy(self.line.strip_suffix(b"\r").unwrap_or(&self.line));
        let mut line = escape_control_chars(&line);
        if truncated {
            line.push_str(" [cut]");
        }
        emit(&line, &self.lease);
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_process::capture_log;
    use super::*;

    fn lease(text: &str) -> LeaseLabel {
        Some(text.into())
    }

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        pieces.iter().for_each(|piece| splitter.push(piece, &None, |line, _| lines.push(line.to_owned())));
        splitter.flush(&None, |line, _| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_joined_from_pieces_and_truncated() {
        assert_eq!(lines(&[b"a\nb", b"c\r\n", b"\n", b"rest"]), ["a", "bc", "", "rest"]);
        assert_eq!(lines(&[b"\xff\n"]), ["\u{fffd}"]);
        let long = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(lines(&[&long, b"\nshort\n"]), [String::from_utf8(long.clone()).unwrap(), "short".to_owned()]);
        let cut = lines(&[&long, &long, b"y\nshort"]);
        assert_eq!((cut.len(), cut[0].len(), cut[1].as_str()), (2, MAX_LINE_BYTES + " [cut]".len(), "short"));
    }

    #[tokio::test]
    async fn close_logs_everything_in_the_pipe() {
        let (log, _guard) = capture_log();
        let (pipe, end) = nix::unistd::pipe().unwrap();
        let (_, still_open) = (nix::unistd::write(&end, &b"x\n".repeat(32 << 10)), nix::unistd::dup(&end).unwrap());
        let output_log = OutputLog::new("default/1".parse().unwrap());
        let (log_pipe, task) = LogPipe::start(pipe, output_log.clone(), OutputStream::Stderr, lease("1.1")).unwrap();
        // The task has not run yet, and the pipe keeps a writer.
        log_pipe.upgrade().unwrap().close();
        task.abort();
        output_log.report_suppressed();
        let log = log.text();
        let written = log.lines().filter(|line| line.contains("output_log: x worker=default/1 lease=\"1.1\"")).count();
        assert!(log.contains(&format!("{} lines were suppressed", (32 << 10) - written)), "{written}: {log}");
        drop(still_open);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(lines(&[b"a\tb\x1b[2J\x07\x00\x7fc\rd\n"]), ["a\tb\\x1b[2J\\x07\\x00\\x7fc\\x0dd"]);
        assert_eq!(lines(&["\u{9b}1m \u{202e}txt.exe \u{e9}\n".as_bytes()]), ["\\u{9b}1m \\u{202e}txt.exe \u{e9}"]);
    }

    #[test]
    fn line_has_the_lease_under_which_it_started() {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        let mut push = |bytes: &[u8], current: &LeaseLabel| {
            splitter.push(bytes, current, |line, lease| lines.push((line.to_owned(), lease.clone())));
        };
        push(b"before\nstarted ", &None);
        push(b"before\nwithin\nstill ", &lease("1.1"));
        push(b"within\nafter\n", &None);
        let line = |text: &str, lease: LeaseLabel| (text.to_owned(), lease);
        assert_eq!(
            lines,
            [
                line("before", None),
                line("started before", None),
                line("within", lease("1.1")),
                line("still within", lease("1.1")),
                line("after", None),
            ]
        );
    }
}
