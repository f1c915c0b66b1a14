//! Requests and responses, complete, early, malformed and interrupted.

use std::time::Duration;

use http_body_util::BodyExt;

use super::super::super::context::RequestContext;
use super::super::super::test_process::in_own_process;
use super::*;

#[test]
fn requests_and_responses_are_framed_and_headers_pass() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        let request = Request::put("/echo").header("Content-Type", "a/b").header("X-A", "1").header("x-a", "2");
        let response =
            body_text(send(&handler, request_context(), request, full_body("hello")).await.unwrap()).await.unwrap();
        let expected = "{'Content-Length': '5', 'Method': 'PUT', 'Target': '/echo', 'Scheme': 'http', \
            'Remote-Address': '192.0.2.7', 'Server-Name': '127.0.0.1', 'Server-Port': '7300', 'Lease': '3.1042', \
            'Content-Type': 'a/b', 'Http-X-A': '1, 2'}hello";
        assert_eq!(response, expected);
        handler.end_request(LIMIT).await;
        let response = send(&handler, request_context(), Request::get("/headers"), full_body("")).await.unwrap();
        assert_eq!(response.status(), 404);
        let names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-a", "content-type", "content-length"]);
        handler.end_request(LIMIT).await;
        let head = send(&handler, request_context(), Request::head("/"), full_body("")).await.unwrap();
        assert_eq!(head.headers()["content-length"], "1");
        assert_eq!(body_text(head).await.unwrap(), "");
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "4");
        let chunked = unfold(2, |n| async move { Ok((n > 0).then(|| (Bytes::from("four"), n - 1))) });
        let stored = send(&handler, request_context(), Request::post("/echo"), chunked).await.unwrap();
        let stored = body_text(stored).await.unwrap();
        assert!(stored.starts_with("{'Content-Length': '8', ") && stored.ends_with("}fourfour"), "{stored}");
        handler.end_request(LIMIT).await;
        let named = send(&handler, request_context(), Request::head("/named-length"), full_body("")).await.unwrap();
        assert_eq!(named.headers()["content-length"], "42");
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "7");
        let empty = send(&handler, request_context(), Request::head("/headers"), full_body("")).await.unwrap();
        assert!(!empty.headers().contains_key("content-length"), "{empty:?}");
        handler.end_request(LIMIT).await;
        stop(handler).await;
    });
}

#[test]
fn request_and_response_bodies_are_streamed_at_the_same_time() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        // Far more than both pipes hold: writing all before reading would hang.
        let body = Bytes::from(vec![b'x'; 8 << 20]);
        let response =
            send(&handler, request_context(), Request::post("/stream"), full_body(body.clone())).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "2");
        stop(handler).await;
    });
}

#[test]
fn early_response_keeps_the_framing() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        let response = post(&handler, "/early", vec![0; 8 << 20]).await.unwrap().unwrap();
        assert_eq!(response, "early");
        assert_eq!(text(&handler, "/").await, "2");
        // The rest of the request never arrives: the process is replaced.
        let short_timeout = RequestContext { body_timeout: Duration::from_millis(30), ..request_context() };
        let response = send(&handler, short_timeout, Request::post("/early"), missing_body(9)).await.unwrap();
        assert_eq!(body_text(response).await.unwrap(), "early");
        handler.end_request(LIMIT).await;
        assert_eq!(text(&handler, "/").await, "1");
        stop(handler).await;
    });
}

#[test]
fn death_and_garbage_before_the_head_are_502_and_replace_the_process() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        for (target, why) in [
            ("/die", "exited with status 7"),
            ("/garbage", "not `Name: value`"),
            ("/close-responses", "closed descriptor 4 (responses)"),
        ] {
            let failure = post(&handler, target, "").await.unwrap_err();
            assert_eq!((failure.status.as_u16(), failure.started), (502, true));
            assert!(failure.reason.contains(why), "{failure}");
            assert_eq!(text(&handler, "/").await, "1", "{target}");
        }
        stop(handler).await;
    });
}

#[test]
fn death_during_a_response_is_an_error_of_its_body() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        let error = post(&handler, "/half", "").await.unwrap().unwrap_err();
        assert!(error.to_string().contains("was killed by SIGKILL, 5 bytes short"), "{error}");
        assert_eq!(text(&handler, "/").await, "1");
        stop(handler).await;
    });
}

#[test]
fn complete_response_of_a_failing_process_is_delivered() {
    in_own_process(async {
        let Some(handler) = start_python() else { return };
        for (target, response) in [("/excess", "response"), ("/last", "last"), ("/close-requests", "last response")] {
            let old = pid(&handler);
            let body = if target == "/close-requests" { vec![0; 1 << 20] } else { Vec::new() };
            assert_eq!(post(&handler, target, body).await.unwrap().unwrap(), response);
            // The fault may follow the response a moment later; the next request must find it.
            while is_idle(&handler, old) {
                tokio::task::yield_now().await;
            }
            assert_eq!(text(&handler, "/").await, "1", "{target}");
        }
        stop(handler).await;
    });
}
