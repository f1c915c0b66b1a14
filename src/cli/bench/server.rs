//! `patou bench-server` (hidden): the baseline servers, each in its own process as a set is.
//!
//! The server prints its address on a line and serves until it is killed.

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

use super::http_head::RequestHead;
use crate::cli::error::{CommandError, failed};
use crate::{sys, worker};

#[derive(Debug, Args)]
pub(crate) struct BenchServerArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    kind: ServerKind,
}

/// What serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServerKind {
    /// hyper with one thread.
    Http,
    /// A bare socket: reads one body to its end, one connection at a time.
    Sink,
    /// The service of `Http` as the worker of a pool.
    Worker,
}

pub(crate) fn run(args: &BenchServerArgs) -> Result<(), CommandError> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed);
    if args.kind == ServerKind::Worker {
        return runtime()?.block_on(worker::serve(DiscardService)).map_err(failed);
    }
    let listener = TcpListener::bind(args.listen).map_err(|error| failed(format!("{}: {error}", args.listen)))?;
    writeln!(io::stdout(), "{}", listener.local_addr().map_err(failed)?).map_err(failed)?;
    match args.kind {
        ServerKind::Http => runtime()?.block_on(serve_http(listener)).map_err(failed),
        _ => serve_sink(&listener).map_err(failed),
    }
}

async fn serve_http(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
        // A client that disconnects is not an error.
        tokio::spawn(async move { drop(serving.await) });
    }
}

/// Responds as the handler `echo` does to a request without a body, and discards a body. `?ms=N` blocks the thread for
/// so long, as a handler that sleeps does.
async fn respond<B: http_body::Body + Unpin>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
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

struct DiscardService;

impl tower_service::Service<Request<worker::Body>> for DiscardService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<worker::Body>) -> Self::Future {
        Box::pin(respond(request))
    }
}

fn serve_sink(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        let _ = receive_body(stream); // an error of one connection does not concern the next
    }
}

/// Reads one body and responds.
fn receive_body(mut stream: TcpStream) -> io::Result<()> {
    // Pieces as large as hyper's, for a fair baseline.
    let mut buffer = vec![0; 1 << 18];
    let mut filled = 0;
    let head = loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Ok(()),
            count => filled += count,
        }
        if let Some(head) = RequestHead::parse(&buffer[..filled])? {
            break head;
        }
    };
    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    let mut left = head.content_length.saturating_sub((filled - head.length) as u64);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => left = left.saturating_sub(count as u64),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// A baseline server that runs until this is dropped or this process dies.
pub(crate) struct RunningServer {
    pub address: SocketAddr,
    child: Child,
}

impl RunningServer {
    pub(crate) fn start(kind: ServerKind) -> Result<Self, CommandError> {
        let kind = kind.to_possible_value().map(|kind| kind.get_name().to_owned()).unwrap_or_default();
        let mut command = Command::new("/proc/self/exe");
        sys::die_with_parent(&mut command);
        let child = command
            .args(["bench-server", "--kind", &kind])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("cannot start the baseline server: {error}")))?;
        // Dropped on an error below, which ends the child.
        let mut server = Self { address: ([127, 0, 0, 1], 0).into(), child };
        let mut line = String::new();
        if let Some(out) = server.child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(failed)?;
        }
        server.address = line.trim().parse().map_err(|_| failed("the baseline server does not start"))?;
        Ok(server)
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait()); // fails if it has exited
    }
}
