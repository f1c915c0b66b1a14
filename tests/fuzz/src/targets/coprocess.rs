//! The framing between worker and co-process, which is the hostile side: however its bytes are cut into pieces, the
//! same answers come out, and none reaches into the next.

use crate::worker::handler::framing;
use crate::worker::handler::head::{self, MalformedHead};

use super::answer::is_clean;
use super::input::Input;

/// What a worker makes of a stream: status and body of each answer, and how it ends.
#[derive(Debug, Default, PartialEq)]
struct Read {
    answers: Vec<(u16, usize)>,
    /// Bytes of the last answer that are still to come.
    left: u64,
    broken: Option<MalformedHead>,
}

/// Reads like a worker: a head when there is a whole one, then as many bytes as it announces.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Read {
    let mut read = Read::default();
    let (mut held, mut searched) = (Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let body = usize::try_from(read.left).unwrap_or(usize::MAX).min(held.len());
            if body > 0 {
                held.drain(..body);
                read.left -= body as u64;
                read.answers.last_mut().expect("whose body it is").1 += body;
            }
            if read.left > 0 {
                break;
            }
            let end = match head::find_end(&held, &mut searched) {
                Ok(Some(end)) => end,
                Ok(None) => break,
                Err(wrong) => return Read { broken: Some(wrong), ..read },
            };
            searched = 0;
            match framing::parse_response_head(&held.drain(..end).collect::<Vec<_>>()) {
                Ok(answer) => {
                    is_clean(&answer.headers);
                    assert!(answer.status.as_u16() >= 200);
                    read.answers.push((answer.status.as_u16(), 0));
                    read.left = answer.length;
                }
                Err(wrong) => return Read { broken: Some(wrong), ..read },
            }
        }
        assert!(held.len() <= head::MAX_HEAD_BYTES + piece.len(), "{} bytes are held back", held.len());
    }
    read
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()) + 1;
    assert_eq!(read(input.0.chunks(size)), read([input.0].into_iter()), "pieces of {size} make a difference");
}
