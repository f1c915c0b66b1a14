//! Start, stop, reload and drain.

mod support;

use nix::sys::signal::Signal;
use support::*;

/// The place of the first log line with all these words.
fn place(log: &str, words: &[&str]) -> usize {
    let line = log.lines().position(|line| words.iter().all(|word| line.contains(word)));
    line.unwrap_or_else(|| panic!("no line with {words:?}\n{log}"))
}

#[test]
fn a_stop_lets_requests_finish_and_refuses_those_who_wait() {
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
        let answer = running.join().unwrap().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "done well\n"));
        assert_eq!(set.wait_for_exit(), Some(0));
        let log = set.log();
        assert!(
            place(&log, &["worker default/1", "stopped serving"]) < place(&log, &["dispatcher ", "exiting"]),
            "{log}"
        );
        place(&log, &["watchdog", "stopping", "signal"]);
        place(&log, &["watchdog", "stopped"]);
        set.assert_nothing_left();
    }
}

#[test]
fn a_request_longer_than_drain_timeout_is_cut_off_visibly() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "drain_timeout = \"100ms\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    let end = running.join().unwrap();
    assert!(end.as_ref().map_or(true, |answer| answer.status >= 500), "{end:?}");
    assert_eq!(set.wait_for_exit(), Some(0));
    set.wait_for_log(&["default/1", "drain_timeout"]);
    set.assert_nothing_left();
}

/// As `timeout 1 patou run` does it: to the process, and to its group.
#[test]
fn two_signals_in_one_moment_are_one() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    set.signal(Signal::SIGTERM);
    set.wait_for("it stops", |status| status["watchdog"]["state"] == "stopping");
    set.signal(Signal::SIGINT);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    set.signal(Signal::SIGTERM);
    set.wait_for("it stops", |status| status["watchdog"]["state"] == "stopping");
    // Later than what counts as the same moment.
    std::thread::sleep(std::time::Duration::from_millis(250));
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.assert_nothing_left();
    assert!(running.join().unwrap().is_err());
}

#[test]
fn a_set_whose_directory_is_removed_leaves_nothing() {
    // Stopped as it should be.
    let mut set = TestSet::start(ECHO);
    std::fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    set.wait_for_log(&["nothing of it is left"]);
    set.assert_nothing_left();
    // Killed: the next one finds what no file names any more; a set of the same name elsewhere keeps its own.
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
    wait_until("its parts leave", || set.processes().is_empty());
    assert_eq!(set.segments().len(), 4);
    set.run();
    set.wait_until_up();
    set.wait_for_log(&["removed what a previous set had left behind", "segments=2"]);
    assert_eq!(set.segments().len(), 4);
    std::fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("its parts leave", || set.processes().is_empty());
    let file = set.config_file();
    // The last thread of a process that was killed may hold a segment for a moment longer than the first.
    wait_until("what is nobody's is removed", || {
        ipc("remove", &file);
        set.segments().len() == 2
    });
    ipc("remove", &other);
    set.assert_nothing_left();
}

#[test]
fn a_set_that_is_starting_can_be_stopped() {
    // A worker that is never ready.
    let mut set = TestSet::prepare(
        "[watchdog]\nstart_timeout = \"10m\"\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\
         [[pool]]\nname = \"default\"\naddress = \"127.0.0.1:0\"\nhandler = { program = [\"/bin/sleep\", \"600\"] }\n",
    );
    set.run();
    set.wait_for("the worker starts", |status| worker_of(status, "default/2")["pid"].is_u64());
    assert_eq!(set.patou(&["status", "--wait", "50ms"]).status.code(), Some(1));
    set.stop();
    // Every step of the start.
    for file in ["set.lock", "default/1.segment", "applied.toml", "probe.sock", "notify.sock", "watchdog.json"] {
        let mut set = TestSet::prepare(ECHO);
        set.run();
        wait_until("the start gets there", || set.runtime_dir().join(file).exists());
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

fn pids(set: &TestSet) -> Vec<u64> {
    let status = set.status();
    let workers = status["pools"].as_array().unwrap().iter().flat_map(|pool| pool["workers"].as_array().unwrap());
    let all = [&status["watchdog"], &status["dispatcher"]].into_iter().chain(workers);
    all.map(|part| part["pid"].as_u64().unwrap_or(0)).collect()
}

fn count(status: &serde_json::Value, pool: usize) -> usize {
    status["pools"][pool]["workers"].as_array().map_or(0, Vec::len)
}

/// SIGHUP, and the outcome in the log.
fn reload(set: &TestSet) -> String {
    let outcomes = |log: &str| {
        let told = |line: &&str| line.contains("configuration applied") || line.contains("nothing has changed");
        log.lines().filter(|line| line.contains("  watchdog ")).filter(told).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = outcomes(&set.log()).len();
    set.signal(Signal::SIGHUP);
    wait_until("the reload is told", || outcomes(&set.log()).len() > before);
    outcomes(&set.log()).pop().unwrap()
}

/// A request that only this worker of two can get.
fn get_from(set: &TestSet, worker: &str, other: &str) -> String {
    assert!(set.patou(&["drain", other]).status.success());
    let served = || set.worker(worker)["served"].as_u64().unwrap();
    let before = served();
    let answer = get(set.address(0), "/fast").unwrap();
    assert!(set.patou(&["resume", other]).status.success());
    assert_eq!((answer.status, served()), (200, before + 1), "{answer:?}");
    answer.text()
}

#[test]
fn workers_come_and_go_with_the_configuration() {
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
    set.wait_for("one worker", |status| count(status, 0) == 1);
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 200);
    assert!(is_alive(surplus), "the surplus worker was killed with a request in hand");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    wait_until("the surplus worker leaves", || !is_alive(surplus));
    set.wait_for_log(&["default/2", "has left the set"]);
    assert_eq!(set.segments().len(), 1);
    // It comes back, and is served by the same dispatcher.
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    reload(&set);
    set.wait_until_up();
    set.wait_for("the second worker", |status| worker_of(status, "default/2")["state"] == "idle");
    get_from(&set, "default/2", "default-1");
    assert_eq!(set.worker_pid("default/1"), one);
    set.stop();
}

#[test]
fn pools_and_listeners_come_and_go_with_the_configuration() {
    let set = TestSet::start(ECHO);
    let before = pids(&set);
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
    wait_until("the segment of the pool goes", || set.segments().len() == 2);
    set.wait_until_up();
    load.wait_for(10);
    assert!(!file.exists() && !set.runtime_dir().join("other").exists());
    assert_eq!(set.address(0), first);
    assert_eq!(load.stop(), Vec::<String>::new());
    let after = pids(&set);
    assert_eq!((before[0], &before[2..]), (after[0], &after[2..]), "only the dispatcher was restarted");
    set.stop();
}

#[test]
fn clients_who_wait_do_not_delay_a_restart_of_the_dispatcher() {
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
    let answer = waiting.join().unwrap().unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (503, Some("not-started")), "{answer:?}");
    set.wait_for("the dispatcher is replaced", |status| {
        status["dispatcher"]["state"] == "up" && status["dispatcher"]["pid"].as_u64() != Some(u64::from(old))
    });
    assert!(!set.log().contains("drain_timeout"), "it was waited for\n{}", set.log());
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

#[test]
fn the_built_in_configuration_cannot_be_reloaded() {
    let ports = [7286, 7287, 7300, 7301].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)));
    if ports.iter().any(Result::is_err) || std::path::Path::new("/etc/patou/patou.toml").exists() {
        return eprintln!(
            "SKIPPED: a port of the built-in configuration is in use, or this machine has one of its own"
        );
    }
    drop(ports);
    let top = std::env::temp_dir().join(format!("patou-built-in-{}", std::process::id()));
    std::fs::create_dir(&top).unwrap();
    // The built-in directory of root is /run/patou, which is not the test's: an ordinary user's is.
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
    wait_until("it says so", || std::fs::read_to_string(&log).unwrap().contains("nothing to reload"));
    signal_to(run.id(), Signal::SIGTERM);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    std::fs::remove_dir_all(&top).unwrap();
}

#[test]
fn a_reload_touches_only_what_it_concerns() {
    let mut set = TestSet::prepare("");
    let config = |set: &TestSet, pool: &str, more: &str| gated_pool(set, 2, pool, more);
    set.configure(&config(&set, "", ""));
    set.run();
    set.wait_until_up();
    let before = pids(&set);
    let epochs = |set: &TestSet| ["default/1", "default/2"].map(|id| set.worker(id)["epoch"].as_u64().unwrap());
    let first = epochs(&set);
    // Timeouts.
    set.configure(&config(&set, "request_timeout = \"200ms\"", "[watchdog]\nprobe_interval = \"100ms\""));
    reload(&set);
    set.wait_for_log(&["dispatcher ", "configuration applied"]);
    assert_eq!(get(set.address(0), "/gated").unwrap().status, 504);
    assert_eq!((pids(&set), epochs(&set)), (before.clone(), first));
    // What the worker itself has to know: in place.
    let changed = config(&set, "", "").replace("\"well\"", "\"better\"");
    set.configure(&changed);
    reload(&set);
    set.wait_for("they are recycled", |_| epochs(&set) == first.map(|epoch| epoch + 1));
    set.wait_until_up();
    assert_eq!(pids(&set), before);
    assert_eq!(get_from(&set, "default/1", "default-2"), "done better\n");
    assert_eq!(get_from(&set, "default/2", "default-1"), "done better\n");
    set.configure(&format!("[front]\nmax_body = \"3\"\n{changed}"));
    reload(&set);
    set.wait_for("they are recycled", |_| epochs(&set) == first.map(|epoch| epoch + 2));
    set.wait_until_up();
    assert_eq!(request(set.address(0), "POST", "/fast", b"four").unwrap().status, 413);
    assert_eq!(pids(&set), before);
    // Sockets: another process.
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
    let after = pids(&set);
    assert_eq!(before[..2], after[..2]);
    assert!(before[2] != after[2] && before[3] != after[3]);
    assert_eq!(set.worker("default/1")["restarts"], 0, "a planned restart does not count");
    set.stop();
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let set = TestSet::start(ECHO);
    let before = (pids(&set), set.status()["listeners"].clone());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
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
    assert_eq!((pids(&set), set.status()["listeners"].clone()), before);
    assert_eq!((count(&set.status(), 0), set.segments().len()), (2, 2));
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn reloads_under_load_lose_no_request() {
    let config = |workers: u32, word: &str| {
        ECHO.replace("workers = 2", &format!("workers = {workers}\nenvironment = {{ WORD = \"{word}\" }}"))
    };
    let set = TestSet::start(&config(4, "a"));
    let load = LoadGenerator::start(set.address(0), "/x", 4);
    for (round, word) in (0..20).zip(["a", "b", "b", "c"].into_iter().cycle()) {
        load.wait_for(5);
        set.configure(&config(if round % 2 == 0 { 1 } else { 4 }, word));
        reload(&set);
    }
    load.wait_for(5);
    set.wait_until_up();
    assert_eq!(load.stop(), Vec::<String>::new(), "{}", set.log());
    assert!(!set.log().contains("restarting it"), "{}", set.log());
    set.wait_for("all four", |status| (1..=4).all(|n| worker_of(status, &format!("default/{n}"))["state"] == "idle"));
    set.stop();
}

#[test]
fn a_drained_worker_stays_out_until_it_is_resumed() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, "drain_timeout = \"10m\"", ""));
    set.run();
    set.wait_until_up();
    let drain = |id: &str| set.command(&["drain", id]).output().unwrap();
    assert!(drain("default-2").status.success());
    let running = start_gated_request(&set, "one");
    let mut waits = set.command(&["drain", "default-1"]).spawn().unwrap();
    set.wait_for("the busy one drains", |_| set.worker("default/1")["state"] == "busy");
    assert!(waits.try_wait().unwrap().is_none(), "it returned before the worker was free");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    assert!(waits.wait().unwrap().success());
    // Both are out: nobody waits for them, and a second order changes nothing.
    for id in ["default/1", "default/2"] {
        set.wait_for("it is drained", |status| worker_of(status, id)["state"] == "draining");
    }
    let refused = get(set.address(0), "/fast").unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.text().contains("all 2 workers are out of service"), "{refused:?}");
    assert!(text(&drain("default-2").stdout).contains("default/2 is out of service already"));
    // Neither their own death nor the dispatcher's brings them back.
    let old = set.worker_pid("default/1");
    signal_to(old, Signal::SIGKILL);
    set.wait_for("it is replaced", |status| {
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
    for words in ["default/1 is back in service", "default/1 was in service already"] {
        let output = set.patou(&["resume", "default-1"]);
        assert!(output.status.success() && text(&output.stdout).contains(words), "{output:?}");
    }
    let orders = |words: &str| set.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!((orders("taken out of service by"), orders("put back into service")), (2, 1), "{}", set.log());
    assert_eq!(get(set.address(0), "/fast").unwrap().status, 200);
    let served = |id: &str| set.worker(id)["served"].as_u64().unwrap();
    assert_eq!(served("default/2"), 0);
    // What there is not.
    for id in ["default-3", "nobody-1"] {
        for command in ["drain", "resume"] {
            let output = set.patou(&[command, id]);
            assert_eq!(output.status.code(), Some(1));
            let worker = id.replace('-', "/");
            assert_eq!(text(&output.stderr), format!("patou: the configuration has no worker {worker}\n"));
        }
    }
    set.stop();
}

/// Where a worker of this pool sends those whose token opens nothing.
fn way_back(set: &TestSet, listener: usize) -> String {
    let (worker, target) = request_lease(set.address(listener), "/x").unwrap();
    assert_eq!(send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap().status, 200);
    let stale = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    stale.header("location").map_or(format!("{}", stale.status), str::to_owned)
}

#[test]
fn a_stale_token_leads_to_the_listener_that_its_pool_has_now() {
    let listener = |pool: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{pool}\"\n");
    let pool = |name: &str| format!("[[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n");
    let pools = pool("a") + &pool("b");
    let set = TestSet::start(&(listener("a") + &listener("b") + &pools));
    let ports = [set.address(0), set.address(1)];
    let before = set.dispatcher_pid();
    assert_eq!([0, 1].map(|n| way_back(&set, n)), ports.map(|port| format!("http://{port}/x")));
    set.configure(&(listener("b") + &listener("a") + &pools));
    reload(&set);
    set.wait_for_log(&["dispatcher ", "configuration applied"]);
    assert_eq!([0, 1].map(|n| way_back(&set, n)), ports.map(|port| format!("http://{port}/x")));
    // A pool that has lost its listener, and gets one again.
    set.configure(&(listener("a") + &listener("a") + &pools));
    reload(&set);
    wait_until("it is applied", || set.log().matches("configuration applied").count() == 4);
    assert_eq!(way_back(&set, 1), format!("http://{}/x", ports[0]));
    set.configure(&(listener("a") + &listener("b") + &pools));
    reload(&set);
    wait_until("it is applied", || set.log().matches("configuration applied").count() == 6);
    assert_eq!([0, 1].map(|n| way_back(&set, n)), ports.map(|port| format!("http://{port}/x")));
    assert_eq!(set.dispatcher_pid(), before);
    set.stop();
}

#[test]
fn a_program_that_is_not_there_is_refused_before_anything_changes() {
    let handler = |handler: &str| ECHO.replace("workers = 2", &format!("workers = 2\nhandler = {handler}"));
    let mut set = TestSet::start(ECHO);
    let before = pids(&set);
    let file = set.config_file().display().to_string();
    for (kind, program) in [("exec", "/no/such/program"), ("coprocess", "no_such_program"), ("program", "/etc/passwd")]
    {
        set.configure(&handler(&format!("{{ {kind} = [\"{program}\"] }}")));
        let told = reload(&set);
        assert!(told.contains("nothing has changed"), "{told}");
        set.wait_for_log(&["reload refused", &format!("{file}:12: pool[1].handler.{kind}"), program]);
        let check = set.patou(&["check"]);
        assert_eq!(check.status.code(), Some(78));
        let err = text(&check.stderr);
        assert!(err.contains(&format!("{file}:12: pool[1].handler.{kind}: found \"{program}\"")), "{err}");
        assert_eq!((get(set.address(0), "/").unwrap().text(), pids(&set)), ("GET /\n".to_owned(), before.clone()));
    }
    // Its own PATH counts.
    let top = set.test_dir().display().to_string();
    std::os::unix::fs::symlink("/bin/cat", set.test_dir().join("mine")).unwrap();
    let mine = handler("{ exec = [\"mine\"] }");
    set.configure(&mine);
    assert_eq!(set.patou(&["check"]).status.code(), Some(78));
    set.configure(&format!("{mine}environment = {{ PATH = \"{top}\" }}\n"));
    assert_eq!(set.patou(&["check"]).status.code(), Some(0));
    set.signal(Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0));
    // Nor does a set start.
    set.configure(&mine);
    let run = set.patou(&["run"]);
    assert_eq!(run.status.code(), Some(78));
    assert!(text(&run.stderr).contains("pool[1].handler.exec"), "{run:?}");
    set.assert_nothing_left();
}

#[test]
fn a_reload_sets_mode_and_group_of_a_socket_that_stays() {
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
    let told = reload(&set);
    assert!(told.contains("nothing has changed") && told.contains("no_such_group"), "{told}");
    assert_eq!(status().permissions().mode() & 0o7777, 0o666);
    if nix::unistd::geteuid().is_root() {
        set.configure(&config("group = \"65534\"\nowner = \"65534\""));
        reload(&set);
        assert_eq!((status().uid(), status().gid()), (65534, 65534));
        // Without the keys it is again what it would be without them.
        set.configure(&config(""));
        reload(&set);
        assert_eq!((status().uid(), status().gid()), (0, nix::unistd::getegid().as_raw()));
    }
    set.stop();
}
