//! What a program gets of a request, and what a failing request body does to it.

use std::time::Duration;

use http_body_util::BodyExt;

use super::super::super::context::RequestContext;
use super::super::super::test_process::in_own_process;
use super::*;

#[test]
fn environment_is_clean_and_complete() {
    in_own_process(async {
        assert!(std::env::var_os("NOTIFY_SOCKET").is_some(), "the worker's environment has variables to hide");
        let variables = get(format!("{PRINT_HEAD} env")).await;
        for line in ["GATEWAY_INTERFACE=CGI/1.1", "PATOU_LEASE=3.1042", "MINE=pool", "REMOTE_ADDR=192.0.2.7"] {
            assert!(variables.lines().any(|l| l == line), "{line} in {variables}");
        }
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "PATOU_CONFIG", "CONTENT_LENGTH", "USER"] {
            assert!(!variables.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} in {variables}");
        }
    });
}

#[test]
fn body_of_known_and_of_unknown_size_is_passed() {
    in_own_process(async {
        let script = format!("{PRINT_HEAD} echo ${{CONTENT_LENGTH-none}}; cat");
        let known = run(&script, Request::post("/"), full_body("hello")).await.unwrap();
        assert_eq!(known.1.unwrap(), "5\nhello");
        let chunked = unfold(true, |first| async move { Ok(first.then(|| (Bytes::from("hello"), false))) });
        let unknown = run(&script, Request::post("/"), chunked).await.unwrap();
        assert_eq!(unknown.1.unwrap(), "5\nhello");
        for (name, value) in [("Content-Length", "0"), ("Transfer-Encoding", "chunked")] {
            let empty = run(&script, Request::post("/").header(name, value), full_body("")).await.unwrap();
            assert_eq!(empty.1.unwrap(), "0\n");
        }
        assert_eq!(get(&script).await, "none\n");
        let without = run(&script, Request::post("/"), full_body("")).await.unwrap();
        assert_eq!(without.1.unwrap(), "0\n");
    });
}

#[test]
fn large_body_is_streamed_in_little_memory() {
    in_own_process(async {
        let handler = sh(format!("{PRINT_HEAD} exec cat"));
        let response = send(&handler, request_context(), Request::post("/"), mebibytes(100)).await.unwrap();
        let (mut body, mut count) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            count += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(count, 100 << 20);
        handler.end_request(Duration::ZERO).await;
        assert!(peak_kib() < 64 << 10, "{} kB", peak_kib());
    });
}

/// The most memory that this process has had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn large_body_of_unknown_size_is_stored_in_little_memory() {
    in_own_process(async {
        let handler = sh(format!("{PRINT_HEAD} echo $CONTENT_LENGTH; wc -c"));
        let response = send(&handler, request_context(), Request::post("/"), unannounced_mebibytes(64)).await.unwrap();
        assert_eq!(body_text(response).await.unwrap(), format!("{0}\n{0}\n", 64 << 20));
        handler.end_request(Duration::ZERO).await;
        assert!(peak_kib() < 64 << 10, "{} kB", peak_kib());
        let failure =
            send(&handler, request_context(), Request::post("/"), unannounced_mebibytes(65)).await.unwrap_err();
        assert_eq!((failure.status.as_u16(), failure.started), (413, false));
        handler.end_request(Duration::ZERO).await;
    });
}

#[test]
fn program_need_not_read_its_body() {
    in_own_process(async {
        for script in ["echo done", "exec <&-; echo done", "head -c 5 >/dev/null; echo done"] {
            let result = run(format!("{PRINT_HEAD} {script}"), Request::post("/"), mebibytes(20)).await.unwrap();
            assert_eq!(result.1.unwrap(), "done\n", "{script}");
        }
        // A descendant that keeps stdin open without reading must not keep the feed alive either.
        let result =
            run(format!("{PRINT_HEAD} sleep 1000 <&0 & {PRINT_HEAD} echo"), Request::post("/"), mebibytes(20)).await;
        assert!(result.unwrap().1.is_ok());
    });
}

#[test]
fn too_large_too_slow_or_failing_body_kills_the_program() {
    in_own_process(async {
        let handler = sh("cat >/dev/null; sleep 1000");
        let limited = RequestContext { max_body: 1 << 20, ..request_context() };
        let announced =
            send(&handler, limited.clone(), Request::post("/"), full_body(vec![0; (1 << 20) + 1])).await.unwrap_err();
        assert_eq!((announced.status.as_u16(), announced.started), (413, false));
        let counted = send(&handler, limited, Request::post("/"), unannounced_mebibytes(2)).await.unwrap_err();
        assert_eq!((counted.status.as_u16(), counted.started), (413, false));
        handler.end_request(Duration::ZERO).await;

        let short_timeout = RequestContext { body_timeout: Duration::from_millis(30), ..request_context() };
        let silent = || unfold((), |()| std::future::pending());
        let failing = || unfold((), |()| async { Err("connection closed".into()) });
        // The program of a body of unknown length has not started.
        for is_known in [true, false] {
            let body = |body: Body| if is_known { sized(body, 9) } else { body };
            let late = send(&handler, short_timeout.clone(), Request::post("/"), body(silent())).await.unwrap_err();
            assert_eq!((late.status.as_u16(), late.started), (408, is_known));
            handler.end_request(Duration::ZERO).await;
            let failed = send(&handler, request_context(), Request::post("/"), body(failing())).await.unwrap_err();
            assert_eq!((failed.status.as_u16(), failed.started), (400, is_known));
            handler.end_request(Duration::ZERO).await;
        }

        // After the response head, the failure is the error of the response body.
        let handler = sh(format!("{PRINT_HEAD} echo; exec cat"));
        let silent = sized(silent(), 9);
        let response = send(&handler, short_timeout, Request::post("/"), silent).await.unwrap();
        let error = body_text(response).await.unwrap_err();
        assert_eq!(error.downcast_ref::<RequestFailure>().unwrap().status, 408);
        handler.end_request(Duration::ZERO).await;
        assert!(!process_tree::has_children());
    });
}
