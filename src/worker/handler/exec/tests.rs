//! The handler with real processes, each test in a process of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::task::Poll;
use std::time::Duration;

use http::request::Builder;
use nix::unistd::getpid;

use super::super::test_process::{alone, log};
use super::super::tests::{context, full, send, text};
use super::super::{BoxError, Builtin, Spec};
use super::*;

const HEAD: &str = "printf 'Content-Type: text/plain\\n\\n';";

fn sh(script: impl AsRef<str>) -> Builtin {
    let argv = ["sh", "-c", script.as_ref()].map(str::to_owned).to_vec();
    let environment = BTreeMap::from([("MINE".to_owned(), "pool".to_owned())]);
    Builtin::start(&Spec::Exec(argv), &"default-1".parse().unwrap(), &environment).unwrap()
}

/// One request from its start to the end of everything.
async fn run(
    script: impl AsRef<str>,
    request: Builder,
    body: Body,
) -> Result<(u16, Result<String, BoxError>), Failure> {
    let handler = sh(script);
    let response = send(&handler, context(), request, body).await;
    let result = match response {
        Ok(response) => Ok((response.status().as_u16(), text(response).await)),
        Err(failure) => Err(failure),
    };
    handler.end().await;
    assert!(!process_tree::has_children());
    handler.stop().await;
    result
}

async fn ok(script: impl AsRef<str>) -> String {
    run(script, Request::get("/"), full("")).await.unwrap().1.unwrap()
}

/// A file name that no other test has.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("patou-exec-{}-{name}", std::process::id()))
}

/// `count` pieces of a mebibyte, of unannounced size.
fn mebibytes(count: usize) -> Body {
    unfold((count, Bytes::from(vec![7; 1 << 20])), |(left, piece)| async move {
        Ok((left > 0).then(|| (piece.clone(), (left - 1, piece))))
    })
}

#[test]
fn the_environment_is_clean_and_complete() {
    alone(async {
        assert!(std::env::var_os("NOTIFY_SOCKET").is_some(), "the test wants something to hide");
        let all = ok(format!("{HEAD} env")).await;
        for line in ["GATEWAY_INTERFACE=CGI/1.1", "PATOU_LEASE=3.1042", "MINE=pool", "REMOTE_ADDR=192.0.2.7"] {
            assert!(all.lines().any(|l| l == line), "{line} in {all}");
        }
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "PATOU_CONFIG", "CONTENT_LENGTH", "HOME"] {
            assert!(!all.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} in {all}");
        }
    });
}

#[test]
fn a_body_of_known_and_of_unknown_size() {
    alone(async {
        let script = format!("{HEAD} echo ${{CONTENT_LENGTH-none}}; cat");
        let known = run(&script, Request::post("/"), full("hello")).await.unwrap();
        assert_eq!(known.1.unwrap(), "5\nhello");
        let chunked = unfold(true, |first| async move { Ok(first.then(|| (Bytes::from("hello"), false))) });
        let unknown = run(&script, Request::post("/"), chunked).await.unwrap();
        assert_eq!(unknown.1.unwrap(), "none\nhello");
    });
}

#[test]
fn a_hundred_mebibytes_through_cat_in_little_memory() {
    alone(async {
        let handler = sh(format!("{HEAD} exec cat"));
        let response = send(&handler, context(), Request::post("/"), mebibytes(100)).await.unwrap();
        let (mut body, mut count) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            count += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(count, 100 << 20);
        handler.end().await;
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 64 << 10, "{peak} kB");
    });
}

#[test]
fn a_program_need_not_read_its_body() {
    alone(async {
        for script in ["echo done", "exec <&-; echo done", "head -c 5 >/dev/null; echo done"] {
            let result = run(format!("{HEAD} {script}"), Request::post("/"), mebibytes(20)).await.unwrap();
            assert_eq!(result.1.unwrap(), "done\n", "{script}");
        }
        // A grandchild that holds stdin open but does not read must not keep the feed alive either.
        let result = run(format!("{HEAD} sleep 1000 <&0 & {HEAD} echo"), Request::post("/"), mebibytes(20)).await;
        assert!(result.unwrap().1.is_ok());
    });
}

#[test]
fn a_flood_on_stderr_blocks_nobody_and_long_lines_are_cut() {
    alone(async {
        let (log, _guard) = log();
        let flood = "head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; yes flood | head -n 20000 >&2; echo done";
        assert_eq!(ok(format!("{HEAD} {flood}; echo last words >&2")).await, "done\n");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        // Within its share of the log, and the program was not held up by that.
        let floods = log.lines().filter(|line| line.contains(": flood ")).count();
        assert!((40..1000).contains(&floods), "{floods}");
        assert!(log.contains("xxx [cut] worker=default/1 lease=\"3.1042\""));
        // However long it took: each line is there, or among those that were left out, and the last words are shown.
        let left_out = |line: &str| -> Option<usize> {
            line.split_once(" lines were left out")?.0.rsplit_once(' ')?.1.parse().ok()
        };
        let told: Vec<_> = log.lines().filter_map(left_out).collect();
        assert!(!told.is_empty(), "{log}");
        assert_eq!(log.lines().count() - told.len() + told.iter().sum::<usize>(), 20_002, "{log}");
        assert!(log.lines().last().unwrap().contains("last words worker=default/1"), "{log}");
    });
}

#[test]
fn finished_when_the_process_ends_not_at_end_of_file() {
    alone(async {
        // The grandchild holds stdout and stderr; all that was written before the end still arrives.
        let big = "head -c 60000 /dev/zero | tr '\\0' x";
        assert_eq!(ok(format!("{HEAD} (setsid sleep 1000 &) ; {big}")).await.len(), 60000);
        // Even one that never stops writing.
        let noisy = ok(format!("{HEAD} echo first; (setsid yes &) ; exit 0")).await;
        assert!(noisy.starts_with("first\n"));
        // stdout closed early: the response waits for the process.
        let late = scratch("late");
        let script = format!("{HEAD} echo out; exec >&-; sleep 0.2; touch {}", late.display());
        assert_eq!(ok(script).await, "out\n");
        std::fs::remove_file(late).unwrap();
        // A known length reached early: the last piece waits as well.
        let script = format!(
            "printf 'Content-Length: 4\\nContent-Type: a/b\\n\\nfour'; exec >&-; sleep 0.2; touch {}",
            scratch("known").display()
        );
        assert_eq!(ok(script).await, "four");
        std::fs::remove_file(scratch("known")).unwrap();
    });
}

#[test]
fn no_head_no_response() {
    alone(async {
        for (script, why) in [
            ("exit 3", "ended with status 3 before the end of its response head"),
            ("kill -9 $$", "was killed by SIGKILL"),
            ("kill -35 $$", "was killed by signal 35"),
            ("echo hello", "ended with status 0"),
            ("echo hello; echo", "no `Name: value`"),
            ("echo X-A: 1; echo", "neither Content-Type nor Location"),
            ("exec >&-; exit 4", "ended with status 4"),
            ("yes 'X-A: 1'", "longer than"),
        ] {
            let failure = run(script, Request::get("/"), full("")).await.unwrap_err();
            assert_eq!(failure.status, 502, "{script}");
            assert!(failure.started && failure.reason.contains(why), "{script}: {failure}");
        }
        let bad = run("true", Request::get("/%00"), full("")).await.unwrap_err();
        assert_eq!((bad.status.as_u16(), bad.started), (400, false));
    });
}

#[test]
fn a_program_that_fails_has_not_answered() {
    alone(async {
        let sized = "printf 'Content-Length: 4\\nContent-Type: a/b\\n\\n';";
        for (script, request, why) in [
            (format!("{HEAD} exit 3"), Request::get("/"), "ended with status 3"),
            (format!("{HEAD} exec >&-; exit 3"), Request::get("/"), "ended with status 3"),
            (format!("{HEAD} kill -9 $$"), Request::get("/"), "was killed by SIGKILL"),
            (format!("{HEAD} exit 3"), Request::head("/"), "ended with status 3"),
            (format!("{sized} exit 3"), Request::get("/"), "ended with status 3, 4 bytes short"),
            (format!("{sized} printf four; kill -9 $$"), Request::get("/"), "was killed by SIGKILL"),
        ] {
            let failure = run(&script, request, full("")).await.expect_err(&script);
            assert_eq!((failure.status.as_u16(), failure.started), (502, true), "{script}");
            assert!(failure.reason.contains(why), "{script}: {failure}");
        }
        // A response without a body says where it ends.
        for (head, status) in [
            ("Status: 204 No Content\\n\\n", 204),
            ("Content-Length: 0\\nContent-Type: a/b\\n\\n", 200),
            ("Location: http://example.org/\\n\\n", 302),
        ] {
            let result = run(format!("printf '{head}'; exit 3"), Request::get("/"), full("")).await;
            assert_eq!(result.map(|(status, _)| status), Ok(status), "{head}");
        }
        // No bytes and no failure: an empty response.
        assert_eq!(ok(HEAD).await, "");
    });
}

#[test]
fn a_response_never_looks_complete_when_it_is_not() {
    alone(async {
        let sized = "printf 'Content-Length: 4\\nContent-Type: a/b\\n\\n';";
        // Until the first piece has been taken, nothing else happens to the program.
        let go = scratch("go");
        let wait = format!("while [ ! -e {} ]; do sleep 0.01; done;", go.display());
        for script in [
            format!("{HEAD} echo some; {wait} kill -9 $$"),
            format!("{HEAD} echo some; {wait} exit 1"),
            format!("{sized} printf thr; {wait}"),
            format!("{sized} printf t; {wait} printf hre; kill -9 $$"),
        ] {
            let _ = std::fs::remove_file(&go);
            let handler = sh(&script);
            let mut response = send(&handler, context(), Request::get("/"), full("")).await.unwrap();
            assert!(response.frame().await.unwrap().is_ok());
            std::fs::write(&go, "").unwrap();
            let error = text(response).await.expect_err(&script);
            assert_eq!(error.downcast_ref::<Failure>().unwrap().status.as_u16(), 502);
            handler.end().await;
        }
        std::fs::remove_file(&go).unwrap();
        let (log, _guard) = log();
        assert_eq!(ok(format!("{sized} echo fourfive; exit 3")).await, "four");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("the rest was cut").count(), 1, "{log}");
        assert_eq!(log.matches("ended with status 3 after a complete response").count(), 1, "{log}");
    });
}

#[test]
fn bodiless_responses_wait_for_the_process_too() {
    alone(async {
        let file = scratch("bodiless");
        let late = format!("sleep 0.1; touch {}", file.display());
        for (head, request, status) in [
            ("Content-Length: 4\\nContent-Type: a/b\\n\\nfour", Request::head("/"), 200),
            ("Status: 204 No Content\\n\\n", Request::get("/"), 204),
            ("Content-Length: 0\\nContent-Type: a/b\\n\\n", Request::get("/"), 200),
        ] {
            let result = run(format!("printf '{head}'; exec >&-; {late}"), request, full("")).await.unwrap();
            assert_eq!((result.0, result.1.unwrap().as_str()), (status, ""));
            std::fs::remove_file(&file).unwrap();
        }
    });
}

#[test]
fn redirects_for_the_client_and_for_the_program() {
    alone(async {
        let handler = sh("printf 'Location: http://example.org/\\n\\n'");
        let response = send(&handler, context(), Request::get("/"), full("")).await.unwrap();
        assert_eq!(response.status(), 302);
        assert_eq!(response.headers()["location"], "http://example.org/");
        text(response).await.unwrap();
        handler.end().await;

        let script = "case $PATH_INFO in /old) cat >/dev/null; printf 'Location: /new?x=1\\n\\n';; \
            *) printf 'Content-Type: a/b\\n\\n'; echo $REQUEST_METHOD $QUERY_STRING ${CONTENT_LENGTH-none}; cat;; esac";
        let result = run(script, Request::post("/old"), full("hello")).await.unwrap();
        assert_eq!(result.1.unwrap(), "GET x=1 none\n");

        let count = scratch("count");
        let script = format!("echo >>{}; printf 'Location: /on\\n\\n'", count.display());
        let failure = run(script, Request::get("/"), full("")).await.unwrap_err();
        assert_eq!(failure.status, 502);
        assert_eq!(std::fs::read(&count).unwrap().len(), 11);
        std::fs::remove_file(count).unwrap();
    });
}

#[test]
fn a_body_too_large_too_slow_or_broken_kills_the_program() {
    alone(async {
        let handler = sh("cat >/dev/null; sleep 1000");
        let small = Context { max_body: 1 << 20, ..context() };
        let announced =
            send(&handler, small.clone(), Request::post("/"), full(vec![0; (1 << 20) + 1])).await.unwrap_err();
        assert_eq!((announced.status.as_u16(), announced.started), (413, false));
        let counted = send(&handler, small, Request::post("/"), mebibytes(2)).await.unwrap_err();
        assert_eq!((counted.status.as_u16(), counted.started), (413, true));
        handler.end().await;

        let impatient = Context { body_timeout: Duration::from_millis(30), ..context() };
        let silent = unfold((), |()| std::future::pending());
        assert_eq!(send(&handler, impatient.clone(), Request::post("/"), silent).await.unwrap_err().status, 408);
        handler.end().await;
        let torn = unfold((), |()| async { Err("torn".into()) });
        assert_eq!(send(&handler, context(), Request::post("/"), torn).await.unwrap_err().status, 400);
        handler.end().await;

        // After the head the same is an error of the response body.
        let handler = sh(format!("{HEAD} echo; exec cat"));
        let silent = unfold((), |()| std::future::pending());
        let response = send(&handler, impatient, Request::post("/"), silent).await.unwrap();
        let error = text(response).await.unwrap_err();
        assert_eq!(error.downcast_ref::<Failure>().unwrap().status, 408);
        handler.end().await;
        assert!(!process_tree::has_children());
    });
}

#[test]
fn a_cancelled_request_leaves_nothing_at_all() {
    alone(async {
        let pids = scratch("pids");
        let script = format!(
            "trap '' TERM INT HUP; ( ( trap '' TERM; echo one >>{0}; setsid sh -c 'echo two >>{0}; sleep 1000; true' ) & ) & \
             {HEAD} echo first; while :; do sleep 1000; done",
            pids.display()
        );
        for late in [false, true] {
            let handler = sh(&script);
            let mut call = Box::pin(send(&handler, context(), Request::post("/"), mebibytes(20)));
            let mut body = None;
            if late {
                let mut response = call.await.unwrap();
                assert!(response.frame().await.unwrap().is_ok());
                body = Some(response);
            } else {
                // Cancelled as soon as the process is there, before its head has been read.
                std::future::poll_fn(|task| {
                    let _ = call.as_mut().poll(task);
                    task.waker().wake_by_ref();
                    if process_tree::descendants(getpid()).is_empty() { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                drop(call);
            }
            while late && std::fs::read_to_string(&pids).unwrap_or_default().lines().count() < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(body);
            handler.end().await;
            assert!(!process_tree::has_children());
        }
        std::fs::remove_file(pids).unwrap();
    });
}

#[test]
fn a_fork_bomb_in_its_group_is_killed() {
    alone(async {
        // Bounded by hand: five generations of five, all forking again as long as they live.
        let handler = sh(format!(
            "{HEAD} echo; f() {{ for i in 1 2 3 4 5; do (sleep 0.01; [ $1 -gt 0 ] && f $(($1-1))) & done; wait; sleep 9; }}; f 3"
        ));
        let mut response = send(&handler, context(), Request::get("/"), full("")).await.unwrap();
        assert!(response.frame().await.unwrap().is_ok());
        while process_tree::descendants(getpid()).len() < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(response);
        handler.end().await;
        assert!(!process_tree::has_children());
    });
}
