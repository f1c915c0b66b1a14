//! HTTP at its edges: malformed and slow heads, pipelined requests, and responses to clients that read slowly or have not
//! sent everything, wherever a part of the set speaks HTTP.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, socket, sockopt};
use support::*;

/// The indices of the listeners of [`both_deliveries`].
const REDIRECT: usize = 0;
const HANDOFF: usize = 1;

/// A redirect and a handoff listener before one pool; `pool` and `front` are further keys.
fn both_deliveries(pool: &str, front: &str) -> String {
    let listener = |delivery: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"{delivery}\"\npool = \"default\"\naccess_log = true\n"
        )
    };
    format!(
        "{}{}[[pool]]\nname = \"default\"\naddress = \"127.0.0.1:0\"\noffer_timeout = \"5s\"\nclaim_timeout = \"5s\"\n{pool}\n\
         [front]\n{front}\n",
        listener("redirect"),
        listener("handoff"),
    )
}

/// An `exec` handler with this script.
fn script(script: &str) -> String {
    format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}\n")
}

/// Responds with so many bytes at once, and reads no request body.
fn large_response(bytes: usize) -> String {
    script(&format!(
        "exec 0<&-; printf 'Content-Type: text/plain\\r\\nContent-Length: {bytes}\\r\\n\\r\\n'; \
         head -c {bytes} /dev/zero"
    ))
}

fn worker_address(set: &TestSet) -> SocketAddr {
    set.worker("default/1")["address"].as_str().unwrap().parse().unwrap()
}

/// Sends these bytes in one piece, or each byte by itself; then the response. Reads while it writes, because a rejected
/// client may be disconnected.
fn exchange(address: SocketAddr, bytes: &[u8], in_one_piece: bool) -> HttpResponse {
    let mut stream = connect(address);
    stream.set_nodelay(true).unwrap();
    for piece in bytes.chunks(if in_one_piece { bytes.len() } else { 1 }) {
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    read_response(&mut stream).unwrap_or_else(|error| panic!("{error} after {:?}", text(bytes)))
}

/// Asserts that the response is a refusal of patou, of a request that has not started.
fn assert_refusal(response: &HttpResponse, status: u16, context: &str) {
    assert_eq!(response.status, status, "{context}: {response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{context}");
    assert_eq!(response.header("patou-outcome"), Some("not-started"), "{context}");
    let problem = response.json();
    assert_eq!((&problem["status"], &problem["outcome"]), (&status.into(), &"not-started".into()), "{context}");
    assert!(!problem["detail"].as_str().unwrap().is_empty(), "{context}");
}

/// Waits until the sample in the metrics has this value. The dispatcher's counters come with its next report.
fn wait_for_metric(set: &TestSet, sample: &str, value: u64) {
    wait_until(&format!("{sample} {value}"), || {
        let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let text = read_response(&mut stream).unwrap().text();
        let found = text.lines().find_map(|line| line.strip_prefix(sample));
        found.is_some_and(|found| found.trim() == value.to_string())
    });
}

const REFUSED: &str = "patou_requests_refused_total{pool=\"default\",reason=\"bad_request\"}";

/// Heads that no part accepts, with the status of the response.
fn malformed_heads() -> Vec<(u16, Vec<u8>)> {
    let host = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    let put = "PUT / HTTP/1.1\r\nHost: localhost\r\n";
    let heads: Vec<(u16, String)> = [
        // Line ends and control characters.
        (400, "GET / HTTP/1.1\nHost: localhost\n\n".into()),
        (400, format!("{host}X: 1\n\r\n")),
        (400, format!("{host}\n")),
        (400, format!("{host}X: 1\rY: 2\r\n\r\n")),
        (400, format!("{host}X: a\0b\r\n\r\n")),
        (400, "\r\n\r\n\r\n\r\n\r\n\r\n".into()),
        (400, "\x16\x03\x01\x02".into()),
        // Header lines.
        (400, format!("{host}X: 1\r\n folded\r\n\r\n")),
        (400, format!("{host}X : 1\r\n\r\n")),
        (400, format!("{host}X\r\n\r\n")),
        (400, "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n".into()),
        // Request lines.
        (400, "GET foo HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        (400, "GET * HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        (400, "GET /\r\n\r\n".into()),
        (400, "GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        (400, "GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        (400, "GET /<\"> HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        (400, "NONSENSE\r\n\r\n".into()),
        (501, "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n".into()),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        (505, "GET / HTTP/2.0\r\nHost: localhost\r\n\r\n".into()),
        (505, "GET / HTTP/1.7\r\nHost: localhost\r\n\r\n".into()),
        // Hosts.
        (400, "GET / HTTP/1.1\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost:\r\n\r\n".into()),
        (400, format!("{host}host: localhost\r\n\r\n")),
        (400, "GET / HTTP/1.1\r\nHost: user@localhost\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into()),
        (400, "GET http://user@localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n".into()),
        // Bodies.
        (400, format!("{put}Content-Length: +1\r\n\r\na")),
        (400, format!("{put}Content-Length: 1 2\r\n\r\na")),
        (400, format!("{put}Content-Length: 1, 1\r\n\r\na")),
        (400, format!("{put}Content-Length: 1\r\nContent-Length: 1\r\n\r\na")),
        (400, format!("{put}Content-Length: 1\r\nContent-Length: 2\r\n\r\na")),
        (400, format!("{put}Content-Length: 99999999999999999999\r\n\r\na")),
        (400, format!("{put}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        (400, format!("{put}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n")),
        (400, format!("{put}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n")),
        (400, format!("{put}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        (400, format!("{put}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")),
        (400, "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (501, format!("{put}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        (501, format!("{put}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        // Sizes.
        (431, format!("{host}X: {}\r\n\r\n", "x".repeat(9000))),
        (431, format!("{host}{}\r\n", "X: 1\r\n".repeat(150))),
        (414, format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(9000))),
    ]
    .into();
    heads.into_iter().map(|(status, head)| (status, head.into_bytes())).collect()
}

#[test]
fn malformed_heads_are_refused_with_a_problem_document_and_counted() {
    let set = TestSet::start(&both_deliveries("workers = 1", "head_bytes = 8192"));
    let mut refused = 0;
    for (name, address) in
        [("dispatcher", set.address(REDIRECT)), ("worker", worker_address(&set)), ("handoff", set.address(HANDOFF))]
    {
        for (status, head) in malformed_heads() {
            let context = format!("{name}: {:?}", text(&head[..head.len().min(80)]));
            assert_refusal(&exchange(address, &head, true), status, &context);
            refused += 1;
            if head.len() < 70 {
                assert_refusal(&exchange(address, &head, false), status, &format!("{context}, byte by byte"));
                refused += 1;
            }
        }
    }
    for (status, head) in malformed_heads() {
        let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
        stream.write_all(&head).unwrap();
        assert_refusal(&read_response(&mut stream).unwrap(), status, &format!("admin: {:?}", text(&head)));
    }
    wait_for_metric(&set, REFUSED, refused);
    // No request has started, and the worker is the same.
    let worker = set.worker("default/1");
    assert_eq!((&worker["served"], &worker["failed"], &worker["restarts"]), (&0.into(), &0.into(), &0.into()));
    for fragments in [["status=505", "worker=-"], ["status=505", "worker=default/1"]] {
        set.wait_for_log(&fragments);
    }
    set.stop();
}

/// The second request of a connection is checked as the first one is: pipelined, and after a response.
#[test]
fn malformed_heads_are_refused_behind_a_valid_request() {
    let set = TestSet::start(&both_deliveries("workers = 1", "head_bytes = 8192"));
    let first = b"PUT /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nok";
    let heads = malformed_heads();
    for (status, head) in &heads {
        // Empty lines behind a body are no request.
        for is_pipelined in [true, false].into_iter().skip(usize::from(head.starts_with(b"\r\n"))) {
            let mut stream = connect(set.address(HANDOFF));
            let mut received = vec![0; 4096];
            if is_pipelined {
                stream.write_all(&[&first[..], head].concat()).unwrap();
                received.clear();
            } else {
                stream.write_all(first).unwrap();
                let length = stream.read(&mut received).unwrap();
                received.truncate(length);
                stream.write_all(head).unwrap();
            }
            let _ = stream.read_to_end(&mut received);
            let (received, head) = (text(&received), text(&head[..head.len().min(80)]));
            assert!(received.starts_with("HTTP/1.1 200"), "{head:?}: {received}");
            assert_eq!(received.matches("content-length: ").count(), 2, "{head:?}: {received}");
            assert!(received.contains(&format!("HTTP/1.1 {status} ")), "{head:?}: {received}");
            assert_eq!(received.matches("patou-outcome: not-started").count(), 1, "{head:?}: {received}");
        }
    }
    let count = 2 * heads.len() - 1;
    wait_for_metric(&set, REFUSED, count as u64);
    assert_eq!(set.worker("default/1")["served"], count);
    set.stop();
}

#[test]
fn refusals_for_what_a_listener_does_not_serve_are_counted() {
    let set = TestSet::start(&both_deliveries("workers = 1", "max_body = 10"));
    for (i, address) in [set.address(REDIRECT), set.address(HANDOFF)].into_iter().enumerate() {
        for (n, (status, head)) in [
            (421, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
            (413, "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\n"),
            (404, "GET /.patou/x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut stream = connect(address);
            stream.write_all(head.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_refusal(&read_response(&mut stream).unwrap(), status, head);
            wait_for_metric(&set, REFUSED, (3 * i + n + 1) as u64);
        }
    }
    set.stop();
}

/// A rejected request at the worker's address leaves the lease alone.
#[test]
fn lease_is_not_used_up_by_a_malformed_request() {
    let set = TestSet::start(&both_deliveries("workers = 1", ""));
    let (worker, target) = request_lease(set.address(REDIRECT), "/x").unwrap();
    for host in ["", "Host: a\r\nHost: a\r\n", "Host: user@a\r\n", "Host: a\n"] {
        let head = format!("GET {target} HTTP/1.1\r\n{host}\r\n");
        assert_refusal(&exchange(worker, head.as_bytes(), true), 400, host);
    }
    let response = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    assert_eq!((response.status, response.text()), (200, "GET /x\n".into()));
    set.stop();
}

#[test]
fn host_of_an_absolute_target_replaces_the_host_header() {
    let set = TestSet::start(&both_deliveries(
        &format!("workers = 1\n{}", script("printf 'Content-Type: text/plain\\r\\n\\r\\n'; echo \"$HTTP_HOST\"")),
        "",
    ));
    let head = b"GET http://localhost:81/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(set.address(HANDOFF), head, true).text(), "localhost:81\n");
    let head = head.to_vec();
    let evil = text(&head).replace("localhost:81", "evil.example").replace("Host: evil.example", "Host: localhost");
    assert_refusal(&exchange(set.address(HANDOFF), evil.as_bytes(), true), 421, "the target names another host");
    set.stop();
}

/// The largest head that the dispatcher accepts also passes at the worker, where the target has the token.
#[test]
fn largest_head_passes_in_both_deliveries() {
    let set = TestSet::start(&both_deliveries("workers = 1", "head_bytes = 8192"));
    let address = set.address(REDIRECT);
    let rest = request_head("GET", "/", address, "X: \r\n").len();
    let largest = |target: &str, length: usize| {
        request_head("GET", target, address, &format!("X: {}\r\n", "x".repeat(length))).into_bytes()
    };
    let redirect = exchange(address, &largest("/", 8192 - rest), true);
    assert_eq!(redirect.status, 307, "{redirect:?}");
    let (host, target) = redirect.location();
    assert_eq!(exchange(host.parse().unwrap(), &largest(target, 8192 - rest), true).status, 200);
    assert_refusal(&exchange(address, &largest("/", 8193 - rest), true), 431, "one byte more");
    set.stop();
}

#[test]
fn chunks_that_parsers_disagree_about_never_pass() {
    let count = script("n=$(wc -c) && printf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' $n");
    let set = TestSet::start(&both_deliveries(&format!("workers = 1\n{count}"), ""));
    let head = "PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for chunks in
        ["0\r\nA: b\nC: d\r\n\r\n", "0\n\n", "1\na\r\n0\r\n\r\n", "1;x\n\r\na\r\n0\r\n\r\n", "0x1\r\na\r\n0\r\n\r\n"]
    {
        for (delay, pieces) in
            [(0, vec![head.to_owned() + chunks + smuggled]), (30, vec![head.into(), chunks.to_owned() + smuggled])]
        {
            let mut stream = connect(set.address(HANDOFF));
            for piece in pieces {
                let _ = stream.write_all(piece.as_bytes());
                std::thread::sleep(Duration::from_millis(delay));
            }
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received);
            let received = text(&received);
            assert!(received.matches("HTTP/1.1 ").count() <= 1, "{chunks:?}: {received}");
            assert!(!received.starts_with("HTTP/1.1 200"), "{chunks:?}: {received}");
        }
    }
    // A valid body, and what follows it, in one piece and in two.
    for split in [0, 1, 40, 72, 75, 90, 100] {
        let bytes = format!(
            "{head}3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n{}",
            "GET /2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        let mut stream = connect(set.address(HANDOFF));
        stream.set_nodelay(true).unwrap();
        stream.write_all(&bytes.as_bytes()[..split]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&bytes.as_bytes()[split..]).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert_eq!(received.matches("HTTP/1.1 200").count(), 2, "{split}: {received}");
    }
    set.stop();
}

/// A handoff listener on a Unix socket in this directory, for the configuration of [`both_deliveries`].
fn with_unix_listener(config: &str, dir: &Path) -> String {
    let address = dir.join("front.sock");
    let unix =
        format!("[[listener]]\naddress = \"unix:{}\"\ndelivery = \"handoff\"\npool = \"default\"\n", address.display());
    config.replacen("[[pool]]", &format!("{unix}[[pool]]"), 1)
}

/// The response to an incomplete head that is a refusal within 10 s.
fn assert_late_head(mut stream: impl Read + Write, context: &str) {
    let since = Instant::now();
    stream.write_all(b"G").unwrap();
    assert_refusal(&read_response(&mut stream).unwrap(), 408, context);
    assert!(since.elapsed() < Duration::from_secs(10), "{context}: {:?}", since.elapsed());
}

/// A client that does not complete its head gets 408 within `head_timeout` or `request_timeout`, whichever is shorter, and
/// no worker dies.
#[test]
fn slow_head_is_a_408_whatever_request_timeout_is() {
    for (request_timeout, head_timeout) in [("300ms", "60s"), ("60s", "300ms"), ("1500ms", "1500ms")] {
        let pool = format!("workers = 1\nrequest_timeout = \"{request_timeout}\"");
        let config = both_deliveries(&pool, &format!("head_timeout = \"{head_timeout}\""));
        let set = TestSet::start_with(|dir| with_unix_listener(&config, dir));
        let unix = || UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
        assert_late_head(connect(set.address(HANDOFF)), "handoff");
        assert_late_head(connect(worker_address(&set)), "redirect");
        assert_late_head(unix(), "a Unix socket");
        // Connections that are kept.
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut tcp = connect(set.address(HANDOFF));
        tcp.write_all(request).unwrap();
        assert_eq!(read_kept_response(&mut tcp), 200);
        assert_late_head(tcp, "a kept connection");
        let mut unix = unix();
        unix.write_all(request).unwrap();
        assert_eq!(read_kept_response(&mut unix), 200);
        assert_late_head(unix, "a kept Unix connection");
        // The second of two pipelined requests is incomplete.
        let mut stream = connect(set.address(HANDOFF));
        stream.write_all(b"GET /1 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /2").unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert!(received.starts_with("HTTP/1.1 200"), "{received}");
        assert!(received.contains("HTTP/1.1 408") && received.contains("patou-outcome: not-started"), "{received}");
        let worker = set.worker("default/1");
        assert_eq!((&worker["restarts"], &worker["served"]), (&0.into(), &3.into()), "{worker}");
        wait_for_metric(&set, REFUSED, 6);
        set.stop();
    }
}

/// Reads one response with a `Content-Length` from a connection that stays open; its status.
fn read_kept_response(stream: &mut impl Read) -> u16 {
    let mut received = Vec::new();
    loop {
        if let Some((head, length)) = HttpResponse::parse_head(&received).unwrap() {
            let body: usize = head.header("content-length").unwrap().parse().unwrap();
            let mut rest = vec![0; length + body - received.len()];
            stream.read_exact(&mut rest).unwrap();
            return head.status;
        }
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        received.push(byte[0]);
    }
}

/// A client whose body does not arrive within `request_timeout` is late, and not the handler. The handler has the request by
/// then, so its outcome is unknown.
#[test]
fn body_that_is_late_for_request_timeout_is_a_408() {
    let count = "n=$(wc -c); printf 'Content-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    for handler in [script(count), "handler = \"echo\"\n".to_owned()] {
        let set = TestSet::start(&both_deliveries(&format!("workers = 1\nrequest_timeout = \"500ms\"\n{handler}"), ""));
        // The built-in echo responds as soon as it has a byte.
        let part = if handler.contains("echo") { "" } else { "x" };
        for _ in 0..5 {
            for delivery in [HANDOFF, REDIRECT] {
                let mut address = set.address(delivery);
                let mut target = "/".to_owned();
                if delivery == REDIRECT {
                    (address, target) = request_lease(address, "/").unwrap();
                }
                let mut stream = connect(address);
                let head = request_head("PUT", &target, address, "Content-Length: 9\r\n");
                stream.write_all((head + part).as_bytes()).unwrap();
                let response = read_response(&mut stream).unwrap();
                assert_eq!(response.status, 408, "{handler}, {delivery}: {response:?}");
                assert_eq!(response.header("patou-outcome"), Some("started-unknown"), "{handler}: {response:?}");
                assert!(
                    response.text().contains("the request body did not arrive within request_timeout"),
                    "{response:?}"
                );
                set.wait_for_worker("default/1", "idle");
            }
        }
        let worker = set.worker("default/1");
        assert_eq!((&worker["restarts"], &worker["failed"]), (&0.into(), &10.into()), "{worker}");
        set.stop();
    }
}

/// Clients that send a byte and wait cost their own time only: no worker is accused of blocking.
#[test]
fn hundred_clients_that_send_one_byte_and_wait_cause_no_restart() {
    let pool = "workers = 4\nrequest_timeout = \"300ms\"\nqueue = 200\nqueue_timeout = \"60s\"";
    let set = TestSet::start(&both_deliveries(pool, ""));
    let redirect = worker_address(&set);
    let clients = (0..100).map(|n| {
        let address = if n % 4 == 0 { redirect } else { set.address(HANDOFF) };
        let mut stream = connect(address);
        std::thread::spawn(move || {
            stream.write_all(b"G").unwrap();
            read_response(&mut stream).unwrap()
        })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_refusal(&client.join().unwrap(), 408, "request_timeout");
    }
    for n in 1..=4 {
        let worker = set.worker(&format!("default/{n}"));
        assert_eq!((&worker["restarts"], &worker["failed"]), (&0.into(), &0.into()), "{worker}");
    }
    assert!(!set.log().contains("blocks its thread"), "{}", set.log());
    set.stop();
}

#[test]
fn head_that_ends_with_the_connection_is_refused() {
    let set = TestSet::start(&both_deliveries("workers = 1", ""));
    for address in [set.address(REDIRECT), worker_address(&set), set.address(HANDOFF)] {
        for head in [
            "G",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r",
        ] {
            let mut stream = connect(address);
            stream.write_all(head.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_refusal(&read_response(&mut stream).unwrap(), 400, head);
        }
    }
    assert_eq!(set.worker("default/1")["served"], 0);
    set.stop();
}

/// Old clients send an empty line after a body. It is not the start of a request, for which a worker would wait.
#[test]
fn empty_line_after_a_body_holds_no_worker() {
    let set = TestSet::start(&both_deliveries("workers = 1", "head_timeout = \"300s\""));
    let mut stream = connect(set.address(HANDOFF));
    for _ in 0..2 {
        stream.write_all(b"PUT /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nok\r\n").unwrap();
        let mut received = [0; 4096];
        let length = stream.read(&mut received).unwrap();
        assert!(text(&received[..length]).starts_with("HTTP/1.1 200"), "{}", text(&received[..length]));
        set.wait_for_worker("default/1", "idle");
    }
    set.stop();
}

#[test]
fn pipelined_requests_have_their_own_request_timeout() {
    let sleep = "case $PATH_INFO in /slow) sleep 60;; esac; sleep 0.7; \
                 printf 'Content-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    let pool = format!("workers = 1\nrequest_timeout = \"2s\"\n{}", script(sleep));
    let set = TestSet::start(&both_deliveries(&pool, ""));
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut stream = connect(set.address(HANDOFF));
    let last = "GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all((["/1", "/2", "/3", "/4", "/slow"].map(request).concat() + last).as_bytes()).unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    assert_eq!(received.matches("HTTP/1.1 200").count(), 5, "{received}");
    assert_eq!(received.matches("HTTP/1.1 504").count(), 1, "{received}");
    assert!(received.contains("within request_timeout, 2s"), "{received}");
    assert_eq!(set.worker("default/1")["restarts"], 0);
    set.stop();
}

/// Connects with a small receive buffer, so that the response waits in the buffer of the sender.
fn connect_with_small_buffer(address: SocketAddr) -> TcpStream {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::RcvBuf, &16_384).unwrap();
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address)).unwrap();
    TcpStream::from(fd)
}

/// Reads a response at about 640 kB/s while another thread keeps sending; whether all of it has arrived.
fn read_slowly<S: Read>(mut reader: S, mut writer: impl Write + Send + 'static) -> Result<usize, String> {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let sending = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(20)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            if writer.write_all(&[b'x'; 500]).is_err() {
                break;
            }
        }
    });
    let (mut received, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
    let complete = loop {
        match reader.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => received.extend(&buffer[..n]),
            Err(error) => break Err(error),
        }
        let head = received.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        if head.is_some_and(|head| received.len() >= head + LARGE) {
            break Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(stop);
    sending.join().unwrap();
    let response = read_response(&mut &received[..]).map_err(|error| format!("{error}, {complete:?}"))?;
    assert_eq!(response.status, 200, "{}", response.head);
    Ok(response.body.len())
}

const LARGE: usize = 1_000_000;

/// The bound of a lingering close is on a client without progress, not on the delivery.
#[test]
fn early_response_reaches_a_client_that_reads_slowly_and_still_sends() {
    let config = both_deliveries(&format!("workers = 2\n{}", large_response(LARGE)), "linger_timeout = \"300ms\"");
    let set = TestSet::start_with(|dir| with_unix_listener(&config, dir));
    let head = |target: &str| {
        format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n{}", "x".repeat(100_000))
    };
    let mut stream = connect_with_small_buffer(set.address(HANDOFF));
    stream.write_all(head("/").as_bytes()).unwrap();
    assert_eq!(read_slowly(stream.try_clone().unwrap(), stream), Ok(LARGE), "handoff");

    let (worker, target) = request_lease(set.address(REDIRECT), "/").unwrap();
    let mut stream = connect_with_small_buffer(worker);
    stream.write_all(head(&target).as_bytes()).unwrap();
    assert_eq!(read_slowly(stream.try_clone().unwrap(), stream), Ok(LARGE), "redirect");

    let mut stream = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
    stream.write_all(head("/").as_bytes()).unwrap();
    assert_eq!(read_slowly(stream.try_clone().unwrap(), stream), Ok(LARGE), "Unix socket");
    set.stop();
}

/// A worker that recycles after each request delivers its response first.
#[test]
fn early_response_of_a_worker_that_recycles_reaches_a_slow_client() {
    let pool = format!("workers = 1\nmax_requests = 1\n{}", large_response(LARGE));
    let set = TestSet::start(&both_deliveries(&pool, "linger_timeout = \"300ms\""));
    for round in 0..2 {
        let mut stream = connect_with_small_buffer(set.address(HANDOFF));
        stream.write_all(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n").unwrap();
        assert_eq!(read_slowly(stream.try_clone().unwrap(), stream), Ok(LARGE), "{round}");
    }
    set.stop();
}

/// A client that sends everything before it reads a byte, with more in both directions than the kernel stores.
#[test]
fn early_response_reaches_a_client_that_sends_everything_first() {
    const SIZE: usize = 24_000_000;
    let set = TestSet::start(&both_deliveries(&format!("workers = 1\n{}", large_response(SIZE)), ""));
    for is_redirect in [false, true] {
        let (address, target) = if is_redirect {
            request_lease(set.address(REDIRECT), "/").unwrap()
        } else {
            (set.address(HANDOFF), "/".into())
        };
        let mut request =
            format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
        request.resize(request.len() + SIZE, b'x');
        let response = send_request(address, &request).unwrap();
        assert_eq!((response.status, response.body.len()), (200, SIZE), "{target}");
    }
    set.stop();
}

/// Refusals of dispatcher and worker: the client sends for several times `linger_timeout`, and reads only then.
#[test]
fn refused_client_may_send_on_and_is_disconnected_in_the_end() {
    let set = TestSet::start(&both_deliveries(
        "workers = 1",
        "linger_timeout = \"300ms\"\nbody_timeout = \"3s\"\nmax_body = 1000",
    ));
    for address in [set.address(REDIRECT), set.address(HANDOFF), worker_address(&set)] {
        // Too large at the listeners, and no token at the worker's address; then a malformed head.
        for (head, expected) in [
            ("PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", [413, 307]),
            ("PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", [400, 400]),
        ] {
            let mut stream = connect(address);
            stream.write_all(head.as_bytes()).unwrap();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(1500) {
                stream.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
            // The response is there. A client that never stops sending is not waited for longer than body_timeout.
            wait_until("the connection is closed", || {
                std::thread::sleep(Duration::from_millis(30));
                matches!(stream.try_clone().unwrap().write(b"x"), Err(error) if error.kind() != ErrorKind::WouldBlock)
            });
            assert!(start.elapsed() >= Duration::from_millis(2900), "{:?}", start.elapsed());
            let mut received = [0; 4096];
            let length = stream.read(&mut received).unwrap();
            assert!(
                expected.map(Some).contains(&response_status(&received[..length])),
                "{}",
                text(&received[..length])
            );
        }
    }
    set.stop();
}

#[test]
fn bad_proxy_headers_are_counted_and_logged_once() {
    let pool = "workers = 1";
    let toml = both_deliveries(pool, "head_timeout = \"500ms\"")
        .replace("delivery = \"handoff\"", "delivery = \"handoff\"\nproxy_protocol = true");
    let set = TestSet::start(&toml);
    let address = set.address(HANDOFF);
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    version_2.extend((12 + 4096_u16).to_be_bytes());
    version_2.extend([192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0, 80]);
    version_2.extend([0xe0, 0x0f, 0xfd]);
    version_2.resize(16 + 12 + 4096, b'x');
    for header in [&version_2[..], b"PROXY UNKNOWN\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n"] {
        let response = exchange(address, &[header, request.as_bytes()].concat(), true);
        assert_eq!(response.status, 200, "{response:?}");
    }
    let bad = [
        "PROXY TCP4 192.0.2.7 127.0.0.1 04711 80\r\n",
        "PROXY TCP4 192.0.2.7 127.0.0.1 4711 080\r\n",
        "PROXY TCP4 192.0.2.07 127.0.0.1 4711 80\r\n",
        "PROXY TCP4 ::1 ::1 4711 80\r\n",
        "PROXY TCP4 192.0.2.7  127.0.0.1 4711 80\r\n",
        "",
        "PROXY TCP4 192.0.2.7",
    ];
    for header in bad {
        let mut stream = connect(address);
        stream.write_all((header.to_owned() + if header.ends_with('7') { "" } else { request }).as_bytes()).unwrap();
        let mut received = Vec::new();
        assert!(stream.read_to_end(&mut received).is_err() && received.is_empty(), "{header:?}: {}", text(&received));
    }
    // A health check that only connects is not a fault.
    drop(connect(address));
    let sample = "patou_requests_refused_total{pool=\"default\",reason=\"bad_proxy_header\"}";
    wait_for_metric(&set, sample, bad.len() as u64);
    assert_eq!(set.log().matches("does not start with a PROXY header").count(), 1, "{}", set.log());
    set.stop();
}
