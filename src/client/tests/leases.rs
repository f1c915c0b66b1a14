//! Responses of the dispatcher that are not a lease, and `Client::lease`.

use super::*;

/// The error of a call whose dispatcher responds with these bytes, once.
async fn error_after(response: String) -> CallError {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let script = async {
        let mut peer = dispatcher.accept().await;
        peer.head().await;
        // The client may close before it has read all of it.
        let _ = peer.socket.write_all(response.as_bytes()).await;
        let _ = peer.socket.shutdown().await;
        let _ = peer.socket.read_to_end(&mut Vec::new()).await;
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/")), script) }).await;
    assert!(dispatcher.has_no_client().await, "requested again");
    received.unwrap_err()
}

#[tokio::test]
async fn invalid_lease_is_rejected_and_not_requested_again() {
    let token = "0".repeat(32);
    let injected = format!("{}\\r\\nX: y", &token[8..]);
    for (response, why) in [
        (json_ok("flock"), "expected"),
        (json_ok("{}"), "missing field `worker`"),
        (json_ok(r#"{"worker":"default/1"}"#), "missing field `address`"),
        (lease_response("127.0.0.1:1", &injected), "token"),
        (lease_response("127.0.0.1:0", &token), "address"),
        (lease_response("127.0.0.1:1\\r\\nX: y", &token), "address"),
        (lease_response("unix:/a\\u0000b", &token), "address"),
        (json_ok(&" ".repeat(LEASE_MAX + 1)), "longer than 65536 bytes"),
        (format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(LEASE_MAX + 1)), "longer than 65536 bytes"),
    ] {
        let error = error_after(response).await;
        assert!(
            matches!(error, CallError::NotStarted { cause: FailureCause::BadLease { .. }, attempts: 1 }),
            "{error}"
        );
        assert!(error.to_string().contains(why), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    for response in [endless, "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()] {
        let error = error_after(response).await;
        assert!(
            matches!(error, CallError::NotStarted { cause: FailureCause::Dispatcher { .. }, attempts: 1 }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn refusal_other_than_503_is_the_response() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let response = "HTTP/1.1 421 Misdirected Request\r\nContent-Length: 4\r\n\r\nhost";
    let (received, ()) =
        with_deadline(async { tokio::join!(call(&client, get("/")), dispatcher.respond(response)) }).await;
    assert_eq!(received.unwrap(), Received { status: 421, body: "host".into(), leased: false, attempts: 1 });
}

#[tokio::test]
async fn lease_is_retried_and_granted() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let script = async {
        dispatcher.respond(busy).await;
        dispatcher.grant_lease(&"127.0.0.1:7300".parse().unwrap()).await
    };
    let (lease, token) = with_deadline(async { tokio::join!(client.lease(), script) }).await;
    let lease = lease.unwrap();
    assert_eq!((lease.token().to_string(), lease.worker.to_string()), (token, "default/1".into()));
    assert!(lease.expires <= Instant::now() + Duration::from_secs(1));
}

#[tokio::test]
async fn refused_lease_carries_status_and_problem() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client().retry_for(Duration::ZERO);
    let problem = r#"{"title":"Busy","detail":"the queue is full"}"#;
    let busy = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{problem}",
        problem.len()
    );
    let (lease, ()) = with_deadline(async { tokio::join!(client.lease(), dispatcher.respond(&busy)) }).await;
    let expected = format!("no lease from {}: 503 Service Unavailable: the queue is full", client.target);
    assert_eq!(lease.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn lease_request_times_out() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client().retry_for(Duration::ZERO).lease_timeout(Duration::from_millis(1));
    let error = with_deadline(client.call(get("/"))).await.unwrap_err();
    assert!(matches!(error, CallError::NotStarted { cause: FailureCause::LeaseTimeout { .. }, .. }), "{error}");
}
