//! Resources that run out: no part is killed for it, each client gets an outcome, and the set recovers by itself.

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::*;

/// One handoff listener before a gated pool; `pool` and `more` as in [`gated_pool`].
fn gated_handoff_pool(set: &TestSet, pool: &str, more: &str) -> String {
    gated_pool(set, 2, pool, more).replace("pool = \"default\"\n\n", "delivery = \"handoff\"\npool = \"default\"\n\n")
}

/// How many descriptors a process has open.
fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A set with one handoff listener and a low limit of open files.
fn start_with_open_files(limit: u32, pool: &str, more: &str) -> TestSet {
    let mut set = TestSet::prepare("");
    set.configure(&gated_handoff_pool(&set, pool, more));
    set.run_with_open_files(limit);
    set.wait_until_up();
    set
}

/// Sends a request that waits at the gate.
fn waiting_client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT * 2)).unwrap();
    stream.write_all(request_head("GET", "/", address, "Connection: close\r\n").as_bytes()).unwrap();
    stream
}

/// Waits until the watchdog has probed the dispatcher for some seconds, longer than `dispatcher_timeout`.
fn let_the_watchdog_judge(set: &TestSet) {
    let deadline = std::time::Instant::now() + Duration::from_secs(4);
    wait_until("the watchdog has judged the dispatcher", || std::time::Instant::now() > deadline);
    let status = set.status();
    assert_eq!((&status["dispatcher"]["restarts"], &status["dispatcher"]["state"]), (&0.into(), &"up".into()));
}

fn metrics(set: &TestSet) -> String {
    let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_response(&mut stream).unwrap().text()
}

fn metric(set: &TestSet, name: &str) -> f64 {
    let body = metrics(set);
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {body}")).parse().unwrap()
}

#[test]
fn clients_that_use_up_the_descriptors_do_not_look_like_a_frozen_dispatcher() {
    let set = start_with_open_files(300, "queue = 1000\nqueue_timeout = \"60s\"\nrequest_timeout = \"60s\"", "");
    set.wait_for_log(&["front.connections is 20000", "limit of open files (300)"]);
    let address = set.address(0);
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGHUP);
    let clients: Vec<_> = (0..400).map(|_| waiting_client(address)).collect();
    // The first report of the dispatcher brings it.
    wait_until("the places are known", || metrics(&set).contains("patou_connections_max "));
    set.wait_for("the places are used up", |_| {
        let places = metric(&set, "patou_connections_max");
        assert!(places < 300.0);
        metric(&set, "patou_connections") == places
    });
    let_the_watchdog_judge(&set);
    // New connections to probe.sock are accepted, and the limit holds with some descriptors left.
    assert_eq!(set.dispatcher_pid(), dispatcher);
    assert!(open_descriptors(dispatcher) < 300);
    assert!(!set.log().contains("cannot accept"), "{}", set.log());
    assert_eq!(set.log().matches("front.connections is 20000").count(), 1, "a reload changes nothing: {}", set.log());
    open_gate(&set);
    for mut client in clients {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    set.stop();
}

#[test]
fn queued_clients_survive_the_dispatcher_at_the_limit() {
    let set = start_with_open_files(300, "queue = 1000\nqueue_timeout = \"60s\"\nrequest_timeout = \"60s\"", "");
    let (address, watchdog) = (set.address(0), set.pid());
    let clients: Vec<_> = (0..150).map(|_| waiting_client(address)).collect();
    // Two are served: they may have been stored before, and are removed. So the number passes 148 and comes back to it.
    let unchanged = Cell::new(0);
    wait_until("the queued connections are stored, and no others", || {
        unchanged.set(if held_connections(watchdog, address) == 148 { unchanged.get() + 1 } else { 0 });
        unchanged.get() > 50
    });
    signal_to(set.dispatcher_pid(), Signal::SIGKILL);
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["restarts"] == 1 && status["dispatcher"]["queue"].as_u64() >= Some(148)
    });
    open_gate(&set);
    for mut client in clients {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    set.stop();
}

#[test]
fn limit_that_is_lowered_at_run_time_is_no_freeze() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let mut set = TestSet::prepare("");
    set.configure(&gated_handoff_pool(&set, "queue = 1000\nqueue_timeout = \"60s\"\nrequest_timeout = \"60s\"", ""));
    set.run();
    set.wait_until_up();
    let (address, dispatcher) = (set.address(0), set.dispatcher_pid());
    let first: Vec<_> = (0..100).map(|_| waiting_client(address)).collect();
    set.wait_for("the clients are queued", |status| status["dispatcher"]["queue"].as_u64() >= Some(98));
    let lowered = Command::new("prlimit").args([&format!("--pid={dispatcher}"), "--nofile=100:100"]).status();
    assert!(lowered.unwrap().success());
    let later: Vec<_> = (0..20).map(|_| waiting_client(address)).collect();
    set.wait_for_log(&["limit of open files (100)"]);
    set.wait_for_log(&["cannot accept connections"]);
    let_the_watchdog_judge(&set);
    assert_eq!(set.dispatcher_pid(), dispatcher);
    assert_eq!(set.log().matches("cannot accept connections").count(), 1, "warnings are limited");
    open_gate(&set);
    for mut client in first.into_iter().chain(later) {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    set.stop();
}

/// Sets the soft limit of open files of a process, which any user may raise again.
fn limit_open_files(pid: u32, soft: usize) {
    let limited = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={soft}:")]).status();
    assert!(limited.unwrap().success());
}

#[test]
fn limit_below_all_descriptors_in_use_does_not_keep_the_watchdog_out() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let set = TestSet::start(ECHO);
    let dispatcher = set.dispatcher_pid();
    limit_open_files(dispatcher, 5);
    // Each takes the place of another, the watchdog's too, which then has to connect again.
    let mut probes = Vec::new();
    for nonce in 1..40 {
        let mut stream = UnixStream::connect(set.runtime_dir().join("probe.sock")).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(format!("{{\"nonce\":{nonce}}}\n").as_bytes()).unwrap();
        let mut answer = [0; 1];
        assert!(stream.read_exact(&mut answer).is_ok(), "probe {nonce}: no answer");
        probes.push(stream);
    }
    // Meanwhile `patou status` has to share the two places with the watchdog.
    std::thread::sleep(Duration::from_secs(4));
    limit_open_files(dispatcher, 1000);
    set.wait_for("the dispatcher answers", |status| status["dispatcher"]["state"] == "up");
    assert_eq!(set.status()["dispatcher"]["restarts"], 0);
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    assert_eq!(set.dispatcher_pid(), dispatcher);
    drop(probes);
    set.stop();
}

#[test]
fn watchdog_without_descriptors_replaces_what_is_frozen_and_judges_nothing_that_it_cannot_sample() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let set = TestSet::start(ECHO);
    let (watchdog, workers) = (set.pid(), ["default/1", "default/2"]);
    let numbers: BTreeSet<usize> = fs::read_dir(format!("/proc/{watchdog}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect();
    let lowest_free = (0..).find(|number| !numbers.contains(number)).unwrap();
    // Nothing is free but what the watchdog holds in reserve.
    limit_open_files(watchdog, lowest_free);
    signal_to(set.worker_pid(workers[0]), Signal::SIGSTOP);
    set.wait_for_log(&["default/1", "is frozen"]);
    limit_open_files(watchdog, 1000);
    set.wait_for("the frozen worker is replaced", |status| worker_of(status, workers[0])["restarts"] == 1);
    // Not even that can be used: the same worker might be held by a debugger.
    let stopped = set.worker_pid(workers[1]);
    limit_open_files(watchdog, 3);
    signal_to(stopped, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(5));
    let state = fs::read_to_string(format!("/proc/{stopped}/stat")).unwrap();
    assert!(state.contains(") T ") && !set.log().contains("default/2 is frozen"), "{state}\n{}", set.log());
    limit_open_files(watchdog, 1000);
    set.wait_for_log(&["default/2", "is frozen"]);
    set.wait_for("the frozen worker is replaced", |status| worker_of(status, workers[1])["restarts"] == 1);
    set.stop();
}

#[test]
fn places_return_when_a_lowered_limit_is_raised_again() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let set = start_with_open_files(300, "queue = 1000\nqueue_timeout = \"60s\"\nrequest_timeout = \"60s\"", "");
    let (address, dispatcher) = (set.address(0), set.dispatcher_pid());
    wait_until("the places are known", || metrics(&set).contains("patou_connections_max "));
    let before = metric(&set, "patou_connections_max");
    limit_open_files(dispatcher, open_descriptors(dispatcher));
    let clients: Vec<_> = (0..60).map(|_| waiting_client(address)).collect();
    set.wait_for("fewer places", |_| metric(&set, "patou_connections_max") < before);
    limit_open_files(dispatcher, 300);
    set.wait_for("the places are back", |_| metric(&set, "patou_connections_max") == before);
    open_gate(&set);
    for mut client in clients {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    set.stop();
}

#[test]
fn set_serves_with_a_very_low_limit() {
    let set = start_with_open_files(64, "queue_timeout = \"60s\"\nrequest_timeout = \"60s\"", "");
    let address = set.address(0);
    let clients: Vec<_> = (0..100).map(|_| waiting_client(address)).collect();
    // admin.sock and probe.sock are held open as well.
    let hold = |name: &str| {
        let path = set.runtime_dir().join(name);
        (0..100).filter_map(|_| UnixStream::connect(&path).ok()).collect::<Vec<_>>()
    };
    let (admin, probe) = (hold("admin.sock"), hold("probe.sock"));
    assert!(admin.len() == 100 && probe.len() == 100);
    let_the_watchdog_judge(&set);
    open_gate(&set);
    for mut client in clients {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    drop((admin, probe));
    // Everything that is started for the set needs descriptors, too.
    signal_to(set.dispatcher_pid(), Signal::SIGKILL);
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["restarts"] == 1 && status["dispatcher"]["state"] == "up"
    });
    set.stop();
}

#[test]
fn silent_clients_of_the_probe_socket_do_not_keep_the_watchdog_out() {
    let mut set = TestSet::prepare(ECHO);
    set.run();
    let path = set.runtime_dir().join("probe.sock");
    // From before the first probe on, and again and again.
    wait_until("the socket exists", || path.exists());
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let mut held = Vec::new();
    while std::time::Instant::now() < deadline {
        held.extend(UnixStream::connect(&path));
        if held.len() == 300 {
            held.drain(..200);
        }
        if held.len() % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let status = set.wait_for("every part is up", |status| status["dispatcher"]["state"] == "up");
    assert_eq!(status["dispatcher"]["restarts"], 0, "{}", set.log());
    set.stop();
}

#[test]
fn limit_below_the_least_is_named_with_its_remedy() {
    let mut set = TestSet::prepare("");
    set.configure(&one_pool(12, "\"echo\"", ""));
    set.run_with_open_files(110);
    // The watchdog needs more than the dispatcher: whichever starts first with too little says so.
    wait_until("the cause is logged", || {
        let log = set.log();
        log.contains("limit of open files") || log.contains("Too many open files")
    });
}

#[test]
fn check_says_how_many_connections_the_limit_allows() {
    let set = TestSet::prepare(ECHO);
    let check = |limit: u32| {
        let script = format!("ulimit -n {limit} && exec \"$@\"");
        let config = set.config_file();
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_patou"), "check", "--config"]).arg(config);
        text(&command.output().unwrap().stdout)
    };
    let text = check(300);
    assert!(text.contains("note") && text.contains("front.connections is 20000") && text.contains("(300)"), "{text}");
    set.configure(&format!("{ECHO}\n[front]\nconnections = 100\n"));
    assert!(!check(300).contains("front.connections"));
}

#[test]
fn removal_from_the_store_is_not_lost_while_the_supervisor_does_not_read() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_handoff_pool(&set, "queue = 1000\nqueue_timeout = \"60s\"\nrequest_timeout = \"60s\"", ""));
    set.run();
    set.wait_until_up();
    let (address, watchdog) = (set.address(0), set.pid());
    let before = open_descriptors(watchdog);
    let clients: Vec<_> = (0..60).map(|_| waiting_client(address)).collect();
    // The two that are served are removed from the store at once.
    wait_until("the queued connections are stored", || held_connections(watchdog, address) >= 58);
    set.signal(Signal::SIGSTOP);
    open_gate(&set);
    for mut client in clients {
        assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    }
    // Longer than the dispatcher once tried to send a removal.
    std::thread::sleep(Duration::from_millis(1500));
    set.signal(Signal::SIGCONT);
    // The watchdog may have connected to the dispatcher meanwhile.
    wait_until("no connection is left in the store", || open_descriptors(watchdog) <= before + 2);
    set.stop();
}

#[test]
fn handler_that_cannot_be_started_for_lack_of_descriptors_is_503_not_started() {
    let pool = "limits = { open_files = \"32\" }";
    let set = TestSet::start(&one_pool(1, "{ exec = [\"/bin/true\"] }", pool));
    let response = get(set.address(0), "/").unwrap();
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(response.header("patou-outcome"), Some("not-started"));
    assert!(response.header("retry-after").is_some() && response.text().contains("Too many open files"));
    set.stop();
}

#[test]
fn max_memory_counts_shared_pages_once_and_the_record_names_the_value() {
    let python = r#"
import os, sys, time
held = b'x' * (40 << 20)
for _ in range(5):
    if os.fork() == 0:
        time.sleep(1000)
requests, responses = os.fdopen(3, 'rb'), os.fdopen(4, 'wb')
while True:
    length = 0
    while True:
        line = requests.readline()
        if not line:
            os._exit(0)
        if line == b'\n' or line == b'\r\n':
            break
        name, value = line.split(b':', 1)
        if name.lower() == b'content-length':
            length = int(value)
    requests.read(length)
    responses.write(b'Content-Length: 2\n\nok')
    responses.flush()
"#;
    if !is_installed("python3") {
        return eprintln!("SKIPPED: no python3 on this machine");
    }
    let start = |max: &str| {
        TestSet::start_with(|dir| {
            let program = dir.join("shared.py");
            fs::write(&program, python).unwrap();
            let handler = format!("{{ coprocess = [\"python3\", \"{}\"] }}", program.display());
            one_pool(1, &handler, &format!("max_memory = \"{max}\"\n{LONG_TIMEOUTS}"))
        })
    };
    // Six processes of more than 40 MB each, which share almost all of it; the limit has a jitter of 20 %.
    let set = start("150M");
    for _ in 0..3 {
        assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    }
    assert!(!set.log().contains("recycled"), "{}", set.log());
    set.stop();
    let set = start("20M");
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    let line = set.wait_for_log(&["more than max_memory"]);
    assert!(line.contains("used=") && line.contains("max="), "{line}");
    set.wait_for_log(&["warm process recycled"]);
    set.stop();
}

#[test]
fn evidence_names_the_descriptors() {
    let set = TestSet::start(ECHO);
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGSTOP);
    set.wait_for("the dispatcher is replaced", |status| status["dispatcher"]["restarts"] == 1);
    let log = set.log();
    let line = log.lines().find(|line| line.contains("descriptors: ")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(" of ") && line.contains(" open"), "{line}");
    set.stop();
}

#[test]
fn worker_that_has_no_descriptor_left_is_replaced_and_its_clients_get_an_outcome() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let handoff = ECHO.replace("pool = \"default\"\n\n", "delivery = \"handoff\"\npool = \"default\"\n\n");
    let set = TestSet::start(&handoff.replace("workers = 2", "workers = 1\nqueue_timeout = \"30s\""));
    let worker = set.worker_pid("default/1");
    let lowered = Command::new("prlimit").args([&format!("--pid={worker}"), "--nofile=4:4"]).status();
    assert!(lowered.unwrap().success());
    let mut client = waiting_client(set.address(0));
    assert_eq!(read_response(&mut client).map(|response| response.status), Ok(200));
    set.wait_for_log(&["has used up its limit of open files"]);
    assert_ne!(set.worker_pid("default/1"), worker);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    set.stop();
}
