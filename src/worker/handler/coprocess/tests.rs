//! The handler with real co-processes.

mod exchange;
mod lifecycle;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use nix::unistd::Pid;

use super::super::body::{Body, BoxError, unfold};
use super::super::builtin::BuiltinHandler;
use super::super::failure::RequestFailure;
use super::super::test_process::has_python;
use super::super::test_request::{body_text, full_body, request_context, send, sized};
use super::super::warm::{CurrentProcess, WarmEvent, WarmHandler};
use super::process::Coprocess;
use crate::config::{HandlerConfig, PoolConfig, WatchdogConfig};
use crate::process_tree;

/// A co-process that behaves as the target demands. By default it responds with the number of requests so far, which
/// shows whether the process has been replaced.
const PYTHON: &str = r#"
import os, subprocess, sys, time
r, w = os.fdopen(3, 'rb'), os.fdopen(4, 'wb')
print('started', flush=True)
count = 0
def respond(body, *more):
    w.write('\r\n'.join([f'Content-Length: {len(body)}', *more, '', '']).encode() + body)
    w.flush()
while line := r.readline():
    h = {}
    while line.strip():
        name, value = line.decode().split(': ', 1)
        h[name] = value.strip()
        line = r.readline()
    count += 1
    t, n = h['Target'], int(h['Content-Length'])
    if t == '/early':
        respond(b'early')
    if t == '/close-requests':
        respond(b'last response'); os.close(3); time.sleep(1000)
    body = r.read(n) if t != '/stream' else b''
    if t == '/stream':
        w.write(f'Content-Length: {n}\n\n'.encode()); w.flush()
        while n > 0:
            piece = r.read1(min(n, 65536))
            w.write(piece); w.flush()
            n -= len(piece)
    elif t == '/die': os._exit(7)
    elif t == '/half': w.write(b'Content-Length: 9\n\nhalf'); w.flush(); os.kill(os.getpid(), 9)
    elif t == '/garbage': w.write(b'Hello, I am garbage\n\n'); w.flush()
    elif t == '/close-responses': os.close(4); time.sleep(1000)
    elif t == '/excess': respond(b'response'); w.write(b'and more'); w.flush()
    elif t == '/last': respond(b'last'); os._exit(0)
    elif t == '/hang': time.sleep(1000)
    elif t == '/slow': time.sleep(0.1); respond(b'slow')
    elif t == '/headers': respond(b'', 'Status: 404 Not Found', 'X-A: 1', 'Keep-Alive: 5', 'Content-Type: a/b')
    elif t == '/named-length': respond(b'', 'Http-Content-Length: 42')
    elif t == '/child':
        subprocess.Popen(['sleep', '1000'])
        subprocess.run(['sh', '-c', 'setsid sleep 1000 &'])
        respond(b'child')
    elif t == '/print': print('to stdout', flush=True); print('to stderr', file=sys.stderr, flush=True); respond(b'ok')
    elif t == '/print-later': respond(b'ok'); time.sleep(0.05); print('between', flush=True)
    elif t == '/echo': respond(repr(h).encode() + body)
    elif t != '/early': respond(b'%d' % count)
"#;

/// How long an interrupted request may take in the tests in which it finishes.
const LIMIT: Duration = Duration::from_secs(20);

/// A handler with the co-process above; `None` if Python is not installed.
fn start_python() -> Option<BuiltinHandler> {
    has_python().then(|| start(&["python3", "-c", PYTHON]))
}

fn start(argv: &[&str]) -> BuiltinHandler {
    let argv = argv.iter().map(|argument| argument.to_string()).collect();
    start_pool(&PoolConfig { handler: HandlerConfig::Coprocess(argv), ..PoolConfig::default() })
}

fn start_pool(pool: &PoolConfig) -> BuiltinHandler {
    let worker = "default-1".parse().unwrap();
    BuiltinHandler::start(pool, &worker, &WatchdogConfig::default(), PathBuf::new()).unwrap().unwrap()
}

/// Keeps the process until `end`.
async fn keep_until(handler: &BuiltinHandler, end: impl Future<Output = ()>) {
    tokio::select! {
        error = handler.keep(&|_| {}) => panic!("{error}"),
        () = end => {}
    }
}

/// Replaces the process.
async fn recycle(handler: &BuiltinHandler) {
    let (replaced, mut result) = tokio::sync::mpsc::unbounded_channel();
    let notify = move |event| {
        if let WarmEvent::Replaced(result) = event {
            replaced.send(result).unwrap();
        }
    };
    handler.request_replacement();
    let ended = async {
        result.recv().await.unwrap().unwrap();
        // The old process, and what it has left.
        let count = |root| process_tree::descendants(root).len();
        while count(nix::unistd::getpid()) > count(pid(handler)) + 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        error = handler.keep(&notify) => panic!("{error}"),
        () = ended => {}
    }
}

fn coprocess(handler: &BuiltinHandler) -> &WarmHandler<Coprocess> {
    let BuiltinHandler::Coprocess(coprocess) = handler else { panic!("not a co-process") };
    coprocess
}

fn pid(handler: &BuiltinHandler) -> Pid {
    coprocess(handler).lock().pid.unwrap()
}

/// One request and its cleanup.
async fn post(
    handler: &BuiltinHandler,
    target: &str,
    body: impl Into<Bytes>,
) -> Result<Result<String, BoxError>, RequestFailure> {
    let result = match send(handler, request_context(), Request::post(target), full_body(body)).await {
        Ok(response) => Ok(body_text(response).await),
        Err(failure) => Err(failure),
    };
    handler.end_request(LIMIT).await;
    result
}

/// The response body to a request without a body.
async fn text(handler: &BuiltinHandler, target: &str) -> String {
    post(handler, target, "").await.unwrap().unwrap()
}

/// A body that announces `size` bytes and never sends them.
fn missing_body(size: usize) -> Body {
    sized(unfold((), |()| std::future::pending()), size as u64)
}

async fn stop(handler: BuiltinHandler) {
    handler.stop().await;
    assert!(!process_tree::has_children());
}

/// Whether process `pid` waits for a request, and has neither died nor written unexpected data.
fn is_idle(handler: &BuiltinHandler, pid: Pid) -> bool {
    match &mut coprocess(handler).lock().process {
        CurrentProcess::Idle(running) => running.pid == pid && running.process.reader.check_idle().is_ok(),
        _ => false,
    }
}
