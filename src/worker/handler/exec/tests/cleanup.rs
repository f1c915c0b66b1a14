//! What remains of a request when it is over: nothing.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt;
use nix::unistd::getpid;

use super::super::super::context::RequestContext;
use super::super::super::test_process::{capture_log, in_own_process};
use super::*;
use crate::config::BackgroundMode;

#[test]
fn cancelled_request_leaves_no_process() {
    in_own_process(async {
        let pids = scratch_file("pids");
        let script = format!(
            "trap '' TERM INT HUP; ( ( trap '' TERM; echo one >>{0}; setsid sh -c 'echo two >>{0}; sleep 1000; true' ) & ) & \
             {PRINT_HEAD} echo first; while :; do sleep 1000; done",
            pids.display()
        );
        for after_head in [false, true] {
            let handler = sh(&script);
            let mut call = Box::pin(send(&handler, request_context(), Request::post("/"), mebibytes(20)));
            let mut body = None;
            if after_head {
                let mut response = call.await.unwrap();
                assert!(response.frame().await.unwrap().is_ok());
                body = Some(response);
            } else {
                // Cancelled as soon as the process exists, before its response head has been read.
                std::future::poll_fn(|task| {
                    let _ = call.as_mut().poll(task);
                    task.waker().wake_by_ref();
                    if process_tree::descendants(getpid()).is_empty() { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                drop(call);
            }
            while after_head && std::fs::read_to_string(&pids).unwrap_or_default().lines().count() < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(body);
            handler.end_request(Duration::ZERO).await;
            assert!(!process_tree::has_children());
        }
        std::fs::remove_file(pids).unwrap();
    });
}

#[test]
fn fork_bomb_in_its_process_group_is_killed() {
    in_own_process(async {
        // Bounded: four generations, of which each process forks five times.
        let handler = sh(format!(
            "{PRINT_HEAD} echo; f() {{ for i in 1 2 3 4 5; do (sleep 0.01; [ $1 -gt 0 ] && f $(($1-1))) & done; wait; sleep 9; }}; f 3"
        ));
        let mut response = send(&handler, request_context(), Request::get("/"), full_body("")).await.unwrap();
        assert!(response.frame().await.unwrap().is_ok());
        while process_tree::descendants(getpid()).len() < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(response);
        handler.end_request(Duration::ZERO).await;
        assert!(!process_tree::has_children());
    });
}

/// Cancels a request as soon as `ready` exists.
async fn cancel_when(handler: &BuiltinHandler, ready: &std::path::Path, body: Body) {
    let mut call = Box::pin(send(handler, request_context(), Request::post("/"), body));
    while !ready.exists() {
        let step = tokio::time::timeout(Duration::from_millis(2), call.as_mut()).await;
        assert!(step.is_err(), "the request is not over");
    }
    drop(call);
    handler.end_request(Duration::ZERO).await;
    assert!(!process_tree::has_children());
    std::fs::remove_file(ready).unwrap();
}

fn silent_body() -> Body {
    sized(unfold((), |()| std::future::pending()), 9)
}

#[test]
fn cancelled_program_may_clean_up_within_the_grace() {
    in_own_process(async {
        let [ready, cleaned] = ["ready", "cleaned"].map(scratch_file);
        let [ready_path, cleaned_path] = [&ready, &cleaned].map(|path| path.display().to_string());
        let handler = sh(format!("trap 'echo 1 >{cleaned_path}; exit 1' TERM; touch {ready_path}; sleep 1000 & wait"));
        cancel_when(&handler, &ready, full_body("")).await;
        std::fs::remove_file(&cleaned).unwrap();
        // One that ignores SIGTERM is killed after the default abort_grace, and sees no end of a body that was cut.
        let handler = sh(format!("trap '' TERM; touch {ready_path}; cat; touch {cleaned_path}; sleep 1000"));
        let start = tokio::time::Instant::now();
        cancel_when(&handler, &ready, silent_body()).await;
        let grace = WatchdogConfig::default().abort_grace;
        assert!((grace..Duration::from_secs(10)).contains(&start.elapsed()));
        assert!(!cleaned.exists());
    });
}

#[test]
fn background_job_is_logged_when_it_is_killed() {
    in_own_process(async {
        let (log, _guard) = capture_log();
        assert_eq!(get(format!("{PRINT_HEAD} sleep 1000 >/dev/null 2>&1 & echo done")).await, "done\n");
        let log = log.text();
        // Its name is that of the shell until it executes.
        assert!(log.contains("`sh` has left process") && log.contains("running after its request"), "{log}");
    });
}

#[test]
fn background_job_may_be_kept_until_the_worker_ends() {
    in_own_process(async {
        let [pids, ready] = ["jobs", "ready"].map(scratch_file);
        let script = format!(
            "case $PATH_INFO in /job) (sleep 1000 >/dev/null 2>&1 & echo $! >>{}) ;; /true) true & ;; \
             /hang) (setsid sleep 2000 &) ; touch {}; sleep 3000 ;; esac; {PRINT_HEAD}",
            pids.display(),
            ready.display()
        );
        let handler = start(&script, |pool| pool.background = BackgroundMode::Keep);
        for (n, target) in ["/job", "/true", "/job"].into_iter().enumerate() {
            let context = RequestContext { lease: format!("3.{n}"), ..request_context() };
            let response = send(&handler, context, Request::get(target), full_body("")).await.unwrap();
            body_text(response).await.unwrap();
            handler.end_request(Duration::ZERO).await;
        }
        let names = || {
            let all = process_tree::descendants(getpid());
            all.iter()
                .map(|p| crate::procfs::arguments(&crate::procfs::process_dir(p.id().pid), 99))
                .collect::<Vec<_>>()
        };
        let jobs = vec![Some(b"sleep\x001000\0".to_vec()); 2];
        while names() != jobs {
            tokio::time::sleep(Duration::from_millis(2)).await; // the shell has not executed sleep yet
        }
        // A cancelled request takes its own processes along, and no others.
        let mut call = Box::pin(send(&handler, request_context(), Request::get("/hang"), full_body("")));
        while !ready.exists() {
            let _ = tokio::time::timeout(Duration::from_millis(2), call.as_mut()).await;
        }
        drop(call);
        handler.end_request(Duration::ZERO).await;
        assert_eq!(names(), jobs);
        handler.stop().await;
        assert!(!process_tree::has_children());
        [pids, ready].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    });
}
