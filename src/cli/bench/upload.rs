//! `patou bench upload`: one large body over a blocking socket, beside a bare socket.
//!
//! The body is sent once: `Expect: 100-continue` settles where to.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;

use super::http_head::ResponseHead;
use super::private_set::PrivateSet;
use super::server::{RunningServer, ServerKind};
use super::table::{RoundsArg, Table};
use crate::cli::error::{CommandError, failed, interrupted};
use crate::signals::Signal;

#[derive(Debug, Args)]
pub(crate) struct BenchUploadArgs {
    /// Size of the body, in MiB
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
    #[command(flatten)]
    rounds: RoundsArg,
}

/// How long a connect, a read or a write may take.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// Dispatcher and worker, and both again if the lease was stale.
const CONNECTIONS_MAX: usize = 4;

pub(super) fn run(args: &BenchUploadArgs) -> Result<(), CommandError> {
    let signal = Signal::stop().map_err(failed)?;
    let stop = signal.flag();
    let (sink, bare) = (RunningServer::start(ServerKind::Sink)?, RunningServer::start(ServerKind::Http)?);
    // A worker that discards the body: the cost of an echo is not measured.
    let program = std::env::current_exe().map_err(failed)?.display().to_string();
    let set = PrivateSet::start(&format!("{{ program = [{program:?}, \"bench-server\", \"--kind\", \"worker\"] }}"))?;
    let listeners = set.listeners();
    let labels = listeners.iter().map(|it| format!("patou, {}, a worker that discards", it.delivery));
    let mut table = Table::new("a bare socket", std::iter::once("bare hyper, one thread".into()).chain(labels));
    let servers: Vec<_> =
        [sink.address, bare.address].into_iter().chain(listeners.iter().map(|listener| listener.address)).collect();
    table.fill(&args.rounds, |row| {
        if stop.is_set() {
            return Err(interrupted());
        }
        let took = send(servers[row], args.mib).map_err(|error| failed(format!("the upload failed: {error}")))?;
        Ok(args.mib as f64 / took.as_secs_f64())
    })?;
    table.print(&format!("MiB per second, a body of {} MiB; the ratio: higher is better", args.mib))?;
    set.stop()
}

/// Uploads a body of so many MiB; the time from the first connection to the response.
fn send(server: SocketAddr, mib: u64) -> io::Result<Duration> {
    let unexpected = |status| Err(io::Error::other(format!("status {status}")));
    let start = Instant::now();
    let (mut server, mut target) = (server, "/upload".to_owned());
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect_timeout(&server, IO_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let length = mib << 20;
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        let response = read_head(&mut stream)?;
        match (response.status, response.location) {
            (307, Some(next)) => (server, target) = next,
            (100, _) => {
                let chunk = vec![0; 1 << 18];
                for _ in 0..length / chunk.len() as u64 {
                    stream.write_all(&chunk)?;
                }
                return match read_head(&mut stream)?.status {
                    200 => Ok(start.elapsed()),
                    status => unexpected(status),
                };
            }
            (status, _) => return unexpected(status),
        }
    }
    Err(io::Error::other("too many redirects"))
}

/// Reads one response head byte by byte: the bytes after it belong to the next response.
fn read_head(stream: &mut TcpStream) -> io::Result<ResponseHead> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
        if let Some(head) = ResponseHead::parse(&bytes)? {
            return Ok(head);
        }
    }
}
