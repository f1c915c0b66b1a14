//! Many clients in one thread, as cheap as they can be: the cores are shared with what they measure.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::check;
use crate::cli::{Failure, failed};
use crate::signals::SignalFlag;

/// What the clients do.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: u16,
    pub time: Duration,
    /// Whether each stays on its connection.
    pub keep: bool,
}

/// How much longer than it should a measurement may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest head of an answer.
const HEAD: usize = 16 * 1024;

/// Requests per second.
pub fn run(place: SocketAddr, load: &Load, stop: &SignalFlag) -> Result<f64, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let since = Instant::now();
    let until = since + load.time;
    let count = runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..load.clients {
            clients.spawn(client(place, load.keep, until, stop.clone()));
        }
        let mut count = 0;
        let all = async {
            while let Some(done) = clients.join_next().await {
                count += done.map_err(io::Error::other)??;
            }
            Ok::<_, io::Error>(())
        };
        match tokio::time::timeout(load.time + PATIENCE, all).await {
            Ok(Ok(())) => Ok(count),
            Ok(Err(error)) => Err(failed(format!("a request to {place} failed: {error}"))),
            Err(_) => Err(failed(format!("{place} does not answer"))),
        }
    })?;
    check(stop)?;
    Ok(count as f64 / since.elapsed().as_secs_f64())
}

async fn client(place: SocketAddr, keep: bool, until: Instant, stop: SignalFlag) -> io::Result<u64> {
    let close = if keep { "" } else { "Connection: close\r\n" };
    let first = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {place}\r\n{close}\r\n").into_bytes();
    let hello = first("/hello");
    let mut bytes = Vec::with_capacity(1024);
    let mut count = 0;
    let mut kept = None;
    while Instant::now() < until && !stop.is_set() {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(place).await?,
        };
        let mut answer = ask(&mut stream, &hello, &mut bytes).await?;
        if let Some((worker, target)) = answer.location.take() {
            drop(stream);
            stream = connect(worker).await?;
            answer = ask(&mut stream, &first(&target), &mut bytes).await?;
        }
        if answer.status != 200 {
            return Err(io::Error::other(format!("it was answered with {}", answer.status)));
        }
        if keep && !answer.close {
            kept = Some(stream);
        }
        count += 1;
    }
    Ok(count)
}

async fn connect(place: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(place).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What matters of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Where to go instead, and for what.
    pub location: Option<(SocketAddr, String)>,
    length: Option<usize>,
    close: bool,
}

async fn ask(stream: &mut TcpStream, request: &[u8], bytes: &mut Vec<u8>) -> io::Result<Answer> {
    stream.write_all(request).await?;
    bytes.clear();
    let (head, answer) = loop {
        if stream.read_buf(bytes).await? == 0 || bytes.len() > HEAD {
            return Err(io::Error::other("the connection ended within a head"));
        }
        if let Some(end) = end_of_head(bytes) {
            break (end, Answer::parse(&bytes[..end])?);
        }
    };
    // Nothing but its head is wanted of an answer that leads elsewhere.
    let wanted = answer.length.map_or(usize::MAX, |length| head.saturating_add(length));
    while bytes.len() < wanted && answer.location.is_none() {
        if stream.read_buf(bytes).await? == 0 {
            if answer.length.is_some() {
                return Err(io::Error::other("the connection ended within a body"));
            }
            break;
        }
    }
    Ok(answer)
}

/// How long the head is, with the empty line after it, once it is whole.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

impl Answer {
    pub fn parse(head: &[u8]) -> io::Result<Self> {
        let wrong = || io::Error::other("it is no HTTP/1.1");
        let text = std::str::from_utf8(head).map_err(io::Error::other)?;
        let (first, headers) = text.split_once("\r\n").ok_or_else(wrong)?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(wrong)?;
        let mut answer = Self { status, location: None, length: None, close: false };
        for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("content-length") {
                answer.length = value.parse().ok();
            } else if name.eq_ignore_ascii_case("connection") {
                answer.close = value.eq_ignore_ascii_case("close");
            } else if status == 307 && name.eq_ignore_ascii_case("location") {
                let (host, target) =
                    value.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
                answer.location = Some((host.parse().map_err(io::Error::other)?, format!("/{target}")));
            }
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_where_to_go_or_how_long_it_is() {
        let text = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:7300/.patou/0f/x?y\r\n\r\nrest";
        let end = end_of_head(text).unwrap();
        assert_eq!(&text[end..], b"rest");
        let answer = Answer::parse(&text[..end]).unwrap();
        assert_eq!(answer.location, Some((([127, 0, 0, 1], 7300).into(), "/.patou/0f/x?y".to_owned())));
        let answer = Answer::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.length, answer.close), (200, Some(7), true));
        assert!(Answer::parse(b"220 smtp\r\n\r\n").is_err());
        assert_eq!(end_of_head(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
