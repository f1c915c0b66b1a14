//! A hostile worker can harm only itself with its segment and doorbells. Also: access to the probe socket, and resource
//! limits without systemd.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;
use support::*;

/// The size of a segment in bytes.
const SEGMENT_SIZE: usize = 896;

/// Three workers that may be restarted without limit.
fn echo_pool() -> String {
    let restarts = "{ max = 1000, within = \"60s\", delay = \"10ms\", delay_max = \"10ms\" }";
    format!("{}\n[watchdog]\nrestarts = {restarts}\n", ECHO.replace("workers = 2", "workers = 3"))
}

/// Opens the segment of worker 2 as any process of the same user can.
fn open_segment(set: &TestSet) -> File {
    let name = std::fs::read_to_string(set.runtime_dir().join("default/2.segment")).unwrap();
    let path = PathBuf::from("/dev/shm").join(name.trim_start_matches('/'));
    File::options().read(true).write(true).open(path).unwrap()
}

/// Waits until worker 2 serves; if `old` is given, in another process.
fn wait_until_serving(set: &TestSet, old: Option<u32>) {
    set.wait_for("worker 2 serves", |status| {
        let worker = worker_of(status, "default/2");
        let pid = worker["pid"].as_u64();
        let serves = ["idle", "leased", "busy"].iter().any(|state| worker["state"] == *state);
        serves && pid.is_some() && (old.is_none() || pid != old.map(u64::from))
    });
}

/// Reproducible pseudo-random numbers (xorshift64*, Vigna).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).take(count).collect()
    }

    fn from_environment() -> Self {
        let seed = std::env::var("PATOU_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
        eprintln!("PATOU_SEED={seed}");
        Self(seed)
    }
}

#[test]
fn truncated_segment_harms_only_its_worker() {
    let set = TestSet::start(&echo_pool());
    let dispatcher = set.dispatcher_pid();
    for size in [0, 100, 300, 8192] {
        let (old, load) = (set.worker_pid("default/2"), LoadGenerator::start(set.address(0), "/x", 3));
        load.wait_for(5);
        open_segment(&set).set_len(size).unwrap();
        // Other processes read the segment meanwhile.
        assert!(set.patou(&["status"]).status.success());
        assert!(set.patou(&["ipc", "list"]).status.code().is_some());
        let since = Instant::now();
        wait_until_serving(&set, Some(old));
        eprintln!("truncated to {size} bytes: serving again after {:?}", since.elapsed());
        load.wait_for(5);
        // Only the request that this worker was serving may fail.
        let failures = load.stop();
        assert!(failures.len() <= 1, "{failures:?}");
        assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
        assert_eq!(open_segment(&set).metadata().unwrap().len(), SEGMENT_SIZE as u64, "the segment has its size again");
    }
    set.wait_for_log(&["default/2", "recreated"]);
    assert!(set.patou(&["ipc", "list"]).status.success());
    // The counters of the other workers are kept.
    assert!(set.worker("default/1")["served"].as_u64() > Some(0));
    set.stop();
}

#[test]
fn worker_whose_segment_is_truncated_while_serving_is_replaced() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "", ""));
    set.run();
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let one = start_gated_request(&set, "one");
    let two = start_gated_request(&set, "two");
    let old = set.worker_pid("default/2");
    open_segment(&set).set_len(0).unwrap();
    wait_until_serving(&set, Some(old));
    open_gate(&set);
    let mut results = [one.join().unwrap(), two.join().unwrap()];
    results.sort_by_key(|result| result.is_err());
    assert_eq!(results[0].as_ref().unwrap().status, 200, "the other worker's client was served");
    assert!(results[1].as_ref().map_or(true, |response| response.status >= 502), "{:?}", results[1]);
    assert_eq!(set.dispatcher_pid(), dispatcher);
    set.stop();
}

#[test]
fn dispatcher_starts_with_a_damaged_segment() {
    let set = TestSet::start(&echo_pool());
    for damage in ["truncated", "overwritten", "another layout", "no epoch", "no process"] {
        let (old, dispatcher) = (set.worker_pid("default/2"), set.dispatcher_pid());
        // The next dispatcher is the first to find the damage.
        signal_to(dispatcher, Signal::SIGSTOP);
        let segment = open_segment(&set);
        match damage {
            "truncated" => segment.set_len(0).unwrap(),
            "overwritten" => segment.write_all_at(&[0xee; SEGMENT_SIZE], 0).unwrap(),
            // The life line names no incarnation although the worker is alive.
            "no epoch" => segment.write_all_at(&[0; 8], 256).unwrap(),
            "no process" => segment.write_all_at(&[0; 8], 264).unwrap(),
            _ => segment.write_all_at(&9u64.to_ne_bytes(), 8).unwrap(),
        }
        signal_to(dispatcher, Signal::SIGKILL);
        wait_until_serving(&set, Some(old));
        let now = set.dispatcher_pid();
        assert_ne!(now, dispatcher);
        assert_eq!(get(set.address(0), "/x").unwrap().status, 200, "{damage}");
    }
    assert_eq!(set.status()["dispatcher"]["restarts"], 5, "{}", set.log());
    set.stop();
}

#[test]
fn stray_write_does_not_take_a_worker_out_of_service_permanently() {
    let set = TestSet::start(&echo_pool());
    let pid = set.worker_pid("default/2");
    // The state in the life line becomes draining.
    open_segment(&set).write_all_at(&3u64.to_ne_bytes(), 280).unwrap();
    set.wait_for_worker("default/2", "idle");
    for _ in 0..4 {
        assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    }
    wait_until("worker 2 is idle", || worker_of(&set.status(), "default/2")["state"] == "idle");
    assert_eq!(set.worker_pid("default/2"), pid);
    // The epoch in the life line becomes that of another incarnation, which claims no lease.
    open_segment(&set).write_all_at(&77u64.to_ne_bytes(), 256).unwrap();
    wait_until_serving(&set, Some(pid));
    set.wait_for_log(&["default/2", "was overwritten and names another"]);
    set.stop();
}

#[test]
fn random_bytes_in_a_segment_harm_only_its_worker() {
    let mut random = Random::from_environment();
    let mut set = TestSet::prepare(&echo_pool());
    set.run_with_log_level("info");
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let load = LoadGenerator::start(set.address(0), "/x", 2);
    let (file, line) = (open_segment(&set), 64);
    for round in 0..3 {
        for at in (0..SEGMENT_SIZE).step_by(line) {
            file.write_all_at(&random.bytes(line), at as u64).unwrap();
            load.wait_for(5);
            wait_until_serving(&set, None);
            assert_eq!(set.dispatcher_pid(), dispatcher, "line {}\n{}", at / line, set.log());
        }
        // The whole segment, repeatedly.
        for _ in 0..50 {
            file.write_all_at(&random.bytes(SEGMENT_SIZE), 0).unwrap();
            std::thread::sleep(Duration::from_millis(random.next() % 5));
        }
        load.wait_for(5);
        wait_until_serving(&set, None);
        eprintln!("round {round}: worker 2 restarted {} times so far", set.worker("default/2")["restarts"]);
    }
    // Each restart may fail the request that worker 2 was serving.
    let (failures, restarts) = (load.stop(), set.worker("default/2")["restarts"].as_u64().unwrap());
    assert!(failures.len() as u64 <= restarts, "{restarts} restarts, {failures:?}");
    assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
    assert_eq!(set.worker("default/1")["restarts"], 0);
    assert_eq!(set.worker("default/3")["restarts"], 0);
    set.stop();
}

#[test]
fn endless_rings_and_claim_changes_do_not_stop_service() {
    let set = TestSet::start(&echo_pool());
    let dispatcher = set.dispatcher_pid();
    let doorbell = set.runtime_dir().join("default/2.wd");
    let doorbell = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(doorbell).unwrap();
    let (segment, stop) = (open_segment(&set), Arc::new(AtomicBool::new(false)));
    let (stop_one, stop_two) = (stop.clone(), stop.clone());
    let ringing = std::thread::spawn(move || {
        use std::io::Write;
        while !stop_one.load(Ordering::Relaxed) {
            let _ = (&doorbell).write(&[1; 4096]);
        }
    });
    let flipping = std::thread::spawn(move || {
        let mut lease = 1u64;
        while !stop_two.load(Ordering::Relaxed) {
            lease += 1;
            // Done, Revoked or Aborted: each requires an action of the dispatcher.
            let word = lease << 8 | (4 + lease % 3);
            segment.write_all_at(&word.to_ne_bytes(), 64 + 4 * 64).unwrap();
        }
    });
    let load = LoadGenerator::start(set.address(0), "/x", 1);
    let since = Instant::now();
    load.wait_for(50);
    eprintln!("50 requests beside a hostile worker: {:?}", since.elapsed());
    stop.store(true, Ordering::Relaxed);
    ringing.join().unwrap();
    flipping.join().unwrap();
    let failures = load.stop();
    assert!(failures.len() <= 2, "{failures:?}");
    assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
    wait_until_serving(&set, None);
    set.stop();
}

#[test]
fn sigbus_outside_a_segment_is_fatal() {
    let set = TestSet::start(ECHO);
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGBUS);
    set.wait_for_log(&["dispatcher", "SIGBUS", "restarting it now"]);
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["state"] == "up"
    });
    set.stop();
}

#[test]
fn without_systemd_supported_limits_apply_and_others_are_reported() {
    let script = r#"printf 'Content-Type: text/plain\r\n\r\n'; ulimit -n; ulimit -H -n; ulimit -d"#;
    let handler = format!("{{ exec = {} }}", toml_array(&["/bin/sh", "-c", script]));
    let limited = |files: &str| {
        let limits = format!("{{ open_files = \"{files}\", memory_max = \"256M\", cpu_quota = \"50%\" }}");
        one_pool(1, &handler, &format!("user = \"daemon\"\nlimits = {limits}"))
    };
    let set = TestSet::start(&limited("64:128"));
    let applied_limits = || get(set.address(0), "/").unwrap().text();
    assert_eq!(applied_limits(), "64\n128\n262144\n");
    let warning = "pool default: patou run ignores user and limits.cpu_quota (supported under systemd only)";
    let warnings = || set.log().lines().filter(|line| line.contains(warning)).count();
    assert_eq!(warnings(), 1, "{}", set.log());
    let check = set.patou(&["check"]);
    assert!(check.status.success() && text(&check.stdout).contains(warning), "{}", text(&check.stdout));

    let old = set.worker_pid("default/1");
    set.configure(&limited("48"));
    set.signal(Signal::SIGHUP);
    set.wait_for("a worker with other limits", |status| {
        let worker = worker_of(status, "default/1");
        worker["pid"] != old && worker["state"] == "idle"
    });
    assert_eq!(applied_limits(), "48\n48\n262144\n");
    assert_eq!((warnings(), set.worker("default/1")["restarts"].as_u64()), (2, Some(0)));
    set.stop();
}

/// The files are open to every user, so that only the check of the dispatcher protects it.
#[test]
fn dispatcher_obeys_only_its_own_user_and_root() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this test needs root to become another user");
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "dispatcher_obeys_only_its_own_user_and_root: SKIPPED, only root can become another user"
        );
        return;
    }
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(ECHO);
    set.run_with_log_level("info");
    set.wait_until_up();
    let socket = set.runtime_dir().join("probe.sock");
    for (path, mode) in [(set.test_dir(), 0o755), (&set.runtime_dir(), 0o755), (&socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let probe = |uid: u32, command: &str| {
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(10)\n\
            s.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode() + b'\\n')\nprint(s.makefile().readline())";
        let question = format!("{{\"nonce\":7{command}}}");
        let mut python = std::process::Command::new("python3");
        let output = python.args(["-c", script]).arg(&socket).arg(question).uid(uid).gid(uid).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    assert!(probe(0, "").contains("\"nonce\":7"));
    for command in ["", ",\"order\":{\"drain\":\"default/1\"}", ",\"order\":\"quiesce\"", ",\"order\":\"ping\""] {
        let answer = probe(65_534, command);
        assert!(answer.starts_with("{\"refused\":\"only root") && !answer.contains("pools"), "{answer}");
    }
    assert_eq!(set.worker("default/1")["state"], "idle", "the command of the other user was refused");
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    let warnings = set.log().lines().filter(|line| line.contains("refusing a user that is not authorized")).count();
    assert_eq!(warnings, 1, "at most one warning per minute\n{}", set.log());
    // `patou status` above ran as the user of the dispatcher; a drain works as well.
    assert!(set.patou(&["drain", "default-1"]).status.success());
    set.stop();
}
