//! Conversations with a dispatcher and workers that follow a script, byte by byte.

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

/// Ends a conversation that hangs; no test waits for it otherwise.
async fn guarded<T>(conversation: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), conversation).await.expect("the conversation hangs")
}

trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Makes the coming close a reset, where there is such a thing.
    fn reset(&self) {}
}
impl Socket for TcpStream {
    fn reset(&self) {
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

    /// Accepts one question for a lease and answers it with these bytes.
    async fn answers(&self, answer: &str) {
        let mut peer = self.accept().await;
        let host = Target::from(self.address()).authority();
        let question =
            format!("POST /.patou/lease HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(peer.head().await, question);
        peer.say(answer).await;
        assert_eq!(peer.finish().await, b"");
    }

    /// Accepts one question for a lease and grants one of `worker`; returns the token.
    async fn leases(&self, worker: &Address) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let token = format!("{:032x}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.answers(&granted(&worker.to_string(), &token)).await;
        token
    }

    /// Whether nobody (else) has connected.
    async fn is_left_alone(&self) -> bool {
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

fn granted(worker: &str, token: &str) -> String {
    json_ok(&format!(r#"{{"worker":"default/1","address":"{worker}","token":"{token}","expires_ms":1000}}"#))
}

/// One accepted connection.
struct Peer {
    socket: Box<dyn Socket>,
}

impl Peer {
    /// Reads up to the empty line and not a byte further.
    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.socket.read_u8().await.expect("the head is cut short"));
        }
        String::from_utf8(head).unwrap()
    }

    async fn body(&mut self, bytes: usize) -> Vec<u8> {
        let mut body = vec![0; bytes];
        self.socket.read_exact(&mut body).await.unwrap();
        body
    }

    async fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    /// Nothing comes though the client, which lives in the same task, had many turns.
    async fn hears_nothing(&mut self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(tokio::time::timeout(Duration::ZERO, self.socket.read_u8()).await.is_err());
    }

    /// Closes for writing and reads what else comes before the client closes.
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
        self.socket.reset();
    }
}

/// An answer read to its end.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    body: String,
    leased: bool,
    attempts: u32,
}

async fn call(client: &Client, request: Request<Payload>) -> Result<Got, CallError> {
    let answer = client.call(request).await?;
    let (head, body) = answer.response.into_parts();
    let body = String::from_utf8(body.collect().await?.to_bytes().into()).unwrap();
    Ok(Got { status: head.status.as_u16(), body, leased: answer.lease.is_some(), attempts: answer.attempts })
}

fn pong(attempts: u32) -> Got {
    Got { status: 200, body: "pong".into(), leased: true, attempts }
}

fn get(path: &str) -> Request<Payload> {
    Builder::new().uri(path).body(Payload::Empty).unwrap()
}

fn post(body: impl Into<Bytes>) -> Request<Payload> {
    Request::post("/").body(Payload::Bytes(body.into())).unwrap()
}

/// `client`, and the steps it has told so far.
fn watched(client: Client) -> (Client, Arc<Mutex<Vec<Step>>>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = steps.clone();
    (client.observe(move |_, step| told.lock().unwrap().push(step.clone())), steps)
}

/// The names of the steps told, in order.
fn names(steps: &Mutex<Vec<Step>>) -> Vec<String> {
    let name = |step: &Step| format!("{step:?}").split([' ', '{']).next().unwrap().to_owned();
    steps.lock().unwrap().iter().map(name).collect()
}

#[test]
fn a_call_may_move_between_threads() {
    fn moves<T: Send>(_: T) {}
    let client = Client::new("unix:/s".parse().unwrap());
    moves(client.call(get("/")));
    moves(client.lease());
}
