//! `Expect: 100-continue`: when the body goes out, and when it does not.

use super::*;

const NEVER: Duration = Duration::from_secs(3600);

fn body() -> Bytes {
    Bytes::from(vec![b'x'; 1025])
}

#[tokio::test]
async fn the_body_waits_for_100() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = watched(dispatcher.client().expect_timeout(NEVER));
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        assert!(peer.head().await.contains("\r\nexpect: 100-continue\r\n"));
        peer.say("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        peer.hears_nothing().await;
        peer.say("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(peer.body(1025).await, body());
        peer.say(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(got.unwrap(), pong(1));
    let all = ["Connected", "Asked", "Leased", "Sending", "Continue", "Progress", "Answered", "Finished"];
    assert_eq!(names(&steps), all);
}

#[tokio::test]
async fn an_early_refusal_gets_no_body() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(NEVER);
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo ").await;
        peer.hears_nothing().await;
        peer.say("large").await;
        assert_eq!(peer.finish().await, b"");
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(got.unwrap(), Got { status: 413, body: "too large".into(), ..pong(1) });
}

#[tokio::test]
async fn a_worker_that_never_says_100_gets_the_body_all_the_same() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = watched(dispatcher.client().expect_timeout(Duration::from_millis(1)));
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        assert_eq!(peer.body(1025).await, body());
        peer.say(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(got.unwrap(), pong(1));
    assert!(!names(&steps).contains(&"Continue".to_owned()));
}

#[tokio::test]
async fn an_echo_that_answers_before_it_reads_gets_the_body() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(Duration::from_millis(1));
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 1025\r\n\r\n").await;
        let echo = String::from_utf8(peer.body(1025).await).unwrap();
        peer.say(&echo).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, post(body())), script) }).await;
    assert_eq!(got.unwrap().body, String::from_utf8(body().into()).unwrap());
}

#[tokio::test]
async fn a_small_body_is_sent_at_once() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(NEVER);
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        assert!(!peer.head().await.contains("expect"));
        peer.body(1024).await;
        peer.say(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let small = body().slice(1..);
    let (got, ()) = guarded(async { tokio::join!(call(&client, post(small)), script) }).await;
    assert_eq!(got.unwrap(), pong(1));
}
