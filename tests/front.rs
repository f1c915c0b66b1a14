//! The dispatcher as its clients and its enemies meet it: hosts, the queue, limits, bad HTTP, its death.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use support::*;

/// Times that no busy machine meets by accident; a stop waits for leases that nobody has used.
const PATIENT: &str = "offer_timeout = \"5s\"\nclaim_timeout = \"5s\"\nrequest_timeout = \"60s\"\n";

/// One listener, one pool.
fn echo(listener: &str, pool: &str, front: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n{listener}\n\
         [[pool]]\nname = \"default\"\naddress = \"127.0.0.1:0\"\n{PATIENT}{pool}\n[front]\n{front}\n"
    )
}

/// One worker whose requests note their path in `started` and end when the file `go` is there; listens on TCP
/// and on `front.sock`.
fn gated(pool: &str, front: &str) -> TestSet {
    let mut set = TestSet::prepare("");
    let top = set.test_dir().display().to_string();
    let script = format!(
        "echo $PATH_INFO >> {top}/started; while [ ! -e {top}/go ]; do sleep 0.02; done; \
         printf 'Content-Type: text/plain\\n\\ndone %s' $PATH_INFO"
    );
    let pool = format!("workers = 1\nhandler = {{ exec = [\"sh\", \"-c\", {script:?}] }}\n{pool}");
    let unix = format!("[[listener]]\naddress = \"unix:{top}/front.sock\"\npool = \"default\"\n");
    set.configure(&(unix + &echo("", &pool, front)));
    set.run();
    set.wait_until_up();
    set
}

fn started(set: &TestSet) -> Vec<String> {
    let text = std::fs::read_to_string(set.test_dir().join("started")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn open_gate(set: &TestSet) {
    std::fs::write(set.test_dir().join("go"), "").unwrap();
}

/// Occupies the only worker of a gated set; the thread returns the answer once the gate is open.
fn occupy(set: &TestSet) -> std::thread::JoinHandle<Result<HttpResponse, String>> {
    let (worker, target) = request_lease(set.address(1), "/running").unwrap();
    let running = std::thread::spawn(move || send_request(worker, request_head("GET", &target, worker, "").as_bytes()));
    set.wait_for("the start", |_| started(set) == ["/running"]);
    running
}

fn wait_for_queue(set: &TestSet, length: usize) {
    set.wait_for(&format!("a queue of {length}"), |status| status["dispatcher"]["queue"] == length);
}

/// A client in the queue.
fn join(set: &TestSet, target: &str, length: usize) -> TcpStream {
    let mut stream = connect(set.address(1));
    stream.write_all(request_head("GET", target, set.address(1), "").as_bytes()).unwrap();
    wait_for_queue(set, length);
    stream
}

/// Follows the 307 on this stream.
fn redeem(stream: &mut (impl Read + ?Sized)) -> HttpResponse {
    let told = read_response(&mut Box::new(stream)).unwrap();
    assert_eq!(told.status, 307, "{told:?}");
    let rest = told.header("location").unwrap().strip_prefix("http://").unwrap();
    let (host, target) = rest.split_at(rest.find('/').unwrap());
    let worker = host.parse().unwrap();
    send_request(worker, request_head("GET", target, worker, "").as_bytes()).unwrap()
}

fn assert_problem(answer: &HttpResponse, status: u16, words: &[&str]) {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (status, Some("application/problem+json")),
        "{answer:?}"
    );
    assert_eq!(answer.header("patou-outcome"), Some("not-started"), "{answer:?}");
    let problem = answer.json();
    assert_eq!((problem["status"].as_u64(), problem["type"].as_str()), (Some(status.into()), Some("about:blank")));
    assert!(problem["title"].is_string());
    let detail = problem["detail"].as_str().unwrap();
    assert!(words.iter().all(|word| detail.contains(word)), "{detail:?} lacks one of {words:?}");
}

/// Everything that comes back until the end, however that looks.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    let _ = stream.write_all(request); // it may have been closed already
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    if let Err(error) = end {
        let reset = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe].contains(&error.kind());
        assert!(reset, "{error}: {}", text(&request[..request.len().min(80)]));
    }
    text(&all)
}

fn status_line(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("")
}

#[test]
fn a_loopback_listener_answers_to_its_own_names_only() {
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
    assert_eq!(raw(address, b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n").get(9..12), Some("400"));
    assert_eq!(get(address, "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn listed_hosts_are_served_and_no_others() {
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
fn who_waits_is_served_in_order_and_the_queue_has_a_bound() {
    let set = gated("queue = 3\nqueue_timeout = \"60s\"", "");
    let running = occupy(&set);
    let mut waiting: Vec<_> = (1..=3).map(|n| join(&set, &format!("/{n}"), n)).collect();
    for _ in 0..3 {
        let refused = get(set.address(1), "/4").unwrap();
        assert_problem(&refused, 503, &["pool default", "worker", "3 clients", "`queue`"]);
        assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        assert_eq!(refused.header("connection"), Some("close"));
    }
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /running");
    for (n, stream) in (1..).zip(&mut waiting) {
        assert_eq!(redeem(stream).text(), format!("done /{n}"));
    }
    assert_eq!(started(&set), ["/running", "/1", "/2", "/3"]);
    set.stop();
}

#[test]
fn waiting_has_a_budget() {
    let set = gated("queue_timeout = \"300ms\"", "");
    let running = occupy(&set);
    let since = Instant::now();
    let refused = get(set.address(1), "/").unwrap();
    assert!(since.elapsed().as_millis() >= 300);
    assert_problem(&refused, 503, &["pool default", "queue_timeout"]);
    assert!(refused.header("retry-after").is_some());
    wait_for_queue(&set, 0);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn without_a_queue_nobody_waits() {
    let set = gated("queue = 0", "");
    let running = occupy(&set);
    for target in ["/", "/.patou/lease"] {
        let refused =
            send_request(set.address(1), request_head("POST", target, set.address(1), "").as_bytes()).unwrap();
        assert_problem(&refused, 503, &["pool default", "`queue` is 0"]);
    }
    let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
    unix.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_problem(&read_response(&mut unix).unwrap(), 503, &["pool default"]);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

/// A close that sends a reset.
fn reset(stream: TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

#[test]
fn who_leaves_gives_up_its_place() {
    let set = gated("queue = 10\nqueue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy(&set);
    let _first = join(&set, "/stays", 1);
    // Over TCP a close looks like the end of sending only. HTTP/1.1 has a way to ask, HTTP/1.0 has none: such a
    // client keeps its place until queue_timeout.
    for (version, leave) in [("1.1", drop as fn(TcpStream)), ("1.1", reset), ("1.0", reset)] {
        let mut stream = connect(address);
        stream.write_all(format!("GET /left HTTP/{version}\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
        wait_for_queue(&set, 2);
        leave(stream);
        wait_for_queue(&set, 1);
    }
    for version in ["1.1", "1.0"] {
        let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
        unix.write_all(format!("GET /left HTTP/{version}\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        wait_for_queue(&set, 2);
        drop(unix);
        wait_for_queue(&set, 1);
    }
    // In the middle of its body.
    let mut stream = connect(address);
    stream.write_all(request_head("PUT", "/left", address, "Content-Length: 900000\r\n").as_bytes()).unwrap();
    wait_for_queue(&set, 2);
    stream.write_all(&[b'x'; 1000]).unwrap();
    drop(stream);
    wait_for_queue(&set, 1);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn who_has_only_stopped_sending_is_served() {
    let set = gated("queue = 10\nqueue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy(&set);
    let mut new = connect(address);
    new.write_all(request_head("GET", "/new", address, "").as_bytes()).unwrap();
    new.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 1);
    let mut old = connect(address);
    old.write_all(b"GET /old HTTP/1.0\r\n\r\n").unwrap();
    old.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 2);
    let mut unix = UnixStream::connect(set.test_dir().join("front.sock")).unwrap();
    unix.write_all(b"GET /unix HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    unix.shutdown(Shutdown::Write).unwrap();
    wait_for_queue(&set, 3);
    // The dispatcher has noticed, asked, and heard no reset.
    let mut piece = [0; 12];
    new.read_exact(&mut piece).unwrap();
    assert_eq!(text(&piece), "HTTP/1.1 102");
    wait_for_queue(&set, 3);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert_eq!(redeem(&mut (&piece[..]).chain(&mut new)).text(), "done /new");
    assert_eq!(redeem(&mut old).text(), "done /old");
    assert_eq!(read_response(&mut unix).unwrap().status, 200);
    set.stop();
}

/// How many connections wait in the kernel to be accepted (proc(5), `/proc/net/tcp`).
fn backlog(address: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = format!(":{:04X}", address.port());
    let mut of_us = fields.filter(|f| f.len() > 4 && f[1].ends_with(&port) && f[3] == "0A");
    let queues = of_us.next().expect("it listens")[4];
    usize::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap()
}

#[test]
fn beyond_its_connections_the_backlog_is_the_queue() {
    let front = "connections = 2\nhead_timeout = \"300s\"\nlinger_timeout = \"100ms\"";
    let set = TestSet::start(
        &("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n".to_owned() + &echo("", "workers = 4", front)),
    );
    let (one, two) = (set.address(0), set.address(1));
    // Both on the same listener, whatever the other one does.
    let idle = [connect(one), connect(one)];
    set.wait_for("two accepted", |_| backlog(one) == 0);
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
fn a_reload_changes_how_many_connections_there_may_be() {
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
        set.wait_for("the reload", |_| applied() >= nth);
    };
    let open: Vec<_> = (0..4).map(|_| connect(address)).collect();
    set.wait_for("three of four accepted", |_| backlog(address) == 1);
    reload(4, 1);
    set.wait_for("all accepted", |_| backlog(address) == 0);
    // Two of these places are given up with the connections that have them.
    reload(2, 2);
    drop(open);
    let mut next: Vec<_> = (0..3).map(|_| connect(address)).collect();
    set.wait_for("two of three accepted", |_| backlog(address) == 1);
    let mut last = next.pop().unwrap();
    last.write_all(request_head("GET", "/", address, "").as_bytes()).unwrap();
    assert_eq!(backlog(address), 1);
    drop(next);
    assert_eq!(read_response(&mut last).unwrap().status, 307);
    set.stop();
}

#[test]
fn heads_have_a_size() {
    let set = TestSet::start(&echo("", "workers = 4", "head_bytes = 8192"));
    let address = set.address(0);
    let (worker, _) = request_lease(address, "/").unwrap();
    for address in [address, worker] {
        let big = format!("X-Big: {}\r\n", "x".repeat(20_000));
        assert_eq!(status_line(&raw(address, request_head("GET", "/", address, &big).as_bytes())), "431");
        let many = "X-Many: 1\r\n".repeat(500);
        assert_eq!(status_line(&raw(address, request_head("GET", "/", address, &many).as_bytes())), "431");
        let long = raw(address, request_head("GET", &format!("/{}", "x".repeat(20_000)), address, "").as_bytes());
        assert!(["414", "431"].contains(&status_line(&long)), "{long}");
        let fits = format!("X-Big: {}\r\n", "x".repeat(7000));
        assert_eq!(status_line(&raw(address, request_head("GET", "/", address, &fits).as_bytes())), "307");
    }
    set.stop();
}

#[test]
fn heads_have_a_time() {
    let set = TestSet::start(&echo("", "workers = 1", "head_timeout = \"500ms\""));
    let address = set.address(0);
    let worker: SocketAddr = set.worker("default/1")["address"].as_str().unwrap().parse().unwrap();
    for address in [address, worker] {
        // A byte at a time, each soon after the last.
        let mut stream = connect(address);
        let mut told = Vec::new();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        for byte in request_head("GET", "/", address, &"X-Slow: 1\r\n".repeat(1000)).bytes() {
            let written = stream.write_all(&[byte]);
            match stream.read_to_end(&mut told) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && written.is_ok() => {}
                _ => break,
            }
        }
        let answer = read_response(&mut &told[..]).unwrap();
        assert_problem(&answer, 408, &["head_timeout"]);
        // Nothing at all.
        let answer = read_response(&mut connect(address)).unwrap();
        assert_problem(&answer, 408, &["head_timeout"]);
    }
    set.stop();
}

#[test]
fn bodies_have_a_size() {
    let handler = "workers = 1\nhandler = { exec = [\"sh\", \"-c\", \
        \"n=$(wc -c); printf 'Content-Type: text/plain\\\\n\\\\n%s' $n\"] }";
    let set = TestSet::start(&echo("", handler, "max_body = 100000"));
    let address = set.address(0);
    for length in ["100001", "18446744073709551613"] {
        let more = format!("Content-Length: {length}\r\nExpect: 100-continue\r\n");
        let answer = send_request(address, request_head("PUT", "/", address, &more).as_bytes()).unwrap();
        assert_problem(&answer, 413, &["max_body", "100000"]);
        let (worker, target) = request_lease(address, "/").unwrap();
        let answer = send_request(worker, request_head("PUT", &target, worker, &more).as_bytes()).unwrap();
        assert_problem(&answer, 413, &["max_body", "100000"]);
    }
    assert_eq!(request(address, "PUT", "/", &[b'x'; 100_000]).unwrap().text().trim(), "100000");
    // Unannounced: found out on the way, by a client that first writes everything.
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
        let answer = send_request(worker, &request).unwrap();
        assert_eq!((answer.status, answer.header("patou-outcome")), (413, Some("started-unknown")), "{answer:?}");
    }
    set.stop();
}

#[test]
fn silence_in_a_body_has_a_bound() {
    let handler = "workers = 1\nhandler = { exec = [\"sh\", \"-c\", \
        \"n=$(wc -c); printf 'Content-Type: text/plain\\\\n\\\\n%s' $n\"] }";
    let set = TestSet::start(&echo("", handler, "body_timeout = \"300ms\""));
    let address = set.address(0);
    for framing in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        for begun in ["", "5\r\nhello\r\n"] {
            let (worker, target) = request_lease(address, "/").unwrap();
            let mut stream = connect(worker);
            stream.write_all((request_head("PUT", &target, worker, framing) + begun).as_bytes()).unwrap();
            let answer = read_response(&mut stream).unwrap();
            assert_eq!(answer.status, 408, "{answer:?}");
            assert!(answer.text().contains("300ms"), "{answer:?}");
        }
    }
    set.wait_for("the worker's return", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

/// Clients that write everything before they read, against answers that come early.
#[test]
fn early_answers_arrive_whole() {
    let set = gated("queue = 0", "max_body = 1000000");
    let address = set.address(1);
    let send = |address: SocketAddr, target: &str, body: usize| {
        let mut request = request_head("PUT", target, address, &format!("Content-Length: {body}\r\n")).into_bytes();
        request.resize(request.len() + body.min(900_000), b'x');
        send_request(address, &request)
    };
    let (worker, target) = request_lease(address, "/running").unwrap();
    for _ in 0..50 {
        // Occupied by a lease: 503; too large: 413; of nobody: 307 from the worker.
        assert_eq!(send(address, "/", 900_000).unwrap().status, 503);
        assert_eq!(send(address, "/", 2_000_000).unwrap().status, 413);
        assert_eq!(send(worker, "/", 900_000).unwrap().status, 307);
    }
    open_gate(&set);
    for n in 0..50 {
        let told = if n == 0 { None } else { Some(send(address, "/", 900_000).unwrap()) };
        let target = told.map_or(target.clone(), |told| {
            assert_eq!(told.status, 307);
            let location = told.header("location").unwrap();
            location[location.find("/.patou/").unwrap()..].to_owned()
        });
        // This handler does not read its body: the answer is early here, too.
        assert_eq!(send(worker, &target, 900_000).unwrap().status, 200);
        set.wait_for("the end", |status| worker_of(status, "default/1")["state"] == "idle");
    }
    set.stop();
}

#[test]
fn bad_http_is_refused_and_harms_nobody() {
    let toml = echo("", "workers = 4\nqueue_timeout = \"60s\"", "head_timeout = \"1s\"\nhead_bytes = 8192");
    let set = TestSet::start(&toml.replace("\"5s\"", "\"2s\""));
    let address = set.address(0);
    let over = Arc::new(AtomicBool::new(false));
    let others = {
        let over = over.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            while count < 20 || !over.load(Ordering::Relaxed) {
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
            let told = raw(address, request);
            let shown = text(&request[..request.len().min(80)]);
            assert!(["", "400", "408", "414", "431", "501", "505"].contains(&status_line(&told)), "{shown}: {told}");
        }
    }
    // What could be read as two requests is one, and the connection ends with it.
    for framing in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"]
    {
        for body in ["0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n", "1\r\nZ\r\nQ"] {
            for address in [address, worker] {
                let told = raw(address, (request_head("POST", "/", address, framing) + body).as_bytes());
                assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{told}");
            }
        }
    }
    // Chunks that are none, at a worker that has said yes.
    for chunk in
        ["x\r\n", "-1\r\nab\r\n", "fffffffffffffffff\r\nab", "1\r\nabc\r\n", "1 1\r\na\r\n", "1\nab\r\n", "\r\n\r\n"]
    {
        let (worker, target) = request_lease(address, "/").unwrap();
        let request = request_head("PUT", &target, worker, "Transfer-Encoding: chunked\r\n") + chunk;
        let told = raw(worker, request.as_bytes());
        let whole = told.starts_with("HTTP/1.1 200") && told.ends_with("0\r\n\r\n");
        assert!(!whole, "{chunk:?}: {told}");
    }
    // Two requests at once: one connection is one request.
    let two = request_head("GET", "/one", address, "") + &request_head("GET", "/two", address, "");
    assert_eq!(raw(address, two.as_bytes()).matches("HTTP/1.1 ").count(), 1);
    over.store(true, Ordering::Relaxed);
    others.join().unwrap();
    set.stop();
}

#[test]
fn requests_are_logged_where_asked_and_nowhere_else() {
    let mut set = TestSet::prepare("");
    let quiet = "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n";
    set.configure(&(quiet.to_owned() + &echo("access_log = true", "workers = 2", "max_body = 10")));
    set.run_with_log_level("info");
    set.wait_until_up();
    let (quiet, loud) = (set.address(0), set.address(1));
    for n in 0..5 {
        assert_eq!(request(quiet, "PUT", &format!("/quiet/{n}"), b"body").unwrap().status, 200);
        assert_eq!(get(quiet, &format!("/quiet/{n}?secret")).unwrap().status, 200);
        let (worker, target) = request_lease(quiet, "/quiet").unwrap();
        send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    }
    let log = set.log();
    assert!(!log.contains("/quiet") && !log.contains("lease"), "{log}");
    let lines = log.lines().count();
    assert_eq!(get(loud, "/loud?a=b").unwrap().status, 200);
    let line = set.wait_for_log(&["GET /loud?a=b"]);
    for word in ["dispatcher", "client=127.0.0.1:", "status=307", "worker=default/", "lease=", "wait_ms="] {
        assert!(line.contains(word), "{line} lacks {word}");
    }
    assert!(!line.contains("/.patou/"), "{line}");
    assert_eq!(
        send_request(loud, request_head("PUT", "/big", loud, "Content-Length: 11\r\n").as_bytes()).unwrap().status,
        413
    );
    set.wait_for_log(&["PUT /big", "status=413", "worker=-"]);
    assert_eq!(set.log().lines().count(), lines + 2, "{}", set.log());
    set.stop();
}

/// How many connections to `address` a process holds (proc(5), `/proc/net/tcp`: the tenth field is the inode).
fn held(pid: u32, address: SocketAddr) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let fds: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = fields.filter(|f| f.len() > 9 && f[1].ends_with(&port) && f[3] != "0A");
    ours.filter(|f| fds.iter().any(|fd| fd.as_os_str() == format!("socket:[{}]", f[9]).as_str())).count()
}

#[test]
fn the_dispatchers_death_loses_nobody() {
    let set = gated("queue_timeout = \"300s\"", "");
    let address = set.address(1);
    let running = occupy(&set);
    let mut waiting: Vec<_> = (1..=3).map(|n| join(&set, &format!("/{n}"), n)).collect();
    set.wait_for("three stored", |_| held(set.pid(), address) == 3);
    let dead = set.dispatcher_pid();
    signal_to(dead, Signal::SIGKILL);
    // Comes to a dispatcher that is not there, and waits for the next one.
    let mut late = connect(address);
    late.write_all(request_head("GET", "/late", address, "").as_bytes()).unwrap();
    for stream in &mut waiting {
        let told = read_response(stream).unwrap();
        assert_problem(&told, 503, &["restarted"]);
        assert_eq!(told.header("retry-after"), Some("0"));
    }
    set.wait_for("the next dispatcher", |status| {
        let pid = status["dispatcher"]["pid"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(dead)) && status["dispatcher"]["queue"] == 1
    });
    drop(waiting);
    set.wait_for("one stored", |_| held(set.pid(), address) == 1);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /running");
    assert_eq!(redeem(&mut late).text(), "done /late");
    assert_eq!(get(address, "/after").unwrap().text(), "done /after");
    assert_eq!(started(&set), ["/running", "/late", "/after"]);
    set.stop();
}
