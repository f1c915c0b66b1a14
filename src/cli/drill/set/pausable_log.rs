//! The log of a private set: a pipe with a reader that can be paused.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Small, so that a paused reader is soon noticed.
const CAPACITY: i32 = 16 * 1024;

/// How often the reader checks whether it is paused.
const INTERVAL: Duration = Duration::from_millis(10);

/// What fills the pipe of a paused reader. No log has it, and the reader removes it.
const FILLER: u8 = 0;

pub(super) struct PausableLog {
    gate: LogGate,
    stopped: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// Pauses the reader of a set's log.
#[derive(Clone)]
pub(in crate::cli::drill) struct LogGate {
    writer: Arc<OwnedFd>,
    blocked: Arc<AtomicBool>,
}

impl PausableLog {
    /// Appends what is written to the pipe to this file.
    pub(super) fn start(log: &Path) -> io::Result<Self> {
        let mut log = File::options().create(true).append(true).open(log)?;
        let (mut reader, writer) = io::pipe()?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(CAPACITY))?;
        let gate = LogGate { writer: Arc::new(writer.into()), blocked: Arc::default() };
        let (blocked, stopped) = (gate.blocked.clone(), Arc::<AtomicBool>::default());
        let stop = stopped.clone();
        let run = move || {
            let mut bytes = vec![0; CAPACITY as usize];
            loop {
                if blocked.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(INTERVAL);
                    continue;
                }
                if !is_readable(&reader) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    continue;
                }
                let Ok(length) = reader.read(&mut bytes) else { return };
                let text: Vec<_> = bytes[..length].iter().copied().filter(|byte| *byte != FILLER).collect();
                let _ = log.write_all(&text); // a full disk must not block the set
            }
        };
        let reader = std::thread::Builder::new().name("log".into()).spawn(run)?;
        Ok(Self { gate, stopped, reader: Some(reader) })
    }

    /// The writing end, for a process.
    pub(super) fn stdio(&self) -> io::Result<Stdio> {
        Ok(self.gate.writer.try_clone()?.into())
    }

    pub(super) fn gate(&self) -> LogGate {
        self.gate.clone()
    }

    /// Waits until everything that was written is in the file.
    pub(super) fn close(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join(); // a reader that panicked has written what it could
        }
    }
}

impl Drop for PausableLog {
    fn drop(&mut self) {
        self.close();
    }
}

fn is_readable(pipe: &impl AsFd) -> bool {
    let timeout = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

impl LogGate {
    /// Pauses the reader and fills the pipe: the next write to it blocks.
    ///
    /// # Errors
    /// The pipe cannot be opened a second time.
    pub(in crate::cli::drill) fn block(&self) -> io::Result<()> {
        // Another file description: O_NONBLOCK must not apply to that of the set.
        let path = format!("/proc/self/fd/{}", self.writer.as_raw_fd());
        let mut pipe = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        self.blocked.store(true, Ordering::Relaxed);
        // The reader may be in its last read.
        for _ in 0..3 {
            while pipe.write(&[FILLER; 512]).is_ok() {}
            std::thread::sleep(INTERVAL);
        }
        while pipe.write(&[FILLER]).is_ok() {}
        Ok(())
    }

    pub(in crate::cli::drill) fn release(&self) {
        self.blocked.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn paused_reader_leaves_the_pipe_full_and_the_filler_is_not_logged() {
        let log = std::env::temp_dir().join(format!("patou-log-{}", std::process::id()));
        let mut pipe = PausableLog::start(&log).unwrap();
        let path = format!("/proc/self/fd/{}", pipe.gate.writer.as_raw_fd());
        let mut writer = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        writer.write_all(b"before\n").unwrap();
        pipe.gate().block().unwrap();
        assert_eq!(writer.write(b"lost\n").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        pipe.gate().release();
        while writer.write(b"after\n").is_err() {
            std::thread::sleep(INTERVAL);
        }
        drop(writer);
        pipe.close();
        assert_eq!(fs::read_to_string(&log).unwrap(), "before\nafter\n");
        fs::remove_file(log).unwrap();
    }
}
