//! The admin server: health, status and metrics of the set over HTTP, even while parts of it are frozen.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// GET on admin.sock.
fn admin_get(set: &TestSet, path: &str) -> HttpResponse {
    admin_request(set, "GET", path)
}

fn admin_request(set: &TestSet, method: &str, path: &str) -> HttpResponse {
    request_on(&set.runtime_dir().join("admin.sock"), method, path)
}

fn request_on(socket: &Path, method: &str, path: &str) -> HttpResponse {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: patou\r\n\r\n").as_bytes()).unwrap();
    read_response(&mut stream).unwrap()
}

fn metrics(set: &TestSet) -> Metrics {
    let response = admin_get(set, "/metrics");
    assert_eq!(response.status, 200, "{response:?}");
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.header("content-type"), Some(media_type));
    Metrics::parse(&response.text())
}

/// The TCP address of the admin server; the kernel chooses the port.
fn tcp_address(set: &TestSet) -> SocketAddr {
    let line = set.wait_for_log(&["metrics of the set: curl http://"]);
    line.split("http://").nth(1).unwrap().trim_end_matches("/metrics").parse().unwrap()
}

/// The samples of an OpenMetrics text, parsed as strictly as its specification requires.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the text ends with # EOF");
        let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
        // The current family: its name, its type, whether it has a HELP, whether it has samples.
        let mut family = (String::new(), String::new(), false, false);
        for line in body.lines() {
            if let Some(metadata) = line.strip_prefix("# ") {
                let mut fields = metadata.splitn(3, ' ');
                let (descriptor, name, rest) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
                if family.0 != name {
                    assert!(families.insert(name.to_owned()), "family {name} is not contiguous");
                    family = (name.to_owned(), String::new(), false, false);
                }
                assert!(!family.3, "{line} follows samples of its family");
                match descriptor {
                    "TYPE" => {
                        let types = ["counter", "gauge", "histogram", "info", "stateset"];
                        assert!(types.contains(&rest) && family.1.is_empty(), "{line}");
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
            let (family_name, metric_type, has_help, _) = &family;
            let suffix = name.strip_prefix(family_name.as_str()).unwrap_or_else(|| panic!("{line} in {family_name}"));
            let allowed: &[&str] = match metric_type.as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            assert!(*has_help && allowed.contains(&suffix), "{line} in {family_name}, a {metric_type}");
            if let Some(labels) = key.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let labels = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).expect(line);
                for label in labels.split("\",") {
                    let (name, text) = label.split_once("=\"").expect(line);
                    let is_label_char = |c: char| c.is_ascii_lowercase() || c == '_';
                    assert!(
                        !name.is_empty()
                            && name.chars().all(is_label_char)
                            && !text.trim_end_matches('"').contains('"')
                    );
                }
            }
            let value: f64 = value.parse().expect(line);
            assert!(value >= 0.0, "{line}");
            assert!(samples.insert(key.to_owned(), value).is_none(), "{key} occurs twice");
            family.3 = true;
        }
        let metrics = Self(samples);
        metrics.check_histograms(body);
        metrics
    }

    /// Checks that each histogram is cumulative in the order of the text and that its +Inf bucket equals its count.
    fn check_histograms(&self, text: &str) {
        let mut last: Option<(String, f64, f64)> = None;
        for line in text.lines().filter(|line| line.contains("_bucket{")) {
            let (key, count) = line.rsplit_once(' ').unwrap();
            let (series, bound) = key.split_once(",le=\"").expect(line);
            let (count, bound) = (count.parse::<f64>().unwrap(), bound.trim_end_matches("\"}"));
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            if let Some((last_series, last_count, last_bound)) = &last {
                if last_series == series {
                    assert!(bound > *last_bound && count >= *last_count, "{line}");
                } else {
                    assert!(last_bound.is_infinite(), "{last_series} has no +Inf");
                }
            }
            if bound.is_infinite() {
                let total = series.replace("_bucket{", "_count{") + "}";
                assert_eq!(self.0.get(&total), Some(&count), "{total}");
                assert!(self.0.contains_key(&total.replace("_count{", "_sum{")));
            }
            last = Some((series.to_owned(), count, bound));
        }
        assert!(last.is_some_and(|(.., last_bound)| last_bound.is_infinite()));
    }

    fn get(&self, key: &str) -> f64 {
        *self.0.get(key).unwrap_or_else(|| panic!("no sample {key} in {:#?}", self.0.keys()))
    }

    /// Checks that no counter, bucket or sum is lower than before.
    fn assert_not_decreased_since(&self, before: &Metrics) {
        let monotonic = ["_total", "_bucket", "_sum", "_count"];
        for (key, old) in &before.0 {
            let name = key.split('{').next().unwrap();
            if monotonic.iter().any(|suffix| name.ends_with(suffix)) {
                assert!(self.get(key) >= *old, "{key} decreased from {old} to {}", self.get(key));
            }
        }
    }
}

fn reasons(health: &Value) -> String {
    let reasons = health["reasons"].as_array().unwrap().iter();
    reasons.map(|reason| reason.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

/// Waits until `/healthz` responds with this status and state.
fn wait_for_health(set: &TestSet, status: u16, state: &str) -> Value {
    wait_for_value(&format!("/healthz with {status}, {state}"), || {
        let response = admin_get(set, "/healthz");
        (response.status == status && response.json()["state"] == state).then(|| response.json())
    })
}

/// Keeps a frozen part alive for longer than a test needs to observe it.
const LONG_TIMEOUTS: &str = "[watchdog]\nworker_timeout = \"60s\"\ndispatcher_timeout = \"60s\"\n";

#[test]
fn health_names_missing_parts_and_shows_whether_a_pool_serves() {
    let set = TestSet::start(&format!("{ECHO}{LONG_TIMEOUTS}"));
    let health = wait_for_health(&set, 200, "ready");
    assert_eq!(health, serde_json::json!({ "state": "ready", "reasons": [] }));
    assert_eq!(admin_get(&set, "/healthz").header("content-type"), Some("application/json"));

    let first = set.worker_pid("default/1");
    signal_to(first, Signal::SIGSTOP);
    assert_eq!(reasons(&wait_for_health(&set, 200, "degraded")), "worker default/1 is frozen");
    assert!(set.patou(&["drain", "default-2"]).status.success());
    let all_missing = "pool default has no serving worker; worker default/1 is frozen; worker default/2 is draining";
    assert_eq!(reasons(&wait_for_health(&set, 503, "unavailable")), all_missing);
    assert!(set.patou(&["resume", "default-2"]).status.success());
    signal_to(first, Signal::SIGCONT);
    wait_for_health(&set, 200, "ready");

    // A frozen dispatcher makes the set unavailable until it resumes.
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGSTOP);
    assert_eq!(reasons(&wait_for_health(&set, 503, "unavailable")), "the dispatcher is frozen");
    signal_to(dispatcher, Signal::SIGCONT);
    wait_for_health(&set, 200, "ready");
    set.stop();
}

/// Requests `/healthz` all the time until it is dropped, and collects the statuses and bodies other than 200.
struct HealthWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl HealthWatch {
    fn start(set: &TestSet) -> Self {
        let (stop, socket) = (Arc::new(AtomicBool::new(false)), set.runtime_dir().join("admin.sock"));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut bad = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let response = request_on(&socket, "GET", "/healthz");
                if response.status != 200 {
                    bad.push(format!("{} {}", response.status, response.text()));
                }
            }
            bad
        });
        Self { stop, thread: Some(thread) }
    }

    #[track_caller]
    fn assert_always_200(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let bad = self.thread.take().unwrap().join().unwrap();
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

#[test]
fn health_is_never_unavailable_during_planned_restarts_and_a_short_outage() {
    let mut set = TestSet::prepare(&ECHO.replace("workers = 2", "workers = 1"));
    // Right after READY=1.
    let socket = UnixDatagram::bind(set.test_dir().join("notify")).unwrap();
    socket.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    let mut command = set.command(&["run"]);
    command.env("NOTIFY_SOCKET", set.test_dir().join("notify"));
    set.spawn(command);
    let mut message = [0; 4096];
    loop {
        let length = socket.recv(&mut message).unwrap();
        if text(&message[..length]).contains("READY=1") {
            break;
        }
    }
    let health = admin_get(&set, "/healthz");
    assert_eq!((health.status, &health.json()["state"]), (200, &"ready".into()), "{health:?}");
    let watch = HealthWatch::start(&set);
    // The only worker is recycled, then restarted for another limit, and the dispatcher for another listener.
    assert!(set.patou(&["recycle", "--all"]).status.success());
    let config = std::fs::read_to_string(set.config_file()).unwrap();
    let pid = set.worker_pid("default/1");
    let limited = config.replace("workers = 1", "workers = 1\nlimits = { open_files = \"900\" }");
    std::fs::write(set.config_file(), &limited).unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for("the worker has been restarted", |status| {
        let worker = worker_of(status, "default/1");
        worker["state"] == "idle" && worker["pid"].as_u64() != Some(pid.into())
    });
    let old = set.dispatcher_pid();
    let more = "\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n";
    std::fs::write(set.config_file(), limited + more).unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for("the dispatcher has been restarted", |status| {
        let dispatcher = &status["dispatcher"];
        dispatcher["state"] == "up" && dispatcher["pid"].as_u64() != Some(old.into())
    });
    // Unplanned ends: their clients wait as well.
    for pid in [set.dispatcher_pid(), set.worker_pid("default/1")] {
        signal_to(pid, Signal::SIGKILL);
        set.wait_for("the part is replaced", |status| {
            let (dispatcher, worker) = (&status["dispatcher"], worker_of(status, "default/1"));
            let is_new = |part: &Value| part["pid"].as_u64().is_some_and(|new| new != u64::from(pid));
            dispatcher["state"] == "up" && worker["state"] == "idle" && is_new(dispatcher) && is_new(&worker)
        });
    }
    wait_for_health(&set, 200, "ready");
    watch.assert_always_200();
    set.stop();
}

#[test]
fn pool_whose_requests_all_fail_is_degraded_with_the_last_error_and_recovers() {
    let mut set = TestSet::prepare("");
    let ok = set.test_dir().join("ok");
    let script = format!("test -e {} && printf 'Content-Type: text/plain\\n\\nok' && exit 0; exit 7", ok.display());
    let handler = format!("{{ exec = {} }}", toml_array(&["/bin/sh", "-c", &script]));
    set.configure(&one_pool(2, &handler, "[watchdog]\ndegraded_after = \"2s\""));
    set.run();
    set.wait_until_up();
    wait_for_health(&set, 200, "ready");
    assert_eq!(get(set.address(0), "/x").unwrap().status, 502);
    let health = wait_for_health(&set, 200, "degraded");
    let prefix = "every request to pool default failed in the last 2s (last error, of worker default/";
    assert!(reasons(&health).starts_with(prefix) && reasons(&health).contains("7"), "{health}");
    let status = set.patou(&["status"]);
    assert!(text(&status.stdout).contains(&format!("problem: {prefix}")), "{status:?}");
    assert_eq!(set.patou(&["status", "--wait", "1ms"]).status.code(), Some(0), "every part is up");
    // A success ends it at once, also beside failures.
    std::fs::write(&ok, "").unwrap();
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    wait_for_health(&set, 200, "ready");
    // So does the end of the window without any request.
    std::fs::remove_file(&ok).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(get(set.address(0), "/x").unwrap().status, 502);
    wait_for_health(&set, 200, "degraded");
    wait_for_health(&set, 200, "ready");
    set.stop();
}

#[test]
fn stopping_set_is_unavailable() {
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
fn admin_socket_responds_while_dispatcher_and_workers_are_frozen() {
    let set = TestSet::start(&format!("{ECHO}{LONG_TIMEOUTS}"));
    let before = wait_for_value("a report of the dispatcher", || {
        Some(metrics(&set)).filter(|m| m.get("patou_dispatcher_up") == 1.0)
    });
    let frozen = [set.dispatcher_pid(), set.worker_pid("default/1"), set.worker_pid("default/2")];
    frozen.iter().for_each(|pid| signal_to(*pid, Signal::SIGSTOP));
    let start = Instant::now();
    let (health, status, metrics_while_frozen) =
        (admin_get(&set, "/healthz"), admin_get(&set, "/status"), metrics(&set));
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(1), "three responses took {elapsed:?}");
    eprintln!("three responses while dispatcher and workers are frozen took {elapsed:?}");
    assert!(health.json()["reasons"].is_array() && status.json()["pools"].is_array());
    metrics_while_frozen.assert_not_decreased_since(&before);
    let count = "patou_workers{pool=\"default\",state=\"frozen\"}";
    wait_until("two workers are frozen", || metrics(&set).get(count) == 2.0);
    // As soon as the watchdog has found the dispatcher frozen, /status equals `patou status`.
    let health = wait_for_value("the dispatcher is reported as frozen", || {
        Some(admin_get(&set, "/healthz").json()).filter(|h| h["reasons"][0] == "the dispatcher is frozen")
    });
    assert_eq!(health["state"], "unavailable");
    wait_until("/status equals `patou status`", || admin_get(&set, "/status").json() == set.status());
    frozen.iter().for_each(|pid| signal_to(*pid, Signal::SIGCONT));
    wait_for_health(&set, 200, "ready");
    set.stop();
}

#[test]
fn counters_survive_the_dispatcher_and_never_decrease() {
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
    for restarts in 1..=3 {
        let old = set.dispatcher_pid();
        signal_to(old, Signal::SIGKILL);
        // No counter decreases while there is no dispatcher, while the next one starts, or after its first report.
        let counter = "patou_restarts_total{part=\"dispatcher\",cause=\"signal\"}";
        wait_until("the next dispatcher is up", || {
            let now = metrics(&set);
            now.assert_not_decreased_since(&before);
            now.0.get(counter) == Some(&f64::from(restarts)) && now.get("patou_dispatcher_up") == 1.0
        });
        assert_eq!(get(set.address(0), "/").unwrap().status, 200);
        let total = f64::from(3 + restarts);
        before = wait_for_value("one more lease", || {
            let now = metrics(&set);
            now.assert_not_decreased_since(&before);
            Some(now).filter(|now| now.get(granted) == total)
        });
        let recovered = before.get("patou_recovery_seconds_count{part=\"dispatcher\"}");
        assert_eq!(recovered, f64::from(restarts));
        assert_eq!(before.get("patou_wait_seconds_count{pool=\"default\"}"), total);
    }
    set.stop();
}

#[test]
fn restarts_are_counted_by_cause_with_their_duration() {
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
    let m = wait_for_value("a second restart", || {
        Some(metrics(&set)).filter(|m| m.get("patou_recovery_seconds_count{part=\"worker\"}") == 2.0)
    });
    assert_eq!((count(&m, "default/2", "frozen"), count(&m, "default/2", "signal")), (1.0, 0.0));
    assert_eq!(m.get("patou_detection_seconds_count{part=\"worker\"}"), 1.0);
    let detection = m.get("patou_detection_seconds_sum{part=\"worker\"}");
    assert!((0.3..2.0).contains(&detection), "detected after {detection} s");
    eprintln!("a frozen worker was detected after {detection} s with worker_timeout 0.3 s");
    // A worker that the watchdog finds by itself, because the dispatcher is frozen as well.
    signal_to(set.dispatcher_pid(), Signal::SIGSTOP);
    signal_to(set.worker_pid("default/2"), Signal::SIGSTOP);
    let m = wait_for_value("a third detection", || {
        Some(metrics(&set)).filter(|m| m.get("patou_detection_seconds_count{part=\"worker\"}") == 2.0)
    });
    let detection = m.get("patou_detection_seconds_sum{part=\"worker\"}") - detection;
    assert!((0.3..2.0).contains(&detection), "detected after {detection} s");
    set.stop();
}

#[test]
fn refused_expired_and_queued_clients_are_counted() {
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
    let m =
        wait_for_value("a queued client", || Some(metrics(&set)).filter(|m| m.get(&pool("patou_queue_length")) == 1.0));
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
fn admin_server_is_read_only_checks_hosts_and_follows_reloads() {
    let set = TestSet::start(&format!("{ECHO}[admin]\naddress = \"127.0.0.1:0\"\n"));
    let refused = admin_request(&set, "POST", "/metrics");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(admin_get(&set, "/").status, 404);
    let mut stream = UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
    stream.write_all(b"HEAD /status HTTP/1.1\r\nHost: patou\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (response, length) = HttpResponse::parse_head(&bytes).unwrap().expect("a complete head");
    assert_eq!((response.status, length), (200, bytes.len()), "{}", text(&bytes));
    // The two are sampled at different moments.
    wait_until("/status equals `patou status`", || admin_get(&set, "/status").json() == set.status());
    let mode = |set: &TestSet| set.runtime_dir().join("admin.sock").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&set), 0o660);

    let address = tcp_address(&set);
    let get_health =
        |host: &str| send_request(address, format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    assert_eq!(get_health("localhost").unwrap().status, 200);
    assert_eq!(get_health("evil.example").unwrap().status, 421);

    // A reload closes the address and changes the mode of the socket; no part is restarted.
    let pids = || [set.dispatcher_pid(), set.worker_pid("default/1"), set.worker_pid("default/2")];
    let parts = pids();
    set.configure(&format!("{ECHO}[admin]\nmode = 0o600\n"));
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["configuration applied"]);
    wait_until("the address is closed", || TcpStream::connect(address).is_err());
    assert_eq!((mode(&set), admin_get(&set, "/healthz").status), (0o600, 200));
    assert_eq!(pids(), parts);
    // Another reload opens an address.
    set.configure(&format!("{ECHO}[admin]\naddress = \"{address}\"\nallowed_hosts = [\"metrics.example\"]\n"));
    set.signal(Signal::SIGHUP);
    wait_until("the address is open, with its hosts", || {
        get_health("metrics.example").is_ok_and(|response| response.status == 200)
    });
    assert_eq!(get_health("localhost").unwrap().status, 421);
    set.stop();
}

#[test]
fn slow_clients_delay_neither_the_admin_socket_nor_the_set() {
    let watchdog =
        "[watchdog]\nprobe_interval = \"50ms\"\nworker_timeout = \"500ms\"\ndispatcher_timeout = \"500ms\"\n";
    let set = TestSet::start(&format!("{ECHO}{watchdog}[admin]\naddress = \"127.0.0.1:0\"\n"));
    let (address, before) = (tcp_address(&set), set.status());
    // These clients send nothing or half a request head.
    let mut silent: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
    for stream in &mut silent[..50] {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ").unwrap();
    }
    let load = LoadGenerator::start(set.address(0), "/", 2);
    // TCP connections do not count against those of admin.sock.
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(2) {
        let sent = Instant::now();
        assert_eq!(admin_get(&set, "/healthz").status, 200);
        longest = longest.max(sent.elapsed());
    }
    eprintln!("the slowest response on admin.sock beside 200 silent clients took {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    load.wait_for(10);
    assert_eq!(load.stop(), Vec::<String>::new());
    // Silent connections time out, so that queued ones are served, finally the last one.
    let mut last = silent.pop().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut last).unwrap().status, 200);
    let mut first = Vec::new();
    silent[0].read_to_end(&mut first).unwrap();
    assert_eq!(response_status(&first), Some(408), "{}", text(&first));
    let after = set.status();
    assert_eq!(
        (&after["dispatcher"]["pid"], &after["dispatcher"]["restarts"]),
        (&before["dispatcher"]["pid"], &0.into())
    );
    set.stop();
}
