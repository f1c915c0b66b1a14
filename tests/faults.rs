//! Dead and frozen parts are replaced while the others continue to serve.

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// Three workers: two serve while one restarts.
fn echo_pool() -> String {
    ECHO.replace("workers = 2", "workers = 3")
}

/// Waits until another process than `old` is this worker and is idle; returns how long that took.
fn wait_until_replaced(set: &TestSet, id: &str, old: u32) -> Duration {
    let since = Instant::now();
    set.wait_for("the worker is replaced", |status| {
        let worker = worker_of(status, id);
        worker["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && worker["state"] == "idle"
    });
    since.elapsed()
}

fn wait_until_dispatcher_replaced(set: &TestSet, old: u32) -> Duration {
    let since = Instant::now();
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["pid"].as_u64() != Some(u64::from(old)) && status["dispatcher"]["state"] == "up"
    });
    since.elapsed()
}

fn worker_pids(status: &Value) -> Vec<u64> {
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["pid"].as_u64().unwrap_or(0)).collect()
}

#[test]
fn killed_worker_is_replaced_immediately() {
    let set = TestSet::start(&echo_pool());
    let load = LoadGenerator::start(set.address(0), "/x", 2);
    let (address, old) = (set.worker("default/2")["address"].clone(), set.worker_pid("default/2"));
    load.wait_for(5);
    signal_to(old, Signal::SIGKILL);
    eprintln!("killed worker replaced in {:?}", wait_until_replaced(&set, "default/2", old));
    set.wait_for_log(&["default/2 is down", "SIGKILL", "restarting it now"]);
    load.wait_for(5);
    let failures = load.stop();
    assert!(failures.len() <= 1, "{failures:?}");
    assert!(failures.iter().all(|failure| failure.contains(address.as_str().unwrap())), "{failures:?}");
    assert_eq!(set.worker("default/2")["restarts"], 1);
    set.stop();
}

#[test]
fn frozen_worker_is_killed_and_replaced() {
    let set = TestSet::start(&echo_pool());
    let load = LoadGenerator::start(set.address(0), "/x", 2);
    let (address, old) = (set.worker("default/2")["address"].clone(), set.worker_pid("default/2"));
    load.wait_for(5);
    signal_to(old, Signal::SIGSTOP);
    eprintln!("frozen worker replaced in {:?}", wait_until_replaced(&set, "default/2", old));
    set.wait_for_log(&["default/2", "frozen"]);
    load.wait_for(5);
    let failures = load.stop();
    assert!(failures.len() <= 1, "{failures:?}");
    assert!(failures.iter().all(|failure| failure.contains(address.as_str().unwrap())), "{failures:?}");
    set.stop();
}

#[test]
fn only_the_request_of_a_dead_busy_worker_is_lost() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let mut set = TestSet::prepare("");
        set.configure(&gated_pool(&set, 3, "", ""));
        set.run();
        set.wait_until_up();
        let victim = start_gated_request(&set, "victim");
        let status = set.status();
        let id = (1..=3).map(|n| format!("default/{n}")).find(|id| worker_of(&status, id)["state"] == "busy").unwrap();
        let other = start_gated_request(&set, "other");
        let load = LoadGenerator::start(set.address(0), "/fast", 1);
        load.wait_for(2);
        let old = set.worker_pid(&id);
        signal_to(old, signal);
        let result = victim.join().unwrap();
        assert!(result.as_ref().map_or(true, |response| response.status >= 502), "{result:?}");
        eprintln!(
            "busy worker replaced after {signal} in {:?} from the end of its request",
            wait_until_replaced(&set, &id, old)
        );
        load.wait_for(2);
        open_gate(&set);
        assert_eq!(other.join().unwrap().unwrap().status, 200);
        assert_eq!(load.stop(), Vec::<String>::new());
        // The processes of its handler were killed as well.
        wait_until("the orphans exit", || set.processes().len() == 5);
        set.stop();
    }
}

#[test]
fn dead_dispatcher_is_replaced_without_restarting_workers() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let mut set = TestSet::prepare("");
        set.configure(&gated_pool(&set, 3, "", ""));
        set.run();
        set.wait_until_up();
        let running = start_gated_request(&set, "one");
        let workers = worker_pids(&set.status());
        let load = LoadGenerator::start(set.address(0), "/fast", 2);
        load.wait_for(2);
        let old = set.dispatcher_pid();
        signal_to(old, signal);
        eprintln!("dispatcher replaced after {signal} in {:?}", wait_until_dispatcher_replaced(&set, old));
        load.wait_for(5);
        let busy = set.status();
        let busy = busy["pools"][0]["workers"].as_array().unwrap().iter().filter(|worker| worker["lease"].is_string());
        assert!(busy.count() >= 1, "the lease is recovered from the segment");
        open_gate(&set);
        assert_eq!(running.join().unwrap().unwrap().status, 200);
        assert_eq!(load.stop(), Vec::<String>::new(), "{}", set.log());
        let status = set.wait_for("all are idle", |status| {
            status["pools"][0]["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "idle")
        });
        assert_eq!(worker_pids(&status), workers, "a worker was restarted because the dispatcher was");
        assert_eq!(status["dispatcher"]["restarts"], 1);
        set.stop();
    }
}

#[test]
fn briefly_stopped_part_is_not_killed() {
    let set = TestSet::start(&echo_pool());
    let status = set.status();
    let before = (worker_pids(&status), set.dispatcher_pid());
    for pid in [set.worker_pid("default/1"), set.dispatcher_pid(), set.pid()] {
        let pause = if pid == set.pid() { Duration::from_secs(3) } else { Duration::from_millis(500) };
        signal_to(pid, Signal::SIGSTOP);
        std::thread::sleep(pause); // not a wait: the pause is the fault under test
        if pid == set.pid() {
            assert_eq!(set.status()["watchdog"]["state"], "frozen");
        }
        signal_to(pid, Signal::SIGCONT);
        assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    }
    // Long enough for a wrong verdict.
    std::thread::sleep(Duration::from_millis(2500));
    let status = set.status();
    assert_eq!((worker_pids(&status), set.dispatcher_pid()), before, "{}", set.log());
    set.stop();
}

/// An echo pool, and a pool `bad` whose worker is this program.
fn with_bad_pool(program: &str, watchdog: &str) -> String {
    format!(
        "[watchdog]\n{watchdog}\n{ECHO}\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"bad\"\n[[pool]]\nname = \"bad\"\n\
         workers = 1\naddress = \"127.0.0.1:0\"\nqueue_timeout = \"100ms\"\nhandler = {{ program = {program} }}\n"
    )
}

#[test]
fn worker_that_keeps_exiting_fails_and_the_other_pool_serves() {
    let mut set = TestSet::prepare("");
    let restarts = "restarts = { max = 4, within = \"10m\", delay = \"20ms\", delay_max = \"80ms\" }";
    let config = |set: &TestSet| {
        with_bad_pool(
            &format!("[\"/bin/sh\", \"-c\", \"test -e {}/ok && exec sleep 600; exit 3\"]", set.test_dir().display()),
            restarts,
        )
    };
    set.configure(&config(&set));
    set.run();
    let status = set.wait_for("the worker has failed", |status| worker_of(status, "bad/1")["state"] == "failed");
    assert_eq!(worker_of(&status, "bad/1")["restarts"], 4);
    assert_eq!(worker_of(&status, "bad/1")["cause"], "exit code 3 before it was ready");
    set.wait_for_log(&["error", "bad/1", "has failed", "exit code 3"]);
    let resumed = set.patou(&["resume", "bad-1"]);
    assert_eq!(resumed.status.code(), Some(1));
    assert!(text(&resumed.stderr).contains("it has failed (last end: exit code 3 before it was ready)"), "{resumed:?}");
    set.wait_for_log(&["the set is not up", "worker bad/1 is", "exit code 3", "the others serve"]);
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    let refused = get(set.address(1), "/x").unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("bad"), "{refused:?}");
    assert_eq!(set.patou(&["status", "--wait", "50ms"]).status.code(), Some(1));
    // A reload restarts a failed worker.
    std::fs::write(set.test_dir().join("ok"), "").unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for("the worker is restarted", |status| worker_of(status, "bad/1")["state"] == "starting");
    set.stop();
}

#[test]
fn failed_pool_refuses_immediately_and_serves_after_recovery() {
    let mut set = TestSet::prepare("");
    let (go, ok) = (set.test_dir().join("go"), set.test_dir().join("ok"));
    let script = format!(
        "test -e {0} && exec {1}; while ! test -e {2}; do sleep 0.05; done; exit 3",
        ok.display(),
        build_example("axum_worker"),
        go.display()
    );
    let restarts = "restarts = { max = 1, within = \"10m\", delay = \"20ms\", delay_max = \"20ms\" }";
    let config = with_bad_pool(&toml_array(&["/bin/sh", "-c", &script]), restarts);
    set.configure(&config.replace("100ms", "10m").replace("workers = 1", "workers = 2"));
    set.run();
    set.wait_for("the dispatcher is up", |status| status["dispatcher"]["state"] == "up");
    let address = set.address(1);
    let waiting = std::thread::spawn(move || get(address, "/x").unwrap());
    set.wait_for("a client waits", |status| status["dispatcher"]["queue"] == 1);
    std::fs::write(&go, "").unwrap();
    let refused = waiting.join().unwrap();
    let reason = "every worker of pool bad has failed: exit code 3 before it was ready";
    let assert_refused = |refused: HttpResponse| {
        assert_eq!((refused.status, refused.header("patou-outcome")), (503, Some("not-started")), "{refused:?}");
        assert!(refused.text().contains(reason) && refused.header("retry-after").is_some(), "{refused:?}");
    };
    assert_refused(refused);
    assert_refused(get(address, "/x").unwrap());
    set.wait_for_log(&["error", "every worker of pool bad has failed", "reload the set"]);
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    // The first probe reports the failure to the next dispatcher.
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGKILL);
    wait_until_dispatcher_replaced(&set, old);
    let since = Instant::now();
    assert_refused(get(address, "/x").unwrap());
    assert!(since.elapsed() < Duration::from_secs(5));
    std::fs::write(&ok, "").unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for("the worker serves again", |status| worker_of(status, "bad/1")["state"] == "idle");
    assert_eq!(get(address, "/hello").unwrap().status, 200);
    set.stop();
}

#[test]
fn worker_that_is_never_ready_is_killed_and_restarted() {
    let mut set = TestSet::prepare("");
    set.configure(&with_bad_pool("[\"/bin/sleep\", \"600\"]", "start_timeout = \"300ms\""));
    set.run();
    set.wait_for_log(&["bad/1", "not ready after", "start_timeout"]);
    set.wait_for("the worker has been restarted twice", |status| {
        worker_of(status, "bad/1")["restarts"].as_u64() >= Some(2)
    });
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    set.stop();
}

#[test]
fn reason_why_a_part_does_not_start_is_logged_once_in_one_line() {
    // `check` does not judge a program that depends on the number of the worker, and execve fails.
    let mut set = TestSet::prepare("");
    let program = |n: &str| set.test_dir().join(format!("program-{n}"));
    for n in ["1", "2"] {
        std::fs::write(program(n), "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(program(n), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let why = |n| format!("cannot execute {}: No such file", program(n).display());
    let (first, second) = (why("1"), why("2"));
    set.configure(&format!(
        "[watchdog]\nstart_timeout = \"3s\"\nrestarts = {{ max = 9, within = \"10m\", delay = \"10m\", delay_max = \"10m\" }}\n\
         {ECHO}\nhandler = {{ program = [\"{}\"] }}\n",
        program("{n}").display()
    ));
    set.run();
    let line = set.wait_for_log(&["warning", "worker default/1 is down", "before it was ready", &first]);
    assert!(line.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    // Only the first line has the full reason, and no other process logs it.
    set.wait_for_log(&["warning", "worker default/1 is down", "before it was ready, as before"]);
    let has_reason = |line: &&str| line.contains("warning: worker default/1") && line.contains(&first);
    assert_eq!(set.log().lines().filter(has_reason).count(), 1, "{}", set.log());
    assert!(!set.log().contains("patou: "), "{}", set.log());
    set.wait_for_log(&["the set is not up", "worker default/2 is gone", &second, "start_timeout"]);
    set.stop();
}

#[test]
fn next_run_removes_what_a_killed_watchdog_left() {
    for frozen in ["none", "worker", "dispatcher"] {
        let mut set = TestSet::prepare("");
        let unix = set.test_dir().join("front.sock");
        let listener = format!("[[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n", unix.display());
        set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", &listener));
        set.run();
        set.wait_until_up();
        let idle = set.worker_pid("default/1");
        assert!(set.patou(&["drain", "default-1"]).status.success());
        let tcp = set.status()["listeners"][1].as_str().unwrap().parse().unwrap();
        let client = std::thread::spawn(move || get(tcp, "/.one"));
        wait_until("the request runs", || set.test_dir().join("started.one").exists());
        match frozen {
            "worker" => signal_to(idle, Signal::SIGSTOP),
            "dispatcher" => signal_to(set.dispatcher_pid(), Signal::SIGSTOP),
            _ => {}
        }
        let old = (set.pid(), set.worker_pid("default/2"), set.dispatcher_pid());
        set.signal(Signal::SIGKILL);
        assert_eq!(set.wait_for_exit(), None);
        let status = set.patou(&["status", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!((status.status.code(), &json["watchdog"]["state"]), (Some(1), &"gone".into()));
        assert!(text(&status.stderr).contains("the watchdog is gone"), "{}", text(&status.stderr));
        set.wait_for_log(&["worker default/2", "the watchdog has died"]);
        set.run();
        set.wait_for_log(&["worker default/2 of the previous set is busy"]);
        assert!(is_alive(old.1));
        open_gate(&set);
        assert_eq!(client.join().unwrap().unwrap().status, 200);
        set.wait_until_up();
        assert!(!is_alive(old.1) && !is_alive(old.2) && !is_alive(idle));
        set.wait_for_log(&["removed what a previous set had left behind", "segments=2", "worker default/2"]);
        assert_eq!((set.segments().len(), set.processes().len()), (2, 4));
        let tcp = set.status()["listeners"][1].as_str().unwrap().parse().unwrap();
        assert_eq!(get(tcp, "/fast").unwrap().status, 200);
        set.stop();
        assert!(!unix.exists());
    }
}

#[test]
fn start_that_waits_for_the_previous_set_can_be_stopped() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let client = start_gated_request(&set, "one");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    set.run();
    set.wait_for_log(&["worker default/1 of the previous set is busy"]);
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    open_gate(&set);
    assert_eq!(client.join().unwrap().unwrap().status, 200, "the start killed a worker that was busy");
    set.run();
    set.wait_until_up();
    set.stop();
}

#[test]
fn running_set_cannot_be_started_twice() {
    let set = TestSet::start(ECHO);
    let second = set.patou(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    let message = text(&second.stderr);
    assert!(message.contains(&format!("pid {}", set.pid())) && message.lines().count() == 1, "{message}");
    let removed = set.patou(&["ipc", "remove"]);
    assert_eq!(removed.status.code(), Some(1));
    assert_eq!(get(set.address(0), "/x").unwrap().status, 200);
    set.stop();
    // Of several simultaneous starts exactly one succeeds.
    for _ in 0..5 {
        let set = TestSet::prepare(ECHO);
        let mut runs: Vec<_> =
            (0..4).map(|_| set.command(&["run"]).stderr(std::process::Stdio::piped()).spawn().unwrap()).collect();
        set.wait_until_up();
        let winner = set.status()["watchdog"]["pid"].as_u64().unwrap();
        let index = runs.iter().position(|run| u64::from(run.id()) == winner).unwrap();
        let mut winner = runs.remove(index);
        for run in runs {
            let output = run.wait_with_output().unwrap();
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert!(message.contains(&format!("pid {}", winner.id())), "{message}");
        }
        signal_to(winner.id(), Signal::SIGTERM);
        assert!(winner.wait().unwrap().success());
        set.assert_nothing_left();
    }
}

/// What the open descriptors of a process refer to.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = entries.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let mut targets: Vec<_> = targets.map(|target| target.display().to_string()).collect();
    targets.sort();
    targets
}

#[test]
fn restarts_leak_no_descriptors() {
    let set = TestSet::start(&format!(
        "[watchdog]\nrestarts = {{ max = 100, within = \"10m\", delay = \"1ms\", delay_max = \"2ms\" }}\n{ECHO}"
    ));
    let before = descriptors(set.pid());
    let dispatcher_before = descriptors(set.dispatcher_pid()).len();
    for _ in 0..20 {
        let (worker, dispatcher) = (set.worker_pid("default/1"), set.dispatcher_pid());
        signal_to(worker, Signal::SIGKILL);
        wait_until_replaced(&set, "default/1", worker);
        signal_to(dispatcher, Signal::SIGKILL);
        wait_until_dispatcher_replaced(&set, dispatcher);
        set.wait_until_up();
    }
    // One more is allowed: the connection of the probe may not have existed at first.
    wait_until("the watchdog has as many descriptors as before", || descriptors(set.pid()).len() <= before.len() + 1);
    wait_until("the dispatcher has as many descriptors as before", || {
        descriptors(set.dispatcher_pid()).len() <= dispatcher_before + 1
    });
    // A worker has its own segment and doorbells, each open and as a reference for its next incarnation, and nothing of
    // another worker.
    let worker = descriptors(set.worker_pid("default/1"));
    assert!(
        ["default-2", "default/2", "set.lock"].iter().all(|other| worker.iter().all(|target| !target.contains(other))),
        "{worker:?}"
    );
    let count = |fragment: &str| worker.iter().filter(|target| target.contains(fragment)).count();
    assert_eq!((count("/dev/shm/"), count(".dw"), count(".wd"), count("pidfd")), (2, 2, 2, 0), "{worker:?}");
    set.stop();
}

#[test]
fn inherited_children_of_the_watchdog_are_not_killed() {
    let set = TestSet::prepare(ECHO);
    let file = set.test_dir().join("inherited");
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "sleep 600 & echo $! >\"$1\"; shift; exec \"$@\"", "sh"]).arg(&file).arg(PATOU);
    shell.args(["run", "--config"]).arg(set.config_file()).stderr(std::process::Stdio::null());
    let mut run = shell.spawn().unwrap();
    set.wait_until_up();
    let inherited: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let old = set.worker_pid("default/1");
    signal_to(old, Signal::SIGKILL);
    wait_until_replaced(&set, "default/1", old);
    signal_to(run.id(), Signal::SIGTERM);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert!(is_alive(inherited));
    signal_to(inherited, Signal::SIGKILL);
    set.assert_nothing_left();
}

#[test]
fn processes_of_another_version_keep_their_segments() {
    use std::os::unix::fs::FileExt;
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let worker = set.worker_pid("default/1");
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    // As if a version with another layout had created the segments.
    for segment in set.segments() {
        let file = std::fs::File::options().write(true).open(format!("/dev/shm/{segment}")).unwrap();
        file.write_all_at(&99u64.to_ne_bytes(), 8).unwrap();
    }
    let before = set.segments();
    set.run();
    assert_eq!(set.wait_for_exit(), Some(1));
    set.wait_for_log(&["another version of patou (segment layout 99)"]);
    assert_eq!((set.segments(), is_alive(worker)), (before, true));
    assert!(set.runtime_dir().join("default/1.segment").exists());
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    // No process uses the segments any more: now the start removes them.
    wait_until("the processes exit", || set.processes().is_empty());
    set.run();
    set.wait_until_up();
    set.stop();
}
