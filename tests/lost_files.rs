//! Files of a running set that are removed, moved or replaced from outside.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// A redirect, a handoff and a Unix listener before one pool of two workers, whose restarts are not delayed.
fn config(set: &TestSet) -> String {
    let socket = set.test_dir().join("http.sock");
    format!(
        "[watchdog]\nrestarts = {{ max = 1000, within = \"1s\", delay = \"1ms\", delay_max = \"1ms\" }}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"default\"\n\
         [[listener]]\naddress = \"unix:{}\"\ndelivery = \"handoff\"\nmode = \"0640\"\npool = \"default\"\n\
         [[pool]]\nname = \"default\"\nworkers = 2\naddress = \"127.0.0.1:0\"\n",
        socket.display()
    )
}

fn start() -> TestSet {
    let mut set = TestSet::prepare("");
    set.configure(&config(&set));
    set.run_with_log_level("info");
    set.wait_until_up();
    set
}

/// A GET over a Unix socket.
fn get_unix(path: &Path, target: &str) -> Result<HttpResponse, String> {
    let mut stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
    read_response(&mut stream)
}

/// `/healthz` of the set; `Null` while `admin.sock` does not respond.
fn health(set: &TestSet) -> Value {
    get_unix(&set.runtime_dir().join("admin.sock"), "/healthz").map_or(Value::Null, |response| response.json())
}

fn wait_for_health(set: &TestSet, state: &str) -> Value {
    let health = wait_for_value(&format!("the set is {state}: {}\n{}", health(set), set.log()), || {
        Some(health(set)).filter(|health| health["state"] == state)
    });
    health["reasons"].clone()
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn remove_segments(set: &TestSet) {
    set.segments().iter().for_each(|name| remove(&Path::new("/dev/shm").join(name)));
}

/// The files that a running set of [`config`] has, segments included.
fn files(set: &TestSet) -> Vec<PathBuf> {
    let dir = set.runtime_dir();
    let own = ["set.lock", "applied.toml", "watchdog.json", "probe.sock", "admin.sock", "notify.sock"];
    let workers =
        ["dw", "wd", "sock", "segment"].map(|kind| [format!("default/1.{kind}"), format!("default/2.{kind}")]);
    let mut files: Vec<_> = own.map(str::to_owned).into_iter().chain(workers.into_iter().flatten()).collect();
    files.sort();
    let segments = ["1", "2"].map(|n| {
        let name = fs::read_to_string(dir.join(format!("default/{n}.segment"))).unwrap_or("/missing".into());
        Path::new("/dev/shm").join(&name[1..])
    });
    let files = files.into_iter().map(|file| dir.join(file));
    files.chain(segments).chain([set.test_dir().join("http.sock")]).collect()
}

fn missing(set: &TestSet) -> Vec<PathBuf> {
    files(set).into_iter().filter(|file| !file.exists()).collect()
}

/// Kills a part and waits until its next incarnation is up.
fn kill(set: &TestSet, part: &str) {
    let of = |status: &Value| if part == "dispatcher" { status["dispatcher"].clone() } else { worker_of(status, part) };
    let pid = wait_for_value(&format!("{part} has a process"), || {
        let output = set.patou(&["status", "--json"]);
        of(&serde_json::from_slice(&output.stdout).ok()?)["pid"].as_u64()
    });
    signal_to(pid as u32, Signal::SIGKILL);
    set.wait_for(&format!("{part} is back"), |status| {
        let part = of(status);
        part["pid"].is_u64()
            && part["pid"] != pid
            && ["up", "idle", "leased", "busy"].iter().any(|s| part["state"] == *s)
    });
}

/// What is removed, and how.
type Removal = (&'static str, fn(&TestSet));

fn removals() -> Vec<Removal> {
    fn in_dir(set: &TestSet, names: &[&str]) {
        names.iter().for_each(|name| remove(&set.runtime_dir().join(name)));
    }
    vec![
        ("segments", remove_segments),
        ("doorbells", |set| in_dir(set, &["default/1.dw", "default/1.wd", "default/2.dw", "default/2.wd"])),
        ("one doorbell", |set| in_dir(set, &["default/2.wd"])),
        ("handoff sockets", |set| in_dir(set, &["default/1.sock", "default/2.sock"])),
        ("segment files", |set| in_dir(set, &["default/1.segment", "default/2.segment"])),
        ("probe.sock", |set| in_dir(set, &["probe.sock"])),
        ("admin.sock", |set| in_dir(set, &["admin.sock"])),
        ("notify.sock", |set| in_dir(set, &["notify.sock"])),
        ("applied.toml", |set| in_dir(set, &["applied.toml"])),
        ("watchdog.json", |set| in_dir(set, &["watchdog.json"])),
        ("set.lock", |set| in_dir(set, &["set.lock"])),
        ("the Unix listener", |set| remove(&set.test_dir().join("http.sock"))),
        ("the pool's directory", |set| in_dir(set, &["default"])),
        ("the runtime directory", |set| remove(&set.runtime_dir())),
        ("the runtime directory, moved", |set| {
            fs::rename(set.runtime_dir(), set.test_dir().join("moved")).unwrap();
            remove(&set.test_dir().join("moved"));
        }),
        ("everything", |set| {
            remove(&set.runtime_dir());
            remove_segments(set);
            remove(&set.test_dir().join("http.sock"));
        }),
    ]
}

#[test]
fn whatever_is_removed_requests_continue_and_killed_parts_come_back() {
    let set = start();
    let (redirect, handoff) = (set.address(0), set.address(1));
    let loads = [LoadGenerator::start(redirect, "/a", 2), LoadGenerator::start(handoff, "/b", 2)];
    let mut worker_kills = 0;
    for (what, remove) in removals() {
        eprintln!("removing {what}");
        remove(&set);
        loads.iter().for_each(|load| load.wait_for(10));
        for part in ["dispatcher", "default/1", "default/2"] {
            kill(&set, part);
            loads.iter().for_each(|load| load.wait_for(5));
        }
        worker_kills += 2;
        // Each worker has restarted, so nothing is missing any more.
        assert_eq!(wait_for_health(&set, "ready"), serde_json::json!([]), "{what}");
        assert!(missing(&set).is_empty(), "{what}: {:?}\n{}", missing(&set), set.log());
        assert_eq!(get_unix(&set.test_dir().join("http.sock"), "/c").unwrap().status, 200, "{what}");
        assert_eq!(fs::metadata(set.test_dir().join("http.sock")).unwrap().mode() & 0o777, 0o640, "{what}");
        let drained = set.patou(&["drain", "default-1"]);
        assert!(drained.status.success(), "{what}: {}", text(&drained.stderr));
        assert!(set.patou(&["resume", "default-1"]).status.success(), "{what}");
    }
    // A claimed request may be lost with its worker, and nothing else.
    let [redirect_failures, handoff_failures] = loads.map(LoadGenerator::stop);
    let failures = [redirect_failures, handoff_failures].concat();
    assert!(failures.len() <= worker_kills, "{failures:#?}\n{}", set.log());
    assert!(!set.log().contains("is frozen"), "{}", set.log());
    set.stop();
}

/// The next dispatcher knows only what the new slot says.
#[test]
fn a_worker_whose_objects_are_being_replaced_is_drained_and_resumed_in_the_new_ones() {
    let set = start();
    assert!(set.patou(&["drain", "default-1"]).status.success());
    let worker = set.worker_pid("default/1");
    set.signal(Signal::SIGSTOP);
    remove_segments(&set);
    signal_to(worker, Signal::SIGKILL);
    // Its locks are held until its last thread has ended.
    let threads = || fs::read_dir(format!("/proc/{worker}/task")).map_or(0, Iterator::count);
    wait_until("the worker is dead", || !is_alive(worker) && threads() <= 1);
    let mut resumed = UnixStream::connect(set.runtime_dir().join("probe.sock")).unwrap();
    resumed.write_all(b"{\"nonce\":1,\"order\":{\"resume\":\"default/1\"}}\n").unwrap();
    resumed.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0];
    assert!(resumed.read(&mut answer).is_err(), "it is resumed in a slot that no process will read");
    set.signal(Signal::SIGCONT);
    resumed.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    assert_eq!(resumed.read(&mut answer).unwrap(), 1);
    kill(&set, "dispatcher");
    set.wait_for_worker("default/1", "idle");
    assert_ne!(set.worker_pid("default/1"), worker);
    set.stop();
}

#[test]
fn a_request_in_progress_survives_the_loss_of_everything_and_of_the_dispatcher() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 2, LONG_TIMEOUTS, ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    remove(&set.runtime_dir());
    remove_segments(&set);
    wait_for_health(&set, "degraded");
    set.wait_for("the loss is named", |status| status["problems"].as_array().map(Vec::len) == Some(1));
    // The lease is in the segment, which has no name any more.
    let busy = set.wait_for("one worker is busy", |status| {
        [worker_of(status, "default/1"), worker_of(status, "default/2")].iter().any(|w| w["state"] == "busy")
    });
    kill(&set, "dispatcher");
    let after = set.status();
    for id in ["default/1", "default/2"] {
        assert_eq!(worker_of(&busy, id)["pid"], worker_of(&after, id)["pid"], "{id} was restarted");
        assert_eq!(worker_of(&busy, id)["lease"], worker_of(&after, id)["lease"], "{id}");
    }
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    set.stop();
}

/// Replaces the runtime directory by a file, so that nothing can be restored.
fn obstruct(dir: &Path) {
    remove(dir);
    fs::write(dir, "").unwrap_or_else(|_| {
        remove(dir);
        fs::write(dir, "").unwrap();
    });
    if dir.is_dir() {
        remove(dir);
    }
}

#[test]
fn workers_of_a_lost_directory_recycle_in_place_and_obey_a_reload_once_it_is_back() {
    let mut set = TestSet::prepare("");
    let config = config(&set) + "max_requests = 20\n";
    set.configure(&config);
    set.run_with_log_level("info");
    set.wait_until_up();
    let load = LoadGenerator::start(set.address(1), "/", 2);
    let dir = set.runtime_dir();
    obstruct(&dir);
    set.wait_for_log(&["cannot be restored"]);
    remove_segments(&set);
    let children = || children_of(set.pid());
    // The next incarnations know the objects, the configuration and the notify socket by descriptor alone.
    for pid in children() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
        wait_until("the part is back", || children().len() == 3 && !children().contains(&pid));
        load.wait_for(20);
    }
    let pids = children();
    load.wait_for(200);
    assert_eq!(children(), pids, "{}", set.log());
    remove(&dir);
    wait_until("the directory is restored", || dir.join("admin.sock").exists());
    load.wait_for(200);
    assert_eq!(children(), pids, "{}", set.log());
    set.configure(&config.replace("workers = 2", "workers = 3"));
    set.signal(Signal::SIGHUP);
    set.wait_for_worker("default/3", "idle");
    assert!(pids.iter().all(|pid| children().contains(pid)), "{}", set.log());
    load.stop();
    set.stop();
}

#[test]
fn new_dispatcher_is_probed_while_its_directory_is_a_file() {
    let set = start();
    let (dir, dispatcher) = (set.runtime_dir(), set.dispatcher_pid());
    obstruct(&dir);
    set.wait_for_log(&["cannot be restored"]);
    signal_to(dispatcher, Signal::SIGKILL);
    set.wait_for_log(&["dispatcher is back in service"]);
    let children = children_of(set.pid());
    // Longer than a dispatcher may be silent.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(children_of(set.pid()), children, "{}", set.log());
    remove(&dir);
    wait_until("the directory is restored", || dir.join("admin.sock").exists());
    set.stop();
}

#[test]
fn a_stop_right_after_the_loss_of_the_lock_file_leaves_nothing() {
    let set = start();
    signal_to(set.pid(), Signal::SIGSTOP);
    remove(&set.runtime_dir().join("set.lock"));
    signal_to(set.pid(), Signal::SIGCONT);
    set.stop();
}

#[test]
fn a_reload_right_after_the_loss_of_the_admin_socket_is_applied() {
    let set = start();
    set.configure(&config(&set).replace("workers = 2", "workers = 3"));
    signal_to(set.pid(), Signal::SIGSTOP);
    remove(&set.runtime_dir().join("admin.sock"));
    set.signal(Signal::SIGHUP);
    signal_to(set.pid(), Signal::SIGCONT);
    set.wait_for_log(&["configuration applied"]);
    set.wait_for_worker("default/3", "idle");
    set.stop();
}

#[test]
fn parts_come_back_while_the_runtime_directory_cannot_be_restored() {
    let set = start();
    let load = LoadGenerator::start(set.address(1), "/", 2);
    let dir = set.runtime_dir();
    obstruct(&dir);
    set.wait_for_log(&["cannot be restored"]);
    let output = set.patou(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("pid {}", set.pid())), "{}", text(&output.stderr));
    let children = || children_of(set.pid());
    for pid in children() {
        signal_to(pid, Signal::SIGKILL);
        wait_until("the part is back", || children().len() == 3 && !children().contains(&pid));
        load.wait_for(20);
    }
    remove(&dir);
    wait_until("the directory is restored", || dir.join("admin.sock").exists());
    set.wait_until_up();
    assert!(load.stop().len() <= 2);
    set.stop();
}

/// The pids of a process's children that have executed their program.
fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_second_run_is_refused_and_removes_nothing_of_the_set_that_lives() {
    let set = start();
    let refuse = |command: &mut Command, proof: &str| {
        let before = set.segments();
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains("a set is running in"), "{proof}: {error}");
        assert_eq!(set.segments(), before, "{proof}");
    };
    // Nothing is restored meanwhile.
    signal_to(set.pid(), Signal::SIGSTOP);
    remove(&set.runtime_dir().join("set.lock"));
    refuse(&mut set.command(&["run"]), "the abstract name");
    if nix::unistd::geteuid().is_root() {
        // Where the name is another one, the locks of the segments decide, recorded or not.
        let in_other_network = || {
            let mut command = Command::new("unshare");
            command.args(["--net", PATOU, "run", "--config"]).arg(set.config_file());
            command
        };
        refuse(&mut in_other_network(), "recorded segments");
        remove(&set.runtime_dir());
        refuse(&mut in_other_network(), "segments");
        remove(&set.runtime_dir());
        remove_segments(&set);
        refuse(&mut in_other_network(), "the environment of the parts");
    }
    signal_to(set.pid(), Signal::SIGCONT);
    set.wait_until_up();
    refuse(&mut set.command(&["run"]), "everything");
    set.stop();
}

#[test]
fn a_reload_works_after_the_loss_of_everything() {
    let set = start();
    remove(&set.runtime_dir());
    remove_segments(&set);
    set.wait_for_log(&["restored the runtime directory"]);
    set.configure(&config(&set).replace("workers = 2", "workers = 3"));
    set.signal(Signal::SIGHUP);
    set.wait_for_worker("default/3", "idle");
    set.configure(&config(&set).replace("workers = 2", "workers = 1"));
    set.signal(Signal::SIGHUP);
    set.wait_for("the workers are removed", |status| worker_of(status, "default/2").is_null());
    assert_eq!(get(set.address(1), "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn a_healthy_dispatcher_is_not_killed_and_a_frozen_one_is_replaced_without_probe_socket() {
    let set = start();
    let dispatcher = set.dispatcher_pid();
    for _ in 0..3 {
        remove(&set.runtime_dir().join("probe.sock"));
        wait_until("probe.sock is restored", || set.runtime_dir().join("probe.sock").exists());
    }
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(get(set.address(1), "/").unwrap().status, 200);
    }
    assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
    signal_to(dispatcher, Signal::SIGSTOP);
    remove(&set.runtime_dir().join("probe.sock"));
    remove(&set.test_dir().join("http.sock"));
    set.wait_for("the dispatcher is replaced", |status| status["dispatcher"]["pid"] != dispatcher);
    set.wait_until_up();
    assert_eq!(get_unix(&set.test_dir().join("http.sock"), "/").unwrap().status, 200);
    set.stop();
}

/// The dispatcher runs only after the names of the workers' new objects were removed as well.
#[test]
fn workers_whose_new_objects_are_removed_at_once_get_clients() {
    let mut set = TestSet::prepare("");
    let config = config(&set).replacen("[watchdog]\n", "[watchdog]\ndispatcher_timeout = \"20s\"\n", 1);
    set.configure(&config);
    set.run_with_log_level("info");
    set.wait_until_up();
    let (address, dispatcher) = (set.address(0), set.dispatcher_pid());
    let old = ["default/1", "default/2"].map(|id| set.worker_pid(id));
    let remove_all = || {
        remove(&set.runtime_dir());
        remove_segments(&set);
    };
    let is_up = |id: &str, old: u32| {
        let state = fs::read(set.runtime_dir().join("watchdog.json")).ok()?;
        let state: Value = serde_json::from_slice(&state).ok()?;
        let worker = &state["workers"][id];
        (worker["state"] == "up" && worker["pid"] != old).then_some(())
    };
    signal_to(dispatcher, Signal::SIGSTOP);
    remove_all();
    old.iter().for_each(|pid| signal_to(*pid, Signal::SIGKILL));
    for (id, old) in ["default/1", "default/2"].into_iter().zip(old) {
        wait_for_value(&format!("{id} is back"), || is_up(id, old));
    }
    remove_all();
    signal_to(dispatcher, Signal::SIGCONT);
    for _ in 0..4 {
        assert_eq!(get(address, "/").unwrap().status, 200, "{}", set.log());
        assert_eq!(get_unix(&set.test_dir().join("http.sock"), "/").unwrap().status, 200, "{}", set.log());
    }
    assert_eq!(set.dispatcher_pid(), dispatcher, "{}", set.log());
    set.stop();
}

/// The queue of a listener whose socket file is removed is served, and repeated removals use up no descriptors.
#[test]
fn clients_in_the_queue_of_a_removed_listener_are_served() {
    let set = start();
    let socket = set.test_dir().join("http.sock");
    let dispatcher = set.dispatcher_pid();
    let descriptors = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = (descriptors(set.pid()), descriptors(dispatcher));
    for round in 0..20 {
        let waiting = (round % 5 == 0).then(|| {
            signal_to(dispatcher, Signal::SIGSTOP);
            let mut client = UnixStream::connect(&socket).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            client
        });
        remove(&socket);
        wait_until("the socket is restored", || UnixStream::connect(&socket).is_ok());
        if let Some(mut client) = waiting {
            signal_to(dispatcher, Signal::SIGCONT);
            client.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
            assert_eq!(read_response(&mut client).unwrap().status, 200);
        }
        assert_eq!(get_unix(&socket, "/").unwrap().status, 200);
    }
    assert_eq!(set.dispatcher_pid(), dispatcher);
    wait_until("no descriptors are used up", || {
        descriptors(set.pid()) <= before.0 + 4 && descriptors(dispatcher) <= before.1 + 4
    });
    // A client in the old queue also outlives the dispatcher.
    signal_to(dispatcher, Signal::SIGSTOP);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    remove(&socket);
    wait_until("the socket is restored", || socket.exists());
    signal_to(dispatcher, Signal::SIGKILL);
    client.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    assert_eq!(read_response(&mut client).unwrap().status, 200);
    set.stop();
}

/// Not even one: it would be one for each listener.
#[test]
fn sockets_without_names_leave_no_descriptor() {
    let set = start();
    let sockets =
        [set.test_dir().join("http.sock"), set.runtime_dir().join("probe.sock"), set.runtime_dir().join("admin.sock")];
    // The dispatcher opens a handoff socket to each worker when it first needs it.
    let load = LoadGenerator::start(set.address(1), "/", 2);
    load.wait_for(50);
    assert!(load.stop().is_empty());
    let parts = [set.pid(), set.dispatcher_pid()];
    let descriptors = || parts.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
    let before = wait_for_value("no client is left", || {
        let first = descriptors();
        std::thread::sleep(Duration::from_millis(300));
        (first == descriptors()).then_some(first)
    });
    for removal in 1..=10 {
        // It finds the end of the old sockets and the new ones at the same time.
        signal_to(parts[1], Signal::SIGSTOP);
        sockets.iter().for_each(|socket| remove(socket));
        sockets.iter().for_each(|path| wait_until("the socket is restored", || UnixStream::connect(path).is_ok()));
        signal_to(parts[1], Signal::SIGCONT);
        wait_until("a client is served by path", || get_unix(&sockets[0], "/").is_ok_and(|got| got.status == 200));
        if [1, 10].contains(&removal) {
            let deadline = Instant::now() + EVENT_TIMEOUT;
            while descriptors().iter().zip(before).any(|(now, before)| *now > before) {
                let now = descriptors();
                assert!(Instant::now() < deadline, "{before:?} descriptors become {now:?} by {removal} removals");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    assert_eq!(set.dispatcher_pid(), parts[1]);
    set.stop();
}

/// The dispatcher cannot accept the client that waits in the queue: another one has the only place.
#[test]
fn a_client_in_the_queue_of_a_removed_listener_waits_for_a_place() {
    let mut set = TestSet::prepare("");
    let front = "[front]\nconnections = 1\nhead_timeout = \"1h\"\n";
    let watchdog = "[watchdog]\nprobe_interval = \"20ms\"\n";
    set.configure(&config(&set).replace("[watchdog]\n", &format!("{front}{watchdog}")));
    set.run_with_log_level("info");
    set.wait_until_up();
    let (socket, dispatcher) = (set.test_dir().join("http.sock"), set.dispatcher_pid());
    let _holder = std::net::TcpStream::connect(set.address(1)).unwrap();
    wait_until("the place is in use", || {
        let metrics = get_unix(&set.runtime_dir().join("admin.sock"), "/metrics").unwrap().text();
        metrics.lines().any(|line| line == "patou_connections 1")
    });
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    remove(&socket);
    wait_until("the socket is restored", || socket.exists());
    std::thread::sleep(Duration::from_millis(500)); // many reports
    signal_to(dispatcher, Signal::SIGKILL);
    client.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    assert_eq!(read_response(&mut client).unwrap().status, 200, "{}", set.log());
    set.stop();
}

/// Clients wait in the queues of a worker's address that is removed twice before the worker is restarted.
#[test]
fn clients_in_the_queues_of_a_removed_worker_address_are_sent_back() {
    let mut set = TestSet::prepare("");
    let address = set.test_dir().join("worker-{n}.sock");
    set.configure(&format!(
        "[watchdog]\nworker_timeout = \"1h\"\n\
         [[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n\
         [[pool]]\nname = \"default\"\nworkers = 1\naddress = \"unix:{}\"\n",
        set.test_dir().join("http.sock").display(),
        address.display()
    ));
    set.run_with_log_level("info");
    set.wait_until_up();
    let (address, worker) = (set.test_dir().join("worker-1.sock"), set.worker_pid("default/1"));
    signal_to(worker, Signal::SIGSTOP);
    let mut clients = Vec::new();
    for _ in 0..3 {
        wait_until("the socket is restored", || UnixStream::connect(&address).is_ok());
        let mut client = UnixStream::connect(&address).unwrap();
        client.write_all(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        clients.push(client);
        remove(&address);
    }
    signal_to(worker, Signal::SIGKILL);
    for mut client in clients {
        client.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        let response = read_response(&mut client).unwrap_or_else(|error| panic!("{error}\n{}", set.log()));
        assert_eq!((response.status, response.header("patou-outcome")), (409, Some("not-started")), "{}", set.log());
    }
    set.stop();
}

/// A reload reorders the listeners, and the client that waits in the queue of a removed socket is still served by the
/// listener that it has connected to.
#[test]
fn a_client_in_the_queue_of_a_removed_listener_stays_with_it_when_a_reload_moves_it() {
    // The signal that ends the old dispatcher also continues it. If it accepts the client before it is killed, the client
    // gets no byte.
    let served = (0..5).any(|_| {
        let set = start();
        let socket = set.test_dir().join("http.sock");
        let dispatcher = set.dispatcher_pid();
        signal_to(dispatcher, Signal::SIGSTOP);
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        remove(&socket);
        wait_until("the socket is restored", || socket.exists());
        // The Unix listener comes first, and the redirect listener last.
        let text = config(&set);
        let sections: Vec<_> = text.split("[[").collect();
        set.configure(&[0, 3, 2, 1, 4].map(|index| sections[index]).join("[["));
        set.signal(Signal::SIGHUP);
        wait_until("the configuration is applied", || set.log().contains("restarting the dispatcher"));
        signal_to(dispatcher, Signal::SIGKILL);
        client.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        let response = read_response(&mut client);
        if let Ok(response) = &response {
            assert_eq!(response.status, 200, "{}", set.log());
        }
        set.stop();
        response.is_ok()
    });
    assert!(served, "no client was served");
}

#[test]
fn a_directory_of_another_user_is_not_used() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: needs root");
        return;
    }
    let set = start();
    let (dir, handoff) = (set.runtime_dir(), set.address(1));
    signal_to(set.pid(), Signal::SIGSTOP);
    remove(&dir);
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(65534), None).unwrap();
    signal_to(set.pid(), Signal::SIGCONT);
    set.wait_for_log(&["cannot be restored", "belongs to user 65534"]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(get(handoff, "/").unwrap().status, 200);
    remove(&dir);
    set.wait_until_up();
    set.stop();
}

#[test]
fn a_listener_that_is_bound_again_reaches_a_dispatcher_without_a_free_descriptor() {
    if !is_installed("prlimit") {
        return eprintln!("SKIPPED: no prlimit on this machine");
    }
    let set = start();
    let (socket, dispatcher) = (set.test_dir().join("http.sock"), set.dispatcher_pid());
    assert_eq!(get_unix(&socket, "/").map(|response| response.status), Ok(200));
    let numbers = || fs::read_dir(format!("/proc/{dispatcher}/fd")).unwrap();
    let numbers = || numbers().map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap());
    let limit_to = |soft: &str| {
        let limited =
            Command::new("prlimit").args([format!("--pid={dispatcher}"), format!("--nofile={soft}:")]).status();
        assert!(limited.unwrap().success());
    };
    let limits = fs::read_to_string(format!("/proc/{dispatcher}/limits")).unwrap();
    let limits = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap().to_owned();
    // Every number below the lowest free one is in use.
    let lowest_free = (0..).find(|number| !numbers().any(|used| used == *number)).unwrap();
    limit_to(&lowest_free.to_string());
    for _ in 0..2 {
        remove(&socket);
        wait_until("the listener is bound again", || socket.exists());
    }
    limit_to(limits.split_whitespace().next().unwrap());
    assert_eq!(get_unix(&socket, "/").map(|response| response.status), Ok(200), "{}", set.log());
    assert_eq!(set.dispatcher_pid(), dispatcher);
    set.stop();
}
