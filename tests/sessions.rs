//! Connections that switch to WebSocket: with a real server behind `http`, with axum as a `program`, and a real client
//! library.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::Response;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Error, Message, WebSocket};

/// Debian's, which has the package python3-websockets.
const PYTHON: &str = "/usr/bin/python3";

/// A WebSocket server that sends back what it receives. `/pid` responds to a plain request.
const SERVER: &str = r#"
import asyncio, http, json, os, websockets
async def plain(path, headers):
    if path == '/pid': return http.HTTPStatus.OK, [], str(os.getpid()).encode()
    if path == '/head': return http.HTTPStatus.OK, [], json.dumps([[n.lower(), v] for n, v in headers.raw_items()]).encode()
async def echo(client, path):
    if path == '/seen': return await client.send(json.dumps([[n.lower(), v] for n, v in client.request_headers.raw_items()]))
    async for message in client:
        if message == 'pid': message = str(os.getpid())
        if message == 'bye': return await client.close(4001, 'as requested')
        await client.send(message)
async def main():
    async with websockets.unix_serve(echo, os.environ['PATOU_SOCKET'], process_request=plain, max_size=1 << 24, ping_interval=None):
        await asyncio.Future()
asyncio.run(main())
"#;

/// Whether the server can run on this machine.
fn has_server() -> bool {
    let found = std::process::Command::new(PYTHON).args(["-c", "import websockets"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: no python3-websockets on this machine");
    }
    found
}

fn server() -> String {
    format!("{{ http = {} }}", toml_array(&[PYTHON, "-c", SERVER, "{socket}"]))
}

const UPGRADE: &str = "upgrade = [\"websocket\"]\n";

/// A handoff listener and a redirect listener of one pool.
fn pools(workers: u16, handler: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\ndelivery = \"handoff\"\n\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\n\
         [[pool]]\nname = \"default\"\nworkers = {workers}\nhandler = {handler}\naddress = \"127.0.0.1:0\"\n{more}\n"
    )
}

fn set(workers: u16, more: &str) -> Option<TestSet> {
    // So that a stop does not wait for the clients of a test.
    let drain = if more.contains("drain_timeout") { "" } else { "drain_timeout = \"1s\"\n" };
    has_server().then(|| TestSet::start(&pools(workers, &server(), &format!("{UPGRADE}{drain}{more}"))))
}

type Client = WebSocket<TcpStream>;
/// The response that is no 101.
type Refused = Box<Response<Option<Vec<u8>>>>;

/// Opens a session at this address.
fn open_at(address: SocketAddr, authority: &str, target: &str) -> Result<Client, Refused> {
    let stream = connect(address);
    match tungstenite::client(format!("ws://{authority}{target}"), stream) {
        Ok((client, response)) => {
            assert_eq!(response.status(), 101);
            Ok(client)
        }
        Err(HandshakeError::Failure(Error::Http(response))) => Err(response),
        Err(other) => panic!("{other}"),
    }
}

/// Opens a session on the handoff listener.
fn open(set: &TestSet, target: &str) -> Result<Client, Refused> {
    let address = set.address(0);
    open_at(address, &address.to_string(), target)
}

/// The same, as soon as a worker is free for it.
fn open_soon(set: &TestSet) -> Client {
    open_soon_at(set, "/")
}

fn open_soon_at(set: &TestSet, target: &str) -> Client {
    wait_for_value("a session", || open(set, target).ok())
}

/// Opens a session with a lease of the redirect listener.
fn open_with_lease(set: &TestSet, target: &str) -> Result<Client, Refused> {
    let (worker, target) = request_lease(set.address(1), target).unwrap_or_else(|response| panic!("{response:?}"));
    open_at(worker, &worker.to_string(), &target)
}

fn wait_until_idle(set: &TestSet) {
    set.wait_for("all workers are idle", |status| {
        let workers = status["pools"][0]["workers"].as_array().unwrap();
        workers.iter().all(|worker| worker["state"] == "idle")
    });
}

/// The worker that has the only session.
fn busy_worker(set: &TestSet) -> String {
    let status = set.status();
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    let busy: Vec<_> = workers.iter().filter(|worker| worker["state"] == "busy").collect();
    assert_eq!(busy.len(), 1, "{workers:?}");
    busy[0]["id"].as_str().unwrap().to_owned()
}

fn assert_echo(client: &mut Client) {
    let binary: Bytes = (0..1 << 20).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    for message in [Message::text("text \u{e9}"), Message::binary(binary), Message::text("")] {
        client.send(message.clone()).unwrap();
        assert_eq!(client.read().unwrap(), message);
    }
    client.send(Message::Ping(Bytes::from_static(b"are you there"))).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong(Bytes::from_static(b"are you there")));
}

/// Closes as RFC 6455 says, and waits for the end of the connection.
fn close(mut client: Client) {
    client.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).unwrap();
    assert!(matches!(client.read(), Ok(Message::Close(_))));
    assert!(matches!(client.read(), Err(Error::ConnectionClosed)));
}

/// Reads to the end of the connection, which comes without a close frame.
fn assert_cut(client: &mut Client, context: &str) {
    match client.read() {
        Err(Error::Protocol(_) | Error::Io(_) | Error::ConnectionClosed) => {}
        other => panic!("{other:?}: {context}"),
    }
}

fn problem(response: &Response<Option<Vec<u8>>>) -> (u16, Option<&str>, String) {
    let outcome = response.headers().get("patou-outcome").map(|value| value.to_str().unwrap());
    (response.status().as_u16(), outcome, text(response.body().as_deref().unwrap_or_default()))
}

#[test]
fn messages_pass_both_ways_on_both_deliveries_and_the_worker_is_free_again() {
    let Some(set) = set(2, "") else { return };
    for round in 0..3 {
        for delivery in [open, open_with_lease] {
            let mut client = delivery(&set, "/").unwrap();
            assert_echo(&mut client);
            close(client);
            wait_until_idle(&set);
        }
        let workers = ["default/1", "default/2"].map(|id| set.worker(id));
        let served: u64 = workers.iter().map(|worker| worker["served"].as_u64().unwrap()).sum();
        assert_eq!(served, 2 * (round + 1), "a session is one request: {workers:?}");
    }
    let mut client = open(&set, "/").unwrap();
    client.send(Message::text("bye")).unwrap();
    match client.read().unwrap() {
        Message::Close(Some(frame)) => {
            assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Library(4001), "as requested"))
        }
        other => panic!("{other}"),
    }
    set.stop();
}

#[test]
fn handler_sees_the_upgrade_of_a_websocket_alone() {
    let Some(set) = set(2, "") else { return };
    let seen = |json: &[u8]| -> Vec<(String, String)> { serde_json::from_slice(json).unwrap() };
    let value = |fields: &[(String, String)], name: &str| {
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.to_lowercase())
    };
    let mut client = open(&set, "/seen").unwrap();
    let fields = seen(client.read().unwrap().into_text().unwrap().as_bytes());
    assert_eq!(value(&fields, "upgrade").as_deref(), Some("websocket"));
    assert_eq!(value(&fields, "connection").as_deref(), Some("upgrade"));
    assert_eq!(value(&fields, "x-forwarded-for").as_deref(), Some("127.0.0.1"));
    drop(client);
    // No other protocol, and no WebSocket without the whole of it.
    for more in [
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: a\r\n",
        "Upgrade: websocket\r\n",
        "Upgrade: websocket, h2c\r\nConnection: close\r\n",
    ] {
        let head = request_head("GET", "/head", set.address(0), more);
        let response = send_and_read_one(set.address(0), head.as_bytes());
        let fields = seen(&response.body);
        assert_eq!((value(&fields, "upgrade"), value(&fields, "connection")), (None, None), "{more}");
    }
    set.stop();
}

/// A request on a connection of its own.
fn get_once(address: SocketAddr, target: &str) -> HttpResponse {
    let head = request_head("GET", target, address, "Connection: close\r\n");
    send_request(address, head.as_bytes()).unwrap()
}

/// Sends bytes and reads the response to them, on a connection that may stay open.
fn send_and_read_one(address: SocketAddr, bytes: &[u8]) -> HttpResponse {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Ok(Some((mut head, length))) = HttpResponse::parse_head(&received) {
            let announced: usize = head.header("content-length").unwrap().parse().unwrap();
            if received.len() >= length + announced {
                head.body = received[length..length + announced].to_vec();
                return head;
            }
        }
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{:?}", text(&received));
        received.extend_from_slice(&buffer[..count]);
    }
}

#[test]
fn sessions_do_not_starve_other_requests() {
    let Some(set) = set(4, "max_sessions = 2\n") else { return };
    let address = set.address(0);
    let mut clients: Vec<_> = (0..2).map(|_| open(&set, "/").unwrap()).collect();
    for delivery in [open, open_with_lease] {
        let refused = delivery(&set, "/").expect_err("no third session");
        let (status, outcome, detail) = problem(&refused);
        assert_eq!((status, outcome), (503, Some("not-started")), "{detail}");
        assert!(detail.contains("max_sessions, 2"), "{detail}");
        assert!(refused.headers().contains_key("retry-after"));
    }
    for _ in 0..20 {
        assert_eq!(get_once(address, "/pid").status, 200);
    }
    clients.iter_mut().for_each(assert_echo);
    close(clients.pop().unwrap());
    assert_echo(&mut open_soon(&set));
    set.stop();
}

#[test]
fn concurrent_claims_never_exceed_the_limit() {
    let Some(set) = set(4, "max_sessions = 2\n") else { return };
    for round in 0..20 {
        wait_until_idle(&set);
        let start = Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..4)
                .map(|i| {
                    let (set, start) = (&set, &start);
                    scope.spawn(move || {
                        start.wait();
                        if i % 2 == 0 { open(set, "/") } else { open_with_lease(set, "/") }
                    })
                })
                .collect();
            tasks.into_iter().map(|task| task.join().unwrap()).collect()
        });
        let (open, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(open.len(), 2, "round {round}\n{}", set.log());
        for refused in refused {
            let refused = refused.err().unwrap();
            assert_eq!(problem(&refused).0, 503, "round {round}");
        }
        open.into_iter().for_each(|client| close(client.unwrap()));
    }
    set.stop();
}

#[test]
fn session_replaces_request_timeout_by_session_timeout() {
    let Some(set) = set(2, "request_timeout = \"300ms\"\nsession_timeout = \"2s\"\n") else { return };
    for delivery in [open, open_with_lease] {
        let since = Instant::now();
        let mut client = delivery(&set, "/").unwrap();
        std::thread::sleep(Duration::from_millis(800)); // beyond request_timeout
        assert_echo(&mut client);
        assert_cut(&mut client, "session_timeout");
        let took = since.elapsed();
        assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(6), "{took:?}");
        wait_until_idle(&set);
    }
    set.wait_for_log(&["session_timeout has passed", "the session is closed"]);
    let restarts = ["default/1", "default/2"].map(|id| set.worker(id)["restarts"].as_u64());
    assert_eq!(restarts, [Some(0); 2]);
    set.stop();
}

#[test]
fn drain_and_reload_wait_for_drain_timeout() {
    let Some(set) = set(2, "drain_timeout = \"1s\"\n") else { return };
    let mut client = open(&set, "/").unwrap();
    let busy = busy_worker(&set).replace('/', "-");
    let since = Instant::now();
    let drained = set.patou(&["drain", &busy]);
    assert!(drained.status.success(), "{}", text(&drained.stderr));
    assert!(since.elapsed() >= Duration::from_millis(900));
    assert_cut(&mut client, "cut");
    assert!(set.patou(&["resume", &busy]).status.success());

    // A session that ends by itself within that time is not cut.
    wait_until_idle(&set);
    let mut client = open(&set, "/").unwrap();
    let epoch = |n: usize| set.worker(&format!("default/{n}"))["epoch"].as_u64().unwrap();
    let before = [epoch(1), epoch(2)];
    set.configure(&pools(2, &server(), &format!("{UPGRADE}drain_timeout = \"1s\"\nmax_age = \"1h\"\n")));
    set.signal(Signal::SIGHUP);
    wait_until("the idle worker is replaced", || [epoch(1), epoch(2)] != before);
    assert_cut(&mut client, "cut");
    wait_until("both workers are replaced", || epoch(1) > before[0] && epoch(2) > before[1]);
    assert_echo(&mut open_soon(&set));
    set.stop();
}

#[test]
fn recycle_waits_for_drain_timeout() {
    let Some(set) = set(2, "drain_timeout = \"1s\"\n") else { return };
    let mut client = open(&set, "/").unwrap();
    let since = Instant::now();
    let recycled = set.patou(&["recycle", "default"]);
    assert!(recycled.status.success(), "{}\n{}", text(&recycled.stderr), set.log());
    assert!(since.elapsed() >= Duration::from_millis(900));
    assert_cut(&mut client, "recycle");
    assert_echo(&mut open_soon(&set));
    set.stop();
}

#[test]
fn stop_closes_sessions_after_drain_timeout_and_leaves_nothing() {
    let Some(set) = set(3, "drain_timeout = \"500ms\"\n") else { return };
    let mut clients = [open(&set, "/").unwrap(), open_with_lease(&set, "/").unwrap()];
    let since = Instant::now();
    set.stop();
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    clients.iter_mut().for_each(|client| assert_cut(client, "stop"));
}

#[test]
fn death_of_worker_or_server_ends_the_session_and_frees_its_place() {
    let Some(set) = set(2, "") else { return };
    for delivery in [open, open_with_lease] {
        // The server: its worker stays.
        let mut client = delivery(&set, "/").unwrap();
        client.send(Message::text("pid")).unwrap();
        let server: u32 = client.read().unwrap().into_text().unwrap().parse().unwrap();
        signal_to(server, Signal::SIGKILL);
        assert_cut(&mut client, "the server is dead");
        set.wait_for_log(&["was killed by SIGKILL within a session", "replacing it"]);
        let mut client = open_soon(&set);
        assert_echo(&mut client);
        close(client);
        wait_until_idle(&set);

        // The worker, killed and frozen.
        for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
            let client = delivery(&set, "/").unwrap();
            signal_to(set.worker_pid(&busy_worker(&set)), signal);
            let error = read_rest(client).expect_err("the connection has ended as if it were complete");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{signal}");
            set.wait_until_up();
            let mut client = open_soon(&set);
            assert_echo(&mut client);
            close(client);
            wait_until_idle(&set);
        }
    }
    set.stop();
}

/// What arrives until the end of the connection.
fn read_rest(mut client: Client) -> std::io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    client.get_mut().read_to_end(&mut rest).map(|_| rest)
}

#[test]
fn session_survives_the_dispatcher_and_counts_for_the_next_one() {
    let Some(set) = set(2, "max_sessions = 1\n") else { return };
    let mut client = open(&set, "/").unwrap();
    signal_to(set.dispatcher_pid(), Signal::SIGKILL);
    assert_echo(&mut client);
    let refused = wait_for_value("a refusal", || {
        let response = open(&set, "/").err()?;
        (response.status() == 503).then_some(response)
    });
    assert!(problem(&refused).2.contains("max_sessions"), "{:?}", problem(&refused));
    close(client);
    assert_echo(&mut open_soon(&set));
    set.stop();
}

#[test]
fn session_that_a_frozen_dispatcher_cannot_permit_is_permitted_by_the_next_or_refused() {
    let Some(set) = set(2, "claim_timeout = \"10s\"\n") else { return };
    let (worker, target) = request_lease(set.address(1), "/").unwrap();
    signal_to(set.dispatcher_pid(), Signal::SIGSTOP);
    let since = Instant::now();
    match open_at(worker, &worker.to_string(), &target) {
        Ok(mut client) => assert_echo(&mut client),
        Err(refused) => assert_eq!((problem(&refused).0, problem(&refused).1), (503, Some("not-started"))),
    }
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    set.wait_until_up();
    assert_echo(&mut open_soon(&set));
    set.stop();
}

/// A server that switches protocols without a request for it, and sends back what it has received when its client has
/// ended its direction.
const SWITCHING: &str = r#"
import os, socket
s = socket.socket(socket.AF_UNIX); s.bind(os.environ['PATOU_SOCKET']); s.listen(8)
while True:
    c, _ = s.accept()
    head = c.recv(9999)
    if not head: continue
    c.sendall(b'HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello')
    received = head.split(b'\r\n\r\n', 1)[1]
    while (piece := c.recv(1 << 16)): received += piece
    c.sendall(received); c.close()
"#;

fn switching_server() -> String {
    format!("{{ http = {} }}", toml_array(&[PYTHON, "-c", SWITCHING, "{socket}"]))
}

#[test]
fn half_closed_client_receives_the_rest_and_nothing_sent_early_is_lost() {
    if !has_server() {
        return;
    }
    let set = TestSet::start(&pools(2, &switching_server(), UPGRADE));
    for is_redirect in [false, true] {
        let handoff = (set.address(0), "/".to_owned());
        let (address, target) = if is_redirect { request_lease(set.address(1), "/").unwrap() } else { handoff };
        let mut stream = connect(address);
        let head = request_head("GET", &target, address, "Upgrade: websocket\r\nConnection: Upgrade\r\n");
        let sent = vec![b'x'; 300_000];
        // The first bytes of the session come with the head.
        stream.write_all(&[head.as_bytes(), &sent].concat()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        let (head, length) = HttpResponse::parse_head(&received).unwrap().unwrap();
        assert_eq!((head.status, head.header("keep-alive")), (101, None), "{}", head.head);
        assert!(received[length..] == [b"hello", sent.as_slice()].concat(), "{}", received.len());
        wait_until_idle(&set);
    }
    set.stop();
}

#[test]
fn pool_without_upgrade_serves_the_request_without_it_and_a_101_is_502() {
    if !has_server() {
        return;
    }
    for (more, reason) in [("", "this pool does not allow"), (UPGRADE, "the client has not requested")] {
        let set = TestSet::start(&pools(2, &switching_server(), more));
        let response = get_once(set.address(0), "/");
        assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")));
        assert!(response.text().contains(reason), "{}", response.text());
        set.stop();
    }
    let set = TestSet::start(&pools(2, &server(), ""));
    let refused = open(&set, "/").expect_err("no session");
    assert_eq!(problem(&refused).0, 426, "{:?}", problem(&refused));
    set.stop();
}

#[test]
fn check_refuses_a_pool_without_a_worker_for_other_requests() {
    let http = "{ http = [\"sh\", \"{socket}\"] }";
    for (workers, handler, more, key) in [
        (2, http, format!("{UPGRADE}max_sessions = 2"), "pool[1].max_sessions"),
        (1, http, UPGRADE.to_owned(), "pool[1].upgrade"),
        (2, "\"echo\"", UPGRADE.to_owned(), "pool[1].upgrade"),
        (2, http, "upgrade = [\"h2c\"]".to_owned(), "pool[1].upgrade"),
        (2, http, format!("{UPGRADE}session_timeout = \"0s\""), "pool[1].session_timeout"),
    ] {
        let set = TestSet::prepare(&pools(workers, handler, &more));
        let output = set.patou(&["check"]);
        let errors = text(&output.stderr);
        assert!(!output.status.success() && errors.contains(key), "{more}: {errors}");
        let at = more.trim_end().lines().last().unwrap();
        let file = fs::read_to_string(set.config_file()).unwrap();
        let number = file.lines().position(|line| line == at).unwrap() + 1;
        assert!(errors.contains(&format!("patou.toml:{number}:")), "{number}: {errors}");
    }
}

/// The sessions of axum's router, in the worker's own process.
#[test]
fn program_has_sessions_with_the_same_bounds() {
    let program = format!("{{ program = [{:?}] }}", build_example("axum_worker"));
    let more = format!(
        "{UPGRADE}max_sessions = 1\ndrain_timeout = \"1s\"\nsession_timeout = \"2s\"\nrequest_timeout = \"500ms\"\n"
    );
    let set = TestSet::start(&pools(2, &program, &more));
    for delivery in [open, open_with_lease] {
        let since = Instant::now();
        let mut client = delivery(&set, "/websocket").unwrap();
        assert_echo(&mut client);
        assert_eq!(problem(&delivery(&set, "/websocket").expect_err("one session")).0, 503);
        assert_eq!(get_once(set.address(0), "/hello").status, 200);
        std::thread::sleep(Duration::from_millis(700)); // beyond request_timeout
        assert_echo(&mut client);
        assert_cut(&mut client, "session_timeout");
        assert!(since.elapsed() >= Duration::from_millis(1900));
        wait_until_idle(&set);
        let client = open_soon_at(&set, "/websocket");
        close(client);
        wait_until_idle(&set);
    }
    // A switch that no client has requested.
    let response = get_once(set.address(0), "/switch");
    assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")));
    // The worker, killed.
    let client = open_soon_at(&set, "/websocket");
    signal_to(set.worker_pid(&busy_worker(&set)), Signal::SIGKILL);
    let error = read_rest(client).expect_err("the connection has ended as if it were complete");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    set.wait_until_up();
    close(open_soon_at(&set, "/websocket"));
    set.stop();
}

#[test]
fn program_without_upgrade_gets_no_upgrade_and_cannot_switch() {
    let program = format!("{{ program = [{:?}] }}", build_example("axum_worker"));
    let set = TestSet::start(&pools(2, &program, ""));
    let refused = open(&set, "/websocket").expect_err("no session");
    assert_eq!(problem(&refused).0, 400, "{:?}", problem(&refused));
    let response = get_once(set.address(0), "/switch");
    assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")));
    assert!(response.text().contains("this pool does not allow"), "{}", response.text());
    set.stop();
}
