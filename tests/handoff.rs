//! Connections that are handed over: what a client on one address sees, whatever dies or freezes behind it.

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

/// A handoff listener and its pool of so many workers, with more keys for each.
fn handed(workers: u16, listener: &str, pool: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"default\"\n{listener}\n\
         [[pool]]\nname = \"default\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\n{pool}\n"
    )
}

fn ask(target: &str, more: &str) -> Vec<u8> {
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

/// Whatever comes until the end, and whether that was a reset.
fn rest(mut stream: TcpStream) -> (String, bool) {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (text(&bytes), false),
            Ok(n) => bytes.extend(&piece[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (text(&bytes), true),
            Err(error) => panic!("{error}: {:?}", text(&bytes)),
        }
    }
}

/// A program for `exec` that says in `file` that it has begun, and goes on when `file.go` is there.
fn gated(file: &Path, then: &str) -> String {
    let file = file.display();
    let script = format!("echo $$ >> {file}; while ! [ -e {file}.go ]; do sleep 0.01; done; {then}");
    format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")
}

const HELLO: &str = "printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\nhello'";

fn wait_for_lines(file: &Path, lines: usize) {
    let give_up = Instant::now() + EVENT_TIMEOUT;
    while fs::read_to_string(file).unwrap_or_default().lines().count() < lines {
        assert!(Instant::now() < give_up, "{} has no {lines} lines", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn one_address_serves_request_after_request() {
    let set = TestSet::start(&handed(2, "access_log = true", ""));
    let mut stream = connect(set.address(0));
    for i in 0..20 {
        stream.write_all(&ask(&format!("/{i}"), "")).unwrap();
        assert_eq!(next_response(&mut stream).text(), format!("GET /{i}\n"));
    }
    // A body of any size, and one that is framed by chunks.
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = big.clone();
    let sending = std::thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", sent.len());
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    assert!(next_response(&mut stream).body == big);
    sending.join().unwrap();
    stream.write_all(&ask("/last", "Connection: close\r\n")).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().text(), "GET /last\n");
    // One that knows no connections that go on.
    assert_eq!(send_request(set.address(0), b"GET /old HTTP/1.0\r\n\r\n").unwrap().text(), "GET /old\n");
    let log = set.wait_for_log(&["GET /last", "200"]);
    assert!(log.contains("client=127.0.0.1:") && log.contains("worker=default/"), "{log}");
    set.stop();
}

#[test]
fn what_was_sent_together_is_answered_in_its_order() {
    let set = TestSet::start(&handed(2, "", ""));
    let pieces: [&[&[u8]]; 3] = [
        &[&[ask("/1", ""), ask("/2", ""), ask("/3", "Connection: close\r\n")].concat()],
        // Cut within the head of the second.
        &[&[ask("/1", ""), ask("/2", "")[..9].to_vec()].concat(), &ask("/2", "")[9..], &ask("/3", "Connection: close\r\n")],
        &[
            b"POST /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\nGET /1\nGET /2 HTTP/1.1\r\nHost: x.localhost\r\n",
            b"\r\n",
            &ask("/3", "Connection: close\r\n"),
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
        assert_eq!(rest(stream), (String::new(), false));
    }
    // No client keeps a worker to itself: the last of many ends the connection.
    let mut stream = connect(set.address(0));
    stream.write_all(&(0..100).flat_map(|i| ask(&format!("/{i}"), "")).collect::<Vec<_>>()).unwrap();
    let (all, _) = rest(stream);
    assert_eq!(all.matches("HTTP/1.1 200").count(), 64, "{all}");
    assert!(all.ends_with("GET /63\n"), "{all}");
    set.stop();
}

#[test]
fn a_body_that_nobody_read_is_never_taken_for_a_request() {
    let script = "printf 'Content-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    let set = TestSet::start(&handed(1, "", &format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
    for size in [10, 1_000_000] {
        let mut stream = connect(set.address(0));
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // It looks like requests.
        let body: Vec<u8> = ask("/smuggled", "").into_iter().cycle().take(size).collect();
        let _ = stream.write_all(&body); // it may be refused in the middle
        let first = next_response(&mut stream);
        assert_eq!((first.status, first.text()), (200, "ok".into()));
        let _ = stream.write_all(&ask("/second", "Connection: close\r\n"));
        let (after, _) = rest(stream);
        assert!(after.is_empty() || after.matches("HTTP/1.1").count() == 1, "{after}");
    }
    let served = set.worker("default/1")["served"].as_u64().unwrap();
    assert!((2..=4).contains(&served), "{served}");
    set.stop();
}

#[test]
fn what_is_no_request_and_what_is_too_slow_is_told_so() {
    let set =
        TestSet::start(&format!("{}[front]\nhead_timeout = \"300ms\"\nidle_timeout = \"200ms\"\n", handed(1, "", "")));
    let address = set.address(0);
    assert_eq!(send_request(address, b"NONSENSE\r\n\r\n").unwrap().status, 400);
    assert_eq!(send_request(address, b"GET / HT").unwrap().status, 408);
    let evil = send_request(address, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!((evil.status, evil.header("patou-outcome")), (421, Some("not-started")));
    // Who says nothing occupies nobody, and is let go.
    let since = Instant::now();
    assert_eq!(rest(connect(address)), (String::new(), false));
    assert!(since.elapsed() < Duration::from_secs(5));
    let mut stream = connect(address);
    stream.write_all(&ask("/", "")).unwrap();
    next_response(&mut stream);
    assert_eq!(rest(stream), (String::new(), false));
    // Who has ended his own direction still gets his answer.
    let mut stream = connect(address);
    stream.write_all(&ask("/half", "Connection: close\r\n")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().text(), "GET /half\n");
    set.stop();
}

#[test]
fn a_frozen_idle_worker_costs_its_client_the_offer_and_no_more() {
    let set = TestSet::start(&handed(2, "", ""));
    // The last to be idle is the first to be asked: freeze both in turn.
    for id in ["default/1", "default/2"] {
        let frozen = set.worker_pid(id);
        signal_to(frozen, Signal::SIGSTOP);
        for i in 0..4 {
            let since = Instant::now();
            assert_eq!(send_request(set.address(0), &ask("/", "Connection: close\r\n")).unwrap().status, 200);
            assert!(since.elapsed() < Duration::from_secs(1), "request {i} took {:?}", since.elapsed());
        }
        set.wait_for("the worker is replaced", |status| {
            let worker = worker_of(status, id);
            worker["pid"] != frozen && worker["state"] == "idle"
        });
    }
    set.stop();
}

#[test]
fn a_worker_that_dies_before_its_answer_is_answered_for() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    set.configure(&handed(2, "", &gated(&file, HELLO)));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(&ask("/", "")).unwrap();
    wait_for_lines(&file, 1);
    let status = set.wait_for("one is busy", |status| {
        ["default/1", "default/2"].iter().any(|id| worker_of(status, id)["state"] == "busy")
    });
    let busy = ["default/1", "default/2"].into_iter().find(|id| worker_of(&status, id)["state"] == "busy").unwrap();
    signal_to(worker_of(&status, busy)["pid"].as_u64().unwrap() as u32, Signal::SIGKILL);
    let answer = read_response(&mut stream).unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (502, Some("started-unknown")), "{answer:?}");
    assert!(answer.text().contains(busy), "{answer:?}");
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 1, "it began once");
    set.wait_for("both are back", |status| {
        ["default/1", "default/2"].iter().all(|id| worker_of(status, id)["state"] == "idle")
    });
    set.stop();
}

#[test]
fn a_response_that_death_has_cut_ends_with_a_reset() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    // Without a length, a FIN would make it look whole.
    let script = format!(
        "printf 'Content-Type: text/plain\\r\\n\\r\\nhalf'; echo $$ >> {0}; while ! [ -e {0}.go ]; do sleep 0.01; done",
        file.display()
    );
    set.configure(&handed(1, "", &format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    wait_for_lines(&file, 1);
    let mut seen = [0; 15];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"HTTP/1.0 200 OK");
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL);
    assert!(rest(stream).1, "no reset\n{}", set.log());
    set.wait_for("it is back", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

#[test]
fn a_request_past_its_time_gets_504() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    set.configure(&handed(1, "", &format!("request_timeout = \"300ms\"\n{}", gated(&file, HELLO))));
    set.run();
    set.wait_until_up();
    let answer = send_request(set.address(0), &ask("/", "Connection: close\r\n")).unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (504, Some("started-unknown")));
    set.stop();
}

#[test]
fn who_waits_for_a_worker_that_is_stopped_at_work_gets_504_when_its_time_is_over() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    let patient = "\n[watchdog]\nworker_timeout = \"60s\"\n";
    set.configure(&(handed(1, "", &format!("request_timeout = \"300ms\"\n{}", gated(&file, HELLO))) + patient));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(&ask("/", "Connection: close\r\n")).unwrap();
    wait_for_lines(&file, 1);
    let worker = set.worker_pid("default/1");
    signal_to(worker, Signal::SIGSTOP);
    let answer = read_response(&mut stream).unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (504, Some("started-unknown")), "{answer:?}");
    assert!(answer.text().contains("default/1"), "the dispatcher has said so: {answer:?}");
    signal_to(worker, Signal::SIGCONT);
    set.wait_for("it serves on", |status| worker_of(status, "default/1")["state"] == "idle");
    set.stop();
}

/// A handoff listener on a Unix socket.
fn unix_listener(path: &Path, pool: &str, more: &str) -> String {
    let path = path.display();
    format!("[[listener]]\naddress = \"unix:{path}\"\ndelivery = \"handoff\"\npool = \"{pool}\"\n{more}\n")
}

fn reload(set: &TestSet) {
    let told = || set.log().matches("configuration applied").count();
    let before = told();
    set.signal(Signal::SIGHUP);
    wait_until("the reload is told", || told() > before);
}

#[test]
fn who_waits_is_served_where_he_came_whatever_a_reload_does_to_other_listeners() {
    let mut set = TestSet::prepare("");
    let (a, b) = (set.test_dir().join("a.sock"), set.test_dir().join("b.sock"));
    let pool = |name: &str| {
        let begun = set.test_dir().join(name);
        let words = format!("printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\npool{name}'");
        format!(
            "[[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nqueue_timeout = \"10m\"\n{}\n",
            gated(&begun, &words)
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
        stream.write_all(&ask("/", "Connection: close\r\n")).unwrap();
        stream
    };
    let mut running: Vec<_> = [&a, &b].map(|path| client(path)).into();
    ["a", "b"].iter().for_each(|name| wait_for_lines(&set.test_dir().join(name), 1));
    let (mut at_a, mut at_b) = (client(&a), client(&b));
    set.wait_for("both wait", |status| status["dispatcher"]["queue"] == 2);
    let old = set.dispatcher_pid();
    set.configure(&rest);
    reload(&set);
    let answer = read_response(&mut at_a).unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (503, Some("not-started")), "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("0"));
    set.wait_for("the other one waits at the next dispatcher", |status| {
        status["dispatcher"]["pid"].as_u64() != Some(old.into()) && status["dispatcher"]["queue"] == 1
    });
    ["a", "b"].iter().for_each(|name| fs::write(set.test_dir().join(name).with_extension("go"), "").unwrap());
    assert_eq!(read_response(&mut at_b).unwrap().text(), "poolb");
    let answers: Vec<_> = running.iter_mut().map(|stream| read_response(stream).unwrap().text()).collect();
    assert_eq!(answers, ["poola", "poolb"]);
    set.stop();
}

#[test]
fn a_kept_connection_follows_what_a_reload_says_of_its_listener() {
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
    stream.write_all(&ask("/", "")).unwrap();
    assert_eq!(next_response(&mut stream).text(), "one");
    set.configure(&config("two", "example.org"));
    reload(&set);
    set.wait_for("the new pool is up", |status| worker_of(status, "two/1")["state"] == "idle");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    assert_eq!(next_response(&mut stream).text(), "two");
    stream.write_all(&ask("/", "")).unwrap();
    assert_eq!(next_response(&mut stream).status, 421);
    assert_eq!(set.dispatcher_pid(), dispatcher, "it is the same connection");
    set.stop();
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    let keys = format!("queue = 1\nqueue_timeout = \"400ms\"\n{}", gated(&file, HELLO));
    set.configure(&handed(1, "", &keys));
    set.run();
    set.wait_until_up();
    let mut first = connect(set.address(0));
    first.write_all(&ask("/", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut second = connect(set.address(0));
    second.write_all(&ask("/", "Connection: close\r\n")).unwrap();
    set.wait_for("one waits", |status| status["dispatcher"]["queue"] == 1);
    let third = send_request(set.address(0), &ask("/", "")).unwrap();
    assert_eq!((third.status, third.header("retry-after")), (503, Some("1")), "{third:?}");
    assert_eq!(read_response(&mut second).unwrap().status, 503);
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut first).text(), "hello");
    set.stop();
}

#[test]
fn a_response_that_is_cut_does_not_look_whole() {
    // Its length is known by the end of the connection only (HTTP/1.0): a program that fails, and one that takes too long.
    let head = "printf 'Content-Type: text/plain\\r\\n\\r\\n'; echo half";
    for (then, keys) in [("exit 1", ""), ("sleep 60", "request_timeout = \"500ms\"\n")] {
        let script = format!("{head}; {then}");
        let set = TestSet::start(&handed(1, "", &format!("{keys}handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")));
        let mut stream = connect(set.address(0));
        stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let (text, reset) = rest(stream);
        assert!(text.is_empty() || text.contains("half"), "{text}");
        assert!(reset, "{then}: {text:?} looks whole");
        set.wait_for("it is counted", |status| worker_of(status, "default/1")["failed"] == 1);
        set.stop();
    }
}

#[test]
fn who_is_refused_again_and_again_does_not_keep_the_others_from_their_worker() {
    let set = TestSet::start(&handed(1, "", "queue = 1"));
    let address = set.address(0);
    let end = Instant::now() + Duration::from_secs(2);
    let client = || {
        let (mut served, mut refused) = (0, 0);
        while Instant::now() < end {
            match send_request(address, &ask("/", "Connection: close\r\n")) {
                Ok(answer) if answer.status == 200 => served += 1,
                Ok(_) => refused += 1,
                Err(_) => {} // cut: it was refused before all of it was sent
            }
        }
        (served, refused)
    };
    let counts: Vec<(u32, u32)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let served: u32 = counts.iter().map(|(served, _)| served).sum();
    let refused: u32 = counts.iter().map(|(_, refused)| refused).sum();
    assert!(served > 200 && refused > 0, "{served} served, {refused} refused in two seconds");
    set.stop();
}

#[test]
fn who_waits_survives_the_dispatcher_and_is_served_once() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    set.configure(&handed(1, "", &gated(&file, HELLO)));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let mut busy = connect(address);
    busy.write_all(&ask("/busy", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut waiting: Vec<TcpStream> = (0..3).map(|_| connect(address)).collect();
    for stream in &mut waiting {
        stream.write_all(&ask("/waits", "Connection: close\r\n")).unwrap();
    }
    set.wait_for("they wait", |status| status["dispatcher"]["queue"] == 3);
    std::thread::sleep(Duration::from_millis(200)); // store_after, and the way to the store
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGKILL);
    set.wait_for("another dispatcher has them", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["queue"] == 3
    });
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut busy).text(), "hello", "what is on a worker is not touched");
    for stream in &mut waiting {
        assert_eq!(read_response(stream).unwrap().text(), "hello");
    }
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 4, "each began once");
    set.stop();
}

#[test]
fn who_is_offered_to_a_worker_that_does_not_come_survives_the_dispatcher_too() {
    let more = "[front]\nstore_after = \"1ms\"\n[watchdog]\nworker_timeout = \"30s\"\n";
    let set = TestSet::start(&handed(2, "", &format!("offer_timeout = \"1s\"\n{more}")));
    let workers = ["default/1", "default/2"].map(|id| set.worker_pid(id));
    workers.iter().for_each(|pid| signal_to(*pid, Signal::SIGSTOP));
    let mut stream = connect(set.address(0));
    // The other end of it, as /proc/net/tcp knows it (proc(5)).
    let ends = format!("0100007F:{:04X} 0100007F:{:04X}", set.address(0).port(), stream.local_addr().unwrap().port());
    let socket = wait_for_value("it is accepted", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let inode = table.lines().find(|line| line.contains(&ends))?.split_whitespace().nth(9)?.to_owned();
        (inode != "0").then(|| format!("socket:[{inode}]"))
    });
    stream.write_all(&ask("/lent", "")).unwrap();
    wait_until("it is in the store", || {
        let mut all = fs::read_dir(format!("/proc/{}/fd", set.pid())).unwrap().flatten();
        all.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy() == socket))
    });
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGKILL);
    set.wait_for("another dispatcher", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["state"] == "up"
    });
    workers.iter().for_each(|pid| signal_to(*pid, Signal::SIGCONT));
    assert_eq!(stream.peek(&mut [0]).unwrap(), 1, "{}", set.log());
    let answer = next_response(&mut stream);
    assert_eq!((answer.status, answer.text().as_str()), (200, "GET /lent\n"));
    // What one was offered by the dead dispatcher is not its own any more, and the connection is.
    stream.write_all(&ask("/again", "")).unwrap();
    assert_eq!(next_response(&mut stream).text(), "GET /again\n");
    drop(stream);
    set.stop();
}

#[test]
fn who_came_back_from_the_store_is_still_in_it_when_the_next_dispatcher_dies_at_once() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("begun");
    set.configure(&format!("{}[front]\nstore_after = \"1s\"\n", handed(1, "", &gated(&file, HELLO))));
    set.run();
    set.wait_until_up();
    let mut busy = connect(set.address(0));
    busy.write_all(&ask("/busy", "")).unwrap();
    wait_for_lines(&file, 1);
    let mut waiting = connect(set.address(0));
    waiting.write_all(&ask("/waits", "Connection: close\r\n")).unwrap();
    set.wait_for("it waits", |status| status["dispatcher"]["queue"] == 1);
    std::thread::sleep(Duration::from_millis(1300)); // store_after, and the way to the store
    for _ in 0..3 {
        let old = set.dispatcher_pid();
        signal_to(old, Signal::SIGKILL);
        set.wait_for("another dispatcher has it", |status| {
            status["dispatcher"]["pid"] != old && status["dispatcher"]["queue"] == 1
        });
    }
    fs::write(file.with_extension("go"), "").unwrap();
    assert_eq!(next_response(&mut busy).text(), "hello");
    assert_eq!(read_response(&mut waiting).unwrap().text(), "hello");
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2, "each began once");
    set.stop();
}

#[test]
fn a_proxy_says_whose_connection_it_is() {
    let script = "printf 'Content-Type: text/plain\\r\\n\\r\\n'; echo $REMOTE_ADDR $REMOTE_PORT";
    let pool = format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}");
    let set = TestSet::start(&handed(2, "proxy_protocol = true", &pool));
    let mut two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    two.extend([192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0, 80]);
    for header in [b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n".to_vec(), two] {
        for pieces in [vec![header.clone()], vec![header[..5].to_vec(), header[5..].to_vec()]] {
            let mut stream = connect(set.address(0));
            for piece in pieces {
                stream.write_all(&piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            // Of every request on it.
            for _ in 0..2 {
                stream.write_all(&ask("/", "")).unwrap();
                let mut bytes = [0; 4096];
                let mut seen = String::new();
                while !seen.ends_with("0\r\n\r\n") {
                    let n = stream.read(&mut bytes).unwrap();
                    assert!(n > 0, "{seen}");
                    seen.push_str(&text(&bytes[..n]));
                }
                assert!(seen.contains("192.0.2.7 4711"), "{seen}");
            }
        }
    }
    let mut stream = connect(set.address(0));
    stream.write_all(&ask("/", "")).unwrap();
    assert_eq!(rest(stream), (String::new(), true), "without a header nobody is served");
    set.stop();
}

#[test]
fn any_protocol_is_spoken_by_a_program_of_inetds() {
    let script = "echo hello $TCPREMOTEIP; read line; echo you said $line; exit 3";
    let pool = format!("handler = {{ inetd = [\"sh\", \"-c\", {script:?}] }}");
    let set = TestSet::start(&handed(2, "", &pool));
    for _ in 0..3 {
        let mut stream = connect(set.address(0));
        // Here the server speaks first.
        let mut greeting = [0; 16];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(text(&greeting), "hello 127.0.0.1\n");
        stream.write_all(b"wow\n").unwrap();
        assert_eq!(rest(stream), ("you said wow\n".into(), false));
    }
    set.stop();
}

#[test]
fn what_a_program_has_said_arrives_whole_also_if_it_did_not_listen_to_the_end() {
    let script = "head -c 1 >/dev/null; head -c 300000 /dev/zero";
    let set = TestSet::start(&handed(1, "", &format!("handler = {{ inetd = [\"sh\", \"-c\", {script:?}] }}")));
    // Most of it is still on its way when the program has ended, and behind it lies what nobody has read.
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&client, sockopt::RcvBuf, &4096).unwrap();
    let SocketAddr::V4(address) = set.address(0) else { panic!("IPv4") };
    nix::sys::socket::connect(client.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
    let mut client = TcpStream::from(client);
    client.write_all(&[b'x'; 50_000]).unwrap();
    wait_until("the program has ended", || {
        let worker = &set.status()["pools"][0]["workers"][0];
        (worker["served"].as_u64(), worker["state"].as_str()) == (Some(1), Some("idle"))
    });
    let (got, is_reset) = rest(client);
    assert_eq!((got.len(), is_reset), (300_000, false));
    set.stop();
}

#[test]
fn git_serves_a_clone_through_inetd() {
    let mut set = TestSet::prepare("");
    let top = set.test_dir().to_owned();
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&top).args(["-c", "user.name=a", "-c", "user.email=a@example.com"]).args(args);
        let output = git.env("GIT_CONFIG_GLOBAL", "/dev/null").output();
        output.map(|output| assert!(output.status.success(), "{args:?}: {}", text(&output.stderr)))
    };
    if git(&["init", "-q", "one"]).is_err() {
        assert!(std::env::var("CI").is_err(), "git is missing");
        return eprintln!("SKIPPED: git is not installed");
    }
    git(&["-C", "one", "commit", "-q", "--allow-empty", "-m", "first"]).unwrap();
    let base = top.display();
    set.configure(&handed(
        1,
        "",
        &format!("handler = {{ inetd = [\"git\", \"daemon\", \"--inetd\", \"--export-all\", \"--base-path={base}\", \"{base}\"] }}\n\
                  environment = {{ HOME = \"{base}\" }}"),
    ));
    fs::write(top.join(".gitconfig"), "[safe]\ndirectory = *\n").unwrap();
    set.run();
    set.wait_until_up();
    for name in ["two", "three"] {
        git(&["clone", "-q", &format!("git://{}/one", set.address(0)), name]).unwrap();
        git(&["-C", name, "log", "--oneline", "-1"]).unwrap();
    }
    set.stop();
}

#[test]
fn a_unix_listener_does_the_same() {
    let mut set = TestSet::prepare("");
    let path = set.test_dir().join("http.sock");
    set.configure(
        &handed(2, "", "").replace("127.0.0.1:0\"\ndelivery", &format!("unix:{}\"\ndelivery", path.display())),
    );
    set.run();
    set.wait_until_up();
    let mut stream = UnixStream::connect(&path).unwrap();
    for _ in 0..3 {
        stream.write_all(&ask("/unix", "")).unwrap();
        assert_eq!(next_response(&mut stream).text(), "GET /unix\n");
    }
    drop(stream);
    set.stop();
}

#[test]
fn ten_thousand_idle_connections_occupy_no_worker() {
    // On both sides each of them is a descriptor.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let count = (most / 2).min(10_000);
    if count < 10_000 {
        eprintln!("SKIPPED in part: {count} connections, because a process may have {most} descriptors (ulimit -Hn)");
    }
    let set = TestSet::start(&handed(4, "", ""));
    let address: SocketAddr = set.address(0);
    let mut idle = Vec::new();
    for _ in 0..count {
        let mut stream = connect(address);
        stream.write_all(&ask("/", "")).unwrap();
        next_response(&mut stream);
        idle.push(stream);
    }
    let since = Instant::now();
    for _ in 0..20 {
        assert_eq!(send_request(address, &ask("/", "Connection: close\r\n")).unwrap().status, 200);
    }
    assert!(since.elapsed() < Duration::from_secs(5));
    for stream in idle.iter_mut().step_by(20) {
        stream.write_all(&ask("/again", "")).unwrap();
        assert_eq!(next_response(stream).text(), "GET /again\n");
    }
    drop(idle);
    set.stop();
}
