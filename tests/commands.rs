//! The commands, their words and exit codes.

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::*;

fn code(set: &TestSet, args: &[&str]) -> (i32, String, String) {
    let output = set.patou(args);
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_tells_everything_and_creates_nothing() {
    let set = TestSet::prepare(ECHO);
    let (good, out, err) = code(&set, &["check"]);
    assert_eq!((good, err.as_str()), (0, ""));
    assert!(out.contains("is valid") && out.contains("default: 2 echo workers"), "{out}");
    set.configure(
        &ECHO.replace("workers = 2", "workers = 0\nqueu = 4").replace("pool = \"default\"", "pool = \"none\""),
    );
    let (bad, out, err) = code(&set, &["check"]);
    assert_eq!((bad, out.as_str()), (78, ""));
    let file = set.config_file().display().to_string();
    for fault in ["pool[1].workers", "pool[1].queu", "listener[1].pool"] {
        assert!(
            err.lines().any(|line| line.starts_with(&format!("{file}:")) && line.contains(fault)),
            "{fault}: {err}"
        );
    }
    assert_eq!(code(&set, &["run"]).0, 78);
    assert!(!set.runtime_dir().exists());
}

#[test]
fn the_defaults_are_a_configuration() {
    let set = TestSet::prepare("");
    let (ok, out, _) = code(&set, &["config", "--defaults"]);
    assert_eq!(ok, 0);
    std::fs::write(set.config_file(), out).unwrap();
    assert_eq!(code(&set, &["check"]).0, 0);
}

#[test]
fn wrong_arguments_are_a_usage_error() {
    let set = TestSet::prepare(ECHO);
    for args in [
        &["bark"][..],
        &["run", "--loud"],
        &["drain"],
        &["drain", "default"],
        &["status", "--wait", "soon"],
        &["pingpong", "--count", "0"],
        &[],
    ] {
        let (code, out, err) = code(&set, args);
        assert_eq!((code, out.as_str()), (64, ""), "{args:?}");
        assert!(!err.is_empty());
    }
    assert_eq!(code(&set, &["--help"]).0, 0);
    assert_eq!(code(&set, &["--version"]).0, 0);
}

fn no_set(dir: &str) -> String {
    format!("patou: no set is running in {dir}: start it with patou run, or name its configuration with --config\n")
}

/// Only what the help shows is suggested.
#[test]
fn hidden_commands_stay_hidden() {
    let set = TestSet::prepare(ECHO);
    for (wrong, hidden, near) in
        [("lunch", "launch", None), ("bench-pear", "bench-peer", None), ("stats", "launch", Some("status"))]
    {
        let (failed, _, err) = code(&set, &[wrong]);
        assert!(failed == 64 && !err.contains(&format!("'{hidden}'")), "{err}");
        assert!(near.is_none_or(|near| err.contains(near)), "{err}");
    }
    let (failed, _, err) = code(&set, &["call", "--retry", "banana"]);
    assert!(failed == 64 && err.contains("such as 500ms or 10s"), "{err}");
}

#[test]
fn who_reads_no_more_has_what_he_wants() {
    let mut set = TestSet::prepare(ECHO);
    set.run();
    set.wait_until_up();
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["check"],
        &["config", "--defaults"],
        &["ipc", "list"],
        &["call", "/"],
    ] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let output = set.command(args).stdout(write).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args:?}");
    }
    set.stop();
}

/// A file that is being edited does not take the running set out of the operator's hands.
#[test]
fn a_wrong_file_does_not_hide_the_running_set() {
    let set = TestSet::start(ECHO);
    for wrong in ["[[pool\n", "[[pool]]\nname = \"default\"\nworker = 2\n"] {
        set.configure(wrong);
        let (ok, out, err) = code(&set, &["status"]);
        assert!(ok == 0 && out.contains("default/2"), "{out}{err}");
        assert!(err.contains("patou.toml:") && err.contains("has applied"), "{err}");
        let (ok, out, err) = code(&set, &["drain", "default-1"]);
        assert!(ok == 0 && out.contains("default/1 is out of service"), "{out}{err}");
        assert_eq!(code(&set, &["resume", "default-1"]).0, 0);
        assert_eq!(code(&set, &["check"]).0, 78);
    }
    set.configure(ECHO);
    set.stop();
}

#[test]
fn without_a_set_each_command_says_so() {
    let set = TestSet::prepare(ECHO);
    let dir = set.runtime_dir().display().to_string();
    for args in [&["status"][..], &["status", "--json"], &["drain", "default-1"], &["resume", "default-1"]] {
        let told = code(&set, args);
        assert_eq!(told, (1, String::new(), no_set(&dir)), "{args:?}");
    }
    let (failed, _, err) = code(&set, &["status", "--wait", "50ms"]);
    assert_eq!((failed, err), (1, no_set(&dir)));
    let set2 = TestSet::prepare(&ECHO.replacen("127.0.0.1:0", "127.0.0.1:1", 1));
    let (failed, out, err) = code(&set2, &["call", "/x"]);
    assert_eq!((failed, out.as_str()), (1, ""));
    assert!(err.contains("127.0.0.1:1") && err.contains("refused") && err.lines().count() == 1, "{err}");
    assert_eq!(code(&set, &["ipc", "remove"]).0, 0);
    assert!(!set.runtime_dir().exists());
}

#[test]
fn status_is_answered_whoever_is_frozen() {
    let set = TestSet::start(&format!("[watchdog]\nworker_timeout = \"10m\"\ndispatcher_timeout = \"10m\"\n{ECHO}"));
    for frozen in [set.worker_pid("default/1"), set.dispatcher_pid(), set.pid()] {
        signal_to(frozen, Signal::SIGSTOP);
    }
    let status = set.status();
    assert_eq!(status["watchdog"]["state"], "frozen");
    assert_eq!(status["dispatcher"]["state"], "frozen");
    assert_eq!(worker_of(&status, "default/1")["state"], "frozen");
    assert_eq!(worker_of(&status, "default/2")["state"], "idle");
    let (_, out, _) = code(&set, &["status"]);
    assert!(out.lines().all(|line| line == line.trim_end() && line.len() <= 120), "{out}");
    let (failed, _, err) = code(&set, &["drain", "default-1"]);
    assert_eq!(failed, 1);
    assert!(err.contains("does not answer") && !err.contains("os error"), "{err}");
    set.signal(Signal::SIGCONT);
    signal_to(set.dispatcher_pid(), Signal::SIGCONT);
    set.stop();
}

#[test]
fn the_parts_can_be_made_and_removed_by_hand() {
    let mut set = TestSet::prepare(ECHO);
    assert_eq!(code(&set, &["ipc", "create"]), (0, String::new(), String::new()));
    let (_, out, _) = code(&set, &["ipc", "list"]);
    assert_eq!(out.lines().filter(|line| line.ends_with("  unused")).count(), 2, "{out}");
    assert_eq!(set.segments().len(), 2);
    assert_eq!(code(&set, &["ipc", "create"]).0, 0);
    assert_eq!(set.segments().len(), 2);
    set.run();
    set.wait_until_up();
    assert_eq!(set.segments().len(), 2);
    let (_, out, _) = code(&set, &["ipc", "list"]);
    assert_eq!(out.lines().filter(|line| line.ends_with("  used by dispatcher and worker")).count(), 2, "{out}");
    assert_eq!(code(&set, &["ipc", "create"]).0, 1);
    set.stop();
    let set = TestSet::prepare(ECHO);
    assert_eq!(code(&set, &["ipc", "create"]).0, 0);
    assert_eq!(code(&set, &["ipc", "remove"]), (0, String::new(), String::new()));
    set.assert_nothing_left();
}

#[test]
fn a_place_that_is_not_ours_is_refused() {
    let set = TestSet::prepare(ECHO);
    let refused = |set: &TestSet, words: &[&str]| {
        for args in [&["run"][..], &["ipc", "create"]] {
            let (failed, _, err) = code(set, args);
            assert_eq!((failed, err.lines().count()), (1, 1), "{err}");
            assert!(words.iter().all(|word| err.contains(word)), "{err}");
        }
        assert!(set.segments().is_empty() && set.processes().is_empty());
    };
    symlink("/nonexistent", set.runtime_dir()).unwrap();
    refused(&set, &["not a directory", "remove it"]);
    std::fs::remove_file(set.runtime_dir()).unwrap();
    std::fs::create_dir(set.runtime_dir()).unwrap();
    std::fs::set_permissions(set.runtime_dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
    refused(&set, &["chmod o-w"]);
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(set.runtime_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(set.runtime_dir(), Some(65534), None).unwrap();
        refused(&set, &["belongs to user 65534", "choose another"]);
    }
}

#[test]
fn an_address_in_use_is_one_line_and_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let file = std::env::temp_dir().join(format!("patou-front-{}.sock", std::process::id()));
    let unix = format!("[[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n", file.display());
    for place in [0, 1] {
        let mut parts: Vec<_> = ECHO.split("127.0.0.1:0").map(str::to_owned).collect();
        parts[place] += &port;
        parts[1 - place] += "127.0.0.1:0";
        let set = TestSet::prepare(&format!("{unix}{}", parts.concat().replace("workers = 2", "workers = 1")));
        let (failed, _, err) = code(&set, &["run"]);
        assert_eq!((failed, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(&port) && err.contains("in use") && err.contains("choose another"), "{err}");
        set.assert_nothing_left();
        assert!(!file.exists());
    }
}

fn beside(set: &TestSet) -> Vec<String> {
    let names =
        std::fs::read_dir(set.test_dir()).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.contains("bench-exchange")).collect()
}

#[test]
fn pingpong_ends_cleanly_and_leaves_nothing() {
    let set = TestSet::prepare(ECHO);
    let (ok, out, err) = code(&set, &["pingpong", "--count", "37"]);
    assert_eq!((ok, err.as_str()), (0, ""));
    assert!(out.contains(" 37 round trips"), "{out}");
    assert_eq!((beside(&set), set.segments()), (vec![], vec![]));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut endless = set.command(&["pingpong", "--count", "10000000"]).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("it has begun", || !set.segments().is_empty());
        signal_to(endless.id(), signal);
        assert_eq!(endless.wait().unwrap().code(), Some(1));
        assert_eq!((beside(&set), set.segments()), (vec![], vec![]));
        assert!(set.processes().is_empty());
    }
    // What one that was killed has left goes with the next; what one that runs has, stays.
    let mut killed = set.command(&["pingpong", "--count", "10000000"]).spawn().unwrap();
    wait_until("it has begun", || !set.segments().is_empty());
    let other = set.command(&["pingpong", "--count", "10000000"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the other has begun", || set.segments().len() == 2);
    signal_to(killed.id(), Signal::SIGKILL);
    killed.wait().unwrap();
    assert_eq!((beside(&set).len(), set.segments().len()), (2, 2));
    assert_eq!(code(&set, &["pingpong", "--count", "1"]).0, 0);
    assert_eq!((beside(&set).len(), set.segments().len()), (1, 1));
    signal_to(other.id(), Signal::SIGTERM);
    assert_eq!(text(&other.wait_with_output().unwrap().stderr), "patou: interrupted\n");
    assert_eq!((beside(&set), set.segments()), (vec![], vec![]));
}

#[test]
fn a_log_that_nobody_reads_ends_nobody() {
    let set = TestSet::prepare(ECHO);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut run = set.command(&["run"]).stderr(writer).spawn().unwrap();
    set.wait_until_up();
    drop(reader);
    let old = set.worker_pid("default/1");
    signal_to(old, Signal::SIGKILL);
    set.wait_for("it is replaced", |status| {
        let worker = worker_of(status, "default/1");
        worker["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && worker["state"] == "idle"
    });
    signal_to(run.id(), Signal::SIGTERM);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    set.assert_nothing_left();
}

/// An ordinary user, if this one may become another.
#[test]
fn an_ordinary_user_can_run_a_set() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: not root, so every other test has shown it");
    }
    let place = std::env::temp_dir().join(format!("patou-user-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(65534), Some(65534)).unwrap();
    // The binary's own directory may be closed to others.
    let binary = place.join("binary");
    std::fs::copy(PATOU, &binary).unwrap();
    let file = place.join("patou.toml");
    let name = format!("u{}", std::process::id());
    std::fs::write(&file, format!("[set]\nname = \"{name}\"\n{ECHO}")).unwrap();
    let user = |args: &[&str], runtime: Option<&std::path::Path>| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(args);
        command.arg("--config").arg(&file).env_remove("XDG_RUNTIME_DIR").env_remove("PATOU_CONFIG");
        command.envs(runtime.map(|dir| ("XDG_RUNTIME_DIR", dir))).stdin(Stdio::null());
        command
    };
    match user(&["check"], Some(&place)).output() {
        Ok(output) => assert!(output.status.success(), "{}", text(&output.stderr)),
        Err(error) => return eprintln!("SKIPPED: setpriv: {error}"),
    }
    let log = place.join("log");
    for runtime in [Some(place.as_path()), None] {
        let told = text(&user(&["check"], runtime).output().unwrap().stdout);
        eprintln!("{told}");
        let stderr = std::fs::File::create(&log).unwrap();
        let mut run = user(&["run"], runtime).stderr(stderr).spawn().unwrap();
        let up = user(&["status", "--wait", "20s"], runtime).output().unwrap();
        assert!(up.status.success(), "{}{}", text(&up.stderr), std::fs::read_to_string(&log).unwrap());
        let called = user(&["call", "-d", "bark", "/"], runtime).output().unwrap();
        assert_eq!(text(&called.stdout), "bark", "{}", text(&called.stderr));
        let status = user(&["status", "--json"], runtime).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        signal_to(worker_of(&status, "default/1")["pid"].as_u64().unwrap() as u32, Signal::SIGKILL);
        wait_until("it is replaced", || {
            let now = user(&["status", "--json"], runtime).output().unwrap();
            let now = serde_json::from_slice(&now.stdout).unwrap_or_default();
            worker_of(&now, "default/1")["epoch"] == 2 && worker_of(&now, "default/1")["state"] == "idle"
        });
        signal_to(run.id(), Signal::SIGTERM);
        assert_eq!(run.wait().unwrap().code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap());
        let left: Vec<_> = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|segment| !segment.to_string_lossy().contains(&format!(".{name}."))), "{left:?}");
        assert!(!place.join("patou-run").exists());
    }
    std::fs::remove_dir_all(&place).unwrap();
}
