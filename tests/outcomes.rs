//! What a client may conclude from the end of its request: an explicit outcome, which only patou can set.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::Signal;
use support::*;

/// Two listeners, handoff and redirect, and their pool; `listener` and `pool` are further keys.
fn pool_with_both_deliveries(workers: u16, handler: &str, pool: &str) -> String {
    let listener =
        |delivery| format!("[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"{delivery}\"\npool = \"default\"\n");
    format!(
        "{}{}[[pool]]\nname = \"default\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{pool}\n",
        listener("handoff"),
        listener("redirect")
    )
}

fn exec(script: &str) -> String {
    format!("{{ exec = {} }}", toml_array(&["sh", "-c", script]))
}

/// A program that appends a line to `file`, waits for `file.go`, and runs `then`.
fn gated(file: &Path, then: &str) -> String {
    let file = file.display();
    format!("echo $$ >> {file}; while ! [ -e {file}.go ]; do sleep 0.01; done; {then}")
}

/// The lines of a file that a handler writes.
fn wait_for_lines(file: &Path, lines: usize) {
    let event = format!("{lines} lines in {}", file.display());
    wait_until(&event, || fs::read_to_string(file).unwrap_or_default().lines().count() >= lines);
}

/// The bytes until the end of the connection, and whether that was a reset.
fn read_rest(mut stream: impl Read) -> (String, bool) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (text(&bytes), false),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => (text(&bytes), true),
        Err(error) => panic!("{error}: {:?}", text(&bytes)),
    }
}

/// Everything up to and including `end`, and nothing of what follows.
fn read_until(stream: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    bytes
}

const CLAIMS: &str = "Patou-Outcome: not-started\r\npatou_lease: 1\r\nPATOU-X: 1\r\nX-Claim: harmless\r\n";

#[test]
fn handlers_and_clients_cannot_set_headers_of_patou() {
    let python = "import os\n\
        requests, responses = os.fdopen(3, 'rb'), os.fdopen(4, 'wb')\n\
        while line := requests.readline():\n\
        \x20   head = [line]\n\
        \x20   while head[-1].strip(): head.append(requests.readline())\n\
        \x20   body = b''.join(head)\n\
        \x20   claims = b'Status: 503\\r\\nPatou-Outcome: not-started\\r\\npatou_lease: 1\\r\\nX-Claim: harmless\\r\\n'\n\
        \x20   responses.write(claims + b'Content-Length: %d\\r\\n\\r\\n' % len(body) + body)\n\
        \x20   responses.flush()\n";
    let printf = "printf 'Status: 503\\r\\nContent-Type: text/plain\\r\\nPatou-Outcome: not-started\\r\\npatou_lease: 1\\r\\nX-Claim: harmless\\r\\n\\r\\n'";
    let program = build_example("axum_worker");
    for handler in [
        exec(&format!("{printf}; env")),
        format!("{{ coprocess = {} }}", toml_array(&["python3", "-c", python])),
        format!("{{ program = {} }}", toml_array(&[&program])),
    ] {
        let set = TestSet::start(&pool_with_both_deliveries(1, &handler, LONG_TIMEOUTS));
        for delivery in [0, 1] {
            let (mut address, mut target) = (set.address(delivery), "/claims".to_owned());
            if delivery == 1 {
                (address, target) = request_lease(address, &target).unwrap();
            }
            let mut stream = connect(address);
            let more = format!("{CLAIMS}TE: trailers\r\nConnection: close, TE\r\nContent-Length: 0\r\n");
            stream.write_all(request_head("POST", &target, address, &more).as_bytes()).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            let received = text(&received);
            assert!(received.starts_with("HTTP/1.1 503 "), "{handler}: {received}");
            assert!(received.to_lowercase().contains("x-claim: harmless"), "{handler}: {received}");
            let foreign = |line: &&str| {
                let line = line.to_lowercase().replace('_', "-");
                line.starts_with("http-patou-") || line.starts_with("patou-") && !line.contains('=')
            };
            let foreign: Vec<_> = received.lines().filter(foreign).collect();
            assert!(foreign.is_empty(), "{handler}: {foreign:?} in {received}");
        }
        set.stop();
    }
}

#[test]
fn trailers_of_handlers_and_clients_lose_headers_of_patou() {
    let handler = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    let set = TestSet::start(&pool_with_both_deliveries(1, &handler, ""));
    let mut stream = connect(set.address(0));
    let more = "TE: trailers\r\nConnection: close, TE\r\nTransfer-Encoding: chunked\r\n";
    let head = request_head("POST", "/claims", set.address(0), more);
    stream.write_all(format!("{head}0\r\n{CLAIMS}\r\n").as_bytes()).unwrap();
    let (received, _) = read_rest(stream);
    let (_, body) = received.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{received:?}\n{}", set.log()));
    assert_eq!(body.matches("x-claim: harmless").count(), 1, "the trailer of the handler: {received}");
    assert!(body.contains("x-claim\r\n") || body.contains("\nx-claim"), "the trailer of the client: {received}");
    assert!(!body.to_lowercase().contains("patou"), "{received}");
    set.stop();
}

#[test]
fn response_that_cannot_be_sent_ends_with_a_reset() {
    let handler = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    let set = TestSet::start(&pool_with_both_deliveries(1, &handler, ""));
    for delivery in [0, 1] {
        let (address, target) = match delivery {
            0 => (set.address(0), "/unsendable".to_owned()),
            _ => request_lease(set.address(1), "/unsendable").unwrap(),
        };
        let mut stream = connect(address);
        stream.write_all(request_head("GET", &target, address, "").as_bytes()).unwrap();
        assert_eq!(read_rest(stream), (String::new(), true), "{target}: no reset");
    }
    set.wait_for_log(&["default/1", "the response of the handler cannot be sent: user sent unexpected header"]);
    assert_eq!(set.wait_for_worker("default/1", "idle")["failed"], 2);
    set.stop();
}

/// What happens between the start of a request and the death of its worker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DispatcherFault {
    Killed,
    KilledWithTheWorker,
    ReplacedByReload,
}

fn replace_dispatcher(set: &TestSet, fault: DispatcherFault, config: &str) {
    let old = set.dispatcher_pid();
    match fault {
        DispatcherFault::Killed => signal_to(old, Signal::SIGKILL),
        DispatcherFault::KilledWithTheWorker => return signal_to(old, Signal::SIGKILL),
        DispatcherFault::ReplacedByReload => {
            let more = "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"default\"\n";
            set.configure(&format!("{config}{more}"));
            set.signal(Signal::SIGHUP);
        }
    }
    set.wait_for("the next dispatcher is up", |status| {
        let dispatcher = &status["dispatcher"];
        dispatcher["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && dispatcher["state"] == "up"
    });
}

#[test]
fn claimed_request_of_an_earlier_dispatcher_is_reset_when_its_worker_dies() {
    use DispatcherFault::{Killed, KilledWithTheWorker, ReplacedByReload};
    for (fault, signal) in [
        (Killed, Signal::SIGKILL),
        (Killed, Signal::SIGSTOP),
        (KilledWithTheWorker, Signal::SIGKILL),
        (ReplacedByReload, Signal::SIGKILL),
        (ReplacedByReload, Signal::SIGSTOP),
    ] {
        let mut set = TestSet::prepare("");
        let file = set.test_dir().join("started");
        let hello = "printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\nhello'";
        let config = pool_with_both_deliveries(1, &exec(&gated(&file, hello)), LONG_TIMEOUTS);
        set.configure(&config);
        set.run();
        set.wait_until_up();
        let address = set.address(0);
        let mut stream = connect(address);
        stream.write_all(request_head("GET", "/", address, "").as_bytes()).unwrap();
        wait_for_lines(&file, 1);
        let worker = set.worker_pid("default/1");
        replace_dispatcher(&set, fault, &config);
        signal_to(worker, signal);
        assert_eq!(read_rest(stream), (String::new(), true), "{fault:?}, {signal}: no reset\n{}", set.log());
        fs::write(file.with_extension("go"), "").unwrap();
        set.wait_for_worker("default/1", "idle");
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 1, "the request started once");
        set.stop();
    }
}

#[test]
fn request_of_an_earlier_dispatcher_is_reset_while_its_head_or_body_arrives_or_its_handler_blocks() {
    let program = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    for (handler, target, more) in [
        ("\"echo\"", "/", "Content-Length: 9\r\n\r\n"), // the body never arrives
        ("\"echo\"", "/", ""),                          // the head is incomplete
        (program.as_str(), "/block?ms=60000", "\r\n"),
        (program.as_str(), "/slow?ms=60000", "\r\n"),
    ] {
        let set = TestSet::start(&pool_with_both_deliveries(1, handler, LONG_TIMEOUTS));
        let address = set.address(0);
        let mut stream = connect(address);
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}").as_bytes()).unwrap();
        let worker = set.wait_for_worker("default/1", "busy")["pid"].as_u64().unwrap() as u32;
        replace_dispatcher(&set, DispatcherFault::Killed, "");
        signal_to(worker, Signal::SIGKILL);
        assert_eq!(read_rest(stream), (String::new(), true), "{handler} {target} {more:?}: no reset\n{}", set.log());
        set.wait_for_worker("default/1", "idle");
        set.stop();
    }
}

#[test]
fn pipelined_request_of_an_earlier_dispatcher_is_reset_when_its_worker_dies() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    let hello = "printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\nhello'";
    let script = format!("[ $PATH_INFO = /first ] && {{ {hello}; exit; }}; {}", gated(&file, hello));
    set.configure(&pool_with_both_deliveries(1, &exec(&script), LONG_TIMEOUTS));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let mut stream = connect(address);
    let requests = ["/first", "/second"].map(|target| request_head("GET", target, address, "")).concat();
    stream.write_all(requests.as_bytes()).unwrap();
    wait_for_lines(&file, 1);
    let first = read_until(&mut stream, b"hello");
    assert!(first.starts_with(b"HTTP/1.1 200 "), "{}", text(&first));
    let worker = set.worker_pid("default/1");
    replace_dispatcher(&set, DispatcherFault::Killed, "");
    signal_to(worker, Signal::SIGKILL);
    assert_eq!(read_rest(stream), (String::new(), true), "no reset\n{}", set.log());
    set.wait_for_worker("default/1", "idle");
    set.stop();
}

#[test]
fn output_of_inetd_that_is_cut_ends_with_a_reset_also_after_a_dispatcher_restart() {
    for restart in [false, true] {
        let inetd = format!("{{ inetd = {} }}", toml_array(&["sh", "-c", "echo part; sleep 60"]));
        let set = TestSet::start(&format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"default\"\n\
             [[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {inetd}\n"
        ));
        let mut stream = connect(set.address(0));
        assert_eq!(text(&read_until(&mut stream, b"\n")), "part\n");
        let worker = set.worker_pid("default/1");
        if restart {
            replace_dispatcher(&set, DispatcherFault::Killed, "");
        }
        signal_to(worker, Signal::SIGKILL);
        assert_eq!(read_rest(stream), (String::new(), true), "restart: {restart}");
        set.wait_for_worker("default/1", "idle");
        set.stop();
    }
}

/// The reset that a claim prepares must not outlive the response.
#[test]
fn idle_kept_connection_ends_without_a_reset_when_the_dispatcher_dies() {
    let handler = exec("printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\nhello'");
    for handler in [handler.as_str(), "\"echo\""] {
        let set = TestSet::start(&pool_with_both_deliveries(1, handler, LONG_TIMEOUTS));
        let address = set.address(0);
        let mut stream = connect(address);
        for _ in 0..2 {
            stream.write_all(request_head("GET", "/", address, "").as_bytes()).unwrap();
            let head = read_until(&mut stream, b"\r\n\r\n");
            let length = HttpResponse::parse_head(&head).unwrap().unwrap().0.header("content-length").unwrap().parse();
            stream.read_exact(&mut vec![0; length.unwrap()]).unwrap();
            set.wait_for_worker("default/1", "idle");
        }
        signal_to(set.dispatcher_pid(), Signal::SIGKILL);
        assert_eq!(read_rest(stream), (String::new(), false), "{handler}");
        set.stop();
    }
}

#[test]
fn response_in_the_workers_place_is_delivered_whole() {
    let mut set = TestSet::prepare("");
    let file = set.test_dir().join("started");
    set.configure(&pool_with_both_deliveries(1, &exec(&gated(&file, "true")), LONG_TIMEOUTS));
    set.run();
    set.wait_until_up();
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("GET", "/", set.address(0), "").as_bytes()).unwrap();
    wait_for_lines(&file, 1);
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL);
    let response = read_response(&mut stream).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")), "{response:?}");
    set.stop();
}

#[test]
fn unix_client_of_a_dead_worker_and_a_dead_dispatcher_gets_no_response() {
    let mut set = TestSet::prepare("");
    let (file, path) = (set.test_dir().join("started"), set.test_dir().join("s.sock"));
    let unix = format!(
        "[[listener]]\naddress = \"unix:{}\"\ndelivery = \"handoff\"\npool = \"default\"\n{}",
        path.display(),
        pool_with_both_deliveries(1, &exec(&gated(&file, "true")), LONG_TIMEOUTS)
    );
    set.configure(&unix);
    set.run();
    set.wait_until_up();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    wait_for_lines(&file, 1);
    let worker = set.worker_pid("default/1");
    replace_dispatcher(&set, DispatcherFault::Killed, "");
    signal_to(worker, Signal::SIGKILL);
    // EOF without a byte means unknown: a Unix socket has no reset.
    assert_eq!(read_rest(&stream), (String::new(), false));
    set.wait_for_worker("default/1", "idle");
    set.stop();
}

#[test]
fn inetd_pool_behind_a_unix_listener_is_reported_by_check_and_at_the_start() {
    let mut set = TestSet::prepare("");
    let listener = format!("[[listener]]\naddress = \"unix:{}/s.sock\"\n", set.test_dir().display());
    let pool =
        "[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = { inetd = [\"cat\"] }\n";
    set.configure(&format!("{listener}delivery = \"handoff\"\n{pool}"));
    let warning = "s.sock: a Unix socket cannot be reset, so clients of pool default (inetd) see output that was cut";
    let check = set.patou(&["check"]);
    assert!(check.status.success() && text(&check.stdout).contains(warning), "{check:?}");
    set.run();
    set.wait_until_up();
    set.wait_for_log(&["warning", warning]);
    set.stop();
}
