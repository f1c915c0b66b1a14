//! The dispatcher as clients see it: allowed hosts, the queue, limits, malformed HTTP, a restart.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use support::*;

/// One listener and one pool.
fn echo(listener: &str, pool: &str, front: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n{listener}\n\
         [[pool]]\nname = \"default\"\naddress = \"127.0.0.1:0\"\n{LONG_TIMEOUTS}{pool}\n[front]\n{front}\n"
    )
}

/// A set with one gated worker that listens on `front.sock` and on TCP.
fn gated_set(pool: &str, front: &str) -> TestSet {
    let mut set = TestSet::prepare("");
    let pool = format!("workers = 1\n{}\n{pool}", recording_handler(&set));
    let dir = set.test_dir().display();
    let unix = format!("[[listener]]\naddress = \"unix:{dir}/front.sock\"\npool = \"default\"\n");
    set.configure(&(unix + &echo("", &pool, front)));
    set.run();
    set.wait_until_up();
    set
}

/// Occupies the only worker of a gated set; the thread returns the response when the gate is open.
fn occupy_worker(set: &TestSet) -> std::thread::JoinHandle<Result<HttpResponse, String>> {
    let (worker, target) = request_lease(set.address(1), "/running").unwrap();
    let running = std::thread::spawn(move || send_request(worker, request_head("GET", &target, worker, "").as_bytes()));
    set.wait_for("the request runs", |_| started_paths(set) == ["/running"]);
    running
}

fn wait_for_queue(set: &TestSet, length: usize) {
    set.wait_for(&format!("a queue of {length}"), |status| status["dispatcher"]["queue"] == length);
}

/// A client that waits in the queue, which then has this length.
fn enqueue(set: &TestSet, target: &str, length: usize) -> TcpStream {
    let mut stream = connect(set.address(1));
    stream.write_all(request_head("GET", target, set.address(1), "").as_bytes()).unwrap();
    wait_for_queue(set, length);
    stream
}

/// Follows the 307 on this stream.
fn follow_redirect(stream: &mut (impl Read + ?Sized)) -> HttpResponse {
    let redirect = read_response(&mut Box::new(stream)).unwrap();
    assert_eq!(redirect.status, 307, "{redirect:?}");
    let (host, target) = redirect.location();
    let worker = host.parse().unwrap();
    send_request(worker, request_head("GET", target, worker, "").as_bytes()).unwrap()
}

fn assert_problem(response: &HttpResponse, status: u16, fragments: &[&str]) {
    assert_eq!(
        (response.status, response.header("content-type")),
        (status, Some("application/problem+json")),
        "{response:?}"
    );
    assert_eq!(response.header("patou-outcome"), Some("not-started"), "{response:?}");
    let problem = response.json();
    assert_eq!((problem["status"].as_u64(), problem["type"].as_str()), (Some(status.into()), Some("about:blank")));
    assert!(problem["title"].is_string());
    let detail = problem["detail"].as_str().unwrap();
    assert!(fragments.iter().all(|part| detail.contains(part)), "{detail:?} lacks one of {fragments:?}");
}

/// Everything received until the end of the connection, which may be a reset.
fn send_raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    let _ = stream.write_all(request); // the peer may have closed already
    let mut received = Vec::new();
    if let Err(error) = stream.read_to_end(&mut received) {
        let reset = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe].contains(&error.kind());
        assert!(reset, "{error}: {}", text(&request[..request.len().min(80)]));
    }
    text(&received)
}

/// Sends these bytes; the status of the response.
fn status_of_raw(address: SocketAddr, request: &[u8]) -> Option<u16> {
    response_status(send_raw(address, request).as_bytes())
}

#[test]
fn loopback_listener_accepts_only_loopback_hosts() {
    let set = TestSet::start(&echo("", "workers = 1", ""));
    let address = set.address(0);
    let with = |headers: &str| send_request(address, format!("GET / HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
    for host in ["evil.example", "localhost.evil.example:80", "192.0.2.1", "[2001:db8::1]:1", "127.0.0.1.nip.example"] {
        assert_problem(&with(&format!("Host: {host}\r\n")), 421, &["allowed_hosts"]);
    }
    let bad = [
        "",
        "Host:\r\n",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nhost: evil.example\r\n",
        "Host: a b\r\n",
        "Host: user@localhost\r\n",
        "Host: http://localhost/\r\n",
        "Host: localhost/x\r\n",
        "Host: localhost, evil.example\r\n",
        "Host: localhost:port\r\n",
        "Host: localhost:123456\r\n",
        "Host: ::1\r\n",
        "Host: [::1\r\n",
        "Host: :80\r\n",
    ];
    for headers in bad {
        assert_problem(&with(headers), 400, &["Host"]);
    }
    assert_eq!(status_of_raw(address, b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n"), Some(400));
    assert_eq!(get(address, "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn only_allowed_hosts_are_served() {
    let set = TestSet::start(&echo("allowed_hosts = [\"api.example\", \"[::1]\"]", "workers = 4", ""));
    let address = set.address(0);
    let with =
        |host: &str| send_request(address, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    for good in ["api.example", "API.Example:80", "api.example.", "[::1]:9"] {
        assert_eq!(with(good).status, 307, "{good}");
    }
    for bad in ["localhost", "127.0.0.1", "x.api.example", "apiXexample"] {
        assert_problem(&with(bad), 421, &[bad]);
    }
    set.stop();
}

#[test]
fn queued_clients_are_served_in_order_and_the_queue_is_bounded() {
    let set = gated_set("queue = 3\nqueue_timeout = \"60s\"", "");
    let running = occupy_worker(&set);
    let mut waiting: Vec<_> = (1..=3).map(|n| enqueue(&set, &format!("/{n}"), n)).collect();
    for _ in 0..3 {
        let rejected = get(set.address(1), "/4").unwrap();
        assert_problem(&rejected, 503, &["pool default", "worker", "3 clients", "`queue`"]);
        assert!(rejected.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        assert_eq!(rejected.header("connection"), Some("close"));
    }
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /running");
    for (n, stream) in (1..).zip(&mut waiting) {
        assert_eq!(follow_redirect(stream).text(), format!("done /{n}"));
    }
    assert_eq!(started_paths(&set), ["/running", "/1", "/2", "/3"]);
    set.stop();
}

#[test]
fn queued_client_gets_503_after_queue_timeout() {
    let set = gated_set("queue_timeout = \"300ms\"", "");
    let running = occupy_worker(&set);
    let start = Instant::now();
    let rejected = get(set.address(1), "/").unwrap();
    assert!(start.elapsed().as_millis() >= 300);
    assert_problem(&rejected, 503, &["pool default", "queue_timeout"]);
    assert!(rejected.header("retry-after").is_some());
    wait_for_queue(&set, 0);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn clients_are_rejected_when_queue_is_0_and_all_workers_are_busy() {
    let set = gated_set("queue = 0", "");
    let running = occupy_worker(&set);
    for target in ["/", "/.patou/lease"] {
        let rejected =
            send_request(set.address(1), request_head("POST", target, set.address(1), "").as_bytes()).unwrap();
        assert_problem(&rejected, 503, &["pool default", "`queue` is 0"]);
    }
    let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
    unix.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_problem(&read_response(&mut unix).unwrap(), 503, &["pool default"]);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn disconnected_client_leaves_the_queue() {
    let set = gated_set("queue = 10\nqueue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy_worker(&set);
    let _first = enqueue(&set, "/stays", 1);
    // A TCP close looks like a half-close. The dispatcher probes an HTTP/1.1 client with an interim response. It
    // cannot probe an HTTP/1.0 client, which stays queued until queue_timeout unless it sends a reset.
    for (version, close) in [("1.1", drop as fn(TcpStream)), ("1.1", close_with_reset), ("1.0", close_with_reset)] {
        let mut stream = connect(address);
        stream.write_all(format!("GET /gone HTTP/{version}\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
        wait_for_queue(&set, 2);
        close(stream);
        wait_for_queue(&set, 1);
    }
    for version in ["1.1", "1.0"] {
        let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
        unix.write_all(format!("GET /gone HTTP/{version}\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        wait_for_queue(&set, 2);
        drop(unix);
        wait_for_queue(&set, 1);
    }
    // A client that closes before the end of its body.
    let mut stream = connect(address);
    stream.write_all(request_head("PUT", "/gone", address, "Content-Length: 900000\r\n").as_bytes()).unwrap();
    wait_for_queue(&set, 2);
    stream.write_all(&[b'x'; 1000]).unwrap();
    drop(stream);
    wait_for_queue(&set, 1);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn client_that_half_closes_is_served() {
    let set = gated_set("queue = 10\nqueue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy_worker(&set);
    let mut http11 = connect(address);
    http11.write_all(request_head("GET", "/new", address, "").as_bytes()).unwrap();
    http11.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 1);
    let mut http10 = connect(address);
    http10.write_all(b"GET /old HTTP/1.0\r\n\r\n").unwrap();
    http10.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 2);
    let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
    unix.write_all(b"GET /unix HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    unix.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 3);
    // The dispatcher has seen the half-close, probed with a 102, and received no reset.
    let mut status_line = [0; 12];
    http11.read_exact(&mut status_line).unwrap();
    assert_eq!(text(&status_line), "HTTP/1.1 102");
    wait_for_queue(&set, 3);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert_eq!(follow_redirect(&mut (&status_line[..]).chain(&mut http11)).text(), "done /new");
    assert_eq!(follow_redirect(&mut http10).text(), "done /old");
    assert_eq!(read_response(&mut unix).unwrap().status, 200);
    set.stop();
}

/// The number of connections in the listen backlog (proc(5), `/proc/net/tcp`).
fn backlog(address: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = format!(":{:04X}", address.port());
    let mut listening = fields.filter(|f| f.len() > 4 && f[1].ends_with(&port) && f[3] == "0A");
    let queues = listening.next().expect("the port has a listener")[4];
    usize::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap()
}

#[test]
fn connections_beyond_the_limit_wait_in_the_backlog() {
    let front = "connections = 2\nhead_timeout = \"300s\"\nlinger_timeout = \"100ms\"";
    let set = TestSet::start(
        &("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n".to_owned() + &echo("", "workers = 4", front)),
    );
    let (one, two) = (set.address(0), set.address(1));
    // Both on one listener; the limit covers both listeners.
    let idle = [connect(one), connect(one)];
    set.wait_for("two connections are accepted", |_| backlog(one) == 0);
    let mut more: Vec<_> = [one, two, one].map(|address| (connect(address), address)).into();
    for (stream, address) in &mut more {
        stream.write_all(request_head("GET", "/", *address, "").as_bytes()).unwrap();
    }
    assert_eq!((backlog(one), backlog(two)), (2, 1));
    drop(idle);
    for (mut stream, _) in more {
        assert_eq!(read_response(&mut stream).unwrap().status, 307);
    }
    set.stop();
}

#[test]
fn reload_changes_the_connection_limit() {
    let toml = |connections: u32| {
        let front = format!("connections = {connections}\nhead_timeout = \"300s\"\nlinger_timeout = \"100ms\"");
        echo("", "workers = 4", &front)
    };
    let mut set = TestSet::prepare(&toml(3));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let applied = || {
        let log = set.log();
        log.lines().filter(|line| line.contains("dispatcher") && line.contains("configuration applied")).count()
    };
    let reload = |connections: u32, nth: usize| {
        set.configure(&toml(connections));
        set.signal(Signal::SIGHUP);
        set.wait_for("the configuration is applied", |_| applied() >= nth);
    };
    let open: Vec<_> = (0..4).map(|_| connect(address)).collect();
    set.wait_for("three of four connections are accepted", |_| backlog(address) == 1);
    reload(4, 1);
    set.wait_for("all connections are accepted", |_| backlog(address) == 0);
    // The limit falls from four to two as these connections close.
    reload(2, 2);
    drop(open);
    let mut next: Vec<_> = (0..3).map(|_| connect(address)).collect();
    set.wait_for("two of three connections are accepted", |_| backlog(address) == 1);
    let mut last = next.pop().unwrap();
    last.write_all(request_head("GET", "/", address, "").as_bytes()).unwrap();
    assert_eq!(backlog(address), 1);
    drop(next);
    assert_eq!(read_response(&mut last).unwrap().status, 307);
    set.stop();
}

#[test]
fn request_head_size_is_limited() {
    let set = TestSet::start(&echo("", "workers = 4", "head_bytes = 8192"));
    let address = set.address(0);
    let (worker, _) = request_lease(address, "/").unwrap();
    for address in [address, worker] {
        let big = format!("X-Big: {}\r\n", "x".repeat(20_000));
        assert_eq!(status_of_raw(address, request_head("GET", "/", address, &big).as_bytes()), Some(431));
        let many = "X-Many: 1\r\n".repeat(500);
        assert_eq!(status_of_raw(address, request_head("GET", "/", address, &many).as_bytes()), Some(431));
        let long = send_raw(address, request_head("GET", &format!("/{}", "x".repeat(20_000)), address, "").as_bytes());
        let status = response_status(long.as_bytes());
        assert!([Some(414), Some(431)].contains(&status), "{long}");
        let fits = format!("X-Big: {}\r\n", "x".repeat(7000));
        assert_eq!(status_of_raw(address, request_head("GET", "/", address, &fits).as_bytes()), Some(307));
    }
    set.stop();
}

#[test]
fn slow_request_head_gets_408() {
    let set = TestSet::start(&echo("", "workers = 1", "head_timeout = \"500ms\""));
    let address = set.address(0);
    let worker: SocketAddr = set.worker("default/1")["address"].as_str().unwrap().parse().unwrap();
    for address in [address, worker] {
        // One byte at a time, without long pauses.
        let mut stream = connect(address);
        let mut received = Vec::new();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        for byte in request_head("GET", "/", address, &"X-Slow: 1\r\n".repeat(1000)).bytes() {
            let written = stream.write_all(&[byte]);
            match stream.read_to_end(&mut received) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && written.is_ok() => {}
                _ => break,
            }
        }
        let response = read_response(&mut &received[..]).unwrap();
        assert_problem(&response, 408, &["head_timeout"]);
        // No byte at all.
        let response = read_response(&mut connect(address)).unwrap();
        assert_problem(&response, 408, &["head_timeout"]);
    }
    set.stop();
}

#[test]
fn body_size_is_limited() {
    let handler = "workers = 1\nhandler = { exec = [\"sh\", \"-c\", \
        \"n=$(wc -c); printf 'Content-Type: text/plain\\\\n\\\\n%s' $n\"] }";
    let set = TestSet::start(&echo("", handler, "max_body = 100000"));
    let address = set.address(0);
    for length in ["100001", "18446744073709551613"] {
        let more = format!("Content-Length: {length}\r\nExpect: 100-continue\r\n");
        let response = send_request(address, request_head("PUT", "/", address, &more).as_bytes()).unwrap();
        assert_problem(&response, 413, &["max_body", "100000"]);
        let (worker, target) = request_lease(address, "/").unwrap();
        let response = send_request(worker, request_head("PUT", &target, worker, &more).as_bytes()).unwrap();
        assert_problem(&response, 413, &["max_body", "100000"]);
    }
    assert_eq!(request(address, "PUT", "/", &[b'x'; 100_000]).unwrap().text().trim(), "100000");
    // Without a Content-Length the limit is found while reading; this client reads only after it has sent everything.
    let mut body = Vec::new();
    for _ in 0..9 {
        body.extend(format!("{:x}\r\n", 100_000).as_bytes());
        body.extend([b'x'; 100_000]);
        body.extend(b"\r\n");
    }
    body.extend(b"0\r\n\r\n");
    for _ in 0..10 {
        let (worker, target) = request_lease(address, "/").unwrap();
        let mut request = request_head("PUT", &target, worker, "Transfer-Encoding: chunked\r\n").into_bytes();
        request.extend(&body);
        let response = send_request(worker, &request).unwrap();
        assert_eq!((response.status, response.header("patou-outcome")), (413, Some("not-started")), "{response:?}");
    }
    set.stop();
}

#[test]
fn stalled_body_gets_408() {
    let handler = "workers = 1\nhandler = { exec = [\"sh\", \"-c\", \
        \"n=$(wc -c); printf 'Content-Type: text/plain\\\\n\\\\n%s' $n\"] }";
    let set = TestSet::start(&echo("", handler, "body_timeout = \"300ms\""));
    let address = set.address(0);
    for framing in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        for first_part in ["", "5\r\nhello\r\n"] {
            let (worker, target) = request_lease(address, "/").unwrap();
            let mut stream = connect(worker);
            stream.write_all((request_head("PUT", &target, worker, framing) + first_part).as_bytes()).unwrap();
            let response = read_response(&mut stream).unwrap();
            assert_eq!(response.status, 408, "{response:?}");
            assert!(response.text().contains("300ms"), "{response:?}");
        }
    }
    set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

/// Clients that send everything before they read get responses that the set sends before the end of the body.
#[test]
fn early_responses_arrive_complete() {
    let set = gated_set("queue = 0", "max_body = 1000000");
    let address = set.address(1);
    let send = |address: SocketAddr, target: &str, body: usize| {
        let mut request = request_head("PUT", target, address, &format!("Content-Length: {body}\r\n")).into_bytes();
        request.resize(request.len() + body.min(900_000), b'x');
        send_request(address, &request)
    };
    let (worker, target) = request_lease(address, "/running").unwrap();
    for _ in 0..50 {
        // All workers leased: 503; body too large: 413; no token: 307 from the worker.
        assert_eq!(send(address, "/", 900_000).unwrap().status, 503);
        assert_eq!(send(address, "/", 2_000_000).unwrap().status, 413);
        assert_eq!(send(worker, "/", 900_000).unwrap().status, 307);
    }
    open_gate(&set);
    for n in 0..50 {
        let redirect = if n == 0 { None } else { Some(send(address, "/", 900_000).unwrap()) };
        let target = redirect.map_or(target.clone(), |redirect| {
            assert_eq!(redirect.status, 307);
            redirect.location().1.to_owned()
        });
        // This handler does not read the body, so its response is early as well.
        assert_eq!(send(worker, &target, 900_000).unwrap().status, 200);
        set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    }
    set.stop();
}

#[test]
fn malformed_http_is_rejected_without_harm_to_other_clients() {
    let toml = echo("", "workers = 4\nqueue_timeout = \"60s\"", "head_timeout = \"1s\"\nhead_bytes = 8192");
    let set = TestSet::start(&toml.replace("\"5s\"", "\"2s\""));
    let address = set.address(0);
    let stop = Arc::new(AtomicBool::new(false));
    let other_clients = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            while count < 20 || !stop.load(Ordering::Relaxed) {
                assert_eq!(get(address, "/good").unwrap().text(), "GET /good\n");
                count += 1;
            }
        })
    };
    let worker: SocketAddr = set.worker("default/1")["address"].as_str().unwrap().parse().unwrap();
    let garbage: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let requests: Vec<Vec<u8>> = [
        &b"\0\0\0\0"[..],
        b"\r\n\r\n\r\n\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on, a TLS hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: 1\r\n folded\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\nab",
        b"PUT / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &garbage,
        &[b'A'; 70_000],
    ]
    .map(<[u8]>::to_vec)
    .into();
    for address in [address, worker] {
        for request in &requests {
            let received = send_raw(address, request);
            let status = response_status(received.as_bytes());
            let rejected = [400, 408, 414, 431, 501, 505].map(Some).contains(&status);
            let request = text(&request[..request.len().min(80)]);
            assert!(received.is_empty() || rejected, "{request}: {received}");
        }
    }
    // Bytes that could be read as two requests get one response, and the connection closes.
    for framing in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"]
    {
        for body in ["0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n", "1\r\nZ\r\nQ"] {
            for address in [address, worker] {
                let received = send_raw(address, (request_head("POST", "/", address, framing) + body).as_bytes());
                assert_eq!(received.matches("HTTP/1.1 ").count(), 1, "{received}");
            }
        }
    }
    // Malformed chunks, sent to a worker that has claimed the lease.
    for chunk in
        ["x\r\n", "-1\r\nab\r\n", "fffffffffffffffff\r\nab", "1\r\nabc\r\n", "1 1\r\na\r\n", "1\nab\r\n", "\r\n\r\n"]
    {
        let (worker, target) = request_lease(address, "/").unwrap();
        let request = request_head("PUT", &target, worker, "Transfer-Encoding: chunked\r\n") + chunk;
        let received = send_raw(worker, request.as_bytes());
        let complete = received.starts_with("HTTP/1.1 200") && received.ends_with("0\r\n\r\n");
        assert!(!complete, "{chunk:?}: {received}");
    }
    // Pipelining: a redirect connection carries one request.
    let two = request_head("GET", "/one", address, "") + &request_head("GET", "/two", address, "");
    assert_eq!(send_raw(address, two.as_bytes()).matches("HTTP/1.1 ").count(), 1);
    stop.store(true, Ordering::Relaxed);
    other_clients.join().unwrap();
    set.stop();
}

#[test]
fn only_listeners_with_access_log_log_requests() {
    let mut set = TestSet::prepare("");
    let unlogged = "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n";
    set.configure(&(unlogged.to_owned() + &echo("access_log = true", "workers = 2", "max_body = 10")));
    set.run_with_log_level("info");
    set.wait_until_up();
    let (unlogged, logged) = (set.address(0), set.address(1));
    for n in 0..5 {
        assert_eq!(request(unlogged, "PUT", &format!("/unlogged/{n}"), b"body").unwrap().status, 200);
        assert_eq!(get(unlogged, &format!("/unlogged/{n}?secret")).unwrap().status, 200);
        let (worker, target) = request_lease(unlogged, "/unlogged").unwrap();
        send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    }
    let log = set.log();
    assert!(!log.contains("/unlogged") && !log.contains("lease"), "{log}");
    let lines = log.lines().count();
    assert_eq!(get(logged, "/logged?a=b").unwrap().status, 200);
    let line = set.wait_for_log(&["GET /logged?a=b"]);
    for field in ["dispatcher", "client=127.0.0.1:", "status=307", "worker=default/", "lease=", "wait_ms="] {
        assert!(line.contains(field), "{line} lacks {field}");
    }
    assert!(!line.contains("/.patou/"), "{line}");
    assert_eq!(
        send_request(logged, request_head("PUT", "/big", logged, "Content-Length: 11\r\n").as_bytes()).unwrap().status,
        413
    );
    set.wait_for_log(&["PUT /big", "status=413", "worker=-"]);
    assert_eq!(set.log().lines().count(), lines + 2, "{}", set.log());
    set.stop();
}

#[test]
fn clients_are_served_or_get_503_when_the_dispatcher_dies() {
    let set = gated_set("queue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy_worker(&set);
    let mut waiting: Vec<_> = (1..=3).map(|n| enqueue(&set, &format!("/{n}"), n)).collect();
    set.wait_for("three connections are in the descriptor store", |_| held_connections(set.pid(), address) == 3);
    let dead = set.dispatcher_pid();
    signal_to(dead, Signal::SIGKILL);
    // Connects while no dispatcher runs and waits for the next one.
    let mut late = connect(address);
    late.write_all(request_head("GET", "/late", address, "").as_bytes()).unwrap();
    for stream in &mut waiting {
        let response = read_response(stream).unwrap();
        assert_problem(&response, 503, &["restarted"]);
        assert_eq!(response.header("retry-after"), Some("0"));
    }
    set.wait_for("the next dispatcher queues the client", |status| {
        let pid = status["dispatcher"]["pid"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(dead)) && status["dispatcher"]["queue"] == 1
    });
    drop(waiting);
    set.wait_for("one connection is in the descriptor store", |_| held_connections(set.pid(), address) == 1);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /running");
    assert_eq!(follow_redirect(&mut late).text(), "done /late");
    assert_eq!(get(address, "/after").unwrap().text(), "done /after");
    assert_eq!(started_paths(&set), ["/running", "/late", "/after"]);
    set.stop();
}
