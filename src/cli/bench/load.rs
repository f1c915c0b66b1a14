//! Many HTTP clients in one thread, as cheap as possible: they share the cores with the server that they measure.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::http_head::ResponseHead;
use crate::cli::error::{CommandError, failed, interrupted};
use crate::signals::SignalFlag;

/// What the clients do.
#[derive(Clone, Copy)]
pub(super) struct ClientLoad {
    pub clients: u16,
    pub duration: Duration,
    /// Whether each client keeps its connection.
    pub keep_alive: bool,
}

/// How much longer than its duration a measurement may take.
const OVERTIME: Duration = Duration::from_secs(10);
/// The largest response head, in bytes.
const HEAD_MAX: usize = 16 * 1024;

/// Runs the clients against a server and returns the requests per second.
pub(super) fn run(server: SocketAddr, load: &ClientLoad, stop: &SignalFlag) -> Result<f64, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let start = Instant::now();
    let until = start + load.duration;
    let count = runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..load.clients {
            clients.spawn(client(server, load.keep_alive, until, stop.clone()));
        }
        let mut count = 0;
        let all = async {
            while let Some(done) = clients.join_next().await {
                count += done.map_err(io::Error::other)??;
            }
            Ok::<_, io::Error>(())
        };
        match tokio::time::timeout(load.duration + OVERTIME, all).await {
            Ok(Ok(())) => Ok(count),
            Ok(Err(error)) => Err(failed(format!("a request to {server} failed: {error}"))),
            Err(_) => Err(failed(format!("{server} does not respond"))),
        }
    })?;
    if stop.is_set() { Err(interrupted()) } else { Ok(count as f64 / start.elapsed().as_secs_f64()) }
}

/// One client; the number of its requests.
async fn client(server: SocketAddr, keep_alive: bool, until: Instant, stop: SignalFlag) -> io::Result<u64> {
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {server}\r\n{close}\r\n").into_bytes();
    let hello = get("/hello");
    let mut buffer = Vec::with_capacity(1024);
    let mut count = 0;
    let mut kept = None;
    while Instant::now() < until && !stop.is_set() {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(server).await?,
        };
        let mut response = send(&mut stream, &hello, &mut buffer).await?;
        if let Some((worker, target)) = response.location.take() {
            drop(stream);
            stream = connect(worker).await?;
            response = send(&mut stream, &get(&target), &mut buffer).await?;
        }
        if response.status != 200 {
            return Err(io::Error::other(format!("status {}", response.status)));
        }
        if keep_alive && !response.close {
            kept = Some(stream);
        }
        count += 1;
    }
    Ok(count)
}

async fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads its response; the body of a redirect is not read.
async fn send(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> io::Result<ResponseHead> {
    stream.write_all(request).await?;
    buffer.clear();
    let head = loop {
        if stream.read_buf(buffer).await? == 0 || buffer.len() > HEAD_MAX {
            return Err(io::Error::other("the connection ended within a response head"));
        }
        if let Some(head) = ResponseHead::parse(buffer)? {
            break head;
        }
    };
    let end = head.content_length.map_or(usize::MAX, |length| head.length.saturating_add(length));
    while buffer.len() < end && head.location.is_none() {
        if stream.read_buf(buffer).await? == 0 {
            if head.content_length.is_some() {
                return Err(io::Error::other("the connection ended within a response body"));
            }
            break;
        }
    }
    Ok(head)
}
