//! Workers that have served long enough are replaced in their place: nobody notices.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// `PATOU_TEST_REQUESTS=10000` for more than the usual.
fn requests(usual: u32) -> u32 {
    std::env::var("PATOU_TEST_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// So many requests by eight clients; what failed.
fn hammer(address: SocketAddr, count: u32, target: &str, body: &[u8]) -> Vec<String> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let client = || {
            let mut failures = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                match request(address, "POST", target, body) {
                    Ok(answer) if answer.status == 200 && !answer.body.is_empty() => {}
                    Ok(answer) => failures.push(format!("{} {}", answer.head, answer.text())),
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

/// Waits until nobody serves or is being replaced, and returns all workers.
fn at_rest(set: &TestSet) -> Vec<Value> {
    let idle = |status: &Value| workers(status).iter().all(|worker| worker["state"] == "idle");
    workers(&set.wait_for("all being idle", idle))
}

/// In the log each life begins before another worker's ends: no two workers were ever out at the same time.
fn assert_never_two_out(set: &TestSet) {
    let mut out = None;
    for line in set.log().lines().skip_while(|line| !line.contains(" recycling ")) {
        let Some((_, worker)) = line.split_once("worker=") else { continue };
        let worker = worker.split(' ').next().unwrap().to_owned();
        if line.contains(" recycling ") {
            assert_eq!(out.replace(worker), None, "{line}\n{}", set.log());
        } else if line.contains(" ready ") {
            assert_eq!(out.take(), Some(worker), "{line}\n{}", set.log());
        }
    }
}

/// `count` requests through `handler`, none of which may fail; every worker is replaced again and again.
fn unnoticed(count: u16, handler: &str, total: u32) {
    let set = TestSet::start(&one_pool(count, handler, "max_requests = 10"));
    let before = at_rest(&set);
    let failures = hammer(set.address(0), total, "/echo", b"some body");
    assert!(failures.is_empty(), "{} of {total} failed, first: {}\n{}", failures.len(), failures[0], set.log());
    let after = at_rest(&set);
    assert_eq!(numbers(&before, "pid"), numbers(&after, "pid"));
    assert_eq!(numbers(&after, "restarts"), vec![0; count.into()]);
    assert_eq!(numbers(&after, "failed"), vec![0; count.into()]);
    let (served, epochs) = (numbers(&after, "served"), numbers(&after, "epoch"));
    assert_eq!(served.iter().sum::<u64>(), u64::from(total));
    for (served, epoch) in served.iter().zip(&epochs) {
        // 12 is the longest life, 8 the shortest; a request may slip in before the dispatcher has its turn.
        assert!(epoch - 1 <= served / 8, "{served} requests in {epoch} lives");
    }
    // Waiting for its turn is allowed, forgetting is not.
    assert!(epochs.iter().sum::<u64>() > u64::from(total) / 40, "{served:?} requests in {epochs:?} lives");
    assert_never_two_out(&set);
    println!("{count} x {handler}: {total} requests, lives {epochs:?}");
    set.stop();
}

#[test]
fn two_echo_workers_are_recycled_unnoticed() {
    unnoticed(2, "\"echo\"", requests(2_000));
}

#[test]
fn four_echo_workers_are_recycled_unnoticed() {
    unnoticed(4, "\"echo\"", requests(2_000));
}

#[test]
#[ignore = "many requests"]
fn ten_thousand_requests_are_served_unnoticed() {
    for workers in [2, 4] {
        unnoticed(workers, "\"echo\"", 10_000);
    }
}

#[test]
fn exec_workers_are_recycled_unnoticed() {
    let cat = toml_array(&["sh", "-c", "printf 'Content-Type: a/b\\n\\n'; exec cat"]);
    unnoticed(2, &format!("{{ exec = {cat} }}"), requests(400));
}

#[test]
fn programs_are_recycled_unnoticed() {
    unnoticed(2, &format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")])), requests(1_000));
}

/// Its slot is nobody's then, so that the dispatcher cannot ask it: only the watchdog knows that it should be there.
#[test]
fn a_worker_that_is_frozen_between_two_lives_is_replaced() {
    let top = std::env::temp_dir().join(format!("patou-between-{}", std::process::id()));
    fs::create_dir_all(&top).unwrap();
    let script = format!(
        "cd '{}' && if mkdir first 2>/dev/null; then :; elif mkdir second 2>/dev/null; then kill -STOP $$; fi; exec '{}'",
        top.display(),
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
    fs::remove_dir_all(&top).unwrap();
}

fn coprocess() -> String {
    let file = format!("{}/examples/coprocess.py", env!("CARGO_MANIFEST_DIR"));
    format!("{{ coprocess = {} }}", toml_array(&["python3", &file]))
}

#[test]
fn a_coprocess_is_changed_and_its_worker_stays() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start(&one_pool(2, &coprocess(), "max_requests = 10"));
    let before = at_rest(&set);
    let interpreters = |workers: &[Value]| -> Vec<u32> {
        numbers(workers, "pid").into_iter().flat_map(|pid| children_of(pid as u32)).collect()
    };
    let old = interpreters(&before);
    assert_eq!(old.len(), 2);
    let failures = hammer(set.address(0), requests(300), "/count", b"body");
    assert!(failures.is_empty(), "{} failed, first: {}\n{}", failures.len(), failures[0], set.log());
    let after = at_rest(&set);
    for key in ["pid", "epoch", "restarts", "failed"] {
        assert_eq!(numbers(&before, key), numbers(&after, key), "{key}");
    }
    let new = interpreters(&after);
    assert!(new.len() == 2 && new.iter().all(|pid| !old.contains(pid)), "{old:?} {new:?}");
    let log = set.log();
    let changes = log.lines().filter(|line| line.contains("co-process recycled")).count();
    assert!(changes >= 10, "{changes}\n{log}");
    set.stop();
}

#[test]
fn a_reload_reaches_a_worker_with_a_coprocess() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start(&one_pool(1, &coprocess(), ""));
    let before = set.worker("default/1");
    assert!(get(set.address(0), "/a").unwrap().text().starts_with("GET /a: request 1"));
    set.configure(&one_pool(1, "\"echo\"", ""));
    set.signal(Signal::SIGHUP);
    set.wait_for("the next life", |s| worker_of(s, "default/1")["epoch"].as_u64() > before["epoch"].as_u64());
    assert_eq!(get(set.address(0), "/a").unwrap().text(), "GET /a\n");
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
    assert_eq!(children_of(set.worker_pid("default/1")), Vec::<u32>::new());
    set.stop();
}

#[test]
fn age_and_memory_end_a_life_too() {
    // With one worker where memory is the bound: the worker that served last is asked first, and serves again.
    for (count, bound) in [(2, "max_age = \"300ms\""), (1, "max_memory = \"1\"")] {
        let set = TestSet::start(&one_pool(count, "\"echo\"", bound));
        let before = at_rest(&set);
        let later = |status: &Value| {
            let _ = get(set.address(0), "/"); // memory is looked at after a request
            let now = numbers(&workers(status), "epoch");
            now.iter().zip(numbers(&before, "epoch")).all(|(now, before)| *now >= before + 3)
        };
        let after = workers(&set.wait_for("three more lives", later));
        assert_eq!(numbers(&before, "pid"), numbers(&after, "pid"), "{bound}");
        assert_eq!(numbers(&after, "restarts"), vec![0; count.into()], "{bound}");
        assert_never_two_out(&set);
        set.stop();
    }
}

#[test]
fn an_early_answer_survives_the_recycling_after_it() {
    let set = TestSet::start(&one_pool(1, "\"echo\"", "max_requests = 1\n[front]\nmax_body = \"1000\""));
    let address = set.address(0);
    for round in 0..10 {
        let (worker, target) = request_lease(address, "/").unwrap();
        let mut stream = connect(worker);
        stream.write_all(request_head("POST", &target, worker, "Content-Length: 900000\r\n").as_bytes()).unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        // The answer is on its way, the body as well, and the worker wants to begin its next life.
        let piece = vec![b'x'; 9_000];
        for _ in 0..100 {
            let sent = stream.write_all(&piece);
            assert!(sent.is_ok(), "round {round}: {sent:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = read_response(&mut first.chain(&mut stream)).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(answer.status, 413);
    }
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((worker["failed"].as_u64(), worker["restarts"].as_u64()), (Some(10), Some(0)));
    set.stop();
}

#[test]
fn who_is_taken_out_of_service_stays_out_when_recycled() {
    if !is_installed("python3") {
        return;
    }
    // A co-process that takes its time to leave, so that the order comes while it is being changed.
    let set = TestSet::start_with(|dir| {
        let script = format!(
            "import sys, time\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nimport coprocess\n\
             coprocess.main()\nopen({:?}, 'w').close()\ntime.sleep(100)\n",
            format!("{}/examples", env!("CARGO_MANIFEST_DIR")),
            dir.join("leaving"),
        );
        fs::write(dir.join("slow.py"), script).unwrap();
        let file = dir.join("slow.py").into_os_string().into_string().unwrap();
        one_pool(1, &format!("{{ coprocess = {} }}", toml_array(&["python3", &file])), "max_requests = 1")
    });
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    wait_for_value("the farewell", || set.test_dir().join("leaving").exists().then_some(()));
    assert!(set.patou(&["drain", "default-1"]).status.success());
    set.wait_for_log(&["co-process recycled"]);
    assert_eq!(set.wait_for_worker("default/1", "draining")["state"], "draining");
    assert!(set.patou(&["resume", "default-1"]).status.success());
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

/// A worker whose last answer lies unread at a client that does not close: it waits with its next life.
fn about_to_recycle(front: &str) -> (TestSet, std::net::TcpStream) {
    let set = TestSet::start(&one_pool(1, "\"echo\"", &format!("max_requests = 1\ndrain_timeout = \"6s\"\n{front}")));
    let client = send_to_worker(set.address(0), "GET", "/", "1.1", "", b"");
    set.wait_for("it makes room", |s| {
        let worker = worker_of(s, "default/1");
        (&worker["served"], &worker["state"]) == (&1.into(), &"starting".into())
    });
    (set, client)
}

#[test]
fn a_stop_during_recycling_is_not_lost() {
    let (mut set, client) = about_to_recycle("[front]\nlinger_timeout = \"2s\"");
    set.signal(Signal::SIGTERM);
    let since = std::time::Instant::now();
    assert_eq!(set.wait_for_exit(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}\n{}", since.elapsed(), set.log());
    assert!(!set.log().contains("drain_timeout"), "{}", set.log());
    set.assert_nothing_left();
    drop(client);
}

#[test]
fn the_death_of_the_watchdog_during_recycling_is_not_lost() {
    let (mut set, client) = about_to_recycle("[front]\nlinger_timeout = \"2s\"");
    let worker = set.worker_pid("default/1");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the worker ends", || !is_alive(worker));
    drop(client);
    set.run();
    set.wait_until_up();
    set.stop();
}

/// Stops at every moment of many lives; none may be forgotten.
#[test]
fn a_stop_is_heard_between_two_lives() {
    for round in 0..8 {
        let mut set = TestSet::start(&one_pool(4, "\"echo\"", "max_requests = 1\ndrain_timeout = \"10s\""));
        let (address, hammering) = (set.address(0), std::sync::atomic::AtomicBool::new(true));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while hammering.load(Ordering::Relaxed) {
                        let _ = get(address, "/");
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(100 + 17 * round));
            set.signal(Signal::SIGTERM);
            let since = std::time::Instant::now();
            assert_eq!(set.wait_for_exit(), Some(0));
            hammering.store(false, Ordering::Relaxed);
            assert!(since.elapsed() < Duration::from_secs(8), "{:?}\n{}", since.elapsed(), set.log());
        });
        set.assert_nothing_left();
    }
}

#[test]
fn a_reload_during_the_change_of_a_coprocess_is_obeyed() {
    if !is_installed("python3") {
        return;
    }
    let slow = |dir: &std::path::Path, more: &str| {
        let script = format!(
            "import sys, time\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nimport coprocess\n\
             coprocess.main()\nopen({:?}, 'w').close()\ntime.sleep(100)\n",
            format!("{}/examples", env!("CARGO_MANIFEST_DIR")),
            dir.join("leaving"),
        );
        fs::write(dir.join("slow.py"), script).unwrap();
        let file = dir.join("slow.py").into_os_string().into_string().unwrap();
        one_pool(
            1,
            &format!("{{ coprocess = {} }}", toml_array(&["python3", &file])),
            &format!("max_requests = 1\n{more}"),
        )
    };
    let set = TestSet::start_with(|dir| slow(dir, ""));
    let before = set.worker("default/1");
    let leaving = || set.test_dir().join("leaving").exists();
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    wait_for_value("the farewell", || leaving().then_some(()));
    // It lasts a second.
    set.configure(&slow(set.test_dir(), "environment = { WORD = \"new\" }"));
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["watchdog", "configuration applied"]);
    let reloaded = |s: &Value| worker_of(s, "default/1")["epoch"].as_u64() > before["epoch"].as_u64();
    set.wait_for("the next life", reloaded);
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}
