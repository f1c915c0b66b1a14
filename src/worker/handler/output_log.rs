//! What a program says besides its answer, line by line into the log: with the lease it speaks under, within
//! its share of the log, and in characters that do nothing to a terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use super::log_rate_limit::{REPORT, RateLimit, Verdict};
use crate::clock;
use crate::ids::WorkerId;
use crate::log::{Event, escape_control_chars};
use crate::sync;
use crate::sys;

/// Longer lines are cut, in bytes as they came.
const LINE: usize = 4096;
/// Read at once, in bytes.
const CHUNK: usize = 4096;
/// A lease as text; none where no request is in hand.
pub type Lease = Option<Arc<str>>;

/// Everything that one worker's handler prints.
#[derive(Debug)]
pub struct OutputLog {
    worker: WorkerId,
    share: Mutex<Share>,
}

/// What it may still say, and the last line that it might not: where one is worth having, it is that.
#[derive(Debug, Default)]
struct Share {
    quota: RateLimit,
    last: (Lease, String),
}

/// Which of a program's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, at level info.
    Output,
    /// Standard error, at level warn.
    Errors,
}

impl OutputLog {
    pub fn new(worker: WorkerId) -> Arc<Self> {
        Arc::new(Self { worker, share: Mutex::default() })
    }

    /// Whose it is.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    fn say(self: &Arc<Self>, stream: Stream, lease: &Lease, line: &str) {
        {
            let mut share = sync::lock(&self.share);
            let verdict = share.quota.admit(clock::now());
            if verdict == Verdict::First {
                let voice = Arc::downgrade(self);
                tokio::spawn(async move {
                    sleep(REPORT).await;
                    voice.upgrade().iter().for_each(|voice| voice.confess());
                });
            }
            if verdict != Verdict::Say {
                share.last.0.clone_from(lease);
                share.last.1.clear();
                share.last.1.push_str(line);
                return;
            }
        }
        let worker = &self.worker;
        let lease = lease.as_deref();
        match stream {
            Stream::Errors => tracing::warn!(%worker, lease, event = %Event::HandlerOutput, "{line}"),
            Stream::Output => tracing::info!(%worker, lease, event = %Event::HandlerOutput, "{line}"),
        }
    }

    /// Says how many lines were left out, if any were, and which was the last of them.
    pub fn confess(&self) {
        let (suppressed, (lease, last)) = {
            let mut share = sync::lock(&self.share);
            (share.quota.report(), std::mem::take(&mut share.last))
        };
        if suppressed > 0 {
            let (worker, lease, event) = (&self.worker, lease.as_deref(), Event::HandlerSuppressed);
            tracing::warn!(%worker, lease, suppressed, %event,
                "the handler prints too much: {suppressed} lines were left out, the last of them: {last}");
        }
    }
}

/// A pipe that a program prints to.
#[derive(Debug)]
pub struct Relay {
    pipe: AsyncFd<OwnedFd>,
    voice: Arc<OutputLog>,
    stream: Stream,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: Lines,
    /// The request in hand.
    lease: Lease,
}

/// What came of a look into the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Something,
    Nothing,
    /// Its last writer is gone.
    End,
}

impl Relay {
    /// Relays `pipe` until its last writer is gone, always at once, so that no program waits for the log's reader.
    pub fn start(
        pipe: OwnedFd,
        voice: Arc<OutputLog>,
        stream: Stream,
        lease: Lease,
    ) -> io::Result<(Weak<Self>, JoinHandle<()>)> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let state = Mutex::new(State { lines: Lines::default(), lease });
        let relay = Arc::new(Self { pipe: sys::when_readable(pipe)?, voice, stream, state });
        let weak = Arc::downgrade(&relay);
        let task = tokio::spawn(async move {
            while let Ok(mut ready) = relay.pipe.readable().await {
                match relay.read() {
                    // Others want to run as well, whatever comes out of this pipe.
                    Got::Something => yield_now().await,
                    Got::Nothing => ready.clear_ready(),
                    Got::End => break,
                }
            }
            relay.finish();
        });
        Ok((weak, task))
    }

    /// From now on the program speaks under this lease. What it has printed so far was under the one before.
    pub fn turn_to(&self, lease: Lease) {
        self.drain();
        sync::lock(&self.state).lease = lease;
    }

    /// Relays what is still in the pipe, once nobody is left who should write to it.
    pub fn close(&self) {
        self.drain();
        self.finish();
    }

    /// Relays what was written before now, straight from the pipe: tokio may not know yet that something has come.
    fn drain(&self) {
        // More than it holds cannot have been written before now, whoever goes on writing (pipe(7)).
        let full = fcntl(&self.pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |bytes| bytes.unsigned_abs() as usize);
        for _ in 0..full.div_ceil(CHUNK) {
            if self.read() != Got::Something {
                break;
            }
        }
    }

    fn finish(&self) {
        let State { lines, lease } = &mut *sync::lock(&self.state);
        lines.finish(lease, |line, lease| self.voice.say(self.stream, lease, line));
    }

    fn read(&self) -> Got {
        let mut buffer = [0; CHUNK];
        // Held while reading, so that lines keep their order.
        let State { lines, lease } = &mut *sync::lock(&self.state);
        match nix::unistd::read(&self.pipe, &mut buffer) {
            Ok(count @ 1..) => {
                lines.feed(&buffer[..count], lease, |line, lease| self.voice.say(self.stream, lease, line));
                Got::Something
            }
            Err(Errno::EINTR) => Got::Something,
            Err(Errno::EAGAIN) => Got::Nothing,
            Ok(0) | Err(_) => Got::End,
        }
    }
}

/// Bytes into lines of at most [`LINE`] bytes, each with the lease under which it began; what is not UTF-8 is
/// replaced, and what would do something to a terminal is written out. Pure.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    lease: Lease,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], lease: &Lease, mut each: impl FnMut(&str, &Lease)) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            if self.line.is_empty() {
                self.lease.clone_from(lease);
            }
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            // One byte more than fits, as the sign that the rest is missing.
            let room = (LINE + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.emit(&mut each);
            }
        }
    }

    fn finish(&mut self, lease: &Lease, mut each: impl FnMut(&str, &Lease)) {
        if !self.line.is_empty() {
            self.emit(&mut each);
        }
        self.lease.clone_from(lease);
    }

    fn emit(&mut self, each: &mut impl FnMut(&str, &Lease)) {
        let cut = self.line.len() > LINE;
        self.line.truncate(LINE);
        let line = String::from_utf8_lossy(self.line.strip_suffix(b"\r").unwrap_or(&self.line));
        let mut line = escape_control_chars(&line);
        if cut {
            line.push_str(" [cut]");
        }
        each(&line, &self.lease);
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(text: &str) -> Lease {
        Some(text.into())
    }

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        pieces.iter().for_each(|piece| lines.feed(piece, &None, |line, _| all.push(line.to_owned())));
        lines.finish(&None, |line, _| all.push(line.to_owned()));
        all
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        assert_eq!(lines(&[b"a\nb", b"c\r\n", b"\n", b"rest"]), ["a", "bc", "", "rest"]);
        assert_eq!(lines(&[b"\xff\n"]), ["\u{fffd}"]);
        let long = vec![b'x'; LINE];
        assert_eq!(lines(&[&long, b"\nshort\n"]), [String::from_utf8(long.clone()).unwrap(), "short".to_owned()]);
        let cut = lines(&[&long, &long, b"y\nshort"]);
        assert_eq!((cut.len(), cut[0].len(), cut[1].as_str()), (2, LINE + " [cut]".len(), "short"));
    }

    #[tokio::test]
    async fn what_was_printed_before_the_end_is_told_however_late_it_is_read() {
        let (log, _guard) = super::super::test_process::log();
        let (pipe, end) = nix::unistd::pipe().unwrap();
        let (_, stays) = (nix::unistd::write(&end, &b"x\n".repeat(32 << 10)), nix::unistd::dup(&end).unwrap());
        let voice = OutputLog::new("default/1".parse().unwrap());
        let (relay, task) = Relay::start(pipe, voice.clone(), Stream::Errors, lease("1.1")).unwrap();
        // The task has not run once, and somebody holds the pipe for ever.
        relay.upgrade().unwrap().close();
        task.abort();
        voice.confess();
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let said = log.lines().filter(|line| line.contains("output_log: x worker=default/1 lease=\"1.1\"")).count();
        assert!(log.contains(&format!("{} lines were left out", (32 << 10) - said)), "{said}: {log}");
        drop(stays);
    }

    #[test]
    fn what_would_do_something_to_a_terminal_is_written_out() {
        assert_eq!(lines(&[b"a\tb\x1b[2J\x07\x00\x7fc\rd\n"]), ["a\tb\\x1b[2J\\x07\\x00\\x7fc\\x0dd"]);
        assert_eq!(lines(&["\u{9b}1m \u{202e}txt.exe \u{e9}\n".as_bytes()]), ["\\u{9b}1m \\u{202e}txt.exe \u{e9}"]);
    }

    #[test]
    fn a_line_has_the_lease_under_which_it_began() {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        let mut feed = |bytes: &[u8], under: &Lease| {
            lines.feed(bytes, under, |line, lease| all.push((line.to_owned(), lease.clone())));
        };
        feed(b"before\nbe", &None);
        feed(b"gun before\nwithin\nstill ", &lease("1.1"));
        feed(b"within\nafter\n", &None);
        let of = |text: &str, lease: Lease| (text.to_owned(), lease);
        assert_eq!(
            all,
            [
                of("before", None),
                of("begun before", None),
                of("within", lease("1.1")),
                of("still within", lease("1.1")),
                of("after", None),
            ]
        );
    }
}
