//! `patou bare`: the servers that patou is measured against, in a process of their own as a set is.
//!
//! It prints its address on a line and serves until it is killed.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::cli::{Failure, failed};
use crate::{sys, worker};

#[derive(Debug, Args)]
pub struct Bare {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    kind: Kind,
}

/// What serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// hyper with one thread and nothing around it.
    Http,
    /// A socket that is read to the end of a body, one connection at a time.
    Sink,
    /// The service of `Http` as the worker of a pool.
    Worker,
}

pub fn run(bare: &Bare) -> Result<(), Failure> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed);
    if bare.kind == Kind::Worker {
        return runtime()?.block_on(worker::serve(Service)).map_err(failed);
    }
    let listener = TcpListener::bind(bare.listen).map_err(|error| failed(format!("{}: {error}", bare.listen)))?;
    writeln!(io::stdout(), "{}", listener.local_addr().map_err(failed)?).map_err(failed)?;
    match bare.kind {
        Kind::Http => runtime()?.block_on(serve(listener)).map_err(failed),
        _ => drain(&listener).map_err(failed),
    }
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        // A client that leaves has what it wants.
        tokio::spawn(async move { drop(serving.await) });
    }
}

/// As the handler `echo` without a body; a body is discarded. `?ms=N` blocks for so long, as handlers do that sleep.
async fn answer<B: http_body::Body + Unpin>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, mut body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("*", |target| target.as_str());
    if parts.method != Method::GET {
        while let Some(Ok(_)) = body.frame().await {}
    }
    if let Some(ms) = parts.uri.query().and_then(|query| query.strip_prefix("ms=")?.parse().ok()) {
        std::thread::sleep(Duration::from_millis(ms));
    }
    Ok(Response::new(Full::from(format!("{} {target}\n", parts.method))))
}

struct Service;

impl tower_service::Service<Request<worker::Body>> for Service {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<worker::Body>) -> Self::Future {
        Box::pin(answer(request))
    }
}

fn drain(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        let _ = take(stream); // the next client is none of its business
    }
}

/// Takes one body and says so.
fn take(stream: TcpStream) -> io::Result<()> {
    let mut length = 0u64;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().map_err(io::Error::other)?;
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    // Straight from the socket, in pieces as large as hyper's: nothing else is a baseline.
    let mut left = length.saturating_sub(reader.buffer().len() as u64);
    let mut stream = reader.into_inner();
    let mut bytes = vec![0; 1 << 18];
    while left > 0 {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            count => left = left.saturating_sub(count as u64),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// One of them that runs, until this is dropped or this process dies.
pub struct Running {
    pub address: SocketAddr,
    child: Child,
}

impl Running {
    pub fn start(kind: Kind) -> Result<Self, Failure> {
        let kind = kind.to_possible_value().map(|kind| kind.get_name().to_owned()).unwrap_or_default();
        let mut command = Command::new("/proc/self/exe");
        sys::die_with_parent(&mut command);
        let mut child = command
            .args(["bare", "--kind", &kind])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("cannot start the baseline: {error}")))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(failed)?;
        }
        let unreachable = Self { address: ([127, 0, 0, 1], 0).into(), child };
        let address = line.trim().parse().map_err(|_| failed("the baseline does not start"))?;
        let mut running = unreachable;
        running.address = address;
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait()); // dead already is as good
    }
}
