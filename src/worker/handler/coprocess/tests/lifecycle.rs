//! When the process is kept, when it is replaced, and what it prints.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use super::super::super::context::{RequestContext, RequestStart};
use super::super::super::test_process::{capture_log, has_python, in_own_process};
use super::*;
use crate::procfs::ProcessStat;

/// All descendants of this process except the co-process and its descendants.
fn foreign_processes(handler: &BuiltinHandler) -> Vec<ProcessStat> {
    let own = process_tree::descendants(pid(handler));
    let mut all = process_tree::descendants(getpid());
    all.retain(|p| p.pid != pid(handler) && !own.iter().any(|o| o.pid == p.pid));
    all
}

#[test]
fn example_serves_many_requests_with_one_process() {
    in_own_process(async {
        if !has_python() {
            return;
        }
        let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/coprocess.py");
        let handler = start(&["python3", example.to_str().unwrap()]);
        for count in 1..=3 {
            let response = post(&handler, "/x?y", "hello").await.unwrap().unwrap();
            assert_eq!(response, format!("POST /x?y: request {count}, 5 bytes\n"));
        }
        assert!(process_tree::memory_above(1_000_000).is_some());
        stop(handler).await;
    });
}

#[test]
fn orphan_that_ends_between_requests_is_reaped_at_once() {
    in_own_process(async {
        let handler = start(&["sh", "-c", "(sleep 1000 &); exec cat <&3"]);
        let orphan_ends = async {
            let orphan = loop {
                let adopted = foreign_processes(&handler).into_iter().find(|process| process.parent == getpid());
                match adopted {
                    Some(orphan) => break orphan.pid,
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            };
            kill(orphan, Signal::SIGKILL).unwrap();
            while !foreign_processes(&handler).is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        keep_until(&handler, orphan_ends).await;
        stop(handler).await;
    });
}

#[test]
fn cancelled_request_replaces_a_process_that_cannot_finish_it() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        assert_eq!(text(&handler, "/child").await, "child");
        let old = pid(&handler);
        let mut call = Box::pin(send(&handler, request_context(), Request::post("/hang"), full_body("x")));
        for _ in 0..20 {
            let _ = std::future::poll_fn(|task| std::task::Poll::Ready(call.as_mut().poll(task).is_ready())).await;
            tokio::task::yield_now().await;
        }
        drop(call);
        handler.end_request(Duration::from_millis(30)).await;
        assert_ne!(pid(&handler), old);
        assert_eq!(foreign_processes(&handler), []);
        assert_eq!(text(&handler, "/").await, "1");
        // The same with a request body that fails.
        let short_timeout = RequestContext { body_timeout: Duration::from_millis(30), ..request_context() };
        assert_eq!(send(&handler, short_timeout, Request::post("/"), missing_body(9)).await.unwrap_err().status, 408);
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "1");
        stop(handler).await;
    });
}

#[test]
fn request_has_not_started_while_its_process_is_not_ready() {
    in_own_process(async {
        let handler = HandlerConfig::Coprocess(["sleep", "1000"].map(str::to_owned).to_vec());
        let handler = start_pool(&PoolConfig { handler, ready_frame: true, ..PoolConfig::default() });
        let start = RequestStart::default();
        let request = Request::post("/").extension(start.clone());
        let call = send(&handler, request_context(), request, full_body("x"));
        assert!(tokio::time::timeout(Duration::from_millis(30), call).await.is_err() && start.is_pending());
        handler.end_request(LIMIT).await;
        handler.stop().await;

        let Some(handler) = start_python() else { return };
        let request = Request::post("/hang").extension(start.clone());
        let call = send(&handler, request_context(), request, full_body("x"));
        assert!(tokio::time::timeout(Duration::from_millis(30), call).await.is_err() && !start.is_pending());
        handler.kill_request_processes().await;
        handler.end_request(LIMIT).await;
        stop(handler).await;
    });
}

#[test]
fn cancelled_request_is_finished_by_its_process() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        assert_eq!(text(&handler, "/").await, "1");
        let old = pid(&handler);
        // Dropped before the head of the response, and within its body.
        let mut call = Box::pin(send(&handler, request_context(), Request::post("/slow"), full_body("x")));
        for _ in 0..20 {
            let _ = std::future::poll_fn(|task| std::task::Poll::Ready(call.as_mut().poll(task).is_ready())).await;
            tokio::task::yield_now().await;
        }
        drop(call);
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "3");
        drop(send(&handler, request_context(), Request::post("/stream"), full_body(vec![0; 1 << 20])).await.unwrap());
        handler.end_request(LIMIT).await;
        assert_eq!((text(&handler, "/").await.as_str(), pid(&handler)), ("5", old));
        stop(handler).await;
    });
}

#[test]
fn descendants_outlive_a_request_but_not_the_process() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        assert_eq!(text(&handler, "/child").await, "child");
        // The process, its child, and the orphan that is the worker's child now.
        while process_tree::descendants(getpid()).iter().filter(|p| !p.is_zombie()).count() != 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let old = pid(&handler);
        recycle(&handler).await;
        assert_ne!(pid(&handler), old);
        // A process that was just killed is seen until it is reaped, one that the new process starts between two scans.
        while !foreign_processes(&handler).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(text(&handler, "/").await, "1");
        stop(handler).await;
    });
}

#[test]
fn process_that_does_not_exit_when_recycled_is_killed() {
    in_own_process(async {
        let handler = start(&["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"]);
        let old = pid(&handler);
        recycle(&handler).await;
        assert!(!process_tree::descendants(getpid()).iter().any(|p| p.pid == old));
        stop(handler).await;
    });
}

#[test]
fn process_that_dies_between_requests_is_replaced() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        let first = pid(&handler);
        kill(first, Signal::SIGKILL).unwrap();
        while is_idle(&handler, first) {
            tokio::task::yield_now().await;
        }
        assert_eq!(text(&handler, "/").await, "1");
        let old = pid(&handler);
        kill(old, Signal::SIGKILL).unwrap();
        let replaced = async {
            while coprocess(&handler).lock().pid.is_none_or(|pid| pid == old) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        keep_until(&handler, replaced).await;
        assert_eq!(text(&handler, "/").await, "1");
        stop(handler).await;
    });
}

#[test]
fn output_is_logged_with_the_lease_of_the_current_request() {
    in_own_process(async {
        let (log, _guard) = capture_log();
        let Some(handler) = start_python() else { return };
        while !log.text().contains("started") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        text(&handler, "/print").await;
        while !(log.text().contains("to stdout worker=default/1") && log.text().contains("to stderr worker=default/1"))
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let line = |text: &str| log.text().lines().find(|line| line.contains(text)).unwrap().to_owned();
        assert!(line("to stdout").contains("INFO") && line("to stderr").contains("WARN"));
        // With the lease of the current request, and without one between requests.
        assert!(line("to stdout").contains("lease=\"3.1042\"") && line("to stderr").contains("lease=\"3.1042\""));
        assert!(!line("started").contains("lease="), "{}", log.text());
        text(&handler, "/print-later").await;
        while !log.text().contains("between") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!line("between").contains("lease="), "{}", log.text());
        stop(handler).await;
    });
}
