//! Not started: tried again. Perhaps started: never.

use super::*;

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// The rest of a call that succeeds: a lease, the request, the answer.
async fn succeeds(dispatcher: &Script, worker: &Script) {
    let token = dispatcher.leases(&worker.address()).await;
    let mut peer = worker.accept().await;
    assert!(peer.head().await.starts_with(&format!("GET /.patou/{token}/a?b HTTP/1.1\r\n")));
    peer.say(OK_PONG).await;
    assert_eq!(peer.finish().await, b"");
}

#[tokio::test]
async fn no_worker_free_is_asked_again() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let (client, steps) = watched(dispatcher.client());
    let script = async {
        dispatcher.answers(BUSY).await;
        // Closed without a byte, as by a dispatcher that dies.
        let mut peer = dispatcher.accept().await;
        peer.head().await;
        drop(peer);
        dispatcher.accept().await.reset();
        succeeds(&dispatcher, &worker).await;
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(got.unwrap(), pong(4));
    let retries = names(&steps).iter().filter(|name| *name == "Retrying").count();
    assert_eq!(retries, 3);
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let dispatcher = Script::tcp().await;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let client = dispatcher.client().observe(move |_, step| {
        if let Step::Retrying { after, .. } = step {
            told.send(*after).unwrap();
        }
    });
    let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    guarded(async {
        tokio::select! {
            _ = client.call(get("/")) => panic!("did not wait"),
            (after, ()) = async { tokio::join!(heard.recv(), dispatcher.answers(busy)) } => {
                assert_eq!(after, Some(Duration::from_secs(7)));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_last_refusal_is_the_answer() {
    let dispatcher = Script::tcp().await;
    let refused = |attempts| Got { status: 503, body: "busy".into(), leased: false, attempts };
    let client = dispatcher.client().retry_for(Duration::ZERO);
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/")), dispatcher.answers(BUSY)) }).await;
    assert_eq!(got.unwrap(), refused(1));

    // Asked to wait beyond the budget: one more attempt, at its end.
    let client = dispatcher.client().retry_for(Duration::from_millis(20));
    let script = async {
        let patience = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 4\r\n\r\nbusy";
        dispatcher.answers(patience).await;
        dispatcher.answers(patience).await;
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/")), script) }).await;
    assert_eq!(got.unwrap(), refused(2));
}

#[tokio::test]
async fn a_stale_lease_leads_to_a_new_one() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client();
    let back =
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {}/a?b\r\nContent-Length: 0\r\n\r\n", client.target);
    let not_started = "HTTP/1.1 503 Service Unavailable\r\nPatou-Outcome: not-started\r\nContent-Length: 0\r\n\r\n";
    let script = async {
        let mut tokens = Vec::new();
        for answer in [back.as_str(), not_started] {
            tokens.push(dispatcher.leases(&worker.address()).await);
            let mut peer = worker.accept().await;
            peer.head().await;
            peer.say(answer).await;
            assert_eq!(peer.finish().await, b"");
        }
        assert_ne!(tokens[0], tokens[1]);
        succeeds(&dispatcher, &worker).await;
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(got.unwrap(), pong(3));
}

#[tokio::test]
async fn a_worker_that_is_not_there_leads_to_a_new_lease() {
    let (dispatcher, worker, gone) = (Script::tcp().await, Script::tcp().await, Script::unix());
    let nobody = gone.address();
    drop(gone);
    let client = dispatcher.client();
    let script = async {
        dispatcher.leases(&nobody).await;
        succeeds(&dispatcher, &worker).await;
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, get("/a?b")), script) }).await;
    assert_eq!(got.unwrap(), pong(2));
}

#[tokio::test]
async fn a_dispatcher_that_is_not_there_is_an_error_after_the_budget() {
    let gone = Script::unix();
    let client = gone.client().retry_for(Duration::from_millis(20));
    drop(gone);
    let error = guarded(client.call(get("/"))).await.unwrap_err();
    let CallError::NotStarted { cause: Cause::Connect { .. }, attempts } = error else { panic!("{error}") };
    assert!(attempts > 1);
}

/// What comes of a worker that says `words` and then goes, with a reset or without.
async fn breaks_off(words: &str, reset: bool) -> Result<Got, CallError> {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client();
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.body(4).await;
        peer.say(words).await;
        if reset {
            peer.reset();
        }
    };
    let (got, ()) = guarded(async { tokio::join!(call(&client, post("ping")), script) }).await;
    assert!(dispatcher.is_left_alone().await && worker.is_left_alone().await, "sent again");
    got
}

#[tokio::test]
async fn a_request_that_reached_a_worker_is_never_sent_again() {
    for reset in [true, false] {
        for words in ["", "HTTP/1.1 200 O", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npong", "nonsense\r\n\r\n"] {
            let error = breaks_off(words, reset).await.unwrap_err();
            assert!(matches!(error, CallError::StartedUnknown { .. }), "{words:?}: {error}");
            assert!(error.to_string().starts_with("default/1 may or may not have carried out the request"), "{error}");
        }
    }
}

#[tokio::test]
async fn answers_of_the_application_are_answers() {
    for (head, status) in [
        ("502 Bad Gateway\r\nPatou-Outcome: started-unknown", 502),
        ("503 Service Unavailable\r\nRetry-After: 0", 503),
        ("307 Temporary Redirect\r\nLocation: /elsewhere", 307),
    ] {
        let got = breaks_off(&format!("HTTP/1.1 {head}\r\nContent-Length: 4\r\n\r\npong"), false).await.unwrap();
        assert_eq!(got, Got { status, ..pong(1) });
    }
}

#[tokio::test]
async fn an_answer_is_read_though_the_upload_was_reset() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client().expect_timeout(Duration::ZERO);
    let script = async {
        dispatcher.leases(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.body(100_000).await;
        peer.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nlong").await;
        // Closed with unread bytes: the kernel resets the connection.
    };
    let upload = post(vec![0; 16 << 20]);
    let (got, ()) = guarded(async { tokio::join!(call(&client, upload), script) }).await;
    assert_eq!(got.unwrap(), Got { status: 413, body: "long".into(), ..pong(1) });
}
