//! Successful calls: the bytes sent and the steps reported.

use super::*;

async fn assert_call_succeeds(dispatcher: Script, worker: Script) {
    let (client, steps) = observed(dispatcher.client());
    let request = Request::post("/a//b?c=d&e").header("X-Dog", "patou").body(Payload::Bytes("ping".into())).unwrap();
    let script = async {
        let token = dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        let host = client.target.authority();
        let expected = format!(
            "POST /.patou/{token}/a//b?c=d&e HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\
             x-dog: patou\r\ncontent-length: 4\r\n\r\n"
        );
        assert_eq!(peer.head().await, expected);
        assert_eq!(peer.body(4).await, b"ping");
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, request), script) }).await;
    assert_eq!(received.unwrap(), pong(1));
    let all = ["Connected", "Requesting", "Leased", "Sending", "Progress", "Responded", "Finished"];
    assert_eq!(step_names(&steps), all);
}

#[tokio::test]
async fn call_over_tcp() {
    assert_call_succeeds(Script::tcp().await, Script::tcp().await).await;
}

#[tokio::test]
async fn call_over_unix_sockets() {
    assert_call_succeeds(Script::unix(), Script::unix()).await;
}

#[tokio::test]
async fn call_over_a_unix_socket_to_a_tcp_worker_on_a_wildcard_address() {
    let (dispatcher, worker) = (Script::unix(), Script::tcp().await);
    let Address::Tcp { port, .. } = worker.address() else { unreachable!() };
    let wildcard = Address::Tcp { host: "0.0.0.0".into(), port };
    let client = dispatcher.client();
    let script = async {
        let token = dispatcher.grant_lease(&wildcard).await;
        let mut peer = worker.accept().await;
        let expected = format!("GET /.patou/{token}/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert_eq!(peer.head().await, expected);
        // No length: the body ends with the connection.
        peer.send("HTTP/1.1 200 OK\r\n\r\npong").await;
        assert_eq!(peer.finish().await, b"");
    };
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, get("/")), script) }).await;
    assert_eq!(received.unwrap(), pong(1));
}

#[tokio::test]
async fn file_is_streamed_and_empty_body_has_a_length() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let content: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let path = std::env::temp_dir().join(format!("patou-client-{}-file", std::process::id()));
    std::fs::write(&path, &content).unwrap();
    let (client, steps) = observed(dispatcher.client());
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        let head = peer.head().await;
        assert!(head.contains("\r\ncontent-length: 200000\r\n") && head.contains("\r\nexpect: 100-continue\r\n"));
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(peer.body(content.len()).await == content);
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");

        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        assert!(peer.head().await.contains("\r\ncontent-length: 0\r\n"));
        peer.send(OK_PONG).await;
        assert_eq!(peer.finish().await, b"");
    };
    let calls = async {
        let upload = Request::put("/").body(Payload::File(path.clone())).unwrap();
        let empty = Request::post("/").body(Payload::Empty).unwrap();
        (call(&client, upload).await.unwrap(), call(&client, empty).await.unwrap())
    };
    let (received, ()) = with_deadline(async { tokio::join!(calls, script) }).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(received, (pong(1), pong(1)));
    let sizes: Vec<u64> = steps.lock().unwrap().iter().filter_map(progress).collect();
    assert_eq!(sizes, [65536, 131072, 196608, 200000]);
}

fn progress(step: &Step) -> Option<u64> {
    if let Step::Progress { bytes, of: 200_000 } = step { Some(*bytes) } else { None }
}

#[tokio::test]
async fn file_that_shrinks_is_named_and_the_outcome_is_unknown() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let path = std::env::temp_dir().join(format!("patou-client-{}-shrinks", std::process::id()));
    std::fs::write(&path, vec![0; 5000]).unwrap();
    let client = dispatcher.client();
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        std::fs::write(&path, "").unwrap();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(peer.socket.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    };
    let upload = Request::put("/").body(Payload::File(path.clone())).unwrap();
    let (received, ()) = with_deadline(async { tokio::join!(call(&client, upload), script) }).await;
    std::fs::remove_file(&path).unwrap();
    let error = received.unwrap_err();
    assert!(matches!(error, CallError::StartedUnknown { .. }));
    assert!(error.to_string().ends_with("-shrinks: became shorter while it was being sent"), "{error}");
}

#[tokio::test]
async fn payload_that_is_not_a_regular_file_uses_no_lease() {
    let dispatcher = Script::tcp().await;
    for path in ["/nowhere/flock", "/dev/null", "/tmp"] {
        let request = Request::put("/").body(Payload::File(path.into())).unwrap();
        let error = dispatcher.client().call(request).await.unwrap_err();
        assert!(matches!(&error, CallError::NotStarted { cause: FailureCause::File(_), attempts: 1 }), "{error}");
        assert!(error.to_string().starts_with(path), "{error}");
    }
    assert!(dispatcher.has_no_client().await);
}

#[tokio::test]
async fn dropping_the_response_closes_the_connection() {
    let (dispatcher, worker) = (Script::tcp().await, Script::tcp().await);
    let client = dispatcher.client();
    let script = async {
        dispatcher.grant_lease(&worker.address()).await;
        let mut peer = worker.accept().await;
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").await;
        assert_eq!(peer.socket.read(&mut [0]).await.unwrap(), 0);
    };
    let call = async { drop(client.call(get("/")).await.unwrap()) };
    with_deadline(async { tokio::join!(call, script) }).await;
}
