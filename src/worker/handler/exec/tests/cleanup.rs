//! What remains of a request when it is over: nothing.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt;
use nix::unistd::getpid;

use super::super::super::test_process::in_own_process;
use super::*;

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
