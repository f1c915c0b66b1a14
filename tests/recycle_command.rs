//! `patou recycle`: new code without losing a request.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;

/// An application: it responds with what `app.txt` contained when it started, and takes as long to start as `load.txt`
/// says. It cannot start if that is no number.
const SERVER: &str = r#"
import http.server, os, time
directory = os.environ['DIR']
time.sleep(float(open(directory + '/load.txt').read()))
body = open(directory + '/app.txt', 'rb').read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def do_GET(self):
        if self.path == '/slow': time.sleep(1)
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
"#;

/// One request to a handoff listener.
fn get(address: SocketAddr, target: &str) -> Result<HttpResponse, String> {
    send_request(address, request_head("GET", target, address, "Connection: close\r\n").as_bytes())
}

/// What a start of the application reads.
fn deploy(dir: &Path, text: &str, load: &str) {
    fs::write(dir.join("app.txt"), text).unwrap();
    fs::write(dir.join("load.txt"), load).unwrap();
}

/// A redirect and a handoff listener before pool `web`; then `more`.
fn web_pool(handler: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"web\"\n\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"web\"\n\
         delivery = \"handoff\"\n\n[[pool]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{more}\n"
    )
}

/// A set of `workers` that run the application.
fn application(workers: u16, load: &str, more: &str) -> Option<TestSet> {
    is_installed("python3").then(|| {
        TestSet::start_with(|dir| {
            deploy(dir, "one", load);
            let command = toml_array(&["python3", "-c", SERVER, "{port}"]);
            let environment = format!("environment = {{ DIR = {:?}, PORT = \"{{port}}\" }}", dir.display().to_string());
            web_pool(&format!("{{ http = {command} }}"), &format!("workers = {workers}\n{environment}\n{more}"))
        })
    })
}

/// `patou recycle`: exit code, standard output and error.
fn recycle(set: &TestSet, args: &[&str]) -> (Option<i32>, String, String) {
    let output = set.patou(&[&["recycle"], args].concat());
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_recycled(set: &TestSet, args: &[&str], expected: &str) {
    let (code, out, err) = recycle(set, args);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}\n{}", set.log());
    assert!(out.starts_with(expected) && out.trim_end().ends_with(" s"), "{out}");
    println!("{}", out.trim_end());
}

/// Clients of a handoff listener that never retry. Returns every response that is not 200, and the slowest request.
struct StrictLoad {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>, Duration)>>,
}

impl StrictLoad {
    fn start(address: SocketAddr, threads: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let client = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (mut served, mut failures, mut slowest) = (0, Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    match get(address, "/hello") {
                        Ok(response) if response.status == 200 => served += 1,
                        Ok(response) => failures.push(format!("{} {}", response.head, response.text())),
                        Err(error) => failures.push(error),
                    }
                    slowest = slowest.max(since.elapsed());
                }
                (served, failures, slowest)
            })
        };
        let clients = (0..threads).map(client).collect();
        Self { stop, clients }
    }

    /// How many requests were served, and the slowest of them. None has failed.
    #[track_caller]
    fn stop(self) -> (usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = self.clients.into_iter().map(|client| client.join().unwrap()).collect();
        let failures: Vec<_> = results.iter().flat_map(|(_, failures, _)| failures).collect();
        assert!(failures.is_empty(), "{} failed, first: {}", failures.len(), failures[0]);
        (results.iter().map(|result| result.0).sum(), results.iter().map(|result| result.2).max().unwrap())
    }
}

/// Recycles pool `web` while clients of both listeners send requests; none may fail.
fn recycle_under_load(set: &TestSet, expected: &str) {
    let redirected = LoadGenerator::start(set.address(0), "/hello", 2);
    let strict = StrictLoad::start(set.address(1), 3);
    redirected.wait_for(20);
    assert_recycled(set, &["web"], expected);
    redirected.wait_for(20);
    let failed = redirected.stop();
    let (served, slowest) = strict.stop();
    assert!(failed.is_empty(), "{} failed, first: {}\n{}", failed.len(), failed[0], set.log());
    println!("{served} requests by handoff, none failed, slowest {slowest:?}");
}

#[test]
fn new_code_of_an_application_is_served_and_no_request_fails() {
    let Some(set) = application(4, "0.2", "") else { return };
    for release in ["two", "three"] {
        deploy(set.test_dir(), release, "0.2");
        let before: Vec<_> = (1..=4).map(|n| set.worker(&format!("web/{n}"))).collect();
        recycle_under_load(&set, "pool web: 4 workers recycled in ");
        for _ in 0..20 {
            assert_eq!(get(set.address(1), "/").unwrap().text(), release);
        }
        for (n, before) in before.iter().enumerate() {
            let after = set.worker(&format!("web/{}", n + 1));
            for key in ["pid", "epoch", "restarts", "failed"] {
                assert_eq!(after[key], before[key], "{key}\n{}", set.log());
            }
        }
    }
    set.stop();
}

#[test]
fn only_worker_serves_until_its_next_process_is_ready() {
    let Some(set) = application(1, "0", "queue_timeout = \"500ms\"") else { return };
    deploy(set.test_dir(), "two", "1.5");
    recycle_under_load(&set, "pool web: 1 worker recycled in ");
    assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    set.stop();
}

#[test]
fn worker_may_have_to_end_its_process_first() {
    let Some(set) = application(2, "0", "replace = \"after\"") else { return };
    deploy(set.test_dir(), "two", "0.3");
    recycle_under_load(&set, "pool web: 2 workers recycled in ");
    assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    set.stop();
}

#[test]
fn workers_of_other_handlers_get_another_process_image() {
    let cgi = toml_array(&["sh", "-c", "printf 'Content-Type: text/plain\\n\\nok'"]);
    let program = build_example("axum_worker");
    for handler in [format!("{{ exec = {cgi} }}"), format!("{{ program = {} }}", toml_array(&[&program]))] {
        let set = TestSet::start(&web_pool(&handler, "workers = 3"));
        let before: Vec<_> = (1..=3).map(|n| set.worker(&format!("web/{n}"))).collect();
        recycle_under_load(&set, "pool web: 3 workers recycled in ");
        for (n, before) in before.iter().enumerate() {
            let after = set.worker(&format!("web/{}", n + 1));
            assert_eq!(after["epoch"].as_u64(), before["epoch"].as_u64().map(|epoch| epoch + 1), "{}", set.log());
            assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
        }
        set.stop();
    }
}

#[test]
fn code_that_does_not_start_costs_nothing_and_is_quoted() {
    let Some(set) = application(3, "0", "") else { return };
    deploy(set.test_dir(), "two", "'not a number'");
    let load = StrictLoad::start(set.address(1), 2);
    let (code, out, err) = recycle(&set, &["web"]);
    load.stop();
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}\n{}", set.log());
    for part in
        ["pool web: 0 of 3 workers recycled", "could not start its next process", "ValueError: could not convert"]
    {
        assert!(err.contains(part), "{part}: {err}\n{}", set.log());
    }
    let kept = ["web/1", "web/2", "web/3"].iter().filter(|id| err.contains(&format!("{id} could not start"))).count();
    let untried = err.rsplit_once("not recycled after this failure: ").expect("others were not tried").1;
    assert_eq!((kept, untried.trim_end().split(", ").count()), (1, 2), "{err}");
    for _ in 0..10 {
        assert_eq!(get(set.address(1), "/").unwrap().text(), "one");
    }
    assert!((1..=3).all(|n| set.worker(&format!("web/{n}"))["restarts"] == 0), "{}", set.log());
    // The next attempt quotes its own reason.
    deploy(set.test_dir(), "two", "seven");
    let (_, _, err) = recycle(&set, &["web"]);
    assert!(err.contains("'seven'") && !err.contains("not a number"), "{err}");
    deploy(set.test_dir(), "two", "0");
    assert_recycled(&set, &["web"], "pool web: 3 workers recycled in ");
    assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    set.stop();
}

#[test]
fn program_that_dies_at_its_start_takes_one_worker_out_of_service() {
    let program = build_example("axum_worker");
    let set = TestSet::start_with(|dir| {
        let script = dir.join("start.sh");
        fs::write(&script, format!("exec '{program}'")).unwrap();
        let command = toml_array(&["sh", &script.display().to_string()]);
        web_pool(&format!("{{ program = {command} }}"), "workers = 2\n[watchdog]\nstart_timeout = \"2s\"")
    });
    let script = set.test_dir().join("start.sh");
    let good = fs::read_to_string(&script).unwrap();
    fs::write(&script, "exit 3").unwrap();
    let (code, out, err) = recycle(&set, &["web"]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("web/1 does not start (last end: exit code 3 before it was ready)"), "{err}");
    assert!(err.contains("not recycled after this failure: web/2"), "{err}");
    assert_eq!(get(set.address(1), "/hello").unwrap().status, 200, "{err}");
    fs::write(&script, good).unwrap();
    set.wait_until_up();
    set.stop();
}

#[test]
fn busy_worker_is_waited_for_within_the_bound() {
    let set = TestSet::prepare("");
    let gated = gated_pool(&set, 2, "", "");
    set.configure(&gated);
    let mut set = set;
    set.run();
    set.wait_until_up();
    let busy = start_gated_request(&set, "a");
    let since = Instant::now();
    let (code, out, err) = recycle(&set, &["default", "--wait", "700ms"]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!((Duration::from_millis(700)..Duration::from_secs(5)).contains(&since.elapsed()), "{:?}", since.elapsed());
    assert!(err.contains("pool default: 1 of 2 workers recycled") && err.contains("(busy)"), "{err}");
    let mut waiting = set.command(&["recycle", "default"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none());
    open_gate(&set);
    assert_eq!(busy.join().unwrap().unwrap().text(), "done well\n");
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success() && text(&output.stdout).starts_with("pool default: 2 workers recycled in "));
    set.stop();
}

#[test]
fn drained_worker_is_recycled_and_stays_drained() {
    let Some(set) = application(2, "0", "") else { return };
    assert!(set.patou(&["drain", "web-1"]).status.success());
    deploy(set.test_dir(), "two", "0");
    assert_recycled(&set, &["web"], "pool web: 2 workers recycled in ");
    assert_eq!(set.worker("web/1")["state"], "draining");
    assert!(set.patou(&["resume", "web-1"]).status.success());
    assert!(set.patou(&["drain", "web-2"]).status.success());
    assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    set.stop();
}

#[test]
fn failed_worker_is_named_and_the_others_are_recycled() {
    let Some(mut set) = is_installed("python3").then(|| TestSet::prepare("")) else { return };
    // Worker 2 cannot start until the file exists.
    let script = format!(
        "import os\nif os.environ['N'] == '2' and not os.path.exists(os.environ['DIR'] + '/ok'): raise SystemExit('no file')\n{SERVER}"
    );
    let command = toml_array(&["python3", "-c", &script, "{port}"]);
    let environment = format!(
        "environment = {{ DIR = {:?}, PORT = \"{{port}}\", N = \"{{n}}\" }}",
        set.test_dir().display().to_string()
    );
    let watchdog = "[watchdog]\nrestarts = { max = 2, within = \"60s\", delay = \"10ms\", delay_max = \"20ms\" }";
    deploy(set.test_dir(), "one", "0");
    set.configure(&web_pool(&format!("{{ http = {command} }}"), &format!("workers = 2\n{environment}\n{watchdog}")));
    set.run();
    set.wait_for_worker("web/2", "failed");
    set.wait_for_worker("web/1", "idle");
    deploy(set.test_dir(), "two", "0");
    let (code, out, err) = recycle(&set, &["--all"]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("pool web: 1 of 2 workers recycled") && err.contains("web/2 has failed (last end: "), "{err}");
    assert!(err.contains("no file"), "{err}");
    assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    set.stop();
}

/// Waits until the recycling has come so far that a worker has its next process.
fn start_recycling(set: &TestSet) -> Child {
    let command = set.command(&["recycle", "web"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    set.wait_for_log(&["warm process recycled"]);
    command
}

#[test]
fn recycling_continues_when_the_dispatcher_dies() {
    let Some(set) = application(4, "0.5", "") else { return };
    deploy(set.test_dir(), "two", "0.5");
    let load = LoadGenerator::start(set.address(0), "/hello", 2);
    let command = start_recycling(&set);
    signal_to(set.dispatcher_pid(), Signal::SIGKILL);
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), set.log());
    assert!(text(&output.stdout).starts_with("pool web: 4 workers recycled in "));
    let failed = load.stop();
    assert!(failed.is_empty(), "{} failed, first: {}\n{}", failed.len(), failed[0], set.log());
    for _ in 0..12 {
        assert_eq!(get(set.address(1), "/").unwrap().text(), "two");
    }
    set.stop();
}

#[test]
fn command_ends_with_the_set() {
    let Some(mut set) = application(4, "0.5", "") else { return };
    let command = start_recycling(&set);
    set.signal(Signal::SIGTERM);
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("the set is stopping") || error.contains("no set is running"), "{error}");
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
}

#[test]
fn arguments_name_a_pool_or_all() {
    let set = TestSet::start(&format!("{ECHO}\n[[pool]]\nname = \"other\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n"));
    for args in [&[][..], &["default", "--all"], &["Default"], &["default-1"]] {
        let (code, out, err) = recycle(&set, args);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{args:?} {err}");
    }
    let expected = "patou: the configuration has no pool defualt: the nearest is default\n";
    assert_eq!(recycle(&set, &["defualt"]), (Some(1), String::new(), expected.to_owned()));
    let expected = "patou: the configuration has no pool x: it has default, other\n";
    assert_eq!(recycle(&set, &["x"]), (Some(1), String::new(), expected.to_owned()));
    let (code, out, err) = recycle(&set, &["--all"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for line in ["pool default: 2 workers recycled in ", "pool other: 1 worker recycled in "] {
        assert!(out.lines().any(|printed| printed.starts_with(line)), "{out}");
    }
    set.stop();
}
