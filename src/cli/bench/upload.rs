//! One large body over a blocking socket, sent once: where to is settled by `Expect: 100-continue`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::load::{Answer, end_of_head};

/// How long it waits for the other side to go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// To the worker at the second, or back from there once.
const HOPS: usize = 4;

/// How long a body of so many MiB takes, from the first connection to the answer.
pub fn send(place: SocketAddr, mib: u64) -> io::Result<Duration> {
    let since = Instant::now();
    let (mut place, mut target) = (place, "/upload".to_owned());
    for _ in 0..HOPS {
        let mut stream = TcpStream::connect_timeout(&place, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let length = mib << 20;
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        let answer = head_of(&mut stream)?;
        match (answer.status, answer.location) {
            (307, Some(next)) => (place, target) = next,
            (100, _) => {
                let chunk = vec![0; 1 << 18];
                for _ in 0..length / chunk.len() as u64 {
                    stream.write_all(&chunk)?;
                }
                return match head_of(&mut stream)?.status {
                    200 => Ok(since.elapsed()),
                    status => Err(io::Error::other(format!("it was answered with {status}"))),
                };
            }
            (status, _) => return Err(io::Error::other(format!("it was answered with {status}"))),
        }
    }
    Err(io::Error::other("it was sent from one place to the next"))
}

/// The head of the next answer, byte by byte: what follows is the next one's.
fn head_of(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut head = Vec::new();
    while end_of_head(&head).is_none() {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Answer::parse(&head)
}
