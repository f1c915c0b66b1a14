//! The client against a scripted dispatcher and scripted workers, byte by byte.

mod delivery;
mod expect;
mod leases;
mod outcome;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use http::request::Builder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::*;

const OK_PONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npong";

/// Fails a test that hangs.
async fn with_deadline<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
}

trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Makes the next close a reset; Unix sockets have no reset.
    fn reset_on_close(&self) {}
}
impl Socket for TcpStream {
    fn reset_on_close(&self) {
        self.set_zero_linger().unwrap();
    }
}
impl Socket for UnixStream {}

/// A scripted dispatcher or worker, listening.
enum Script {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Script {
    async fn tcp() -> Self {
        Self::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn unix() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("patou-client-{}-{number}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self::Unix(UnixListener::bind(&path).unwrap(), path)
    }

    fn address(&self) -> Address {
        match self {
            Script::Tcp(listener) => listener.local_addr().unwrap().to_string().parse().unwrap(),
            Script::Unix(_, path) => Address::Unix(path.clone()),
        }
    }

    fn client(&self) -> Client {
        Client::new(self.address().into())
    }

    async fn accept(&self) -> Peer {
        let socket: Box<dyn Socket> = match self {
            Script::Tcp(listener) => Box::new(listener.accept().await.unwrap().0),
            Script::Unix(listener, _) => Box::new(listener.accept().await.unwrap().0),
        };
        Peer { socket }
    }

    /// Accepts one lease request and responds with these bytes.
    async fn respond(&self, response: &str) {
        let mut peer = self.accept().await;
        let host = Target::from(self.address()).authority();
        let expected =
            format!("POST /.patou/lease HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(peer.head().await, expected);
        peer.send(response).await;
        assert_eq!(peer.finish().await, b"");
    }

    /// Accepts one lease request and grants a lease of `worker`; returns the token.
    async fn grant_lease(&self, worker: &Address) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let token = format!("{:032x}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.respond(&lease_response(&worker.to_string(), &token)).await;
        token
    }

    /// Whether no further client has connected.
    async fn has_no_client(&self) -> bool {
        tokio::time::timeout(Duration::ZERO, self.accept()).await.is_err()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Script::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn json_ok(json: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len())
}

fn lease_response(worker: &str, token: &str) -> String {
    json_ok(&format!(r#"{{"worker":"default/1","address":"{worker}","token":"{token}","expires_ms":1000}}"#))
}

/// One accepted connection.
struct Peer {
    socket: Box<dyn Socket>,
}

impl Peer {
    /// Reads up to the empty line and not one byte more.
    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.socket.read_u8().await.expect("the head is truncated"));
        }
        String::from_utf8(head).unwrap()
    }

    async fn body(&mut self, bytes: usize) -> Vec<u8> {
        let mut body = vec![0; bytes];
        self.socket.read_exact(&mut body).await.unwrap();
        body
    }

    async fn send(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    /// Asserts that the client, which runs in the same task, sends nothing although it is polled many times.
    async fn receives_nothing(&mut self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(tokio::time::timeout(Duration::ZERO, self.socket.read_u8()).await.is_err());
    }

    /// Shuts down writing and reads until the client closes.
    async fn finish(mut self) -> Vec<u8> {
        match self.socket.shutdown().await {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => panic!("{e}"),
            _ => {}
        }
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).await.unwrap();
        rest
    }

    fn reset(self) {
        self.socket.reset_on_close();
    }
}

/// A response and its whole body.
#[derive(Debug, PartialEq)]
struct Received {
    status: u16,
    body: String,
    leased: bool,
    attempts: u32,
}

async fn call(client: &Client, request: Request<Payload>) -> Result<Received, CallError> {
    let received = client.call(request).await?;
    let (head, body) = received.response.into_parts();
    let body = String::from_utf8(body.collect().await?.to_bytes().into()).unwrap();
    Ok(Received { status: head.status.as_u16(), body, leased: received.lease.is_some(), attempts: received.attempts })
}

fn pong(attempts: u32) -> Received {
    Received { status: 200, body: "pong".into(), leased: true, attempts }
}

fn get(path: &str) -> Request<Payload> {
    Builder::new().uri(path).body(Payload::Empty).unwrap()
}

fn post(body: impl Into<Bytes>) -> Request<Payload> {
    Request::post("/").body(Payload::Bytes(body.into())).unwrap()
}

/// `client`, and the steps that it reports.
fn observed(client: Client) -> (Client, Arc<Mutex<Vec<Step>>>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let reported = steps.clone();
    (client.observe(move |_, step| reported.lock().unwrap().push(step.clone())), steps)
}

/// The names of the reported steps, in order.
fn step_names(steps: &Mutex<Vec<Step>>) -> Vec<String> {
    let name = |step: &Step| format!("{step:?}").split([' ', '{']).next().unwrap().to_owned();
    steps.lock().unwrap().iter().map(name).collect()
}

#[test]
fn futures_of_the_client_are_send() {
    fn assert_send<T: Send>(_: T) {}
    let client = Client::new("unix:/s".parse().unwrap());
    assert_send(client.call(get("/")));
    assert_send(client.lease());
}
