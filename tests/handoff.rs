//! Handoff delivery as clients see it, also while workers and the dispatcher die or freeze.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, socket, sockopt};
use support::*;

/// A handoff listener and its pool; `listener` and `pool` are further keys.
fn handoff_pool(workers: u16, listener: &str, pool: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"default\"\n{listener}\n\
         [[pool]]\nname = \"default\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\n{pool}\n"
    )
}

fn get_request(target: &str, more: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").into_bytes()
}

/// The next response on a persistent connection; its body has a Content-Length.
fn next_response(stream: &mut impl Read) -> HttpResponse {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the connection ended after {:?}", text(&head));
        head.push(byte[0]);
    }
    let (mut response, _) = HttpResponse::parse_head(&head).unwrap().unwrap();
    if (100..200).contains(&response.status) {
        return next_response(stream);
    }
    response.body = vec![0; response.header("content-length").unwrap().parse().unwrap()];
    stream.read_exact(&mut response.body).unwrap();
    response
}

/// Everything until the end of the connection, and whether it ended with a reset.
fn read_rest(mut stream: TcpStream) -> (String, bool) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (text(&bytes), false),
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (text(&bytes), true),
            Err(error) => panic!("{error}: {:?}", text(&bytes)),
        }
    }
}

/// An `exec` handler that appends a line to `file`, waits for `file.go`, and runs `then`.
fn gated_handler(file: &Path, then: &str) -> String {
    let file = file.display();
    let script = format!("echo $$ >> {file}; while ! [ -e {file}.go ]; do sleep 0.01; done; {then}");
    format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")
}

const HELLO: &str = "printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\nhello'";

fn wait_for_lines(file: &Path, lines: usize) {
    let event = format!("{lines} lines in {}", file.display());
    wait_until(&event, || fs::read_to_string(file).unwrap_or_default().lines().count() >= lines);
}

#[test]
fn persistent_connection_serves_many_requests() {
    let set = TestSet::start(&handoff_pool(2, "access_log = true", ""));
    let mut stream = connect(set.address(0));
    for i in 0..20 {
        stream.write_all(&get_request(&format!("/{i}"), "")).unwrap();
        assert_eq!(next_response(&mut stream).text(), format!("GET /{i}\n"));
    }
    // A large body; the response is as large.
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let body = big.clone();
    let sender = std::thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&body).unwrap();
    });
    assert!(next_response(&mut stream).body == big);
    sender.join().unwrap();
    stream.write_all(&get_request("/last", "Connection: close\r\n")).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().text(), "GET /last\n");
    // HTTP/1.0 has no persistent connections.
    assert_eq!(send_request(set.address(0), b"GET /old HTTP/1.0\r\n\r\n").unwrap().text(), "GET /old\n");
    let line = set.wait_for_log(&["GET /last", "200"]);
    assert!(line.contains("client=127.0.0.1:") && line.contains("worker=default/"), "{line}");
    set.stop();
}

#[test]
fn pipelined_requests_get_responses_in_order() {
    let set = TestSet::start(&handoff_pool(2, "", ""));
    let (first, second) = (get_request("/1", ""), get_request("/2", ""));
    let third = get_request("/3", "Connection: close\r\n");
    let pieces: [&[&[u8]]; 3] = [
        &[&[&first[..], &second, &third].concat()],
        // Split within the head of the second request.
        &[&[&first[..], &second[..9]].concat(), &second[9..], &third],
        // The body of the first request looks like a request.
        &[
            b"POST /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\nGET /1\n\
              GET /2 HTTP/1.1\r\nHost: x.localhost\r\n",
            b"\r\n",
            &third,
        ],
    ];
    for pieces in pieces {
        let mut stream = connect(set.address(0));
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            stream.write_all(piece).unwrap();
        }
        for i in 1..=3 {
            assert_eq!(next_response(&mut stream).text(), format!("GET /{i}\n"));
        }
        assert_eq!(read_rest(stream), (String::new(), false));
    }
    // The connection closes after 64 pipelined requests, so that no client occupies a worker for long.
    let mut stream = connect(set.address(0));
    stream.write_all(&(0..100).flat_map(|i| get_request(&format!("/{i}"), "")).collect::<Vec<_>>()).unwrap();
    let (all, _) = read_rest(stream);
    assert_eq!(all.matches("HTTP/1.1 200").count(), 64, "{all}");
    assert!(all.ends_with("GET /63\n"), "{all}");
    set.stop();
}

#[test]
fn unread_body_is_never_parsed_as_a_request() {
    let script = "printf 'Content-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    let set = TestSet::start(&handoff_pool(1, "", &format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
    for size in [10, 1_000_000] {
        let mut stream = connect(set.address(0));
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // The body looks like requests.
        let body: Vec<u8> = get_request("/smuggled", "").into_iter().cycle().take(size).collect();
        let _ = stream.write_all(&body); // the peer may close before the end
        let first = next_response(&mut stream);
        assert_eq!((first.status, first.text()), (200, "ok".into()));
        let _ = stream.write_all(&get_request("/second", "Connection: close\r\n"));
        let (after, _) = read_rest(stream);
        assert!(after.is_empty() || after.matches("HTTP/1.1").count() == 1, "{after}");
    }
    let served = set.worker("default/1")["served"].as_u64().unwrap();
    assert!((2..=4).contains(&served), "{served}");
    set.stop();
}

#[test]
fn invalid_and_slow_requests_get_400_408_and_421() {
    let set = TestSet::start(&format!(
        "{}[front]\nhead_timeout = \"300ms\"\nidle_timeout = \"200ms\"\n",
        handoff_pool(1, "", "")
    ));
    let address = set.address(0);
    assert_eq!(send_request(address, b"NONSENSE\r\n\r\n").unwrap().status, 400);
    assert_eq!(send_request(address, b"GET / HT").unwrap().status, 408);
    let misdirected =
        send_request(address, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!((misdirected.status, misdirected.header("patou-outcome")), (421, Some("not-started")));
    // A silent connection is closed without a response.
    let start = Instant::now();
    assert_eq!(read_rest(connect(address)), (String::new(), false));
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut stream = connect(address);
    stream.write_all(&get_request("/", "")).unwrap();
    next_response(&mut stream);
    assert_eq!(read_rest(stream), (String::new(), false));
    // A client that half-closes still gets its response.
    let mut stream = connect(address);
    stream.write_all(&get_request("/half", "Connection: close\r\n")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().text(), "GET /half\n");
    set.stop();
}

#[test]
fn frozen_idle_worker_delays_its_client_by_one_offer_timeout_at_most() {
    let set = TestSet::start(&handoff_pool(2, "", ""));
    // The dispatcher offers first to the worker that became idle last: freeze both in turn.
    for id in ["default/1", "default/2"] {
        let frozen = set.worker_pid(id);
        signal_to(frozen, Signal::SIGSTOP);
        for i in 0..4 {
            let start = Instant::now();
            assert_eq!(send_request(set.address(0), &get_request("/", "Connection: close\r\n")).unwrap().status, 200);
            assert!(start.elapsed() < Duration::from_secs(1), "request {i} took {:?}", start.elapsed());
        }
        set.wait_for("the worker is replaced", |status| {
            let worker = worker_of(status, id);
            worker["pid"] != frozen && worker["state"] == "idle"
        });
    }
    set.stop();
}

#[test]
fn handoff_client_gets_502_when_its_worker_dies_before_responding() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    set.configure(&handoff_pool(2, "", &gated_handler(&file, HELLO)));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(&get_request("/", "")).unwrap();
    wait_for_lines(&file, 1);
    let status = set.wait_for("one worker is busy", |status| {
        ["default/1", "default/2"].iter().any(|id| worker_of(status, id)["state"] == "busy")
    });
    let busy = ["default/1", "default/2"].into_iter().find(|id| worker_of(&status, id)["state"] == "busy").unwrap();
    signal_to(worker_of(&status, busy)["pid"].as_u64().unwrap() as u32, Signal::SIGKILL);
    let response = read_response(&mut stream).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")), "{response:?}");
    assert!(response.text().contains(busy), "{response:?}");
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 1, "the request started once");
    set.wait_for("both workers are idle", |status| {
        ["default/1", "default/2"].iter().all(|id| worker_of(status, id)["state"] == "idle")
    });
    set.stop();
}

#[test]
fn connection_is_reset_when_its_worker_dies_during_the_response() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    // The response has no length, so that a FIN would make it look complete.
    let script = format!(
        "printf 'Content-Type: text/plain\\r\\n\\r\\nhalf'; echo $$ >> {0}; while ! [ -e {0}.go ]; do sleep 0.01; done",
        file.display()
    );
    set.configure(&handoff_pool(1, "", &format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    wait_for_lines(&file, 1);
    let mut status_line = [0; 15];
    stream.read_exact(&mut status_line).unwrap();
    assert_eq!(&status_line, b"HTTP/1.0 200 OK");
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL);
    assert!(read_rest(stream).1, "no reset\n{}", set.log());
    set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

#[test]
fn request_past_request_timeout_gets_504() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    set.configure(&handoff_pool(1, "", &format!("request_timeout = \"300ms\"\n{}", gated_handler(&file, HELLO))));
    set.run();
    set.wait_until_up();
    let response = send_request(set.address(0), &get_request("/", "Connection: close\r\n")).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (504, Some("started-unknown")));
    set.stop();
}

#[test]
fn client_of_a_worker_stopped_by_sigstop_gets_504_at_request_timeout() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    let watchdog = "\n[watchdog]\nworker_timeout = \"60s\"\n";
    set.configure(
        &(handoff_pool(1, "", &format!("request_timeout = \"300ms\"\n{}", gated_handler(&file, HELLO))) + watchdog),
    );
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(&get_request("/", "Connection: close\r\n")).unwrap();
    wait_for_lines(&file, 1);
    let worker = set.worker_pid("default/1");
    signal_to(worker, Signal::SIGSTOP);
    let response = read_response(&mut stream).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (504, Some("started-unknown")), "{response:?}");
    assert!(response.text().contains("default/1"), "the response is not from the dispatcher: {response:?}");
    signal_to(worker, Signal::SIGCONT);
    set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

/// A handoff listener on a Unix socket.
fn unix_listener(path: &Path, pool: &str, more: &str) -> String {
    let path = path.display();
    format!("[[listener]]\naddress = \"unix:{path}\"\ndelivery = \"handoff\"\npool = \"{pool}\"\n{more}\n")
}

fn reload(set: &TestSet) {
    let applied = || set.log().matches("configuration applied").count();
    let before = applied();
    set.signal(Signal::SIGHUP);
    wait_until("the configuration is applied", || applied() > before);
}

#[test]
fn reload_that_removes_a_listener_rejects_only_clients_queued_there() {
    let mut set = TestSet::prepare("");
    let (a, b) = (set.test_dir().join("a.sock"), set.test_dir().join("b.sock"));
    let pool = |name: &str| {
        let started = set.test_dir().join(name);
        let print = format!("printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\npool{name}'");
        format!(
            "[[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nqueue_timeout = \"10m\"\n{}\n",
            gated_handler(&started, &print)
        )
    };
    let redirect = "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"a\"\n";
    let rest = format!("{}{redirect}{}{}", unix_listener(&b, "b", ""), pool("a"), pool("b"));
    set.configure(&format!("{}{rest}", unix_listener(&a, "a", "")));
    set.run();
    set.wait_until_up();
    let client = |path: &Path| {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(&get_request("/", "Connection: close\r\n")).unwrap();
        stream
    };
    let mut running: Vec<_> = [&a, &b].map(|path| client(path)).into();
    ["a", "b"].iter().for_each(|name| wait_for_lines(&set.test_dir().join(name), 1));
    let (mut at_a, mut at_b) = (client(&a), client(&b));
    set.wait_for("both clients are queued", |status| status["dispatcher"]["queue"] == 2);
    let old = set.dispatcher_pid();
    set.configure(&rest);
    reload(&set);
    let response = read_response(&mut at_a).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (503, Some("not-started")), "{response:?}");
    assert_eq!(response.header("retry-after"), Some("0"));
    set.wait_for("the next dispatcher queues the client of b", |status| {
        status["dispatcher"]["pid"].as_u64() != Some(old.into()) && status["dispatcher"]["queue"] == 1
    });
    ["a", "b"].iter().for_each(|name| fs::write(set.test_dir().join(name).with_extension("go"), "").unwrap());
    assert_eq!(read_response(&mut at_b).unwrap().text(), "poolb");
    let responses: Vec<_> = running.iter_mut().map(|stream| read_response(stream).unwrap().text()).collect();
    assert_eq!(responses, ["poola", "poolb"]);
    set.stop();
}

#[test]
fn reload_applies_to_idle_persistent_connections() {
    let mut set = TestSet::prepare("");
    let config = |pool: &str, host: &str| {
        let program = format!("printf 'Content-Type: text/plain\\r\\nContent-Length: 3\\r\\n\\r\\n{pool}'");
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"{pool}\"\nallowed_hosts = [\"{host}\"]\n\
             [[pool]]\nname = \"{pool}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n\
             handler = {{ exec = [\"sh\", \"-c\", {program:?}] }}\n"
        )
    };
    set.configure(&config("one", "localhost"));
    set.run();
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let mut stream = connect(set.address(0));
    stream.write_all(&get_request("/", "")).unwrap();
    assert_eq!(next_response(&mut stream).text(), "one");
    set.configure(&config("two", "example.org"));
    reload(&set);
    set.wait_for("the new pool is up", |status| worker_of(status, "two/1")["state"] == "idle");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    assert_eq!(next_response(&mut stream).text(), "two");
    stream.write_all(&get_request("/", "")).unwrap();
    assert_eq!(next_response(&mut stream).status, 421);
    assert_eq!(set.dispatcher_pid(), dispatcher, "the dispatcher has not restarted");
    set.stop();
}

#[test]
fn full_queue_and_queue_timeout_get_503() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    let keys = format!("queue = 1\nqueue_timeout = \"400ms\"\n{}", gated_handler(&file, HELLO));
    set.configure(&handoff_pool(1, "", &keys));
    set.run();
    set.wait_until_up();
    let mut first = connect(set.address(0));
    first.write_all(&get_request("/", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut second = connect(set.address(0));
    second.write_all(&get_request("/", "Connection: close\r\n")).unwrap();
    set.wait_for("one client is queued", |status| status["dispatcher"]["queue"] == 1);
    let third = send_request(set.address(0), &get_request("/", "")).unwrap();
    assert_eq!((third.status, third.header("retry-after")), (503, Some("1")), "{third:?}");
    assert_eq!(read_response(&mut second).unwrap().status, 503);
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut first).text(), "hello");
    set.stop();
}

#[test]
fn incomplete_response_of_a_program_ends_with_a_reset() {
    // In HTTP/1.0 the response ends with the connection. One program fails, the other exceeds request_timeout.
    let head = "printf 'Content-Type: text/plain\\r\\n\\r\\n'; echo half";
    for (then, keys) in [("sleep 0.5; exit 1", ""), ("sleep 60", "request_timeout = \"500ms\"\n")] {
        let script = format!("{head}; {then}");
        let set =
            TestSet::start(&handoff_pool(1, "", &format!("{keys}handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
        let mut stream = connect(set.address(0));
        stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let (text, reset) = read_rest(stream);
        assert!(text.is_empty() || text.contains("half"), "{text}");
        assert!(reset, "{then}: {text:?} looks complete");
        set.wait_for("the failure is counted", |status| worker_of(status, "default/1")["failed"] == 1);
        set.stop();
    }
}

#[test]
fn clients_that_retry_rejected_requests_do_not_starve_the_others() {
    let set = TestSet::start(&handoff_pool(1, "", "queue = 1"));
    let address = set.address(0);
    let end = Instant::now() + Duration::from_secs(2);
    let client = || {
        let (mut served, mut rejected) = (0, 0);
        while Instant::now() < end {
            match send_request(address, &get_request("/", "Connection: close\r\n")) {
                Ok(response) if response.status == 200 => served += 1,
                Ok(_) => rejected += 1,
                Err(_) => {} // rejected before the client had sent everything
            }
        }
        (served, rejected)
    };
    let counts: Vec<(u32, u32)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let served: u32 = counts.iter().map(|(served, _)| served).sum();
    let rejected: u32 = counts.iter().map(|(_, rejected)| rejected).sum();
    assert!(served > 200 && rejected > 0, "{served} served, {rejected} rejected in two seconds");
    set.stop();
}

#[test]
fn queued_clients_survive_a_dispatcher_restart_and_are_served_once() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    set.configure(&handoff_pool(1, "", &gated_handler(&file, HELLO)));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let mut busy = connect(address);
    busy.write_all(&get_request("/busy", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut waiting: Vec<TcpStream> = (0..3).map(|_| connect(address)).collect();
    for stream in &mut waiting {
        stream.write_all(&get_request("/waits", "Connection: close\r\n")).unwrap();
    }
    set.wait_for("three clients are queued", |status| status["dispatcher"]["queue"] == 3);
    std::thread::sleep(Duration::from_millis(200)); // store_after, and the transfer to the descriptor store
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGKILL);
    set.wait_for("the next dispatcher queues them", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["queue"] == 3
    });
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut busy).text(), "hello", "a dispatcher restart must not affect a request on a worker");
    for stream in &mut waiting {
        assert_eq!(read_response(stream).unwrap().text(), "hello");
    }
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 4, "each request started once");
    set.stop();
}

#[test]
fn client_offered_to_a_frozen_worker_survives_a_dispatcher_restart() {
    let more = "[front]\nstore_after = \"1ms\"\n[watchdog]\nworker_timeout = \"30s\"\n";
    let set = TestSet::start(&handoff_pool(2, "", &format!("offer_timeout = \"1s\"\n{more}")));
    let workers = ["default/1", "default/2"].map(|id| set.worker_pid(id));
    workers.iter().for_each(|pid| signal_to(*pid, Signal::SIGSTOP));
    let mut stream = connect(set.address(0));
    // The dispatcher's end of the connection in /proc/net/tcp (proc(5)).
    let endpoints =
        format!("0100007F:{:04X} 0100007F:{:04X}", set.address(0).port(), stream.local_addr().unwrap().port());
    let socket = wait_for_value("the connection is accepted", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let inode = table.lines().find(|line| line.contains(&endpoints))?.split_whitespace().nth(9)?.to_owned();
        (inode != "0").then(|| format!("socket:[{inode}]"))
    });
    stream.write_all(&get_request("/lent", "")).unwrap();
    wait_until("the connection is in the descriptor store", || {
        let mut fds = fs::read_dir(format!("/proc/{}/fd", set.pid())).unwrap().flatten();
        fds.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy() == socket))
    });
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGKILL);
    set.wait_for("the next dispatcher is up", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["state"] == "up"
    });
    workers.iter().for_each(|pid| signal_to(*pid, Signal::SIGCONT));
    assert_eq!(stream.peek(&mut [0]).unwrap(), 1, "{}", set.log());
    let response = next_response(&mut stream);
    assert_eq!((response.status, response.text().as_str()), (200, "GET /lent\n"));
    // The offer of the dead dispatcher is void, but the connection continues.
    stream.write_all(&get_request("/again", "")).unwrap();
    assert_eq!(next_response(&mut stream).text(), "GET /again\n");
    drop(stream);
    set.stop();
}

#[test]
fn queued_client_survives_several_dispatcher_restarts_in_a_row() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    set.configure(&format!("{}[front]\nstore_after = \"1s\"\n", handoff_pool(1, "", &gated_handler(&file, HELLO))));
    set.run();
    set.wait_until_up();
    let mut busy = connect(set.address(0));
    busy.write_all(&get_request("/busy", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut waiting = connect(set.address(0));
    waiting.write_all(&get_request("/waits", "Connection: close\r\n")).unwrap();
    set.wait_for("the client is queued", |status| status["dispatcher"]["queue"] == 1);
    std::thread::sleep(Duration::from_millis(1300)); // store_after, and the transfer to the descriptor store
    for _ in 0..3 {
        let old = set.dispatcher_pid();
        signal_to(old, Signal::SIGKILL);
        set.wait_for("the next dispatcher queues it", |status| {
            status["dispatcher"]["pid"] != old && status["dispatcher"]["queue"] == 1
        });
    }
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut busy).text(), "hello");
    assert_eq!(read_response(&mut waiting).unwrap().text(), "hello");
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2, "each request started once");
    set.stop();
}

#[test]
fn proxy_protocol_header_sets_the_client_address() {
    let script = "printf 'Content-Type: text/plain\\r\\n\\r\\n'; echo $REMOTE_ADDR $REMOTE_PORT";
    let pool = format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}");
    let set = TestSet::start(&handoff_pool(2, "proxy_protocol = true", &pool));
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0, 80]);
    for header in [b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n".to_vec(), version_2] {
        for pieces in [vec![header.clone()], vec![header[..5].to_vec(), header[5..].to_vec()]] {
            let mut stream = connect(set.address(0));
            for piece in pieces {
                stream.write_all(&piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            // The address holds for every request on the connection.
            for _ in 0..2 {
                stream.write_all(&get_request("/", "")).unwrap();
                let mut buffer = [0; 4096];
                let mut received = String::new();
                while !received.ends_with("0\r\n\r\n") {
                    let n = stream.read(&mut buffer).unwrap();
                    assert!(n > 0, "{received}");
                    received.push_str(&text(&buffer[..n]));
                }
                assert!(received.contains("192.0.2.7 4711"), "{received}");
            }
        }
    }
    let mut stream = connect(set.address(0));
    stream.write_all(&get_request("/", "")).unwrap();
    assert_eq!(read_rest(stream), (String::new(), true), "a connection without a PROXY header must be reset");
    set.stop();
}

#[test]
fn inetd_handler_serves_a_protocol_where_the_server_speaks_first() {
    let script = "echo hello $TCPREMOTEIP; read line; echo you said $line; exit 3";
    let pool = format!("handler = {{ inetd = [\"sh\", \"-c\", {script:?}] }}");
    let set = TestSet::start(&handoff_pool(2, "", &pool));
    for _ in 0..3 {
        let mut stream = connect(set.address(0));
        let mut greeting = [0; 16];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(text(&greeting), "hello 127.0.0.1\n");
        stream.write_all(b"wow\n").unwrap();
        assert_eq!(read_rest(stream), ("you said wow\n".into(), false));
    }
    set.stop();
}

#[test]
fn inetd_output_is_delivered_even_if_the_program_leaves_input_unread() {
    let script = "head -c 1 >/dev/null; head -c 300000 /dev/zero";
    let set = TestSet::start(&handoff_pool(1, "", &format!("handler = {{ inetd = [\"sh\", \"-c\", {script:?}] }}")));
    // The program exits while most of its output is unsent and most of its input is unread.
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&client, sockopt::RcvBuf, &4096).unwrap();
    let SocketAddr::V4(address) = set.address(0) else { panic!("IPv4") };
    nix::sys::socket::connect(client.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
    let mut client = TcpStream::from(client);
    client.write_all(&[b'x'; 50_000]).unwrap();
    wait_until("the program has exited", || {
        let worker = &set.status()["pools"][0]["workers"][0];
        (worker["served"].as_u64(), worker["state"].as_str()) == (Some(1), Some("idle"))
    });
    let (received, is_reset) = read_rest(client);
    assert_eq!((received.len(), is_reset), (300_000, false));
    set.stop();
}

#[test]
fn git_daemon_serves_a_clone_as_inetd_handler() {
    if !is_installed("git") {
        return;
    }
    let mut set = TestSet::prepare("");
    let dir = set.test_dir().to_owned();
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&dir).args(["-c", "user.name=a", "-c", "user.email=a@example.com"]).args(args);
        let output = git.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    };
    git(&["init", "-q", "one"]);
    git(&["-C", "one", "commit", "-q", "--allow-empty", "-m", "first"]);
    let base = dir.display();
    set.configure(&handoff_pool(
        1,
        "",
        &format!("handler = {{ inetd = [\"git\", \"daemon\", \"--inetd\", \"--export-all\", \"--base-path={base}\", \"{base}\"] }}\n\
                  environment = {{ HOME = \"{base}\" }}"),
    ));
    fs::write(dir.join(".gitconfig"), "[safe]\ndirectory = *\n").unwrap();
    set.run();
    set.wait_until_up();
    for name in ["two", "three"] {
        git(&["clone", "-q", &format!("git://{}/one", set.address(0)), name]);
        git(&["-C", name, "log", "--oneline", "-1"]);
    }
    set.stop();
}

#[test]
fn persistent_connection_on_a_unix_listener_serves_many_requests() {
    let mut set = TestSet::prepare("");
    let path = set.test_dir().join("http.sock");
    set.configure(
        &handoff_pool(2, "", "").replace("127.0.0.1:0\"\ndelivery", &format!("unix:{}\"\ndelivery", path.display())),
    );
    set.run();
    set.wait_until_up();
    let mut stream = UnixStream::connect(&path).unwrap();
    for _ in 0..3 {
        stream.write_all(&get_request("/unix", "")).unwrap();
        assert_eq!(next_response(&mut stream).text(), "GET /unix\n");
    }
    drop(stream);
    set.stop();
}

#[test]
fn ten_thousand_idle_connections_occupy_no_worker() {
    // Each connection needs two descriptors: one here, one in the dispatcher.
    let (_, hard_limit) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard_limit, hard_limit).unwrap();
    let count = (hard_limit / 2).min(10_000);
    if count < 10_000 {
        eprintln!(
            "SKIPPED in part: {count} connections, because a process may have {hard_limit} descriptors (ulimit -Hn)"
        );
    }
    let set = TestSet::start(&handoff_pool(4, "", ""));
    let address: SocketAddr = set.address(0);
    let mut idle = Vec::new();
    for _ in 0..count {
        let mut stream = connect(address);
        stream.write_all(&get_request("/", "")).unwrap();
        next_response(&mut stream);
        idle.push(stream);
    }
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(send_request(address, &get_request("/", "Connection: close\r\n")).unwrap().status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    for stream in idle.iter_mut().step_by(20) {
        stream.write_all(&get_request("/again", "")).unwrap();
        assert_eq!(next_response(stream).text(), "GET /again\n");
    }
    drop(idle);
    set.stop();
}

const HELD: &str = "[front]\nhead_timeout = \"500ms\"\nidle_timeout = \"500ms\"\nbody_timeout = \"500ms\"\n\
    [watchdog]\ndispatcher_timeout = \"60s\"\nworker_timeout = \"60s\"\n";

/// Stops a process for longer than these timeouts, and sends meanwhile.
fn send_while_held(pid: u32, send: impl FnOnce()) {
    signal_to(pid, Signal::SIGSTOP);
    send();
    std::thread::sleep(Duration::from_secs(1));
    signal_to(pid, Signal::SIGCONT);
}

/// Time in which the dispatcher does not run is no silence of the client, whose request has arrived meanwhile.
#[test]
fn request_that_arrives_while_the_dispatcher_is_held_beyond_a_timeout_is_served() {
    let listener = |more: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n{more}\n");
    let listeners = listener("delivery = \"handoff\"\nproxy_protocol = true\n") + &listener("");
    let set = TestSet::start(&format!("{HELD}{listeners}{}", handoff_pool(2, "", LONG_TIMEOUTS)));
    let [behind_proxy, redirect, address] = [0, 1, 2].map(|index| set.address(index));
    let dispatcher = set.dispatcher_pid();
    let mut kept = connect(address);
    kept.write_all(&get_request("/", "")).unwrap();
    assert_eq!(next_response(&mut kept).status, 200);
    let mut clients = [connect(address), kept, connect(behind_proxy), connect(redirect)];
    wait_until("the connections are accepted", || {
        [address, behind_proxy, redirect].map(|listener| held_connections(dispatcher, listener)) == [2, 1, 1]
    });
    send_while_held(dispatcher, || {
        clients[2].write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").unwrap();
        clients.iter_mut().for_each(|client| client.write_all(&get_request("/", "")).unwrap());
    });
    for (client, status) in clients.iter_mut().zip([200, 200, 200, 307]) {
        assert_eq!(next_response(client).status, status);
    }
    set.stop();
}

#[test]
fn request_of_which_the_rest_arrives_while_its_worker_is_held_beyond_a_timeout_is_served() {
    let set = TestSet::start(&format!("{HELD}{}", handoff_pool(1, "", LONG_TIMEOUTS)));
    let request = "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n0123456789";
    for start in [request.find("Host").unwrap(), request.len() - 5] {
        let mut client = connect(set.address(0));
        client.write_all(&request.as_bytes()[..start]).unwrap();
        set.wait_for_worker("default/1", "busy");
        send_while_held(set.worker_pid("default/1"), || client.write_all(&request.as_bytes()[start..]).unwrap());
        let response = next_response(&mut client);
        assert_eq!((response.status, response.text()), (200, "0123456789".into()));
        set.wait_for_worker("default/1", "idle");
    }
    set.stop();
}
