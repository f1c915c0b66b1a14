//! The handler with real co-processes, each test in a process of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use super::super::stream::unfold;
use super::super::test_process::{alone, log, python};
use super::super::tests::{context, full, send, text};
use super::super::{Body, BoxError, Builtin, Context, Spec};
use super::*;

/// Answers as the target says; `count` tells whether it is still the same process.
const ODD: &str = r#"
import os, subprocess, sys, time
r, w = os.fdopen(3, 'rb'), os.fdopen(4, 'wb')
print('started', flush=True)
count = 0
def answer(body, *more):
    w.write('\r\n'.join([f'Content-Length: {len(body)}', *more, '', '']).encode() + body)
    w.flush()
while line := r.readline():
    h = {}
    while line.strip():
        name, value = line.decode().split(': ')
        h[name] = value.strip()
        line = r.readline()
    count += 1
    t, n = h['Target'], int(h['Content-Length'])
    if t == '/early':
        answer(b'early')
    if t == '/deaf':
        answer(b'last words'); os.close(3); time.sleep(1000)
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
    elif t == '/closed': os.close(4); time.sleep(1000)
    elif t == '/more': answer(b'right'); w.write(b'and more'); w.flush()
    elif t == '/last': answer(b'last'); os._exit(0)
    elif t == '/hang': time.sleep(1000)
    elif t == '/headers': answer(b'', 'Status: 404 Not Found', 'X-A: 1', 'Keep-Alive: 5', 'Content-Type: a/b')
    elif t == '/child':
        subprocess.Popen(['sleep', '1000'])
        subprocess.run(['sh', '-c', 'setsid sleep 1000 &'])
        answer(b'child')
    elif t == '/say': print('to stdout', flush=True); print('to stderr', file=sys.stderr, flush=True); answer(b'said')
    elif t == '/later': answer(b'later'); time.sleep(0.05); print('between', flush=True)
    elif t == '/echo': answer(repr(h).encode() + body)
    elif t != '/early': answer(b'%d' % count)
"#;

/// The odd co-process; `None` when there is no Python.
fn odd() -> Option<Builtin> {
    python().then(|| start(&["python3", "-c", ODD]))
}

fn start(argv: &[&str]) -> Builtin {
    let argv = argv.iter().map(|word| word.to_string()).collect();
    Builtin::start(&Spec::Coprocess(argv), &"default-1".parse().unwrap(), &BTreeMap::new()).unwrap()
}

fn inner(handler: &Builtin) -> &Coprocess {
    let Builtin::Coprocess(coprocess) = handler else { panic!("not a co-process") };
    coprocess
}

fn pid(handler: &Builtin) -> Pid {
    inner(handler).lock().pid.unwrap()
}

async fn post(handler: &Builtin, target: &str, body: impl Into<Bytes>) -> Result<Result<String, BoxError>, Failure> {
    let result = match send(handler, context(), Request::post(target), full(body)).await {
        Ok(response) => Ok(text(response).await),
        Err(failure) => Err(failure),
    };
    handler.end().await;
    result
}

async fn ok(handler: &Builtin, target: &str) -> String {
    post(handler, target, "").await.unwrap().unwrap()
}

/// A body of `size` bytes that says so and never comes.
fn never(size: usize) -> Body {
    struct Never(u64);
    impl http_body::Body for Never {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
            std::task::Poll::Pending
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.0)
        }
    }
    Never(size as u64).boxed_unsync()
}

async fn stopped(handler: Builtin) {
    handler.stop().await;
    assert!(!process_tree::has_children());
}

#[test]
fn the_example_stays_warm() {
    alone(async {
        if !python() {
            return;
        }
        let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/coprocess.py");
        let handler = start(&["python3", example.to_str().unwrap()]);
        for count in 1..=3 {
            let said = post(&handler, "/x?y", "hello").await.unwrap().unwrap();
            assert_eq!(said, format!("POST /x?y: request {count}, 5 bytes\n"));
        }
        assert!(handler.memory().unwrap() > 1_000_000);
        stopped(handler).await;
    });
}

#[test]
fn requests_and_responses_are_framed_and_headers_pass() {
    alone(async {
        let Some(handler) = odd() else { return };
        let request = Request::put("/echo").header("Content-Type", "a/b");
        let said = text(send(&handler, context(), request, full("hello")).await.unwrap()).await.unwrap();
        let expected = "{'Content-Length': '5', 'Method': 'PUT', 'Target': '/echo', 'Content-Type': 'a/b', \
            'Lease': '3.1042'}hello";
        assert_eq!(said, expected);
        handler.end().await;
        let response = send(&handler, context(), Request::get("/headers"), full("")).await.unwrap();
        assert_eq!(response.status(), 404);
        let names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-a", "content-type", "content-length"]);
        handler.end().await;
        let head = send(&handler, context(), Request::head("/"), full("")).await.unwrap();
        assert_eq!(head.headers()["content-length"], "1");
        assert_eq!(text(head).await.unwrap(), "");
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "4");
        let chunked = unfold((), |()| async { Ok(None) });
        let refused = send(&handler, context(), Request::post("/"), chunked).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.started), (411, false));
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "5");
        stopped(handler).await;
    });
}

#[test]
fn both_directions_flow_at_once() {
    alone(async {
        let Some(handler) = odd() else { return };
        // Far more than both pipes hold: one after the other would hang.
        let body = Bytes::from(vec![b'x'; 8 << 20]);
        let response = send(&handler, context(), Request::post("/stream"), full(body.clone())).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "2");
        stopped(handler).await;
    });
}

#[test]
fn an_early_answer_keeps_the_framing_in_step() {
    alone(async {
        let Some(handler) = odd() else { return };
        let early = post(&handler, "/early", vec![0; 8 << 20]).await.unwrap().unwrap();
        assert_eq!(early, "early");
        assert_eq!(ok(&handler, "/").await, "2");
        // The rest never comes: replaced, and the next request finds a fresh one.
        let impatient = Context { body_timeout: Duration::from_millis(30), ..context() };
        let response = send(&handler, impatient, Request::post("/early"), never(9)).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "early");
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "1");
        stopped(handler).await;
    });
}

#[test]
fn death_and_garbage_before_the_head_are_502_and_cost_one_process() {
    alone(async {
        let Some(handler) = odd() else { return };
        for (target, why) in [
            ("/die", "ended with status 7"),
            ("/garbage", "no `Name: value`"),
            ("/closed", "closed its descriptor for responses"),
        ] {
            let failure = post(&handler, target, "").await.unwrap_err();
            assert_eq!((failure.status.as_u16(), failure.started), (502, true));
            assert!(failure.reason.contains(why), "{failure}");
            assert_eq!(ok(&handler, "/").await, "1", "{target}");
        }
        stopped(handler).await;
    });
}

#[test]
fn death_within_a_response_is_an_error_of_its_body() {
    alone(async {
        let Some(handler) = odd() else { return };
        let error = post(&handler, "/half", "").await.unwrap().unwrap_err();
        assert!(error.to_string().contains("was killed by SIGKILL, 5 bytes short"), "{error}");
        assert_eq!(ok(&handler, "/").await, "1");
        stopped(handler).await;
    });
}

#[test]
fn a_complete_answer_of_a_broken_process_is_delivered() {
    alone(async {
        let Some(handler) = odd() else { return };
        for (target, said) in [("/more", "right"), ("/last", "last"), ("/deaf", "last words")] {
            let old = pid(&handler);
            let body = if target == "/deaf" { vec![0; 1 << 20] } else { Vec::new() };
            assert_eq!(post(&handler, target, body).await.unwrap().unwrap(), said);
            // What is wrong may show a moment after the answer: then the next request finds it.
            while quiet(&handler, old) {
                tokio::task::yield_now().await;
            }
            assert_eq!(ok(&handler, "/").await, "1", "{target}");
        }
        stopped(handler).await;
    });
}

/// Whether process `pid` is in its place and has not yet died or said what nobody asked for.
fn quiet(handler: &Builtin, pid: Pid) -> bool {
    match &mut inner(handler).lock().place {
        Place::IdleProcess(warm) => warm.output.child.pid() == pid && warm.output.quiet().is_ok(),
        Place::Fed(..) | Place::Empty => false,
    }
}

/// Everything below this process that is neither the co-process nor below it.
fn strangers(handler: &Builtin) -> Vec<ProcessStat> {
    let own = process_tree::descendants(pid(handler));
    let mut all = process_tree::descendants(getpid());
    all.retain(|p| p.pid != pid(handler) && !own.iter().any(|o| o.pid == p.pid));
    all
}

#[test]
fn a_cancelled_request_replaces_the_process() {
    alone(async {
        let Some(handler) = odd() else { return };
        assert_eq!(ok(&handler, "/child").await, "child");
        let old = pid(&handler);
        let mut call = Box::pin(send(&handler, context(), Request::post("/hang"), full("x")));
        for _ in 0..20 {
            let _ = std::future::poll_fn(|task| std::task::Poll::Ready(call.as_mut().poll(task).is_ready())).await;
            tokio::task::yield_now().await;
        }
        drop(call);
        handler.end().await;
        assert_ne!(pid(&handler), old);
        assert_eq!(strangers(&handler), []);
        assert_eq!(ok(&handler, "/").await, "1");
        // The same with a body that is not read to its end, and one that fails.
        drop(send(&handler, context(), Request::post("/stream"), full(vec![0; 1 << 20])).await.unwrap());
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "1");
        let impatient = Context { body_timeout: Duration::from_millis(30), ..context() };
        assert_eq!(send(&handler, impatient, Request::post("/"), never(9)).await.unwrap_err().status, 408);
        handler.end().await;
        assert_eq!(ok(&handler, "/").await, "1");
        stopped(handler).await;
    });
}

#[test]
fn children_of_the_warm_process_outlive_a_request_but_not_their_parent() {
    alone(async {
        let Some(handler) = odd() else { return };
        assert_eq!(ok(&handler, "/child").await, "child");
        // The child, and the orphan that is the worker's child now.
        while process_tree::descendants(getpid()).iter().filter(|p| !p.is_zombie()).count() != 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let old = pid(&handler);
        handler.recycle().await.unwrap();
        assert_ne!(pid(&handler), old);
        assert_eq!(strangers(&handler), []);
        assert_eq!(ok(&handler, "/").await, "1");
        stopped(handler).await;
    });
}

#[test]
fn a_process_that_ignores_its_farewell_is_killed() {
    alone(async {
        let handler = start(&["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"]);
        let old = pid(&handler);
        handler.recycle().await.unwrap();
        assert!(!process_tree::descendants(getpid()).iter().any(|p| p.pid == old));
        stopped(handler).await;
    });
}

#[test]
fn death_between_requests_is_noticed_at_once_or_at_the_next() {
    alone(async {
        let Some(handler) = odd() else { return };
        let first = pid(&handler);
        kill(first, Signal::SIGKILL).unwrap();
        while quiet(&handler, first) {
            tokio::task::yield_now().await;
        }
        assert_eq!(ok(&handler, "/").await, "1");
        let old = pid(&handler);
        kill(old, Signal::SIGKILL).unwrap();
        let new = async {
            while pid(&handler) == old {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        super::super::stream::race(handler.watch(), new).await;
        assert_eq!(ok(&handler, "/").await, "1");
        stopped(handler).await;
    });
}

#[test]
fn what_it_prints_goes_to_the_log() {
    alone(async {
        let (log, _guard) = log();
        let Some(handler) = odd() else { return };
        let read = || String::from_utf8(log.lock().unwrap().clone()).unwrap();
        while !read().contains("started") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ok(&handler, "/say").await;
        while !(read().contains("to stdout worker=default/1") && read().contains("to stderr worker=default/1")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let line = |text: &str| read().lines().find(|line| line.contains(text)).unwrap().to_owned();
        assert!(line("to stdout").contains("INFO") && line("to stderr").contains("WARN"));
        // With the request in hand, and none where there is none.
        assert!(line("to stdout").contains("lease=\"3.1042\"") && line("to stderr").contains("lease=\"3.1042\""));
        assert!(!line("started").contains("lease="), "{}", read());
        ok(&handler, "/later").await;
        while !read().contains("between") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!line("between").contains("lease="), "{}", read());
        stopped(handler).await;
    });
}
