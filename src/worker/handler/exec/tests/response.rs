//! What the client gets of a program's response, and when.

use http::HeaderValue;
use http_body_util::BodyExt;

use super::super::super::test_process::{capture_log, in_own_process};
use super::*;
use crate::config::ExitStatusMode;

#[test]
fn flood_on_stderr_does_not_block_the_program_and_long_lines_are_truncated() {
    in_own_process(async {
        let (log, _guard) = capture_log();
        let flood = "head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; yes flood | head -n 20000 >&2; echo done";
        assert_eq!(get(format!("{PRINT_HEAD} {flood}; echo last line >&2")).await, "done\n");
        let log = log.text();
        // The log is limited, and the limit did not block the program.
        let flood_lines = log.lines().filter(|line| line.contains(": flood ")).count();
        assert!((40..1000).contains(&flood_lines), "{flood_lines}");
        assert!(log.contains("xxx [cut] worker=default/1 lease=\"3.1042\""));
        // Each line is either logged or counted as suppressed, and the last suppressed line is quoted.
        let suppressed = |line: &str| -> Option<usize> {
            line.split_once(" lines were suppressed")?.0.rsplit_once(' ')?.1.parse().ok()
        };
        let reports: Vec<_> = log.lines().filter_map(suppressed).collect();
        assert!(!reports.is_empty(), "{log}");
        assert_eq!(log.lines().count() - reports.len() + reports.iter().sum::<usize>(), 20_002, "{log}");
        assert!(log.lines().last().unwrap().contains("last line worker=default/1"), "{log}");
    });
}

#[test]
fn response_is_complete_when_the_process_ends_not_at_end_of_file() {
    in_own_process(async {
        // A descendant keeps stdout and stderr open; everything written before the end still arrives.
        let big = "head -c 60000 /dev/zero | tr '\\0' x";
        assert_eq!(get(format!("{PRINT_HEAD} (setsid sleep 1000 &) ; {big}")).await.len(), 60000);
        // Even if the descendant never stops writing.
        let noisy = get(format!("{PRINT_HEAD} echo first; (setsid yes &) ; exit 0")).await;
        assert!(noisy.starts_with("first\n"));
        // stdout closed early: the response waits for the process.
        let late = scratch_file("late");
        let script = format!("{PRINT_HEAD} echo out; exec >&-; sleep 0.2; touch {}", late.display());
        assert_eq!(get(script).await, "out\n");
        std::fs::remove_file(late).unwrap();
        // The announced length is reached early: the last piece waits for the process as well.
        let script = format!(
            "printf 'Content-Length: 4\\nContent-Type: a/b\\n\\nfour'; exec >&-; sleep 0.2; touch {}",
            scratch_file("known").display()
        );
        assert_eq!(get(script).await, "four");
        std::fs::remove_file(scratch_file("known")).unwrap();
    });
}

#[test]
fn missing_or_malformed_head_is_502() {
    in_own_process(async {
        for (script, why) in [
            ("exit 3", "exited with status 3 before the end of its response head"),
            ("kill -9 $$", "was killed by SIGKILL"),
            ("kill -35 $$", "was killed by signal 35"),
            ("echo hello", "exited with status 0"),
            ("echo hello; echo", "not `Name: value`"),
            ("echo X-A: 1; echo", "neither Content-Type nor Location nor Status"),
            ("echo Status: 404; echo; echo body", "has a body, and its head neither Content-Type nor Location"),
            ("printf 'Status: 404\\nContent-Length: 4\\n\\nbody'", "neither Content-Type nor Location"),
            ("exec >&-; exit 4", "exited with status 4"),
            ("yes 'X-A: 1'", "longer than"),
        ] {
            let failure = run(script, Request::get("/"), full_body("")).await.unwrap_err();
            assert_eq!(failure.status, 502, "{script}");
            assert!(failure.started && failure.reason.contains(why), "{script}: {failure}");
        }
        let bad = run("true", Request::get("/%00"), full_body("")).await.unwrap_err();
        assert_eq!((bad.status.as_u16(), bad.started), (400, false));
    });
}

#[test]
fn failed_exit_before_the_body_is_502() {
    in_own_process(async {
        for (script, request, why) in [
            (format!("{PRINT_HEAD} exit 3"), Request::get("/"), "exited with status 3"),
            (format!("{PRINT_HEAD} exec >&-; exit 3"), Request::get("/"), "exited with status 3"),
            (format!("{PRINT_HEAD} kill -9 $$"), Request::get("/"), "was killed by SIGKILL"),
            (format!("{PRINT_HEAD} exit 3"), Request::head("/"), "exited with status 3"),
            (format!("{PRINT_SIZED_HEAD} exit 3"), Request::get("/"), "exited with status 3, 4 bytes short"),
            (format!("{PRINT_SIZED_HEAD} printf four; kill -9 $$"), Request::get("/"), "was killed by SIGKILL"),
        ] {
            let failure = run(&script, request, full_body("")).await.expect_err(&script);
            assert_eq!((failure.status.as_u16(), failure.started), (502, true), "{script}");
            assert!(failure.reason.contains(why), "{script}: {failure}");
        }
        // A response without a body is complete at its head.
        for (head, status) in [
            ("Status: 204 No Content\\n\\n", 204),
            ("Content-Length: 0\\nContent-Type: a/b\\n\\n", 200),
            ("Location: http://example.org/\\n\\n", 302),
            ("Status: 404 Not Found\\n\\n", 404),
            ("Status: 401\\nWWW-Authenticate: Basic\\n\\n", 401),
        ] {
            let result = run(format!("printf '{head}'; exit 3"), Request::get("/"), full_body("")).await;
            assert_eq!(result.map(|(status, _)| status), Ok(status), "{head}");
        }
        // Success without a byte is an empty response.
        assert_eq!(get(PRINT_HEAD).await, "");
    });
}

#[test]
fn incomplete_response_never_looks_complete() {
    in_own_process(async {
        // The program waits until the first piece has been read.
        let go_file = scratch_file("go");
        let wait = format!("while [ ! -e {} ]; do sleep 0.01; done;", go_file.display());
        for script in [
            format!("{PRINT_HEAD} echo some; {wait} kill -9 $$"),
            format!("{PRINT_HEAD} echo some; {wait} exit 1"),
            format!("{PRINT_SIZED_HEAD} printf thr; {wait}"),
            format!("{PRINT_SIZED_HEAD} printf t; {wait} printf hre; kill -9 $$"),
        ] {
            let _ = std::fs::remove_file(&go_file);
            let handler = sh(&script);
            let mut response = send(&handler, request_context(), Request::get("/"), full_body("")).await.unwrap();
            assert!(response.frame().await.unwrap().is_ok());
            std::fs::write(&go_file, "").unwrap();
            let error = body_text(response).await.expect_err(&script);
            assert_eq!(error.downcast_ref::<RequestFailure>().unwrap().status.as_u16(), 502);
            handler.end_request(Duration::ZERO).await;
        }
        std::fs::remove_file(&go_file).unwrap();
        let (log, _guard) = capture_log();
        assert_eq!(get(format!("{PRINT_SIZED_HEAD} echo fourfive; exit 3")).await, "four");
        let log = log.text();
        assert_eq!(log.matches("the excess was discarded").count(), 1, "{log}");
        assert_eq!(log.matches("exited with status 3 after a complete response").count(), 1, "{log}");
    });
}

#[test]
fn last_line_of_a_failed_program_is_for_the_log_alone() {
    in_own_process(async {
        let script = "printf 'first\\nsyntax error on line 3\\n\\n' >&2; exit 2";
        let failure = run(script, Request::get("/"), full_body("")).await.unwrap_err();
        assert!(!failure.reason.contains("syntax"), "{failure}");
        let expected =
            "status 2 before the end of its response head; its last line on standard error: syntax error on line 3";
        assert!(failure.for_log().ends_with(expected), "{}", failure.for_log());
        // No line of an earlier request, and an incomplete one is a line.
        let handler = sh("[ $PATH_INFO = /quiet ] || printf loud >&2; exit 1");
        for (target, line) in [("/", Some("loud")), ("/quiet", None)] {
            let failure = send(&handler, request_context(), Request::get(target), full_body("")).await.unwrap_err();
            assert_eq!(failure.last_line.as_deref(), line);
            handler.end_request(Duration::ZERO).await;
        }
    });
}

#[test]
fn exit_status_may_be_ignored_but_no_death_and_no_shortfall() {
    in_own_process(async {
        let ignoring = |script: &str| start(script, |pool| pool.exit_status = ExitStatusMode::Ignore);
        for (script, body) in [("echo page; exit 1", "page\n"), ("exit 255", ""), ("exec >&-; exit 3", "")] {
            let handler = ignoring(&format!("{PRINT_HEAD} {script}"));
            let response = send(&handler, request_context(), Request::get("/"), full_body("")).await.unwrap();
            assert_eq!(body_text(response).await.unwrap(), body, "{script}");
            handler.end_request(Duration::ZERO).await;
        }
        for script in [&format!("{PRINT_HEAD} kill -9 $$"), &format!("{PRINT_SIZED_HEAD} exit 3"), "exit 3"] {
            let handler = ignoring(script);
            let failure = send(&handler, request_context(), Request::get("/"), full_body("")).await.expect_err(script);
            assert_eq!(failure.status, 502);
            handler.end_request(Duration::ZERO).await;
        }
    });
}

#[test]
fn response_without_body_waits_for_the_process() {
    in_own_process(async {
        let file = scratch_file("bodiless");
        let late = format!("sleep 0.1; touch {}", file.display());
        for (head, request, status) in [
            ("Content-Length: 4\\nContent-Type: a/b\\n\\nfour", Request::head("/"), 200),
            ("Status: 204 No Content\\n\\n", Request::get("/"), 204),
            ("Content-Length: 0\\nContent-Type: a/b\\n\\n", Request::get("/"), 200),
        ] {
            let result = run(format!("printf '{head}'; exec >&-; {late}"), request, full_body("")).await.unwrap();
            assert_eq!((result.0, result.1.unwrap().as_str()), (status, ""));
            std::fs::remove_file(&file).unwrap();
        }
    });
}

#[test]
fn client_redirects_and_local_redirects_work() {
    in_own_process(async {
        let handler = sh("printf 'Location: http://example.org/\\n\\n'");
        let response = send(&handler, request_context(), Request::get("/"), full_body("")).await.unwrap();
        assert_eq!(response.status(), 302);
        assert_eq!(response.headers()["location"], "http://example.org/");
        body_text(response).await.unwrap();
        handler.end_request(Duration::ZERO).await;

        let script = "case $PATH_INFO in /old) cat >/dev/null; printf 'Location: /new?x=1\\n\\n';; \
            *) printf 'Content-Type: a/b\\n\\n'; echo $REQUEST_METHOD $QUERY_STRING ${CONTENT_LENGTH-none}; cat;; esac";
        let result = run(script, Request::post("/old"), full_body("hello")).await.unwrap();
        assert_eq!(result.1.unwrap(), "GET x=1 none\n");

        let handler = sh("case $PATH_INFO in /new) printf 'Content-Type: a/b\\nSet-Cookie: c=3\\n\\n';; \
            *) printf 'Location: /new\\nSet-Cookie: a=1\\nSet-Cookie: b=2\\nX-Own: 1\\n\\n';; esac");
        let response = send(&handler, request_context(), Request::get("/"), full_body("")).await.unwrap();
        let mut cookies: Vec<_> = response.headers().get_all("set-cookie").iter().cloned().collect();
        cookies.sort();
        assert_eq!(
            (cookies, response.headers().len()),
            (["a=1", "b=2", "c=3"].map(HeaderValue::from_static).into(), 4)
        );
        body_text(response).await.unwrap();
        handler.end_request(Duration::ZERO).await;

        let count = scratch_file("count");
        let script = format!("echo >>{}; printf 'Location: /on\\n\\n'", count.display());
        let failure = run(script, Request::get("/"), full_body("")).await.unwrap_err();
        assert_eq!(failure.status, 502);
        assert_eq!(std::fs::read(&count).unwrap().len(), 11);
        std::fs::remove_file(count).unwrap();
    });
}
