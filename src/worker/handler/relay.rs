//! What a program says besides its answer, line by line into the log.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

/// Longer lines are cut, in bytes.
const LINE: usize = 4096;

/// Whose words these are.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// The worker, as `pool/number`.
    pub worker: String,
    /// The lease; empty for a co-process, which speaks about what it wants.
    pub lease: String,
    /// Standard error, at level warn; otherwise standard output, at level info.
    pub errors: bool,
}

/// Reads `pipe` until its last writer is gone, always at once, so that no program waits for the log's reader.
pub fn relay(pipe: OwnedFd, speaker: Speaker) -> io::Result<JoinHandle<()>> {
    let mut pipe = Receiver::from_owned_fd(pipe)?;
    Ok(tokio::spawn(async move {
        let mut lines = Lines::default();
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            lines.feed(&buffer[..count], |line| speaker.say(line));
        }
        lines.finish(|line| speaker.say(line));
    }))
}

impl Speaker {
    fn say(&self, line: &str) {
        let Self { worker, lease, errors } = self;
        match (errors, lease.as_str()) {
            (true, "") => tracing::warn!(%worker, "{line}"),
            (true, lease) => tracing::warn!(%worker, %lease, "{line}"),
            (false, _) => tracing::info!(%worker, "{line}"),
        }
    }
}

/// Bytes into lines of at most [`LINE`] bytes; what is not UTF-8 is replaced. Pure.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            // One byte more than fits, as the sign that the rest is missing.
            let room = (LINE + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.emit(&mut each);
            }
        }
    }

    fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.emit(&mut each);
        }
    }

    fn emit(&mut self, each: &mut impl FnMut(&str)) {
        let cut = self.line.len() > LINE;
        self.line.truncate(LINE);
        let line = String::from_utf8_lossy(self.line.strip_suffix(b"\r").unwrap_or(&self.line));
        if cut {
            each(&format!("{line} [cut]"))
        } else {
            each(&line)
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        pieces.iter().for_each(|piece| lines.feed(piece, |line| all.push(line.to_owned())));
        lines.finish(|line| all.push(line.to_owned()));
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
}
