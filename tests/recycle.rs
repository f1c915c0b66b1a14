//! Recycling: a worker starts its next incarnation in the same process, and no client notices.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// The number of requests, overridden by `PATOU_TEST_REQUESTS=10000`.
fn requests(default: u32) -> u32 {
    std::env::var("PATOU_TEST_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Sends this many requests from eight clients; returns the failures.
fn send_many(address: SocketAddr, count: u32, target: &str, body: &[u8]) -> Vec<String> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let client = || {
            let mut failures = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                match request(address, "POST", target, body) {
                    Ok(response) if response.status == 200 && !response.body.is_empty() => {}
                    Ok(response) => failures.push(format!("{} {}", response.head, response.text())),
                    Err(error) => failures.push(error),
                }
            }
            failures
        };
        let clients = [0; 8].map(|_| scope.spawn(client));
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

fn workers(status: &Value) -> Vec<Value> {
    status["pools"][0]["workers"].as_array().unwrap().clone()
}

fn numbers(workers: &[Value], key: &str) -> Vec<u64> {
    workers.iter().map(|worker| worker[key].as_u64().unwrap()).collect()
}

/// Waits until all workers are idle, and returns them.
fn wait_until_idle(set: &TestSet) -> Vec<Value> {
    let idle = |status: &Value| workers(status).iter().all(|worker| worker["state"] == "idle");
    workers(&set.wait_for("all workers are idle", idle))
}

/// The length of the time at the start of a line of the log.
const TIME_LENGTH: usize = "00:00:00.000".len();

/// Checks in the log that a worker starts to recycle only when the previous one is ready again.
fn assert_recycled_one_at_a_time(set: &TestSet) {
    let mut recycling = None;
    let log = set.log();
    // By time: each process writes its lines in a thread, when it is scheduled.
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_by_key(|line| (line.get(..TIME_LENGTH), line.contains(" recycling ")));
    for line in lines.into_iter().skip_while(|line| !line.contains(" recycling ")) {
        let Some((_, worker)) = line.split_once("worker=") else { continue };
        let worker = worker.split(' ').next().unwrap().to_owned();
        if line.contains(" recycling ") {
            assert_eq!(recycling.replace(worker), None, "{line}\n{}", set.log());
        } else if line.contains(" ready ") {
            assert_eq!(recycling.take(), Some(worker), "{line}\n{}", set.log());
        }
    }
}

/// Sends `total` requests to `count` workers that recycle after ten requests; none may fail.
fn assert_recycling_fails_no_request(count: u16, handler: &str, total: u32) {
    let set = TestSet::start(&one_pool(count, handler, "max_requests = 10"));
    let before = wait_until_idle(&set);
    let failures = send_many(set.address(0), total, "/echo", b"some body");
    assert!(failures.is_empty(), "{} of {total} failed, first: {}\n{}", failures.len(), failures[0], set.log());
    let after = wait_until_idle(&set);
    assert_eq!(numbers(&before, "pid"), numbers(&after, "pid"));
    assert_eq!(numbers(&after, "restarts"), vec![0; count.into()]);
    assert_eq!(numbers(&after, "failed"), vec![0; count.into()]);
    let (served, epochs) = (numbers(&after, "served"), numbers(&after, "epoch"));
    assert_eq!(served.iter().sum::<u64>(), u64::from(total));
    for (served, epoch) in served.iter().zip(&epochs) {
        // An incarnation serves 8 to 12 requests, or one more before the dispatcher reacts.
        assert!(epoch - 1 <= served / 8, "{served} requests in {epoch} incarnations");
    }
    // A worker may wait until another one has recycled, but not for ever.
    assert!(epochs.iter().sum::<u64>() > u64::from(total) / 40, "{served:?} requests in {epochs:?} incarnations");
    assert_recycled_one_at_a_time(&set);
    println!("{count} x {handler}: {total} requests, incarnations {epochs:?}");
    set.stop();
}

#[test]
fn recycling_two_echo_workers_fails_no_request() {
    assert_recycling_fails_no_request(2, "\"echo\"", requests(2_000));
}

#[test]
fn recycling_four_echo_workers_fails_no_request() {
    assert_recycling_fails_no_request(4, "\"echo\"", requests(2_000));
}

#[test]
#[ignore = "many requests"]
fn recycling_during_ten_thousand_requests_fails_none() {
    for workers in [2, 4] {
        assert_recycling_fails_no_request(workers, "\"echo\"", 10_000);
    }
}

#[test]
fn recycling_exec_workers_fails_no_request() {
    let cat = toml_array(&["sh", "-c", "printf 'Content-Type: a/b\\n\\n'; exec cat"]);
    assert_recycling_fails_no_request(2, &format!("{{ exec = {cat} }}"), requests(400));
}

#[test]
fn recycling_program_workers_fails_no_request() {
    assert_recycling_fails_no_request(
        2,
        &format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")])),
        requests(1_000),
    );
}

/// No incarnation owns the slot at that moment, so that only the watchdog can detect the freeze.
#[test]
fn worker_that_freezes_between_two_incarnations_is_replaced() {
    let dir = std::env::temp_dir().join(format!("patou-between-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "cd '{}' && if mkdir first 2>/dev/null; then :; elif mkdir second 2>/dev/null; then kill -STOP $$; fi; exec '{}'",
        dir.display(),
        build_example("axum_worker")
    );
    let pool = one_pool(1, &format!("{{ program = {} }}", toml_array(&["sh", "-c", &script])), "max_requests = 1");
    let set = TestSet::start(&format!("{pool}\n[watchdog]\nstart_timeout = \"1s\"\n"));
    let frozen = set.worker_pid("default/1");
    assert_eq!(request(set.address(0), "POST", "/echo", b"a").unwrap().status, 200);
    set.wait_for_log(&["default/1 was not ready after 1s", "watchdog.start_timeout", "killing it"]);
    set.wait_for_log(&["worker default/1 is back in service"]);
    assert_ne!(set.worker_pid("default/1"), frozen);
    assert_eq!(request(set.address(0), "POST", "/echo", b"b").unwrap().status, 200);
    set.stop();
    fs::remove_dir_all(&dir).unwrap();
}

fn coprocess() -> String {
    let file = format!("{}/examples/coprocess.py", env!("CARGO_MANIFEST_DIR"));
    format!("{{ coprocess = {} }}", toml_array(&["python3", &file]))
}

#[test]
fn coprocess_is_recycled_without_a_restart_of_its_worker() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start(&one_pool(2, &coprocess(), "max_requests = 10"));
    let before = wait_until_idle(&set);
    let coprocesses = |workers: &[Value]| -> Vec<u32> {
        numbers(workers, "pid").into_iter().flat_map(|pid| children_of(pid as u32)).collect()
    };
    let old = coprocesses(&before);
    assert_eq!(old.len(), 2);
    let failures = send_many(set.address(0), requests(300), "/count", b"body");
    assert!(failures.is_empty(), "{} failed, first: {}\n{}", failures.len(), failures[0], set.log());
    let after = wait_until_idle(&set);
    for key in ["pid", "epoch", "restarts", "failed"] {
        assert_eq!(numbers(&before, key), numbers(&after, key), "{key}");
    }
    let new = coprocesses(&after);
    assert!(new.len() == 2 && new.iter().all(|pid| !old.contains(pid)), "{old:?} {new:?}");
    let log = set.log();
    let recycled = log.lines().filter(|line| line.contains("warm process recycled")).count();
    assert!(recycled >= 10, "{recycled}\n{log}");
    set.stop();
}

#[test]
fn reload_reaches_a_worker_with_a_coprocess() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start(&one_pool(1, &coprocess(), ""));
    let before = set.worker("default/1");
    assert!(get(set.address(0), "/a").unwrap().text().starts_with("GET /a: request 1"));
    set.configure(&one_pool(1, "\"echo\"", ""));
    set.signal(Signal::SIGHUP);
    set.wait_for("the next incarnation", |s| worker_of(s, "default/1")["epoch"].as_u64() > before["epoch"].as_u64());
    assert_eq!(get(set.address(0), "/a").unwrap().text(), "GET /a\n");
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
    assert_eq!(children_of(set.worker_pid("default/1")), Vec::<u32>::new());
    set.stop();
}

#[test]
fn max_age_and_max_memory_recycle_workers() {
    // One worker for max_memory: with two, the dispatcher would offer every lease to the worker that served last.
    for (count, limit) in [(2, "max_age = \"300ms\""), (1, "max_memory = \"1\"")] {
        let set = TestSet::start(&one_pool(count, "\"echo\"", limit));
        let before = wait_until_idle(&set);
        let recycled = |status: &Value| {
            let _ = get(set.address(0), "/"); // memory is checked after a request
            let now = numbers(&workers(status), "epoch");
            now.iter().zip(numbers(&before, "epoch")).all(|(now, before)| *now >= before + 3)
        };
        let after = workers(&set.wait_for("three more incarnations", recycled));
        assert_eq!(numbers(&before, "pid"), numbers(&after, "pid"), "{limit}");
        assert_eq!(numbers(&after, "restarts"), vec![0; count.into()], "{limit}");
        assert_recycled_one_at_a_time(&set);
        set.stop();
    }
}

#[test]
fn early_response_is_delivered_although_its_worker_recycles_next() {
    let set = TestSet::start(&one_pool(1, "\"echo\"", "max_requests = 1\n[front]\nmax_body = \"1000\""));
    let address = set.address(0);
    for round in 0..10 {
        let (worker, target) = request_lease(address, "/").unwrap();
        let mut stream = connect(worker);
        stream.write_all(request_head("POST", &target, worker, "Content-Length: 900000\r\n").as_bytes()).unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        // The response and the body are in transit, and the worker is about to recycle.
        let chunk = vec![b'x'; 9_000];
        for _ in 0..100 {
            let sent = stream.write_all(&chunk);
            assert!(sent.is_ok(), "round {round}: {sent:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let response = read_response(&mut first.chain(&mut stream)).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(response.status, 413);
    }
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((worker["failed"].as_u64(), worker["restarts"].as_u64()), (Some(10), Some(0)));
    set.stop();
}

/// A worker that recycles its co-process after each request. The co-process creates `exiting` and then takes long to
/// exit.
fn slowly_exiting_coprocess(dir: &Path, more: &str) -> String {
    let script = format!(
        "import sys, time\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nimport coprocess\n\
         coprocess.main()\nopen({:?}, 'w').close()\ntime.sleep(100)\n",
        format!("{}/examples", env!("CARGO_MANIFEST_DIR")),
        dir.join("exiting"),
    );
    fs::write(dir.join("slow.py"), script).unwrap();
    let file = dir.join("slow.py").into_os_string().into_string().unwrap();
    one_pool(1, &format!("{{ coprocess = {} }}", toml_array(&["python3", &file])), &format!("max_requests = 1\n{more}"))
}

#[test]
fn drained_worker_stays_drained_after_recycling() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start_with(|dir| slowly_exiting_coprocess(dir, ""));
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    wait_until("the co-process is exiting", || set.test_dir().join("exiting").exists());
    assert!(set.patou(&["drain", "default-1"]).status.success());
    set.wait_for_log(&["warm process recycled"]);
    assert_eq!(set.wait_for_worker("default/1", "draining")["state"], "draining");
    assert!(set.patou(&["resume", "default-1"]).status.success());
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

/// A worker that delays its next incarnation, because its client neither reads the last response nor closes.
fn about_to_recycle(front: &str) -> (TestSet, std::net::TcpStream) {
    let set = TestSet::start(&one_pool(1, "\"echo\"", &format!("max_requests = 1\ndrain_timeout = \"6s\"\n{front}")));
    let client = send_to_worker(set.address(0), "GET", "/", "1.1", "", b"");
    set.wait_for("the worker has served and prepares to recycle", |s| {
        let worker = worker_of(s, "default/1");
        (&worker["served"], &worker["state"]) == (&1.into(), &"starting".into())
    });
    (set, client)
}

#[test]
fn stop_during_recycling_is_obeyed() {
    let (mut set, client) = about_to_recycle("[front]\nlinger_timeout = \"2s\"");
    set.signal(Signal::SIGTERM);
    let start = std::time::Instant::now();
    assert_eq!(set.wait_for_exit(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}\n{}", start.elapsed(), set.log());
    assert!(!set.log().contains("drain_timeout"), "{}", set.log());
    set.assert_nothing_left();
    drop(client);
}

#[test]
fn recycling_worker_exits_when_its_watchdog_dies() {
    let (mut set, client) = about_to_recycle("[front]\nlinger_timeout = \"2s\"");
    let worker = set.worker_pid("default/1");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the worker exits", || !is_alive(worker));
    drop(client);
    set.run();
    set.wait_until_up();
    set.stop();
}

/// Each round stops the set at another moment of recycling.
#[test]
fn stop_between_two_incarnations_is_obeyed() {
    for round in 0..8 {
        let mut set = TestSet::start(&one_pool(4, "\"echo\"", "max_requests = 1\ndrain_timeout = \"10s\""));
        let (address, running) = (set.address(0), std::sync::atomic::AtomicBool::new(true));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while running.load(Ordering::Relaxed) {
                        let _ = get(address, "/");
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(100 + 17 * round));
            set.signal(Signal::SIGTERM);
            let start = std::time::Instant::now();
            assert_eq!(set.wait_for_exit(), Some(0));
            running.store(false, Ordering::Relaxed);
            assert!(start.elapsed() < Duration::from_secs(8), "{:?}\n{}", start.elapsed(), set.log());
        });
        set.assert_nothing_left();
    }
}

#[test]
fn reload_while_a_coprocess_is_recycled_is_obeyed() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start_with(|dir| slowly_exiting_coprocess(dir, ""));
    let before = set.worker("default/1");
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    // The co-process takes a second to exit.
    wait_until("the co-process is exiting", || set.test_dir().join("exiting").exists());
    set.configure(&slowly_exiting_coprocess(set.test_dir(), "environment = { WORD = \"new\" }"));
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["watchdog", "configuration applied"]);
    let reloaded = |s: &Value| worker_of(s, "default/1")["epoch"].as_u64() > before["epoch"].as_u64();
    set.wait_for("the next incarnation", reloaded);
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}
