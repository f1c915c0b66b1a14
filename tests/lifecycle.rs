//! Start, stop, reload and drain.

mod support;

use nix::sys::signal::Signal;
use support::*;

/// The index of the first log line that contains all these substrings.
fn line_index(log: &str, substrings: &[&str]) -> usize {
    let index = log.lines().position(|line| substrings.iter().all(|part| line.contains(part)));
    index.unwrap_or_else(|| panic!("no line with {substrings:?}\n{log}"))
}

#[test]
fn stop_lets_requests_finish_and_refuses_queued_clients() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut set = TestSet::prepare("");
        set.configure(&gated_pool(&set, 1, "queue_timeout = \"10m\"\ndrain_timeout = \"10m\"", ""));
        set.run();
        set.wait_until_up();
        let address = set.address(0);
        let running = start_gated_request(&set, "one");
        let waiting = std::thread::spawn(move || get(address, "/fast"));
        set.wait_for("a client waits", |status| status["dispatcher"]["queue"] == 1);
        set.signal(signal);
        let refused = waiting.join().unwrap().unwrap();
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.text().contains("the set is stopping"), "{refused:?}");
        assert_eq!(refused.header("patou-outcome"), Some("not-started"));
        let late = get(address, "/fast").unwrap();
        assert!(late.status == 503 && late.text().contains("the set is stopping"), "{late:?}");
        assert_eq!(set.status()["watchdog"]["state"], "stopping");
        open_gate(&set);
        let response = running.join().unwrap().unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "done well\n"));
        assert_eq!(set.wait_for_exit(), Some(0));
        let log = set.log();
        assert!(
            line_index(&log, &["worker default/1", "stopped serving"]) < line_index(&log, &["dispatcher ", "exiting"]),
            "{log}"
        );
        line_index(&log, &["watchdog", "stopping", "signal"]);
        line_index(&log, &["watchdog", "stopped"]);
        set.assert_nothing_left();
    }
}

#[test]
fn request_longer_than_drain_timeout_fails_visibly() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "drain_timeout = \"100ms\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    let result = running.join().unwrap();
    assert!(result.as_ref().map_or(true, |response| response.status >= 500), "{result:?}");
    assert_eq!(set.wait_for_exit(), Some(0));
    set.wait_for_log(&["default/1", "drain_timeout"]);
    set.assert_nothing_left();
}

/// `timeout 1 patou run` sends the signal to the process and to its process group.
#[test]
fn simultaneous_stop_signals_count_as_one() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    set.signal(Signal::SIGTERM);
    set.wait_for("the set is stopping", |status| status["watchdog"]["state"] == "stopping");
    set.signal(Signal::SIGINT);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
}

#[test]
fn second_stop_signal_stops_immediately() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    set.wait_for("the set is stopping", |status| status["watchdog"]["state"] == "stopping");
    // Longer than the time in which signals count as one.
    std::thread::sleep(std::time::Duration::from_millis(250));
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
    assert!(running.join().unwrap().is_err());
}

#[test]
fn set_whose_directory_is_removed_leaves_nothing() {
    // Stopped by a signal.
    let mut set = TestSet::start(ECHO);
    std::fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.wait_for_log(&["nothing of it is left"]);
    set.assert_nothing_left();
    // Killed: the next start finds segments that no file names; a set with the same name and another directory keeps
    // its segments.
    let mut set = TestSet::start(ECHO);
    let other = set.test_dir().join("other.toml");
    let toml = std::fs::read_to_string(set.config_file()).unwrap();
    std::fs::write(
        &other,
        toml.replace(set.runtime_dir().to_str().unwrap(), set.test_dir().join("elsewhere").to_str().unwrap()),
    )
    .unwrap();
    let ipc = |action: &str, file: &std::path::Path| {
        let output = std::process::Command::new(PATOU).args(["ipc", action, "--config"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    ipc("create", &other);
    std::fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the parts exit", || set.processes().is_empty());
    assert_eq!(set.segments().len(), 4);
    set.run();
    set.wait_until_up();
    set.wait_for_log(&["removed what a previous set had left behind", "segments=2"]);
    assert_eq!(set.segments().len(), 4);
    std::fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the parts exit", || set.processes().is_empty());
    let file = set.config_file();
    // A thread of a killed process may briefly hold a segment after its other threads have exited.
    wait_until("the segments of the killed set are removed", || {
        ipc("remove", &file);
        set.segments().len() == 2
    });
    ipc("remove", &other);
    set.assert_nothing_left();
}

#[test]
fn starting_set_can_be_stopped() {
    // The worker is never ready.
    let mut set = TestSet::prepare(
        "[watchdog]\nstart_timeout = \"10m\"\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\
         [[pool]]\nname = \"default\"\naddress = \"127.0.0.1:0\"\nhandler = { program = [\"/bin/sleep\", \"600\"] }\n",
    );
    set.run();
    set.wait_for("the worker starts", |status| worker_of(status, "default/2")["pid"].is_u64());
    assert_eq!(set.patou(&["status", "--wait", "50ms"]).status.code(), Some(1));
    set.stop();
    // After each step of the start.
    for file in ["set.lock", "default/1.segment", "applied.toml", "probe.sock", "notify.sock", "watchdog.json"] {
        let mut set = TestSet::prepare(ECHO);
        set.run();
        wait_until("the start reaches this step", || set.runtime_dir().join(file).exists());
        set.signal(Signal::SIGTERM);
        assert_eq!(set.wait_for_exit(), Some(0), "{file}");
        set.assert_nothing_left();
    }
}

#[test]
fn frozen_parts_do_not_delay_a_stop() {
    for frozen in ["worker", "dispatcher", "both"] {
        let set = TestSet::start(&format!("{ECHO}drain_timeout = \"10m\"\n"));
        if frozen != "dispatcher" {
            signal_to(set.worker_pid("default/1"), Signal::SIGSTOP);
        }
        if frozen != "worker" {
            signal_to(set.dispatcher_pid(), Signal::SIGSTOP);
        }
        set.stop();
    }
}

fn part_pids(set: &TestSet) -> Vec<u64> {
    let status = set.status();
    let workers = status["pools"].as_array().unwrap().iter().flat_map(|pool| pool["workers"].as_array().unwrap());
    let all = [&status["watchdog"], &status["dispatcher"]].into_iter().chain(workers);
    all.map(|part| part["pid"].as_u64().unwrap_or(0)).collect()
}

fn worker_count(status: &serde_json::Value, pool: usize) -> usize {
    status["pools"][pool]["workers"].as_array().map_or(0, Vec::len)
}

/// Sends SIGHUP, waits for the outcome in the log and returns it.
fn reload(set: &TestSet) -> String {
    let outcomes = |log: &str| {
        let is_outcome = |line: &&str| line.contains("configuration applied") || line.contains("nothing has changed");
        log.lines()
            .filter(|line| line.contains("  watchdog "))
            .filter(is_outcome)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = outcomes(&set.log()).len();
    set.signal(Signal::SIGHUP);
    wait_until("the outcome of the reload is logged", || outcomes(&set.log()).len() > before);
    outcomes(&set.log()).pop().unwrap()
}

/// Sends a request while `other` is drained, so that `worker` serves it; returns the response body.
fn get_from(set: &TestSet, worker: &str, other: &str) -> String {
    assert!(set.patou(&["drain", other]).status.success());
    let served = || set.worker(worker)["served"].as_u64().unwrap();
    let before = served();
    let response = get(set.address(0), "/fast").unwrap();
    assert!(set.patou(&["resume", other]).status.success());
    assert_eq!((response.status, served()), (200, before + 1), "{response:?}");
    response.text()
}

#[test]
fn reload_adds_and_removes_workers() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let one = set.worker_pid("default/1");
    assert!(set.patou(&["drain", "default-1"]).status.success());
    let running = start_gated_request(&set, "one");
    assert_eq!(set.worker("default/2")["state"], "busy");
    assert!(set.patou(&["resume", "default-1"]).status.success());
    let surplus = set.worker_pid("default/2");
    set.configure(&gated_pool(&set, 1, "drain_timeout = \"10m\"", ""));
    reload(&set);
    set.wait_for("one worker", |status| worker_count(status, 0) == 1);
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 200);
    assert!(is_alive(surplus), "the surplus worker was killed while it served a request");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    wait_until("the surplus worker exits", || !is_alive(surplus));
    set.wait_for_log(&["default/2", "was removed from the set"]);
    assert_eq!(set.segments().len(), 1);
    // The next reload adds the worker again, under the same dispatcher.
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    reload(&set);
    set.wait_until_up();
    set.wait_for("the second worker", |status| worker_of(status, "default/2")["state"] == "idle");
    get_from(&set, "default/2", "default-1");
    assert_eq!(set.worker_pid("default/1"), one);
    set.stop();
}

#[test]
fn reload_adds_and_removes_pools_and_listeners() {
    let set = TestSet::start(ECHO);
    let before = part_pids(&set);
    let first = set.address(0);
    let more = "\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"other\"\n[[pool]]\nname = \"other\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n";
    let file = set.test_dir().join("extra.sock");
    let unix = format!("\n[[listener]]\naddress = \"unix:{}\"\npool = \"other\"\n", file.display());
    let load = LoadGenerator::start(first, "/x", 2);
    set.configure(&format!("{ECHO}{more}{unix}"));
    reload(&set);
    set.wait_for("a third listener", |status| status["listeners"].as_array().unwrap().len() == 3);
    set.wait_until_up();
    assert_eq!(set.address(0), first, "the first listener keeps its port");
    assert_eq!(get(set.address(1), "/new").unwrap().status, 200);
    assert!(file.exists());
    set.configure(ECHO);
    reload(&set);
    set.wait_for("one pool", |status| status["pools"].as_array().unwrap().len() == 1);
    wait_until("the segment of the pool is removed", || set.segments().len() == 2);
    set.wait_until_up();
    load.wait_for(10);
    assert!(!file.exists() && !set.runtime_dir().join("other").exists());
    assert_eq!(set.address(0), first);
    assert_eq!(load.stop(), Vec::<String>::new());
    let after = part_pids(&set);
    assert_eq!((before[0], &before[2..]), (after[0], &after[2..]), "only the dispatcher was restarted");
    set.stop();
}

#[test]
fn half_of_a_pool_serves_while_a_reload_restarts_its_workers() {
    let mut set = TestSet::prepare("");
    let config = |set: &TestSet, files: u32| {
        gated_pool(set, 2, &format!("drain_timeout = \"10m\"\nlimits = {{ open_files = \"{files}\" }}"), "")
    };
    set.configure(&config(&set, 500));
    set.run();
    set.wait_until_up();
    let pids = |set: &TestSet| ["default/1", "default/2"].map(|id| set.worker_pid(id));
    let before = pids(&set);
    // Both are busy: the one that restarts first finishes its request, and the other one serves.
    let running = ["one", "two"].map(|name| start_gated_request(&set, name));
    set.configure(&config(&set, 600));
    reload(&set);
    set.wait_for_log(&["default/1", "stopping"]);
    assert!(
        !set.log().lines().any(|line| line.contains("worker default/2") && line.contains("stopping")),
        "{}",
        set.log()
    );
    open_gate(&set);
    let responses = running.map(|request| request.join().unwrap().unwrap().status);
    assert_eq!(responses, [200, 200]);
    set.wait_for("both workers are replaced", |_| pids(&set).iter().zip(before).all(|(new, old)| *new != old));
    set.wait_until_up();
    for pid in pids(&set) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 600 ")), "{limits}");
    }
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 200);
    set.stop();
}

#[test]
fn queued_clients_do_not_delay_a_dispatcher_restart() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "queue_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let (running, address, old) = (start_gated_request(&set, "one"), set.address(0), set.dispatcher_pid());
    let waiting = std::thread::spawn(move || get(address, "/fast"));
    set.wait_for("a client waits", |status| status["dispatcher"]["queue"] == 1);
    let file = set.test_dir().join("new.sock");
    let unix = format!("\n[[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n", file.display());
    set.configure(&format!("{}{unix}", gated_pool(&set, 1, "queue_timeout = \"10m\"", "")));
    reload(&set);
    let refused = waiting.join().unwrap().unwrap();
    assert_eq!((refused.status, refused.header("patou-outcome")), (503, Some("not-started")), "{refused:?}");
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["state"] == "up" && status["dispatcher"]["pid"].as_u64() != Some(u64::from(old))
    });
    assert!(!set.log().contains("drain_timeout"), "the restart waited for the client\n{}", set.log());
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn built_in_configuration_cannot_be_reloaded() {
    let ports = [7286, 7287, 7300, 7301].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)));
    if ports.iter().any(Result::is_err) || std::path::Path::new("/etc/patou/patou.toml").exists() {
        return eprintln!("SKIPPED: a port of the built-in configuration is in use, or /etc/patou/patou.toml exists");
    }
    drop(ports);
    let top = std::env::temp_dir().join(format!("patou-built-in-{}", std::process::id()));
    std::fs::create_dir(&top).unwrap();
    // An ordinary user has a private runtime directory; that of root, /run/patou, may be in use.
    let binary = top.join("binary");
    std::fs::copy(PATOU, &binary).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&top, Some(65534), Some(65534)).unwrap();
    }
    let command = |args: &[&str]| {
        let mut command = std::process::Command::new(if root { std::path::Path::new("setpriv") } else { &binary });
        if root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        }
        command.args(args).env_remove("PATOU_CONFIG").env("XDG_RUNTIME_DIR", &top);
        command
    };
    let log = top.join("log");
    let mut run = command(&["run"]).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    assert!(command(&["status", "--wait", "20s"]).output().unwrap().status.success());
    signal_to(run.id(), Signal::SIGHUP);
    wait_until("the reload is refused", || std::fs::read_to_string(&log).unwrap().contains("nothing to reload"));
    signal_to(run.id(), Signal::SIGTERM);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    std::fs::remove_dir_all(&top).unwrap();
}

#[test]
fn reload_restarts_only_affected_parts() {
    let mut set = TestSet::prepare("");
    let config = |set: &TestSet, pool: &str, more: &str| gated_pool(set, 2, pool, more);
    set.configure(&config(&set, "", ""));
    set.run();
    set.wait_until_up();
    let before = part_pids(&set);
    let epochs = |set: &TestSet| ["default/1", "default/2"].map(|id| set.worker(id)["epoch"].as_u64().unwrap());
    let first = epochs(&set);
    // Timeouts change in place.
    set.configure(&config(&set, "request_timeout = \"200ms\"", "[watchdog]\nprobe_interval = \"100ms\""));
    reload(&set);
    set.wait_for_log(&["dispatcher ", "configuration applied"]);
    assert_eq!(get(set.address(0), "/gated").unwrap().status, 504);
    assert_eq!((part_pids(&set), epochs(&set)), (before.clone(), first));
    // Settings of the workers recycle them in place: the same process, another epoch.
    let changed = config(&set, "", "").replace("\"well\"", "\"better\"");
    set.configure(&changed);
    reload(&set);
    set.wait_for("the workers are recycled", |_| epochs(&set) == first.map(|epoch| epoch + 1));
    set.wait_until_up();
    assert_eq!(part_pids(&set), before);
    assert_eq!(get_from(&set, "default/1", "default-2"), "done better\n");
    assert_eq!(get_from(&set, "default/2", "default-1"), "done better\n");
    set.configure(&format!("[front]\nmax_body = \"3\"\n{changed}"));
    reload(&set);
    set.wait_for("the workers are recycled", |_| epochs(&set) == first.map(|epoch| epoch + 2));
    set.wait_until_up();
    assert_eq!(request(set.address(0), "POST", "/fast", b"four").unwrap().status, 413);
    assert_eq!(part_pids(&set), before);
    // Other sockets need other processes.
    let free = [(); 16].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let port = *free.iter().find(|port| std::net::TcpListener::bind(("127.0.0.1", **port + 1)).is_ok()).unwrap();
    let moved = changed.replacen(
        "workers = 2\naddress = \"127.0.0.1:0\"",
        &format!("workers = 2\naddress = \"127.0.0.1:{port}\""),
        1,
    );
    set.configure(&moved);
    reload(&set);
    set.wait_for("the workers have moved", |status| {
        worker_of(status, "default/2")["address"] == format!("127.0.0.1:{}", port + 1)
            && worker_of(status, "default/2")["state"] == "idle"
    });
    set.wait_until_up();
    get_from(&set, "default/1", "default-2");
    get_from(&set, "default/2", "default-1");
    let after = part_pids(&set);
    assert_eq!(before[..2], after[..2]);
    assert!(before[2] != after[2] && before[3] != after[3]);
    assert_eq!(set.worker("default/1")["restarts"], 0, "a planned restart does not count");
    set.stop();
}

#[test]
fn invalid_configuration_changes_nothing() {
    let set = TestSet::start(ECHO);
    let before = (part_pids(&set), set.status()["listeners"].clone());
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupied.local_addr().unwrap();
    let file = set.config_file().display().to_string();

    set.configure(&ECHO.replace("workers = 2", "workers = 2\nqueu = 4\noffer_timeout = \"x\""));
    reload(&set);
    set.wait_for_log(&["reload refused, nothing has changed", "faults follow"]);
    set.wait_for_log(&["error", &format!("{file}:12"), ".queu:"]);
    set.wait_for_log(&["error", &format!("{file}:13"), "offer_timeout"]);

    set.configure(
        &format!("{ECHO}[[listener]]\naddress = \"{port}\"\npool = \"default\"\n")
            .replace("workers = 2", "workers = 4"),
    );
    reload(&set);
    set.wait_for_log(&["reload refused", &port.to_string(), "in use"]);

    std::fs::write(
        set.config_file(),
        format!("[set]\nname = \"other\"\nruntime_dir = \"{}\"\n{ECHO}", set.runtime_dir().display()),
    )
    .unwrap();
    reload(&set);
    set.wait_for_log(&["reload refused", "set.name"]);

    std::fs::remove_file(set.config_file()).unwrap();
    reload(&set);
    set.wait_for_log(&["reload refused", "cannot read"]);

    set.configure(ECHO);
    assert_eq!((part_pids(&set), set.status()["listeners"].clone()), before);
    assert_eq!((worker_count(&set.status(), 0), set.segments().len()), (2, 2));
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn reloads_under_load_lose_no_request() {
    let config = |workers: u32, value: &str| {
        ECHO.replace("workers = 2", &format!("workers = {workers}\nenvironment = {{ WORD = \"{value}\" }}"))
    };
    let set = TestSet::start(&config(4, "a"));
    let load = LoadGenerator::start(set.address(0), "/x", 4);
    for (round, value) in (0..20).zip(["a", "b", "b", "c"].into_iter().cycle()) {
        load.wait_for(5);
        set.configure(&config(if round % 2 == 0 { 1 } else { 4 }, value));
        reload(&set);
    }
    load.wait_for(5);
    set.wait_until_up();
    assert_eq!(load.stop(), Vec::<String>::new(), "{}", set.log());
    assert!(!set.log().contains("restarting it"), "{}", set.log());
    set.wait_for("all four workers are idle", |status| {
        (1..=4).all(|n| worker_of(status, &format!("default/{n}"))["state"] == "idle")
    });
    set.stop();
}

#[test]
fn drained_worker_stays_out_of_service_until_resumed() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let drain = |id: &str| set.command(&["drain", id]).output().unwrap();
    assert!(drain("default-2").status.success());
    let running = start_gated_request(&set, "one");
    let mut waits = set.command(&["drain", "default-1"]).spawn().unwrap();
    set.wait_for("the busy worker is draining", |_| set.worker("default/1")["state"] == "busy");
    assert!(waits.try_wait().unwrap().is_none(), "drain returned before the worker was free");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert!(waits.wait().unwrap().success());
    // Both are out of service: a client is refused instead of queued, and a second drain changes nothing.
    for id in ["default/1", "default/2"] {
        set.wait_for("the worker is drained", |status| worker_of(status, id)["state"] == "draining");
    }
    let refused = get(set.address(0), "/fast").unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.text().contains("all 2 workers are out of service"), "{refused:?}");
    assert!(text(&drain("default-2").stdout).contains("default/2 is out of service already"));
    // They stay out of service when they or the dispatcher are restarted.
    let old = set.worker_pid("default/1");
    signal_to(old, Signal::SIGKILL);
    set.wait_for("the worker is replaced", |status| {
        let worker = worker_of(status, "default/1");
        worker["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && worker["state"] == "draining"
    });
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGKILL);
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["state"] == "up" && status["dispatcher"]["pid"].as_u64() != Some(u64::from(dispatcher))
    });
    assert_eq!(set.worker("default/1")["state"], "draining");
    assert_eq!(set.worker("default/2")["state"], "draining");
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 503);
    for message in ["default/1 is back in service", "default/1 was in service already"] {
        let output = set.patou(&["resume", "default-1"]);
        assert!(output.status.success() && text(&output.stdout).contains(message), "{output:?}");
    }
    let logged = |message: &str| set.log().lines().filter(|line| line.contains(message)).count();
    assert_eq!((logged("taken out of service by"), logged("put back into service")), (2, 1), "{}", set.log());
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 200);
    let served = |id: &str| set.worker(id)["served"].as_u64().unwrap();
    assert_eq!(served("default/2"), 0);
    // Workers that do not exist.
    for id in ["default-3", "missing-1"] {
        for command in ["drain", "resume"] {
            let output = set.patou(&[command, id]);
            assert_eq!(output.status.code(), Some(1));
            let worker = id.replace('-', "/");
            assert_eq!(text(&output.stderr), format!("patou: the configuration has no worker {worker}\n"));
        }
    }
    set.stop();
}

/// The `Location` to which a worker behind this listener redirects a request with a used token.
fn redirect_of_stale_token(set: &TestSet, listener: usize) -> String {
    let (worker, target) = request_lease(set.address(listener), "/x").unwrap();
    assert_eq!(send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap().status, 200);
    let stale = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    stale.header("location").map_or(format!("{}", stale.status), str::to_owned)
}

#[test]
fn stale_token_redirects_to_the_current_listener_of_its_pool() {
    let listener = |pool: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{pool}\"\n");
    let pool = |name: &str| format!("[[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n");
    let pools = pool("a") + &pool("b");
    let set = TestSet::start(&(listener("a") + &listener("b") + &pools));
    let ports = [set.address(0), set.address(1)];
    let before = set.dispatcher_pid();
    assert_eq!([0, 1].map(|n| redirect_of_stale_token(&set, n)), ports.map(|port| format!("http://{port}/x")));
    set.configure(&(listener("b") + &listener("a") + &pools));
    reload(&set);
    set.wait_for_log(&["dispatcher ", "configuration applied"]);
    assert_eq!([0, 1].map(|n| redirect_of_stale_token(&set, n)), ports.map(|port| format!("http://{port}/x")));
    // A pool loses its listener and gets another one.
    set.configure(&(listener("a") + &listener("a") + &pools));
    reload(&set);
    wait_until("the configuration is applied", || set.log().matches("configuration applied").count() == 4);
    assert_eq!(redirect_of_stale_token(&set, 1), format!("http://{}/x", ports[0]));
    set.configure(&(listener("a") + &listener("b") + &pools));
    reload(&set);
    wait_until("the configuration is applied", || set.log().matches("configuration applied").count() == 6);
    assert_eq!([0, 1].map(|n| redirect_of_stale_token(&set, n)), ports.map(|port| format!("http://{port}/x")));
    assert_eq!(set.dispatcher_pid(), before);
    set.stop();
}

#[test]
fn missing_handler_program_is_refused_before_any_change() {
    let handler = |handler: &str| ECHO.replace("workers = 2", &format!("workers = 2\nhandler = {handler}"));
    let mut set = TestSet::start(ECHO);
    let before = part_pids(&set);
    let file = set.config_file().display().to_string();
    for (kind, program) in [("exec", "/no/such/program"), ("coprocess", "no_such_program"), ("program", "/etc/passwd")]
    {
        set.configure(&handler(&format!("{{ {kind} = [\"{program}\"] }}")));
        let outcome = reload(&set);
        assert!(outcome.contains("nothing has changed"), "{outcome}");
        set.wait_for_log(&["reload refused", &format!("{file}:12: pool[1].handler.{kind}"), program]);
        let check = set.patou(&["check"]);
        assert_eq!(check.status.code(), Some(78));
        let err = text(&check.stderr);
        assert!(err.contains(&format!("{file}:12: pool[1].handler.{kind}: found \"{program}\"")), "{err}");
        assert_eq!((get(set.address(0), "/").unwrap().text(), part_pids(&set)), ("GET /\n".to_owned(), before.clone()));
    }
    // The PATH in `environment` counts.
    let top = set.test_dir().display().to_string();
    std::os::unix::fs::symlink("/bin/cat", set.test_dir().join("my_handler")).unwrap();
    let in_path = handler("{ exec = [\"my_handler\"] }");
    set.configure(&in_path);
    assert_eq!(set.patou(&["check"]).status.code(), Some(78));
    set.configure(&format!("{in_path}environment = {{ PATH = \"{top}\" }}\n"));
    assert_eq!(set.patou(&["check"]).status.code(), Some(0));
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    // `patou run` refuses it as well.
    set.configure(&in_path);
    let run = set.patou(&["run"]);
    assert_eq!(run.status.code(), Some(78));
    assert!(text(&run.stderr).contains("pool[1].handler.exec"), "{run:?}");
    set.assert_nothing_left();
}

#[test]
fn reload_sets_mode_and_group_of_a_kept_socket() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let set = TestSet::prepare("");
    let file = set.test_dir().join("front.sock");
    let config = |more: &str| {
        let listener = format!("[[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n{more}\n", file.display());
        listener + "[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n"
    };
    set.configure(&config("mode = 0o600"));
    let mut set = set;
    set.run();
    set.wait_until_up();
    let status = || std::fs::metadata(&file).unwrap();
    let inode = status().ino();
    set.configure(&config("mode = 0o666"));
    reload(&set);
    assert_eq!((status().permissions().mode() & 0o7777, status().ino()), (0o666, inode));
    set.configure(&config("mode = 0o644\ngroup = \"no_such_group\""));
    let outcome = reload(&set);
    assert!(outcome.contains("nothing has changed") && outcome.contains("no_such_group"), "{outcome}");
    assert_eq!(status().permissions().mode() & 0o7777, 0o666);
    if nix::unistd::geteuid().is_root() {
        set.configure(&config("group = \"65534\"\nowner = \"65534\""));
        reload(&set);
        assert_eq!((status().uid(), status().gid()), (65534, 65534));
        // Without the keys the socket has the default owner and group.
        set.configure(&config(""));
        reload(&set);
        assert_eq!((status().uid(), status().gid()), (0, nix::unistd::getegid().as_raw()));
    }
    set.stop();
}
