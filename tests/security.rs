//! What a hostile worker can do with what it has in hand (its segment, its bells) harms nobody but itself; and
//! who may give orders, and what limits hold without systemd.

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

/// Bytes of a segment.
const SIZE: usize = 896;

/// Three workers that may be replaced as often as it takes.
fn echo() -> String {
    let restarts = "{ max = 1000, within = \"60s\", delay = \"10ms\", delay_max = \"10ms\" }";
    format!("{}\n[watchdog]\nrestarts = {restarts}\n", ECHO.replace("workers = 2", "workers = 3"))
}

/// The segment of worker 2 as any process of the same user can open it.
fn segment(set: &TestSet) -> File {
    let name = std::fs::read_to_string(set.runtime_dir().join("default/2.segment")).unwrap();
    let path = PathBuf::from("/dev/shm").join(name.trim_start_matches('/'));
    File::options().read(true).write(true).open(path).unwrap()
}

/// Waits until worker 2 is in service as another process than `old`, if it has to be.
fn wait_until_back(set: &TestSet, old: Option<u32>) {
    set.wait_for("the worker is back", |status| {
        let worker = worker_of(status, "default/2");
        let pid = worker["pid"].as_u64();
        let serves = ["idle", "leased", "busy"].iter().any(|state| worker["state"] == *state);
        serves && pid.is_some() && (old.is_none() || pid != old.map(u64::from))
    });
}

/// Numbers that look random and come from a seed (Vigna, "xorshift*").
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
fn a_worker_that_cuts_its_segment_harms_only_itself() {
    let set = TestSet::start(&echo());
    let dispatcher = set.dispatcher_pid();
    for size in [0, 100, 300, 8192] {
        let (old, load) = (set.worker_pid("default/2"), LoadGenerator::start(set.address(0), "/x", 3));
        load.wait_for(5);
        segment(&set).set_len(size).unwrap();
        // Others look at it meanwhile.
        assert!(set.patou(&["status"]).status.success());
        assert!(set.patou(&["ipc", "list"]).status.code().is_some());
        let since = Instant::now();
        wait_until_back(&set, Some(old));
        eprintln!("cut to {size} bytes: back in service after {:?}", since.elapsed());
        load.wait_for(5);
        // Only the request that it had in hand may go with it.
        let failures = load.stop();
        assert!(failures.len() <= 1, "{failures:?}");
        assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
        assert_eq!(segment(&set).metadata().unwrap().len(), SIZE as u64, "it has its size again");
    }
    set.wait_for_log(&["default/2", "recreated"]);
    assert!(set.patou(&["ipc", "list"]).status.success());
    // Its counters began anew; those of the others did not.
    assert!(set.worker("default/1")["served"].as_u64() > Some(0));
    set.stop();
}

#[test]
fn a_worker_that_cuts_its_segment_while_it_serves_is_replaced() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "", ""));
    set.run();
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let one = start_gated_request(&set, "one");
    let two = start_gated_request(&set, "two");
    let old = set.worker_pid("default/2");
    segment(&set).set_len(0).unwrap();
    wait_until_back(&set, Some(old));
    open_gate(&set);
    let mut ends = [one.join().unwrap(), two.join().unwrap()];
    ends.sort_by_key(|end| end.is_err());
    assert_eq!(ends[0].as_ref().unwrap().status, 200, "the other worker's client was served");
    assert!(ends[1].as_ref().map_or(true, |answer| answer.status >= 502), "{:?}", ends[1]);
    assert_eq!(set.dispatcher_pid(), dispatcher);
    set.stop();
}

#[test]
fn a_dispatcher_starts_on_a_damaged_segment() {
    let set = TestSet::start(&echo());
    for damage in ["cut", "garbled", "another layout", "no epoch", "no process"] {
        let (old, dispatcher) = (set.worker_pid("default/2"), set.dispatcher_pid());
        // Nobody can act on it before the next dispatcher does.
        signal_to(dispatcher, Signal::SIGSTOP);
        let segment = segment(&set);
        match damage {
            "cut" => segment.set_len(0).unwrap(),
            "garbled" => segment.write_all_at(&[0xee; SIZE], 0).unwrap(),
            // The life line: what cannot be read as a life, though somebody lives.
            "no epoch" => segment.write_all_at(&[0; 8], 256).unwrap(),
            "no process" => segment.write_all_at(&[0; 8], 264).unwrap(),
            _ => segment.write_all_at(&9u64.to_ne_bytes(), 8).unwrap(),
        }
        signal_to(dispatcher, Signal::SIGKILL);
        wait_until_back(&set, Some(old));
        let now = set.dispatcher_pid();
        assert_ne!(now, dispatcher);
        assert_eq!(get(set.address(0), "/x").unwrap().status, 200, "{damage}");
    }
    assert_eq!(set.status()["dispatcher"]["restarts"], 5, "{}", set.log());
    set.stop();
}

#[test]
fn a_stray_write_takes_no_worker_out_of_service_for_good() {
    let set = TestSet::start(&echo());
    let pid = set.worker_pid("default/2");
    // Its state, in the life line: draining.
    segment(&set).write_all_at(&3u64.to_ne_bytes(), 280).unwrap();
    set.wait_for_worker("default/2", "idle");
    for _ in 0..4 {
        assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    }
    wait_until("it serves", || worker_of(&set.status(), "default/2")["state"] == "idle");
    assert_eq!(set.worker_pid("default/2"), pid);
    // Its epoch, as another that there might be: nobody takes a lease for that one.
    segment(&set).write_all_at(&77u64.to_ne_bytes(), 256).unwrap();
    wait_until_back(&set, Some(pid));
    set.wait_for_log(&["default/2", "was overwritten and names another"]);
    set.stop();
}

#[test]
fn garbage_in_a_segment_harms_only_its_worker() {
    let mut random = Random::from_environment();
    let mut set = TestSet::prepare(&echo());
    set.run_with_log_level("info");
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let load = LoadGenerator::start(set.address(0), "/x", 2);
    let (file, line) = (segment(&set), 64);
    for round in 0..3 {
        for at in (0..SIZE).step_by(line) {
            file.write_all_at(&random.bytes(line), at as u64).unwrap();
            load.wait_for(5);
            wait_until_back(&set, None);
            assert_eq!(set.dispatcher_pid(), dispatcher, "line {}\n{}", at / line, set.log());
        }
        // Everything at once, again and again.
        for _ in 0..50 {
            file.write_all_at(&random.bytes(SIZE), 0).unwrap();
            std::thread::sleep(Duration::from_millis(random.next() % 5));
        }
        load.wait_for(5);
        wait_until_back(&set, None);
        eprintln!("round {round}: worker 2 restarted {} times so far", set.worker("default/2")["restarts"]);
    }
    // A request that it had in hand may go with it each time.
    let (failures, restarts) = (load.stop(), set.worker("default/2")["restarts"].as_u64().unwrap());
    assert!(failures.len() as u64 <= restarts, "{restarts} restarts, {failures:?}");
    assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
    assert_eq!(set.worker("default/1")["restarts"], 0);
    assert_eq!(set.worker("default/3")["restarts"], 0);
    set.stop();
}

#[test]
fn a_worker_that_never_stops_ringing_or_changing_its_claim_keeps_nobody_from_being_served() {
    let set = TestSet::start(&echo());
    let dispatcher = set.dispatcher_pid();
    let bell = set.runtime_dir().join("default/2.wd");
    let bell = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(bell).unwrap();
    let (segment, stop) = (segment(&set), Arc::new(AtomicBool::new(false)));
    let (stop_one, stop_two) = (stop.clone(), stop.clone());
    let ringing = std::thread::spawn(move || {
        use std::io::Write;
        while !stop_one.load(Ordering::Relaxed) {
            let _ = (&bell).write(&[1; 4096]);
        }
    });
    let flipping = std::thread::spawn(move || {
        let mut lease = 1u64;
        while !stop_two.load(Ordering::Relaxed) {
            lease += 1;
            // Done, Revoked, Aborted: each asks for a step of the dispatcher's.
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
    wait_until_back(&set, None);
    set.stop();
}

#[test]
fn a_sigbus_from_elsewhere_is_fatal_as_ever() {
    let set = TestSet::start(ECHO);
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGBUS);
    set.wait_for_log(&["dispatcher", "SIGBUS", "started again"]);
    set.wait_for("another dispatcher", |status| {
        status["dispatcher"]["pid"] != old && status["dispatcher"]["state"] == "up"
    });
    set.stop();
}

#[test]
fn without_systemd_each_process_is_bound_as_far_as_it_can_be_and_the_rest_is_said() {
    let script = r#"printf 'Content-Type: text/plain\r\n\r\n'; ulimit -n; ulimit -H -n; ulimit -d"#;
    let handler = format!("{{ exec = {} }}", toml_array(&["/bin/sh", "-c", script]));
    let limited = |files: &str| {
        let limits = format!("{{ open_files = \"{files}\", memory_max = \"256M\", cpu_quota = \"50%\" }}");
        one_pool(1, &handler, &format!("user = \"nobody\"\nlimits = {limits}"))
    };
    let set = TestSet::start(&limited("64:128"));
    let said = || get(set.address(0), "/").unwrap().text();
    assert_eq!(said(), "64\n128\n262144\n");
    let remark = "pool default: user and limits.cpu_quota: only systemd can do that, under patou run it has no effect";
    let remarks = || set.log().lines().filter(|line| line.contains(remark)).count();
    assert_eq!(remarks(), 1, "{}", set.log());
    let check = set.patou(&["check"]);
    assert!(check.status.success() && text(&check.stdout).contains(remark), "{}", text(&check.stdout));

    let old = set.worker_pid("default/1");
    set.configure(&limited("32"));
    set.signal(Signal::SIGHUP);
    set.wait_for("a worker with other limits", |status| {
        let worker = worker_of(status, "default/1");
        worker["pid"] != old && worker["state"] == "idle"
    });
    assert_eq!(said(), "32\n32\n262144\n");
    assert_eq!((remarks(), set.worker("default/1")["restarts"].as_u64()), (2, Some(0)));
    set.stop();
}

/// Asks as another user, with the files open to everybody: the dispatcher alone decides.
#[test]
fn the_dispatcher_answers_to_its_own_user_and_root_and_to_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this test needs root, to be another user");
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "the_dispatcher_answers...: SKIPPED, only root can be another user");
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
    let ask = |uid: u32, order: &str| {
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(10)\n\
            s.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode() + b'\\n')\nprint(s.makefile().readline())";
        let question = format!("{{\"nonce\":7{order}}}");
        let mut python = std::process::Command::new("python3");
        let output = python.args(["-c", script]).arg(&socket).arg(question).uid(uid).gid(uid).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    assert!(ask(0, "").contains("\"nonce\":7"));
    for order in ["", ",\"order\":{\"drain\":\"default/1\"}", ",\"order\":\"quiesce\"", ",\"order\":\"ping\""] {
        let answer = ask(65_534, order);
        assert!(answer.starts_with("{\"refused\":\"only root") && !answer.contains("pools"), "{answer}");
    }
    assert_eq!(set.worker("default/1")["state"], "idle", "nobody's order was not obeyed");
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    let told = set.log().lines().filter(|line| line.contains("may not ask is refused")).count();
    assert_eq!(told, 1, "once a minute at most\n{}", set.log());
    // Its own user is asked by `patou status` all the time; and a drain works.
    assert!(set.patou(&["drain", "default-1"]).status.success());
    set.stop();
}
