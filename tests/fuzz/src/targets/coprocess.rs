//! The framing between worker and co-process, of which the co-process is hostile: the same responses result from pieces
//! of any size, and no response extends into the next one.

use crate::worker::handler::framing;
use crate::worker::handler::head::{self, MalformedHead};

use super::cgi_response::check_headers;
use super::input::Input;

/// The responses in a stream.
#[derive(Debug, Default, PartialEq)]
struct Responses {
    /// Status and body length of each.
    complete: Vec<(u16, usize)>,
    /// Missing bytes of the last body.
    missing: u64,
    error: Option<MalformedHead>,
}

/// Reads like a worker: a complete head, then as many bytes as it announces.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Responses {
    let mut read = Responses::default();
    let (mut held, mut searched) = (Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let body = usize::try_from(read.missing).unwrap_or(usize::MAX).min(held.len());
            if body > 0 {
                held.drain(..body);
                read.missing -= body as u64;
                read.complete.last_mut().expect("a response has announced the body").1 += body;
            }
            if read.missing > 0 {
                break;
            }
            let end = match head::find_end(&held, &mut searched) {
                Ok(Some(end)) => end,
                Ok(None) => break,
                Err(wrong) => return Responses { error: Some(wrong), ..read },
            };
            searched = 0;
            let head: Vec<u8> = held.drain(..end).collect();
            if let Ok(note) = framing::parse_note(&head) {
                let line = format!("{note}:").to_ascii_lowercase();
                assert!(
                    String::from_utf8_lossy(&head).to_ascii_lowercase().lines().any(|it| it.starts_with(&line)),
                    "{head:?}"
                );
            }
            match framing::parse_response_head(&head) {
                Ok(answer) => {
                    assert!(!answer.headers.contains_key("http-content-length"));
                    check_headers(&answer.headers);
                    assert!(answer.status.as_u16() >= 200);
                    read.complete.push((answer.status.as_u16(), 0));
                    read.missing = answer.length;
                }
                Err(wrong) => return Responses { error: Some(wrong), ..read },
            }
        }
        assert!(held.len() <= head::MAX_HEAD_BYTES + piece.len(), "{} bytes are buffered", held.len());
    }
    read
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()) + 1;
    assert_eq!(read(input.0.chunks(size)), read([input.0].into_iter()), "pieces of {size} bytes make a difference");
}
