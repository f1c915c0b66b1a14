//! `Expect: 100-continue`: when the body is sent, and when it is not.

use super::*;

const NEVER: Duration = Duration::from_secs(3600);

fn body() -> Bytes {
    Bytes::from(vec![b'x'; 1025])
}

#[tokio::test]
async fn large_body_waits_for_100_continue() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = observed(dispatcher.client().expect_timeout(NEVER));
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        assert!(peer.head().await.contains("\r\nexpect: 100-continue\r\n"));
        peer.send("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        peer.receives_nothing().await;
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(peer.body(1025).await, body());
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(received.unwrap(), pong(1));
    let all = ["Connected", "Requesting", "Leased", "Sending", "Continue", "Progress", "Responded", "Finished"];
    assert_eq!(step_names(&steps), all);
}

#[tokio::test]
async fn body_is_not_sent_after_an_early_refusal() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(NEVER);
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo ").await;
        peer.receives_nothing().await;
        peer.send("large").await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(received.unwrap(), Received { status: 413, body: "too large".into(), ..pong(1) });
}

#[tokio::test]
async fn body_is_sent_without_100_continue_after_the_timeout() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = observed(dispatcher.client().expect_timeout(Duration::from_millis(1)));
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        assert_eq!(peer.body(1025).await, body());
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(received.unwrap(), pong(1));
    assert!(!step_names(&steps).contains(&"Continue".to_owned()));
}

#[tokio::test]
async fn body_is_sent_to_a_worker_that_responds_200_before_it_reads() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(Duration::from_millis(1));
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1025\r\n\r\n").await;
        let echo = String::from_utf8(peer.body(1025).await).unwrap();
        peer.send(&echo).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(received.unwrap().body, String::from_utf8(body().into()).unwrap());
}

#[tokio::test]
async fn small_body_is_sent_immediately() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(NEVER);
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        assert!(!peer.head().await.contains("expect"));
        peer.body(1024).await;
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let small = body().slice(1..);
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, post(small)), script) }).await;
    assert_eq!(received.unwrap(), pong(1));
}
