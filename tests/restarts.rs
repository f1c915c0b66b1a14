//! While a worker is down or blocked, its address sends clients back to the dispatcher; a part that freezes while it
//! drains is replaced like any other.

mod support;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;

/// The bound of P2 after a 307 with the default timeouts, and time for a busy machine. All delays here are far longer.
const BOUND: Duration = Duration::from_secs(8);

/// An echo pool; a second unplanned restart of a worker is delayed by half a minute, a third one is not made.
fn delayed_pool(more: &str) -> String {
    format!(
        "{ECHO}{more}\n[watchdog]\nrestarts = {{ max = 2, within = \"60s\", delay = \"30s\", delay_max = \"30s\" }}\n"
    )
}

fn worker_address(set: &TestSet, id: &str) -> SocketAddr {
    set.worker(id)["address"].as_str().unwrap().parse().unwrap()
}

/// Kills a worker that has a process, and waits until the watchdog has noticed.
fn kill_worker(set: &TestSet, id: &str) {
    let pid = set.worker_pid(id);
    signal_to(pid, Signal::SIGKILL);
    set.wait_for("the watchdog notices the death", |status| worker_of(status, id)["pid"].as_u64() != Some(pid.into()));
}

/// Kills worker 1 until its restart is delayed, and returns its address.
fn delay_restart(set: &TestSet) -> SocketAddr {
    let address = worker_address(set, "default/1");
    kill_worker(set, "default/1");
    set.wait_for_worker("default/1", "idle");
    kill_worker(set, "default/1");
    assert_eq!(set.worker("default/1")["state"], "gone");
    address
}

/// The process that stands in for worker 1.
fn stand_in(set: &TestSet) -> Option<u32> {
    let is_stand_in = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == b"stand-in")
    };
    set.processes().into_iter().find(is_stand_in)
}

/// Expects that a client at this address is sent to `to`, soon.
#[track_caller]
fn assert_sent_back(set: &TestSet, address: SocketAddr, target: &str, to: &str) {
    let since = Instant::now();
    let head = request_head("GET", target, address, "");
    let response = send_request(address, head.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{}", set.log()));
    assert_eq!((response.status, response.header("patou-outcome")), (307, Some("not-started")), "{response:?}");
    assert_eq!(response.location(), (set.address(0).to_string().as_str(), to));
    assert!(since.elapsed() < BOUND, "after {:?}\n{}", since.elapsed(), set.log());
}

#[test]
fn address_of_a_worker_whose_restart_is_delayed_sends_clients_back() {
    let set = TestSet::start(&delayed_pool(""));
    let address = delay_restart(&set);
    let token = "0123456789abcdef0123456789abcdef";
    assert_sent_back(&set, address, &format!("/.patou/{token}/a/b?c=d"), "/a/b?c=d");
    assert_sent_back(&set, address, "/without/a/token", "/without/a/token");
    // A body is not in the way of the response.
    let mut stream = connect(address);
    let head = request_head("POST", &format!("/.patou/{token}/x"), address, "Content-Length: 300000\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().status, 307);
    assert_eq!(set.worker("default/1")["state"], "gone");
    assert_eq!(set.worker("default/1")["pid"], serde_json::Value::Null);
    set.stop();
}

#[test]
fn client_with_a_lease_of_a_worker_that_dies_is_served_by_another() {
    let set = TestSet::start(&delayed_pool("claim_timeout = \"20s\""));
    delay_restart(&set);
    // Only worker 2 is left.
    let (address, target) = request_lease(set.address(0), "/waits").unwrap();
    let early = TcpStream::connect(address).unwrap(); // accepted or in the backlog: its worker dies
    kill_worker(&set, "default/2");
    set.wait_for_worker("default/2", "idle");
    kill_worker(&set, "default/2");
    let since = Instant::now();
    let response = send_request(address, request_head("GET", &target, address, "").as_bytes()).unwrap();
    assert_eq!((response.status, response.location().1), (307, "/waits"));
    assert!(since.elapsed() < BOUND, "{:?}\n{}", since.elapsed(), set.log());
    drop(early);
    set.stop();
}

#[test]
fn failed_worker_has_a_stand_in_that_is_replaced_until_a_reload() {
    let set = TestSet::start(&delayed_pool("").replace("30s", "100ms"));
    let address = worker_address(&set, "default/1");
    for _ in 0..2 {
        kill_worker(&set, "default/1");
        set.wait_for_worker("default/1", "idle");
    }
    kill_worker(&set, "default/1");
    set.wait_for_worker("default/1", "failed");
    assert_sent_back(&set, address, "/x", "/x");
    // One that dies or freezes is replaced.
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let old = wait_for_value("a stand-in", || stand_in(&set));
        signal_to(old, signal);
        assert_sent_back(&set, address, "/x", "/x");
        assert!(stand_in(&set).is_some_and(|new| new != old), "{}", set.log());
    }
    set.wait_for_log(&["the stand-in of worker default/1 is frozen"]);
    set.signal(Signal::SIGHUP);
    set.wait_for_worker("default/1", "idle");
    wait_until("the stand-in ends", || stand_in(&set).is_none());
    assert_eq!(get(set.address(0), "/served").unwrap().status, 200);
    set.stop();
}

#[test]
fn program_that_dies_before_it_is_ready_has_a_stand_in() {
    let limits = "[watchdog]\nrestarts = { max = 3, within = \"60s\", delay = \"30s\", delay_max = \"30s\" }";
    let mut set = TestSet::prepare(&one_pool(1, r#"{ program = ["/bin/false"] }"#, limits));
    set.run();
    let pid = wait_for_value("a stand-in", || stand_in(&set));
    let address = wait_for_value("its address", || listening_address(pid));
    assert_sent_back(&set, address, "/x", "/x");
    set.stop();
}

/// The TCP address on which a process listens.
fn listening_address(pid: u32) -> Option<SocketAddr> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut listening = fields.filter(|fields| fields[3] == "0A" && sockets.iter().any(|inode| inode == fields[9]));
    let port = u16::from_str_radix(listening.next()?[1].split_once(':')?.1, 16).ok()?;
    Some(([127, 0, 0, 1], port).into())
}

#[test]
fn frozen_stand_in_delays_no_stop_and_survives_no_watchdog() {
    let mut set = TestSet::start(&delayed_pool(""));
    delay_restart(&set);
    let pid = wait_for_value("a stand-in", || stand_in(&set));
    signal_to(pid, Signal::SIGSTOP);
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the stand-in ends", || !is_alive(pid));
    set.run();
    set.wait_until_up();
    delay_restart(&set);
    signal_to(wait_for_value("a stand-in", || stand_in(&set)), Signal::SIGSTOP);
    set.stop();
}

#[test]
fn worker_with_a_blocked_serving_thread_sends_clients_back() {
    let handler = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    let set = TestSet::start(&one_pool(1, &handler, "request_timeout = \"60s\"\nclaim_timeout = \"20s\""));
    let dispatcher = set.address(0);
    assert_eq!(get(dispatcher, "/block/later?ms=100000").unwrap().text(), "later\n");
    set.wait_for_log(&["blocking the thread for"]);
    let since = Instant::now();
    let (address, target) = request_lease(dispatcher, "/x?y").unwrap();
    let response = send_request(address, request_head("GET", &target, address, "").as_bytes()).unwrap();
    assert_eq!((response.status, response.location().1), (307, "/x?y"), "{}", set.log());
    assert!(since.elapsed() < BOUND, "{:?}\n{}", since.elapsed(), set.log());
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL); // a drain would wait for the thread
    set.stop();
}

type Client = JoinHandle<Result<HttpResponse, String>>;

/// A set with this delivery whose three workers are busy until [`open_gate`].
fn busy_set(delivery: &str) -> (TestSet, Vec<Client>) {
    let mut set = TestSet::prepare("");
    let drain = "drain_timeout = \"10m\"\nrequest_timeout = \"10m\"";
    let delivery = format!("pool = \"default\"\ndelivery = \"{delivery}\"\n");
    set.configure(&gated_pool(&set, 3, drain, "").replace("pool = \"default\"\n", &delivery));
    set.run();
    set.wait_until_up();
    let clients = ["one", "two", "three"].map(|name| start_gated_request(&set, name));
    (set, clients.into())
}

/// Freezes worker 3, which is process `pid`, and waits for the verdict. The SIGCONT that follows a SIGTERM may come late.
fn freeze(set: &TestSet, pid: u32) {
    wait_until("the worker is declared frozen", || {
        let is_declared = set.log().contains("worker default/3 is frozen (no sign of life for");
        if !is_declared {
            signal_to(pid, Signal::SIGSTOP);
        }
        is_declared
    });
}

/// Of three requests, that of the frozen worker has failed, and the others have not.
#[track_caller]
fn assert_one_failed(set: &TestSet, clients: Vec<Client>) {
    let results: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let status = |result: &Result<HttpResponse, String>| result.as_ref().map_or(0, |response| response.status);
    assert_eq!(results.iter().filter(|result| status(result) == 200).count(), 2, "{results:?}\n{}", set.log());
    assert!(results.iter().all(|result| [0, 200, 502, 504].contains(&status(result))), "{results:?}");
}

#[test]
fn worker_that_freezes_while_the_set_stops_is_killed() {
    for delivery in ["redirect", "handoff"] {
        let (mut set, clients) = busy_set(delivery);
        let pid = set.worker_pid("default/3");
        set.signal(Signal::SIGTERM);
        set.wait_for_log(&["worker default/3", "stopping", "worker=default/3"]);
        freeze(&set, pid);
        open_gate(&set);
        assert_one_failed(&set, clients);
        assert_eq!(set.wait_for_exit(), Some(0), "{}", set.log());
        set.assert_nothing_left();
    }
}

#[test]
fn worker_that_freezes_after_the_dispatcher_of_a_stopping_set_is_killed() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let (mut set, clients) = busy_set("redirect");
        let (pid, dispatcher) = (set.worker_pid("default/3"), set.dispatcher_pid());
        set.signal(Signal::SIGTERM);
        set.wait_for_log(&["worker default/3", "stopping", "worker=default/3"]);
        signal_to(dispatcher, signal);
        freeze(&set, pid);
        open_gate(&set);
        assert_one_failed(&set, clients);
        assert_eq!(set.wait_for_exit(), Some(0), "{}", set.log());
        set.assert_nothing_left();
    }
}

#[test]
fn worker_that_freezes_after_a_reload_has_removed_it_is_killed_and_may_come_back() {
    for (delivery, comes_back) in [("redirect", false), ("handoff", true)] {
        let (set, clients) = busy_set(delivery);
        let pid = set.worker_pid("default/3");
        let config = fs::read_to_string(set.config_file()).unwrap();
        fs::write(set.config_file(), config.replace("workers = 3", "workers = 2")).unwrap();
        set.signal(Signal::SIGHUP);
        set.wait_for_log(&["worker default/3", "stopping", "worker=default/3"]);
        signal_to(pid, Signal::SIGSTOP);
        if comes_back {
            fs::write(set.config_file(), &config).unwrap();
            set.signal(Signal::SIGHUP);
        }
        freeze(&set, pid);
        wait_until("the worker ends", || !is_alive(pid));
        if comes_back {
            set.wait_for_worker("default/3", "idle");
        } else {
            set.wait_for_log(&["worker default/3 was removed from the set"]);
        }
        open_gate(&set);
        assert_one_failed(&set, clients);
        set.stop();
    }
}

/// The next dispatcher knows the configured workers only.
#[test]
fn removed_worker_that_freezes_under_the_next_dispatcher_is_killed() {
    let (set, clients) = busy_set("redirect");
    let (pid, dispatcher) = (set.worker_pid("default/3"), set.dispatcher_pid());
    let config = fs::read_to_string(set.config_file()).unwrap();
    fs::write(set.config_file(), config.replace("workers = 3", "workers = 2")).unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["worker default/3", "stopping", "worker=default/3"]);
    signal_to(dispatcher, Signal::SIGKILL);
    set.wait_for("the next dispatcher serves", |status| {
        status["dispatcher"]["pid"].as_u64().is_some_and(|new| new != u64::from(dispatcher))
    });
    freeze(&set, pid);
    set.wait_for_log(&["worker default/3 was removed from the set"]);
    open_gate(&set);
    assert_one_failed(&set, clients);
    set.stop();
}

#[test]
fn drained_worker_that_freezes_is_killed_and_stays_drained() {
    let (set, clients) = busy_set("handoff");
    let pid = set.worker_pid("default/3");
    let mut drain = set.command(&["drain", "default-3"]).stdout(Stdio::null()).spawn().unwrap();
    set.wait_for_log(&["taken out of service by an operator"]);
    freeze(&set, pid);
    assert!(drain.wait().unwrap().success(), "{}", set.log());
    set.wait_for("the worker is replaced", |status| {
        let worker = worker_of(status, "default/3");
        worker["state"] == "draining" && worker["pid"].as_u64().is_some_and(|new| new != u64::from(pid))
    });
    open_gate(&set);
    assert_one_failed(&set, clients);
    set.stop();
}

/// Starts worker 1 as systemd does, with its listening socket.
fn start_as_unit(set: &TestSet, listener: &TcpListener) -> Child {
    let script = r#"exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ SYSTEMD_EXEC_PID=$$; exec "$@""#;
    let log = fs::File::options().create(true).append(true).open(set.test_dir().join("log")).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", PATOU, "worker", "default-1", "--config"]).arg(set.config_file());
    command.env("PATOU_LOG", "debug").stdin(OwnedFd::from(listener.try_clone().unwrap())).stderr(log).spawn().unwrap()
}

#[test]
fn unit_that_waits_for_the_end_of_its_delay_sends_clients_back() {
    for handler in ["\"echo\"", r#"{ program = ["/bin/false"] }"#] {
        let delays = "[watchdog]\nrestarts = { max = 9, within = \"60s\", delay = \"40s\", delay_max = \"40s\" }";
        let set = TestSet::prepare(&one_pool(1, handler, delays));
        assert!(set.patou(&["ipc", "create"]).status.success());
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // Without a dispatcher there is no address to return to.
        let conflict = || send_request(address, request_head("GET", "/x", address, "").as_bytes()).unwrap();
        for _ in 0..2 {
            let mut worker = start_as_unit(&set, &listener);
            if handler == "\"echo\"" {
                assert_eq!(conflict().status, 409, "{}", set.log());
                worker.kill().unwrap();
            }
            worker.wait().unwrap();
        }
        assert!(!set.log().contains("waiting before it is ready"), "{}", set.log());
        let mut worker = start_as_unit(&set, &listener);
        let since = Instant::now();
        let response = conflict();
        assert_eq!((response.status, response.header("patou-outcome")), (409, Some("not-started")), "{}", set.log());
        assert!(since.elapsed() < BOUND, "{:?}\n{}", since.elapsed(), set.log());
        set.wait_for_log(&["waiting before it is ready"]);
        signal_to(worker.id(), Signal::SIGTERM);
        worker.wait().unwrap();
        assert!(set.patou(&["ipc", "remove"]).status.success());
        set.assert_nothing_left();
    }
}
