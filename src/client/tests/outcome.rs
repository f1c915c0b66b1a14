//! Retries: a request that was not started is retried, one that may have been started is not.

use super::*;

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// The script of a successful attempt: lease, request, response.
async fn serve_call(dispatcher: &Script, worker: &Script) {
    let token = dispatcher.grant_lease(&worker.address()).await;
    let mut peer = worker.accept().await;
    assert!(peer.head().await.starts_with(&format!("GET /.patou/{token}/a?b HTTP/1.1\r\n")));
    peer.send(OK_PONG).await;
    assert_eq!(peer.finish().await, b"");
}

#[tokio::test]
async fn refused_and_closed_lease_requests_are_retried() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = observed(dispatcher.client());
    let script = async {
        dispatcher.respond(BUSY).await;
        // Closed without a byte of response, as by a dispatcher that dies.
        let mut peer = dispatcher.accept().await;
        peer.head().await;
        drop(peer);
        dispatcher.accept().await.reset();
        serve_call(&dispatcher, &worker).await;
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(received.unwrap(), pong(4));
    let retries = step_names(&steps).iter().filter(|name| *name == "Retrying").count();
    assert_eq!(retries, 3);
}

#[tokio::test]
async fn retry_after_is_observed() {
    let dispatcher = Script::tcp().await;
    let (sender, mut delays) = tokio::sync::mpsc::unbounded_channel();
    let client = dispatcher.client().observe(move |_, step| {
        if let Step::Retrying { after, .. } = step {
            sender.send(*after).unwrap();
        }
    });
    let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    with_deadline(async {
        tokio::select! {
            _ = client.call(get("/")) => panic!("did not wait"),
            (after, ()) = async { tokio::join!(delays.recv(), dispatcher.respond(busy)) } => {
                assert_eq!(after, Some(Duration::from_secs(7)));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn last_refusal_is_the_response() {
    let dispatcher = Script::tcp().await;
    let refused = |attempts| Received { status: 503, body: "busy".into(), leased: false, attempts };
    let client = dispatcher.client().retry_for(Duration::ZERO);
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/")), dispatcher.respond(BUSY)) }).await;
    assert_eq!(received.unwrap(), refused(1));

    // Retry-After exceeds the budget: one more attempt, at the end of the budget.
    let client = dispatcher.client().retry_for(Duration::from_millis(20));
    let script = async {
        let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 4\r\n\r\nbusy";
        dispatcher.respond(busy).await;
        dispatcher.respond(busy).await;
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/")), script) }).await;
    assert_eq!(received.unwrap(), refused(2));
}

#[tokio::test]
async fn stale_lease_is_replaced_by_a_new_one() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client();
    let location = format!("Location: {}/a?b\r\nPatou-Outcome: not-started", client.target);
    let back = format!("HTTP/1.1 307 Temporary Redirect\r\n{location}\r\nContent-Length: 0\r\n\r\n");
    let not_started = "HTTP/1.1 503 Service Unavailable\r\nPatou-Outcome: not-started\r\nContent-Length: 0\r\n\r\n";
    let script = async {
        let mut tokens = Vec::new();
        for response in [back.as_str(), not_started] {
            tokens.push(dispatcher.grant_lease(&worker.address()).await);
            let mut peer = worker.accept().await;
            peer.head().await;
            peer.send(response).await;
            assert_eq!(peer.finish().await, b"");
        }
        assert_ne!(tokens[0], tokens[1]);
        serve_call(&dispatcher, &worker).await;
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(received.unwrap(), pong(3));
}

#[tokio::test]
async fn lease_of_an_unreachable_worker_is_replaced_by_a_new_one() {
    let (dispatcher, worker, absent) = (Script::tcp().await, Script::tcp().await, Script::unix());
    let unreachable = absent.address();
    drop(absent);
    let client = dispatcher.client();
    let script = async {
        dispatcher.grant_lease(&unreachable).await;
        serve_call(&dispatcher, &worker).await;
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(received.unwrap(), pong(2));
}

#[tokio::test]
async fn unreachable_dispatcher_is_retried_within_the_budget() {
    let absent = Script::unix();
    let client = absent.client().retry_for(Duration::from_millis(20));
    drop(absent);
    let error = with_deadline(client.call(get("/"))).await.unwrap_err();
    let CallError::NotStarted { cause: FailureCause::Connect { .. }, attempts } = error else { panic!("{error}") };
    assert!(attempts > 1);
}

/// The result of a call whose worker sends `text` and then closes, with or without a reset.
async fn call_closing_worker(text: &str, reset: bool) -> Result<Received, CallError> {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client();
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.body(4).await;
        peer.send(text).await;
        if reset {
            peer.reset();
        }
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post("ping")), script) }).await;
    assert!(dispatcher.has_no_client().await && worker.has_no_client().await, "sent again");
    received
}

#[tokio::test]
async fn request_that_reached_a_worker_is_never_sent_again() {
    for reset in [true, false] {
        for text in ["", "HTTP/1.1 200 O", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npong", "nonsense\r\n\r\n"] {
            let error = call_closing_worker(text, reset).await.unwrap_err();
            assert!(matches!(error, CallError::StartedUnknown { .. }), "{text:?}: {error}");
            assert!(error.to_string().starts_with("default/1 may or may not have carried out the request"), "{error}");
        }
    }
}

#[tokio::test]
async fn error_responses_of_the_application_are_returned() {
    for (head, status) in [
        ("502 Bad Gateway\r\nPatou-Outcome: started-unknown", 502),
        ("503 Service Unavailable\r\nRetry-After: 0", 503),
        ("307 Temporary Redirect\r\nLocation: /elsewhere", 307),
        ("307 Temporary Redirect\r\nLocation: /", 307), // to the same request, which has been carried out
    ] {
        let received =
            call_closing_worker(&format!("HTTP/1.1 {head}\r\nContent-Length: 4\r\n\r\npong"), false).await.unwrap();
        assert_eq!(received, Received { status, ..pong(1) });
    }
}

#[tokio::test]
async fn response_is_read_although_the_upload_was_reset() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(Duration::ZERO);
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.body(100_000).await;
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nlong").await;
        // Closed with unread bytes: the kernel resets the connection.
    };
    let upload = post(vec![0; 16 << 20]);
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, upload), script) }).await;
    assert_eq!(received.unwrap(), Received { status: 413, body: "long".into(), ..pong(1) });
}
