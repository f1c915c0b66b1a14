//! Answers of the dispatcher that are no lease, and the lease on its own.

use super::*;

/// The error of a call whose dispatcher answers these bytes, once.
async fn refused(answer: String) -> CallError {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let script = async {
        let mut peer = dispatcher.accept().await;
        peer.head().await;
        // The client may close before it has read all of it.
        let _ = peer.socket.write_all(answer.as_bytes()).await;
        let _ = peer.socket.shutdown().await;
        let _ = peer.socket.read_to_end(&mut Vec::new()).await;
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/")), script) }).await;
    assert!(dispatcher.is_left_alone().await, "asked again");
    got.unwrap_err()
}

#[tokio::test]
async fn what_is_no_lease_is_refused_and_not_asked_again() {
    let token = "0".repeat(32);
    let injected = format!("{}\\r\\nX: y", &token[8..]);
    for (answer, why) in [
        (json_ok("flock"), "expected"),
        (json_ok("{}"), "missing field `worker`"),
        (json_ok(r#"{"worker":"default/1"}"#), "missing field `address`"),
        (granted("127.0.0.1:1", &injected), "token"),
        (granted("127.0.0.1:0", &token), "address"),
        (granted("127.0.0.1:1\\r\\nX: y", &token), "address"),
        (granted("unix:/a\\u0000b", &token), "address"),
        (json_ok(&" ".repeat(LEASE_MAX + 1)), "longer than 65536 bytes"),
        (format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(LEASE_MAX + 1)), "longer than 65536 bytes"),
    ] {
        let error = refused(answer).await;
        assert!(matches!(error, CallError::NotStarted { cause: Cause::BadLease { .. }, attempts: 1 }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    for answer in [endless, "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()] {
        let error = refused(answer).await;
        assert!(matches!(error, CallError::NotStarted { cause: Cause::Dispatcher { .. }, attempts: 1 }), "{error}");
    }
}

#[tokio::test]
async fn another_refusal_than_503_is_the_answer() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let answer = "HTTP/1.1 421 Misdirected Request\r\nContent-Length: 4\r\n\r\nhost";
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/")), dispatcher.answers(answer)) }).await;
    assert_eq!(got.unwrap(), Got { status: 421, body: "host".into(), leased: false, attempts: 1 });
}

#[tokio::test]
async fn a_lease_alone() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client();
    let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let script = async {
        dispatcher.answers(busy).await;
        dispatcher.leases(&"127.0.0.1:7300".parse().unwrap()).await
    };
    let (lease, token) = guarded(async { tokio::join!(client.lease(), script) }).await;
    let lease = lease.unwrap();
    assert_eq!((lease.token().to_string(), lease.worker.to_string()), (token, "default/1".into()));
    assert!(lease.expires <= Instant::now() + Duration::from_secs(1));
}

#[tokio::test]
async fn no_lease_alone() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client().retry_for(Duration::ZERO);
    let problem = r#"{"title":"Busy","detail":"the queue is full"}"#;
    let busy = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{problem}",
        problem.len()
    );
    let (lease, ()) = guarded(async { tokio::join!(client.lease(), dispatcher.answers(&busy)) }).await;
    let expected = format!("no lease from {}: 503 Service Unavailable: the queue is full", client.target);
    assert_eq!(lease.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn a_silent_dispatcher_is_given_up() {
    let dispatcher = Script::tcp().await;
    let client = dispatcher.client().retry_for(Duration::ZERO).lease_timeout(Duration::from_millis(1));
    let error = guarded(client.call(get("/"))).await.unwrap_err();
    assert!(matches!(error, CallError::NotStarted { cause: Cause::LeaseTimeout { .. }, .. }), "{error}");
}
