//! The end of a chunked body (RFC 9112, section 7.1). Pure code.
//!
//! As strict as the check of the head: hyper accepts a bare LF within the trailer section.

#![forbid(unsafe_code)]

use super::request_head::is_text;

/// The longest line of a chunked body: a chunk size with its extensions, or a trailer field. hyper bounds their sum.
const LINE_MAX: usize = 8192;

/// Where in the body the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// In the digits of a chunk size, after so many.
    Size(u64, u32),
    /// After the digits; the size is known.
    Extension(u64),
    /// Before the LF of the line with this size.
    SizeLf(u64),
    /// In the data of a chunk, of which so many bytes are left.
    Data(u64),
    /// Before the CR, then the LF after the data.
    DataCr,
    DataLf,
    /// At the start of a trailer line, then in it, then before its LF.
    TrailerStart,
    Trailer,
    TrailerLf,
    /// Before the LF of the last, empty line.
    LastLf,
    End,
}

/// Follows a chunked body while it is received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkScanner {
    position: Position,
    /// The length of the current line.
    line: usize,
}

impl ChunkScanner {
    pub(crate) fn new() -> Self {
        Self { position: Position::Size(0, 0), line: 0 }
    }

    /// Follows the next bytes; returns how many of them belong to the body.
    ///
    /// # Errors
    /// What is malformed.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while self.position != Position::End {
            if let Position::Data(left) = self.position {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                self.position = match left - here as u64 {
                    0 => Position::DataCr,
                    left => Position::Data(left),
                };
            }
            let Some(byte) = bytes.get(at) else { break };
            at += 1;
            self.position = self.step(*byte)?;
        }
        Ok(at)
    }

    /// Whether the body has ended.
    pub(crate) fn is_complete(&self) -> bool {
        self.position == Position::End
    }

    fn step(&mut self, byte: u8) -> Result<Position, &'static str> {
        self.line += 1;
        let next = match (self.position, byte) {
            (Position::Size(size, digits), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let size = size.checked_mul(16).ok_or("a chunk is too large")? | digit;
                Position::Size(size, digits + 1)
            }
            (Position::Size(_, 0), _) => return Err("a chunk size is not a hexadecimal number"),
            (Position::Size(size, _) | Position::Extension(size), b'\r') => Position::SizeLf(size),
            (Position::Size(size, _), b';' | b' ' | b'\t') => Position::Extension(size),
            (Position::Extension(_), _) if is_text(byte) => self.position,
            (Position::SizeLf(0), b'\n') => Position::TrailerStart,
            (Position::SizeLf(size), b'\n') => Position::Data(size),
            (Position::DataCr, b'\r') => Position::DataLf,
            (Position::DataLf, b'\n') => Position::Size(0, 0),
            (Position::TrailerStart, b'\r') => Position::LastLf,
            (Position::Trailer, b'\r') => Position::TrailerLf,
            (Position::TrailerStart | Position::Trailer, _) if is_text(byte) => Position::Trailer,
            (Position::TrailerLf, b'\n') => Position::TrailerStart,
            (Position::LastLf, b'\n') => Position::End,
            _ => return Err("the chunks of the body are malformed"),
        };
        if matches!(next, Position::Size(0, 0) | Position::Data(_) | Position::TrailerStart) {
            self.line = 0;
        }
        if self.line > LINE_MAX { Err("a line of the chunked body is too long") } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many bytes belong to the body, and whether it is complete.
    fn scan(bytes: &[u8]) -> Result<(usize, bool), &'static str> {
        let mut scanner = ChunkScanner::new();
        let taken = scanner.scan(bytes)?;
        Ok((taken, scanner.is_complete()))
    }

    #[test]
    fn body_ends_with_its_last_line() {
        for body in [
            "0\r\n\r\n",
            "1\r\na\r\n00\r\n\r\n",
            "0a;x=\"y\"\r\n0123456789\r\n0\r\nA: b\r\nC: d\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
        ] {
            assert_eq!(scan(format!("{body}GET /").as_bytes()), Ok((body.len(), true)), "{body:?}");
            for end in 0..body.len() {
                assert_eq!(scan(&body.as_bytes()[..end]), Ok((end, false)), "{body:?}");
            }
        }
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        for body in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x1\r\na",
            " 1\r\n",
            "1\na",
            "1;x\na",
            "1;\0\r\na",
            "1\r\nab",
            "1\r\na\n0",
            "1\r\na\r0",
            "0\n",
            "0\r\n\n",
            "0\r\nA: b\n",
            "0\r\nA: b\rC",
            "fffffffffffffffff\r\n",
            "1;\rx",
        ] {
            assert!(scan(body.as_bytes()).is_err(), "{body:?}");
        }
        assert!(scan(&[b'0'; LINE_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn reads_of_any_size_find_the_same_end(
            parts in prop::collection::vec(prop::sample::select(vec![
                "0\r\n", "\r\n", "2\r\n", "ab", "\n", "A: b\r\n", ";x", "\r",
            ]), 0..10),
            split in 0usize..30,
        ) {
            let bytes = parts.concat().into_bytes();
            let (first, second) = bytes.split_at(split.min(bytes.len()));
            let mut scanner = ChunkScanner::new();
            let divided = scanner.scan(first).and_then(|taken| Ok((taken + scanner.scan(second)?, scanner.is_complete())));
            prop_assert_eq!(divided, scan(&bytes));
        }
    }
}
