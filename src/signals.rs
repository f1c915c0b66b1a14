//! Signals as ordinary events: the handler writes one byte, a loop reads it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// One signal, or several that mean the same.
#[derive(Debug)]
pub struct Signal(UnixStream);

impl Signal {
    /// SIGTERM and, from a terminal, SIGINT: stop.
    pub fn stop() -> io::Result<Self> {
        Self::on(&[SIGTERM, SIGINT])
    }

    /// SIGHUP: read the configuration again.
    pub fn reload() -> io::Result<Self> {
        Self::on(&[SIGHUP])
    }

    fn on(signals: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in signals {
            signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
        }
        Ok(Self(read))
    }

    /// How often it has come since the last call.
    pub fn take(&self) -> usize {
        let mut bytes = [0; 64];
        (&self.0).read(&mut bytes).unwrap_or(0)
    }

    /// The same as a stream for a runtime.
    pub fn into_async(self) -> io::Result<tokio::net::UnixStream> {
        tokio::net::UnixStream::from_std(self.0)
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
