//! The admin socket: how the set is, over HTTP, whoever of it is frozen.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// The answer to GET on admin.sock.
fn ask(set: &TestSet, path: &str) -> HttpResponse {
    send(set, "GET", path)
}

fn send(set: &TestSet, method: &str, path: &str) -> HttpResponse {
    let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: patou\r\n\r\n").as_bytes()).unwrap();
    read_response(&mut stream).unwrap()
}

fn metrics(set: &TestSet) -> Metrics {
    let answer = ask(set, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    Metrics::parse(&answer.text())
}

/// The TCP address of the admin server, which the kernel chose.
fn tcp(set: &TestSet) -> SocketAddr {
    let line = set.wait_for_log(&["figures of the set: curl http://"]);
    line.split("http://").nth(1).unwrap().trim_end_matches("/metrics").parse().unwrap()
}

/// OpenMetrics text, taken apart as strictly as its specification says.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
        // The family that is being told: its name, type, and whether it has a HELP and samples.
        let mut family = (String::new(), String::new(), false, false);
        for line in body.lines() {
            if let Some(words) = line.strip_prefix("# ") {
                let mut words = words.splitn(3, ' ');
                let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                if family.0 != name {
                    assert!(families.insert(name.to_owned()), "{name} comes twice");
                    family = (name.to_owned(), String::new(), false, false);
                }
                assert!(!family.3, "{line} comes after samples");
                match what {
                    "TYPE" => {
                        let known = ["counter", "gauge", "histogram", "info", "stateset"];
                        assert!(known.contains(&rest) && family.1.is_empty(), "{line}");
                        family.1 = rest.to_owned();
                    }
                    "HELP" => family.2 = true,
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let (of, kind, help, _) = &family;
            let suffix = name.strip_prefix(of.as_str()).unwrap_or_else(|| panic!("{line} in {of}"));
            let allowed: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            assert!(*help && allowed.contains(&suffix), "{line} in {of}, a {kind}");
            if let Some(labels) = key.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let labels = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).expect(line);
                for label in labels.split("\",") {
                    let (name, text) = label.split_once("=\"").expect(line);
                    let plain = |c: char| c.is_ascii_lowercase() || c == '_';
                    assert!(!name.is_empty() && name.chars().all(plain) && !text.trim_end_matches('"').contains('"'));
                }
            }
            let value: f64 = value.parse().expect(line);
            assert!(value >= 0.0, "{line}");
            assert!(samples.insert(key.to_owned(), value).is_none(), "{key} comes twice");
            family.3 = true;
        }
        let metrics = Self(samples);
        metrics.check_histograms(body);
        metrics
    }

    /// Each is cumulative in the order of the text, and +Inf is its count.
    fn check_histograms(&self, text: &str) {
        let mut last: Option<(String, f64, f64)> = None;
        for line in text.lines().filter(|line| line.contains("_bucket{")) {
            let (key, count) = line.rsplit_once(' ').unwrap();
            let (series, bound) = key.split_once(",le=\"").expect(line);
            let (count, bound) = (count.parse::<f64>().unwrap(), bound.trim_end_matches("\"}"));
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            if let Some((of, before, below)) = &last {
                if of == series {
                    assert!(bound > *below && count >= *before, "{line}");
                } else {
                    assert!(below.is_infinite(), "{of} has no +Inf");
                }
            }
            if bound.is_infinite() {
                let total = series.replace("_bucket{", "_count{") + "}";
                assert_eq!(self.0.get(&total), Some(&count), "{total}");
                assert!(self.0.contains_key(&total.replace("_count{", "_sum{")));
            }
            last = Some((series.to_owned(), count, bound));
        }
        assert!(last.is_some_and(|(.., below)| below.is_infinite()));
    }

    fn get(&self, key: &str) -> f64 {
        *self.0.get(key).unwrap_or_else(|| panic!("there is no {key} in {:#?}", self.0.keys()))
    }

    /// That no counter, bucket or sum is lower than it was.
    fn assert_not_below(&self, before: &Metrics) {
        let counts = ["_total", "_bucket", "_sum", "_count"];
        for (key, was) in &before.0 {
            let name = key.split('{').next().unwrap();
            if counts.iter().any(|end| name.ends_with(end)) {
                assert!(self.get(key) >= *was, "{key} went from {was} to {}", self.get(key));
            }
        }
    }
}

fn reasons(health: &Value) -> String {
    let reasons = health["reasons"].as_array().unwrap().iter();
    reasons.map(|reason| reason.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

/// Waits until `/healthz` is so.
fn wait_for_health(set: &TestSet, status: u16, state: &str) -> Value {
    wait_for_value(&format!("/healthz with {status}, {state}"), || {
        let answer = ask(set, "/healthz");
        (answer.status == status && answer.json()["state"] == state).then(|| answer.json())
    })
}

/// Long enough to look at who is frozen before he is killed.
const PATIENT: &str = "[watchdog]\nworker_timeout = \"60s\"\ndispatcher_timeout = \"60s\"\n";

#[test]
fn health_says_who_is_missing_and_whether_anybody_is_served() {
    let set = TestSet::start(&format!("{ECHO}{PATIENT}"));
    let health = wait_for_health(&set, 200, "ready");
    assert_eq!(health, serde_json::json!({ "state": "ready", "reasons": [] }));
    assert_eq!(ask(&set, "/healthz").header("content-type"), Some("application/json"));

    let first = set.worker_pid("default/1");
    signal_to(first, Signal::SIGSTOP);
    assert_eq!(reasons(&wait_for_health(&set, 200, "degraded")), "worker default/1 is frozen");
    assert!(set.patou(&["drain", "default-2"]).status.success());
    let nobody = "pool default has no serving worker; worker default/1 is frozen; worker default/2 is draining";
    assert_eq!(reasons(&wait_for_health(&set, 503, "unavailable")), nobody);
    assert!(set.patou(&["resume", "default-2"]).status.success());
    signal_to(first, Signal::SIGCONT);
    wait_for_health(&set, 200, "ready");

    // A death is over soon, and what it was is remembered while it lasts.
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGSTOP);
    assert_eq!(reasons(&wait_for_health(&set, 503, "unavailable")), "the dispatcher is frozen");
    signal_to(dispatcher, Signal::SIGCONT);
    wait_for_health(&set, 200, "ready");
    set.stop();
}

#[test]
fn a_set_that_stops_is_not_healthy_any_more() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "", ""));
    set.run();
    set.wait_until_up();
    let request = start_gated_request(&set, "one");
    assert_eq!(wait_for_health(&set, 200, "ready")["reasons"], serde_json::json!([]));
    set.signal(Signal::SIGTERM);
    let health = wait_for_health(&set, 503, "unavailable");
    assert!(reasons(&health).starts_with("the watchdog is stopping"), "{health}");
    open_gate(&set);
    assert_eq!(request.join().unwrap().unwrap().status, 200);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
}

#[test]
fn it_answers_while_dispatcher_and_workers_are_frozen() {
    let set = TestSet::start(&format!("{ECHO}{PATIENT}"));
    let before = wait_for_value("a report", || Some(metrics(&set)).filter(|m| m.get("patou_dispatcher_up") == 1.0));
    let frozen = [set.dispatcher_pid(), set.worker_pid("default/1"), set.worker_pid("default/2")];
    frozen.iter().for_each(|pid| signal_to(*pid, Signal::SIGSTOP));
    let begin = Instant::now();
    let (health, status, figures) = (ask(&set, "/healthz"), ask(&set, "/status"), metrics(&set));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "three answers took {took:?}");
    eprintln!("three answers while everybody is frozen took {took:?}");
    assert!(health.json()["reasons"].is_array() && status.json()["pools"].is_array());
    figures.assert_not_below(&before);
    let count = "patou_workers{pool=\"default\",state=\"frozen\"}";
    wait_until("two are frozen", || metrics(&set).get(count) == 2.0);
    // The same that patou status says, as soon as the dispatcher's silence is known.
    let health = wait_for_value("its silence", || {
        Some(ask(&set, "/healthz").json()).filter(|h| h["reasons"][0] == "the dispatcher is frozen")
    });
    assert_eq!(health["state"], "unavailable");
    wait_until("they say the same", || ask(&set, "/status").json() == set.status());
    frozen.iter().for_each(|pid| signal_to(*pid, Signal::SIGCONT));
    wait_for_health(&set, 200, "ready");
    set.stop();
}

#[test]
fn figures_outlive_the_dispatcher_and_never_go_down() {
    let set = TestSet::start(ECHO);
    let granted = "patou_leases_granted_total{pool=\"default\"}";
    for _ in 0..3 {
        assert_eq!(request(set.address(0), "POST", "/", b"12345").unwrap().status, 200);
    }
    let mut before = wait_for_value("three leases", || Some(metrics(&set)).filter(|m| m.get(granted) == 3.0));
    assert_eq!(before.get("patou_requests_served_total{pool=\"default\"}"), 3.0);
    assert_eq!(before.get("patou_request_body_bytes_total{pool=\"default\"}"), 15.0);
    assert_eq!(before.get("patou_run_seconds_count{pool=\"default\"}"), 3.0);
    assert!(before.get("patou_run_seconds_sum{pool=\"default\"}") > 0.0);
    assert_eq!(before.get("patou_wait_seconds_count{pool=\"default\"}"), 3.0);
    for life in 1..=3 {
        let old = set.dispatcher_pid();
        signal_to(old, Signal::SIGKILL);
        // While nobody is there, when the next one has just come, and when it has reported.
        let restarts = "patou_restarts_total{part=\"dispatcher\",cause=\"signal\"}";
        wait_until("another dispatcher", || {
            let now = metrics(&set);
            now.assert_not_below(&before);
            now.0.get(restarts) == Some(&f64::from(life)) && now.get("patou_dispatcher_up") == 1.0
        });
        assert_eq!(get(set.address(0), "/").unwrap().status, 200);
        let total = f64::from(3 + life);
        before = wait_for_value("one more lease", || {
            let now = metrics(&set);
            now.assert_not_below(&before);
            Some(now).filter(|now| now.get(granted) == total)
        });
        let recovered = before.get("patou_recovery_seconds_count{part=\"dispatcher\"}");
        assert_eq!(recovered, f64::from(life));
        assert_eq!(before.get("patou_wait_seconds_count{pool=\"default\"}"), total);
    }
    set.stop();
}

#[test]
fn restarts_have_a_cause_and_a_duration() {
    let watchdog = "[watchdog]\nworker_timeout = \"300ms\"\nprobe_interval = \"50ms\"\nabort_grace = \"50ms\"\n";
    let set = TestSet::start(&format!("{ECHO}{watchdog}"));
    let count = |m: &Metrics, part: &str, cause: &str| {
        let key = format!("patou_restarts_total{{part=\"{part}\",cause=\"{cause}\"}}");
        m.0.get(&key).copied().unwrap_or(0.0)
    };
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL);
    let m = wait_for_value("a restart", || {
        Some(metrics(&set)).filter(|m| m.get("patou_recovery_seconds_count{part=\"worker\"}") == 1.0)
    });
    assert_eq!((count(&m, "default/1", "signal"), count(&m, "default/1", "frozen")), (1.0, 0.0));
    assert_eq!(m.get("patou_detection_seconds_count{part=\"worker\"}"), 0.0);
    signal_to(set.worker_pid("default/2"), Signal::SIGSTOP);
    let m = wait_for_value("another", || {
        Some(metrics(&set)).filter(|m| m.get("patou_recovery_seconds_count{part=\"worker\"}") == 2.0)
    });
    assert_eq!((count(&m, "default/2", "frozen"), count(&m, "default/2", "signal")), (1.0, 0.0));
    assert_eq!(m.get("patou_detection_seconds_count{part=\"worker\"}"), 1.0);
    let noticed = m.get("patou_detection_seconds_sum{part=\"worker\"}");
    assert!((0.3..2.0).contains(&noticed), "noticed after {noticed} s");
    eprintln!("a frozen worker was noticed after {noticed} s with worker_timeout 0.3 s");
    set.stop();
}

#[test]
fn refused_expired_and_waiting_clients_are_counted() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "queue = 1\nqueue_timeout = \"20s\"\nclaim_timeout = \"100ms\"", ""));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    request_lease(address, "/").unwrap();
    let pool = |name: &str| format!("{name}{{pool=\"default\"}}");
    wait_for_value("an expired lease", || {
        Some(metrics(&set)).filter(|m| m.get(&pool("patou_leases_expired_total")) == 1.0)
    });
    let busy = start_gated_request(&set, "one");
    let waiting = std::thread::spawn(move || get(address, "/fast"));
    let m = wait_for_value("somebody who waits", || {
        Some(metrics(&set)).filter(|m| m.get(&pool("patou_queue_length")) == 1.0)
    });
    assert_eq!(m.get("patou_workers{pool=\"default\",state=\"busy\"}"), 1.0);
    assert_eq!(get(address, "/fast").unwrap().status, 503);
    let refused = "patou_requests_refused_total{pool=\"default\",reason=\"queue_full\"}";
    let m = wait_for_value("a refusal", || Some(metrics(&set)).filter(|m| m.get(refused) == 1.0));
    assert!(m.get(&pool("patou_queue_oldest_seconds")) > 0.0);
    open_gate(&set);
    assert_eq!(busy.join().unwrap().unwrap().status, 200);
    assert_eq!(waiting.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn it_is_read_only_and_tells_what_it_has() {
    let set = TestSet::start(&format!("{ECHO}[admin]\naddress = \"127.0.0.1:0\"\n"));
    let refused = send(&set, "POST", "/metrics");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(ask(&set, "/").status, 404);
    let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
    stream.write_all(b"HEAD /status HTTP/1.1\r\nHost: patou\r\n\r\n").unwrap();
    let mut head = String::new();
    stream.read_to_string(&mut head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    // Both look at a moment of their own.
    wait_until("they say the same", || ask(&set, "/status").json() == set.status());
    let mode = |set: &TestSet| set.runtime_dir().join("admin.sock").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&set), 0o660);

    let address = tcp(&set);
    let asked = |host: &str| send_request(address, format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    assert_eq!(asked("localhost").unwrap().status, 200);
    assert_eq!(asked("evil.example").unwrap().status, 421);

    // A reload closes the address and changes the file; who is not named in it is not touched.
    let pids = || [set.dispatcher_pid(), set.worker_pid("default/1"), set.worker_pid("default/2")];
    let parts = pids();
    set.configure(&format!("{ECHO}[admin]\nmode = 0o600\n"));
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["configuration applied"]);
    wait_until("the address is closed", || TcpStream::connect(address).is_err());
    assert_eq!((mode(&set), ask(&set, "/healthz").status), (0o600, 200));
    assert_eq!(pids(), parts);
    // And opens another one.
    set.configure(&format!("{ECHO}[admin]\naddress = \"{address}\"\nallowed_hosts = [\"metrics.example\"]\n"));
    set.signal(Signal::SIGHUP);
    wait_until("the address is open", || TcpStream::connect(address).is_ok());
    assert_eq!((asked("metrics.example").unwrap().status, asked("localhost").unwrap().status), (200, 421));
    set.stop();
}

#[test]
fn slow_and_many_clients_disturb_nobody() {
    let watchdog =
        "[watchdog]\nprobe_interval = \"50ms\"\nworker_timeout = \"500ms\"\ndispatcher_timeout = \"500ms\"\n";
    let set = TestSet::start(&format!("{ECHO}{watchdog}[admin]\naddress = \"127.0.0.1:0\"\n"));
    let (address, before) = (tcp(&set), set.status());
    // None of them says anything, or takes what it has asked for.
    let mut silent: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
    for stream in &mut silent[..50] {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ").unwrap();
    }
    let load = LoadGenerator::start(set.address(0), "/", 2);
    // Those on TCP take no place on the socket.
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert_eq!(ask(&set, "/healthz").status, 200);
        longest = longest.max(asked.elapsed());
    }
    eprintln!("the longest answer on admin.sock beside 200 silent clients took {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    load.wait_for(10);
    assert_eq!(load.stop(), Vec::<String>::new());
    // Whoever is silent is let go, so that the others come in: the last one in the end.
    let mut last = silent.pop().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut last).unwrap().status, 200);
    let mut first = Vec::new();
    silent[0].read_to_end(&mut first).unwrap();
    assert!(text(&first).starts_with("HTTP/1.1 408"), "{}", text(&first));
    let after = set.status();
    assert_eq!(
        (&after["dispatcher"]["pid"], &after["dispatcher"]["restarts"]),
        (&before["dispatcher"]["pid"], &0.into())
    );
    set.stop();
}
