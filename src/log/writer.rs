//! Writes records in a thread, so that no thread that decides waits for the reader of the log.
//!
//! stderr belongs to other processes as well (the user's shell, the handlers): its flags stay as they are, and a write
//! blocks while its reader does not read. Records wait in a bounded queue meanwhile. When the queue is full, records
//! are dropped and counted, and the number is logged once the reader reads again. The thread starts with the first
//! record.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::unistd::write;

use super::journal::Journal;
use super::stderr_format::StderrFormat;
use crate::sync::lock;

/// Records that wait, in bytes. A larger record is accepted while no other waits.
const QUEUE_BYTES: usize = 256 << 10;

/// How long the end of a process may wait for the reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Bytes of stack for the thread, which formats nothing but the notice of lost records.
const STACK_BYTES: usize = 64 << 10;

/// Where records are written.
pub(super) enum LogOutput {
    Journal(Journal),
    Stderr(StderrFormat),
}

impl LogOutput {
    /// Writes one record; waits for the reader without a bound.
    fn write(&self, record: &[u8]) -> io::Result<()> {
        match self {
            LogOutput::Journal(journal) => journal.transmit(record),
            LogOutput::Stderr(_) => write_all(&io::stderr(), record),
        }
    }

    /// The record that reports how many records were lost.
    fn lost_records_notice(&self, lost: u64) -> Vec<u8> {
        match self {
            LogOutput::Journal(journal) => journal.lost_records_notice(lost),
            LogOutput::Stderr(format) => format.lost_records_notice(lost).into_bytes(),
        }
    }
}

/// Writes to a descriptor that may be blocking or not. One write per record where possible, so that records of several
/// processes do not mix.
fn write_all(fd: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            // Another process has made the shared description non-blocking.
            Err(Errno::EAGAIN) => drop(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The queue of records and its thread.
pub(super) struct LogWriter {
    output: LogOutput,
    queue: Mutex<LogQueue>,
    /// Notified when the queue gets a record.
    filled: Condvar,
    /// Notified when all records are written.
    emptied: Condvar,
}

#[derive(Default)]
struct LogQueue {
    records: VecDeque<Vec<u8>>,
    /// The size of `records`.
    bytes: usize,
    /// Records dropped since the queue was full. Until the thread has emptied the queue and taken this number, all
    /// records are dropped, so that the notice stands at the gap.
    dropped: u64,
    thread: WriterThread,
}

#[derive(Default, PartialEq, Eq)]
enum WriterThread {
    #[default]
    NotStarted,
    Waiting,
    Writing,
}

/// What the thread writes next.
enum QueueItem {
    Record(Vec<u8>),
    Dropped(u64),
}

impl LogWriter {
    pub(super) fn new(output: LogOutput) -> Arc<Self> {
        Arc::new(Self { output, queue: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new() })
    }

    pub(super) fn output(&self) -> &LogOutput {
        &self.output
    }

    /// Queues a record, or drops it if the queue is full. Never waits.
    pub(super) fn push(self: &Arc<Self>, record: Vec<u8>) {
        let mut queue = lock(&self.queue);
        let is_full = !queue.records.is_empty() && queue.bytes + record.len() > QUEUE_BYTES;
        if is_full || queue.dropped > 0 {
            queue.dropped += 1;
        } else {
            queue.bytes += record.len();
            queue.records.push_back(record);
        }
        match queue.thread {
            // If no thread can be started now, the next record tries again.
            WriterThread::NotStarted if self.start().is_ok() => queue.thread = WriterThread::Writing,
            WriterThread::Waiting => self.filled.notify_one(),
            WriterThread::NotStarted | WriterThread::Writing => {}
        }
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        let writer = self.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
        let run = move || {
            // Other threads handle the signals. With SIGTTOU blocked, a terminal with `stty tostop` does not stop the
            // process (termios(3)).
            let _ = SigSet::all().thread_block();
            writer.run();
        };
        thread.spawn(run).map(drop)
    }

    fn run(&self) -> ! {
        let mut unreported = 0;
        loop {
            let (record, dropped) = match self.next() {
                QueueItem::Record(record) => (Some(record), 0),
                QueueItem::Dropped(dropped) => (None, dropped),
            };
            unreported += dropped;
            if unreported > 0 && self.output.write(&self.output.lost_records_notice(unreported)).is_ok() {
                unreported = 0;
            }
            // An error (a closed pipe, no journal) loses the record, and the next one tries again.
            unreported += u64::from(record.is_some_and(|record| self.output.write(&record).is_err()));
        }
    }

    /// Waits for something to write.
    fn next(&self) -> QueueItem {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(record) = queue.records.pop_front() {
                queue.thread = WriterThread::Writing;
                queue.bytes -= record.len();
                return QueueItem::Record(record);
            }
            if queue.dropped > 0 {
                queue.thread = WriterThread::Writing;
                return QueueItem::Dropped(std::mem::take(&mut queue.dropped));
            }
            queue.thread = WriterThread::Waiting;
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all records are written, but not for a reader that does not read.
    pub(super) fn flush(&self) {
        if lock(&self.queue).thread == WriterThread::NotStarted {
            return self.write_without_thread();
        }
        let is_busy = |queue: &mut LogQueue| match queue.thread {
            WriterThread::NotStarted => false,
            WriterThread::Waiting => !queue.records.is_empty(),
            WriterThread::Writing => true,
        };
        drop(self.emptied.wait_timeout_while(lock(&self.queue), FLUSH_TIMEOUT, is_busy));
    }

    /// Where no thread can be started, writes the records to stderr as long as that does not block. (A pipe that is ready
    /// for writing takes [`PIPE_BUF`] bytes, pipe(7).)
    fn write_without_thread(&self) {
        let LogOutput::Stderr(_) = self.output else { return };
        let stderr = io::stderr();
        let timeout = PollTimeout::try_from(FLUSH_TIMEOUT).unwrap_or(PollTimeout::ZERO);
        while let Some(record) = lock(&self.queue).records.pop_front() {
            for bytes in record.chunks(PIPE_BUF) {
                let ready = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], timeout);
                if ready != Ok(1) || write_all(&stderr, bytes).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
