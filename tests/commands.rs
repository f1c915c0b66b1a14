//! The commands: their output, error messages and exit codes.

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::*;

fn run_patou(set: &TestSet, args: &[&str]) -> (i32, String, String) {
    let output = set.patou(args);
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_reports_every_error_and_creates_nothing() {
    let set = TestSet::prepare(ECHO);
    let (code, out, err) = run_patou(&set, &["check"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("is valid") && out.contains("default: 2 echo workers"), "{out}");
    set.configure(
        &ECHO.replace("workers = 2", "workers = 0\nqueu = 4").replace("pool = \"default\"", "pool = \"none\""),
    );
    let (code, out, err) = run_patou(&set, &["check"]);
    assert_eq!((code, out.as_str()), (78, ""));
    let file = set.config_file().display().to_string();
    for key in ["pool[1].workers", "pool[1].queu", "listener[1].pool"] {
        assert!(err.lines().any(|line| line.starts_with(&format!("{file}:")) && line.contains(key)), "{key}: {err}");
    }
    assert_eq!(run_patou(&set, &["run"]).0, 78);
    assert!(!set.runtime_dir().exists());
}

#[test]
fn printed_defaults_are_a_valid_configuration() {
    let set = TestSet::prepare("");
    let (code, out, _) = run_patou(&set, &["config", "--defaults"]);
    assert_eq!(code, 0);
    std::fs::write(set.config_file(), out).unwrap();
    assert_eq!(run_patou(&set, &["check"]).0, 0);
}

#[test]
fn wrong_arguments_exit_with_64() {
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
        let (code, out, err) = run_patou(&set, args);
        assert_eq!((code, out.as_str()), (64, ""), "{args:?}");
        assert!(!err.is_empty());
    }
    assert_eq!(run_patou(&set, &["--help"]).0, 0);
    assert_eq!(run_patou(&set, &["--version"]).0, 0);
}

fn no_set(dir: &str) -> String {
    format!("patou: no set is running in {dir}: start it with patou run, or name its configuration with --config\n")
}

/// Suggestions for a mistyped command come from the help only.
#[test]
fn hidden_commands_are_not_suggested() {
    let set = TestSet::prepare(ECHO);
    for (wrong, hidden, near) in
        [("lunch", "launch", None), ("bench-pear", "bench-peer", None), ("stats", "launch", Some("status"))]
    {
        let (code, _, err) = run_patou(&set, &[wrong]);
        assert!(code == 64 && !err.contains(&format!("'{hidden}'")), "{err}");
        assert!(near.is_none_or(|near| err.contains(near)), "{err}");
    }
    let (code, _, err) = run_patou(&set, &["call", "--retry", "banana"]);
    assert!(code == 64 && err.contains("such as 500ms or 10s"), "{err}");
}

#[test]
fn closed_pipe_is_not_an_error() {
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

/// The operator may be editing the file while the set is running.
#[test]
fn running_set_is_reachable_while_its_file_is_invalid() {
    let set = TestSet::start(ECHO);
    for invalid in ["[[pool\n", "[[pool]]\nname = \"default\"\nworker = 2\n"] {
        set.configure(invalid);
        let (code, out, err) = run_patou(&set, &["status"]);
        assert!(code == 0 && out.contains("default/2"), "{out}{err}");
        assert!(err.contains("patou.toml:") && err.contains("has applied"), "{err}");
        let (code, out, err) = run_patou(&set, &["drain", "default-1"]);
        assert!(code == 0 && out.contains("default/1 is out of service"), "{out}{err}");
        assert_eq!(run_patou(&set, &["resume", "default-1"]).0, 0);
        assert_eq!(run_patou(&set, &["check"]).0, 78);
    }
    set.configure(ECHO);
    set.stop();
}

#[test]
fn commands_report_that_no_set_is_running() {
    let set = TestSet::prepare(ECHO);
    let dir = set.runtime_dir().display().to_string();
    for args in [&["status"][..], &["status", "--json"], &["drain", "default-1"], &["resume", "default-1"]] {
        assert_eq!(run_patou(&set, args), (1, String::new(), no_set(&dir)), "{args:?}");
    }
    let (code, _, err) = run_patou(&set, &["status", "--wait", "50ms"]);
    assert_eq!((code, err), (1, no_set(&dir)));
    let set2 = TestSet::prepare(&ECHO.replacen("127.0.0.1:0", "127.0.0.1:1", 1));
    let (code, out, err) = run_patou(&set2, &["call", "/x"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("127.0.0.1:1") && err.contains("refused") && err.lines().count() == 1, "{err}");
    assert_eq!(run_patou(&set, &["ipc", "remove"]).0, 0);
    assert!(!set.runtime_dir().exists());
}

#[test]
fn status_works_while_every_part_is_frozen() {
    let set = TestSet::start(&format!("[watchdog]\nworker_timeout = \"10m\"\ndispatcher_timeout = \"10m\"\n{ECHO}"));
    for frozen in [set.worker_pid("default/1"), set.dispatcher_pid(), set.pid()] {
        signal_to(frozen, Signal::SIGSTOP);
    }
    let status = set.status();
    assert_eq!(status["watchdog"]["state"], "frozen");
    assert_eq!(status["dispatcher"]["state"], "frozen");
    assert_eq!(worker_of(&status, "default/1")["state"], "frozen");
    assert_eq!(worker_of(&status, "default/2")["state"], "idle");
    let (_, out, _) = run_patou(&set, &["status"]);
    assert!(out.lines().all(|line| line == line.trim_end() && line.len() <= 120), "{out}");
    let (code, _, err) = run_patou(&set, &["drain", "default-1"]);
    assert_eq!(code, 1);
    assert!(err.contains("does not answer") && !err.contains("os error"), "{err}");
    set.signal(Signal::SIGCONT);
    signal_to(set.dispatcher_pid(), Signal::SIGCONT);
    set.stop();
}

#[test]
fn ipc_objects_can_be_created_and_removed_by_hand() {
    let mut set = TestSet::prepare(ECHO);
    assert_eq!(run_patou(&set, &["ipc", "create"]), (0, String::new(), String::new()));
    let (_, out, _) = run_patou(&set, &["ipc", "list"]);
    assert_eq!(out.lines().filter(|line| line.ends_with("  unused")).count(), 2, "{out}");
    assert_eq!(set.segments().len(), 2);
    assert_eq!(run_patou(&set, &["ipc", "create"]).0, 0);
    assert_eq!(set.segments().len(), 2);
    set.run();
    set.wait_until_up();
    assert_eq!(set.segments().len(), 2);
    let (_, out, _) = run_patou(&set, &["ipc", "list"]);
    assert_eq!(out.lines().filter(|line| line.ends_with("  used by dispatcher and worker")).count(), 2, "{out}");
    assert_eq!(run_patou(&set, &["ipc", "create"]).0, 1);
    set.stop();
    let set = TestSet::prepare(ECHO);
    assert_eq!(run_patou(&set, &["ipc", "create"]).0, 0);
    assert_eq!(run_patou(&set, &["ipc", "remove"]), (0, String::new(), String::new()));
    set.assert_nothing_left();
}

#[test]
fn unsafe_runtime_directory_assert_refused() {
    let set = TestSet::prepare(ECHO);
    let assert_refused = |set: &TestSet, fragments: &[&str]| {
        for args in [&["run"][..], &["ipc", "create"]] {
            let (code, _, err) = run_patou(set, args);
            assert_eq!((code, err.lines().count()), (1, 1), "{err}");
            assert!(fragments.iter().all(|fragment| err.contains(fragment)), "{err}");
        }
        assert!(set.segments().is_empty() && set.processes().is_empty());
    };
    symlink("/nonexistent", set.runtime_dir()).unwrap();
    assert_refused(&set, &["not a directory", "remove it"]);
    std::fs::remove_file(set.runtime_dir()).unwrap();
    std::fs::create_dir(set.runtime_dir()).unwrap();
    std::fs::set_permissions(set.runtime_dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_refused(&set, &["chmod o-w"]);
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(set.runtime_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(set.runtime_dir(), Some(65534), None).unwrap();
        assert_refused(&set, &["belongs to user 65534", "choose another"]);
    }
}

#[test]
fn address_in_use_is_reported_in_one_line_and_nothing_is_left() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupied.local_addr().unwrap().to_string();
    let file = std::env::temp_dir().join(format!("patou-front-{}.sock", std::process::id()));
    let unix = format!("[[listener]]\naddress = \"unix:{}\"\npool = \"default\"\n", file.display());
    // The address of the listener, then that of the workers.
    for index in [0, 1] {
        let mut parts: Vec<_> = ECHO.split("127.0.0.1:0").map(str::to_owned).collect();
        parts[index] += &port;
        parts[1 - index] += "127.0.0.1:0";
        let set = TestSet::prepare(&format!("{unix}{}", parts.concat().replace("workers = 2", "workers = 1")));
        let (code, _, err) = run_patou(&set, &["run"]);
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(&port) && err.contains("in use") && err.contains("choose another"), "{err}");
        set.assert_nothing_left();
        assert!(!file.exists());
    }
}

fn bench_dirs(set: &TestSet) -> Vec<String> {
    let names =
        std::fs::read_dir(set.test_dir()).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.contains("bench-exchange")).collect()
}

#[test]
fn pingpong_leaves_nothing_after_completion_signal_or_kill() {
    let set = TestSet::prepare(ECHO);
    let (code, out, err) = run_patou(&set, &["pingpong", "--count", "37"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains(" 37 round trips"), "{out}");
    assert_eq!((bench_dirs(&set), set.segments()), (vec![], vec![]));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut endless = set.command(&["pingpong", "--count", "10000000"]).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("pingpong has started", || !set.segments().is_empty());
        signal_to(endless.id(), signal);
        assert_eq!(endless.wait().unwrap().code(), Some(1));
        assert_eq!((bench_dirs(&set), set.segments()), (vec![], vec![]));
        assert!(set.processes().is_empty());
    }
    // The next pingpong removes what a killed one has left, and nothing of a running one.
    let mut killed = set.command(&["pingpong", "--count", "10000000"]).spawn().unwrap();
    wait_until("pingpong has started", || !set.segments().is_empty());
    let other = set.command(&["pingpong", "--count", "10000000"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the other pingpong has started", || set.segments().len() == 2);
    signal_to(killed.id(), Signal::SIGKILL);
    killed.wait().unwrap();
    assert_eq!((bench_dirs(&set).len(), set.segments().len()), (2, 2));
    assert_eq!(run_patou(&set, &["pingpong", "--count", "1"]).0, 0);
    assert_eq!((bench_dirs(&set).len(), set.segments().len()), (1, 1));
    signal_to(other.id(), Signal::SIGTERM);
    assert_eq!(text(&other.wait_with_output().unwrap().stderr), "patou: interrupted\n");
    assert_eq!((bench_dirs(&set), set.segments()), (vec![], vec![]));
}

#[test]
fn set_survives_a_log_reader_that_closes_its_pipe() {
    let set = TestSet::prepare(ECHO);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut run = set.command(&["run"]).stderr(writer).spawn().unwrap();
    set.wait_until_up();
    drop(reader);
    let old = set.worker_pid("default/1");
    signal_to(old, Signal::SIGKILL);
    set.wait_for("the worker is replaced", |status| {
        let worker = worker_of(status, "default/1");
        worker["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && worker["state"] == "idle"
    });
    signal_to(run.id(), Signal::SIGTERM);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    set.assert_nothing_left();
}

#[test]
fn status_has_the_version_of_every_part() {
    let set = TestSet::start(ECHO);
    let status = set.status();
    let workers = ["default/1", "default/2"].map(|id| worker_of(&status, id)["version"].clone());
    for version in workers.iter().chain([&status["watchdog"]["version"], &status["dispatcher"]["version"]]) {
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
    assert!(!text(&set.patou(&["status"]).stdout).contains("not version"));
    // The state of a watchdog of another version.
    let file = set.runtime_dir().join("watchdog.json");
    let saved = std::fs::read_to_string(&file).unwrap();
    let own = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    std::fs::write(&file, saved.replace(&own, "\"version\":\"0.0.9\"")).unwrap();
    let shown = text(&set.patou(&["status"]).stdout);
    assert!(shown.contains(": watchdog run 0.0.9; restart the set"), "{shown}");
    set.stop();
}

#[test]
fn user_without_rights_gets_the_state_and_the_right_advice() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: not root, so every set belongs to this user");
    }
    let set = TestSet::start(ECHO);
    let binary = set.test_dir().join("binary");
    std::fs::copy(PATOU, &binary).unwrap();
    let user = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(args);
        let output = command.arg("--config").arg(set.config_file()).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let commands: [&[&str]; 5] =
        [&["status"], &["status", "--wait", "10s"], &["reload"], &["drain", "default-1"], &["recycle", "default"]];
    for command in commands {
        let (code, _, error) = user(command);
        assert_eq!(code, Some(1));
        assert!(error.starts_with("patou: this user may not look into "), "{command:?}: {error}");
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(set.runtime_dir(), open).unwrap();
    for command in &commands[..2] {
        let (code, output, error) = user(command);
        assert_eq!((code, error.as_str()), (Some(0), ""));
        assert!(output.contains("\nthis user sees only what the watchdog reports: "), "{output}");
        assert!(output.contains("\ndefault/1          up  "), "{output}");
    }
    let advice = ["this user may not reload the set in", "this user may not use ", "this user may not use "];
    for (command, advice) in commands[2..].iter().zip(advice) {
        let (code, _, error) = user(command);
        assert_eq!(code, Some(1));
        assert!(error.contains(advice), "{command:?}: {error}");
    }
    set.stop();
}

#[test]
fn ordinary_user_can_run_a_set() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: not root, so every other test covers this");
    }
    let dir = std::env::temp_dir().join(format!("patou-user-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    // Other users may have no access to the directory of the binary.
    let binary = dir.join("binary");
    std::fs::copy(PATOU, &binary).unwrap();
    let file = dir.join("patou.toml");
    let name = format!("u{}", std::process::id());
    std::fs::write(&file, format!("[set]\nname = \"{name}\"\n{ECHO}")).unwrap();
    let user = |args: &[&str], runtime: Option<&std::path::Path>| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(args);
        command.arg("--config").arg(&file).env_remove("XDG_RUNTIME_DIR").env_remove("PATOU_CONFIG");
        command.envs(runtime.map(|path| ("XDG_RUNTIME_DIR", path))).stdin(Stdio::null());
        command
    };
    match user(&["check"], Some(&dir)).output() {
        Ok(output) => assert!(output.status.success(), "{}", text(&output.stderr)),
        Err(error) => return eprintln!("SKIPPED: setpriv: {error}"),
    }
    let log = dir.join("log");
    for runtime in [Some(dir.as_path()), None] {
        eprintln!("{}", text(&user(&["check"], runtime).output().unwrap().stdout));
        let stderr = std::fs::File::create(&log).unwrap();
        let mut run = user(&["run"], runtime).stderr(stderr).spawn().unwrap();
        let up = user(&["status", "--wait", "20s"], runtime).output().unwrap();
        assert!(up.status.success(), "{}{}", text(&up.stderr), std::fs::read_to_string(&log).unwrap());
        let called = user(&["call", "-d", "bark", "/"], runtime).output().unwrap();
        assert_eq!(text(&called.stdout), "bark", "{}", text(&called.stderr));
        let status = user(&["status", "--json"], runtime).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        signal_to(worker_of(&status, "default/1")["pid"].as_u64().unwrap() as u32, Signal::SIGKILL);
        wait_until("the worker is replaced", || {
            let now = user(&["status", "--json"], runtime).output().unwrap();
            let now = serde_json::from_slice(&now.stdout).unwrap_or_default();
            worker_of(&now, "default/1")["epoch"] == 2 && worker_of(&now, "default/1")["state"] == "idle"
        });
        signal_to(run.id(), Signal::SIGTERM);
        assert_eq!(run.wait().unwrap().code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap());
        let left: Vec<_> = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|segment| !segment.to_string_lossy().contains(&format!(".{name}."))), "{left:?}");
        assert!(!dir.join("patou-run").exists());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A script with this first line, and mode.
fn script(set: &TestSet, name: &str, first_line: &str, mode: u32) -> String {
    let file = set.test_dir().join(name);
    std::fs::write(&file, format!("{first_line}\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    file.display().to_string()
}

#[test]
fn check_names_what_the_workers_cannot_use_and_why() {
    let set = TestSet::prepare("");
    let plain = script(&set, "plain", "echo", 0o644);
    let lost = script(&set, "lost", "#!/no/such/interpreter -x", 0o755);
    let env = script(&set, "env", "#!/usr/bin/env no-such-program", 0o755);
    let chain = script(&set, "chain", &format!("#!{lost}"), 0o755);
    let good = script(&set, "good", "#!/usr/bin/env sh", 0o755);
    let dir = set.test_dir().display().to_string();
    let missing = "/no/such/file does not exist".to_owned();
    let no_interpreter = "its interpreter /no/such/interpreter cannot be executed: /no/such/interpreter does not exist";
    let exec = |program: &str| format!("{{ exec = [\"{program}\"] }}");
    let mut cases = vec![
        (exec(&plain), "", "handler.exec", format!("user may not execute {plain} (mode 0644, owner root:root)")),
        (exec(&dir), "", "handler.exec", format!("found \"{dir}\"; expected the path of an executable file")),
        (exec(&lost), "", "handler.exec", no_interpreter.to_owned()),
        (exec(&chain), "", "handler.exec", format!("its interpreter {lost} cannot be executed: {no_interpreter}")),
        (exec(&env), "", "handler.exec", "its interpreter no-such-program is not an executable program in PATH".into()),
        (exec("sh"), "working_dir = \"/no/such/file\"", "working_dir", missing.clone()),
        (exec("./no-such"), "working_dir = \"/usr\"", "handler.exec", "/usr/./no-such does not exist".into()),
        (exec("sh"), "spool_dir = \"/no/such/file\"", "spool_dir", missing.clone()),
    ];
    for kind in ["coprocess", "http", "program"] {
        let command = toml_array(&["/no/such/file", "{socket}"]);
        cases.push((format!("{{ {kind} = {command} }}"), "", "handler", missing.clone()));
    }
    for (handler, more, key, why) in &cases {
        set.configure(&one_pool(1, handler, more));
        let (code, _, err) = run_patou(&set, &["check"]);
        assert_eq!(code, 78, "{handler} {more}: {err}");
        // Absolute paths are shown as the kernel sees them.
        let why = why.replace("/usr/./", "/usr/");
        assert!(err.contains(&format!("pool[1].{key}")) && err.contains(&why), "{handler} {more}: {err}");
    }
    set.configure(&one_pool(1, &exec(&good), ""));
    assert_eq!(run_patou(&set, &["check"]).0, 0);
    set.configure(&one_pool(1, &exec("sh"), "").replacen("127.0.0.1:0", "unix:/no/such/dir/s.sock", 1));
    let (code, _, err) = run_patou(&set, &["check"]);
    assert!(code == 78 && err.contains("there is no directory /no/such/dir"), "{err}");
}

#[test]
fn reload_to_a_program_that_cannot_be_executed_changes_nothing() {
    let set = TestSet::start(&one_pool(2, "\"echo\"", ""));
    let before = set.status();
    let lost = script(&set, "lost", "#!/no/such/interpreter", 0o755);
    let changes = [
        (format!("{{ exec = [\"{lost}\"] }}"), ""),
        ("{ exec = [\"sh\"] }".to_owned(), "working_dir = \"/no/such/file\""),
    ];
    for (handler, more) in changes {
        set.configure(&one_pool(2, &handler, more));
        set.signal(Signal::SIGHUP);
        set.wait_for_log(&["reload refused, nothing has changed", "does not exist"]);
    }
    let pids = |status: &serde_json::Value| {
        ["default/1", "default/2"]
            .map(|id| (worker_of(status, id)["pid"].as_u64(), worker_of(status, id)["epoch"].as_u64()))
    };
    assert_eq!(pids(&set.status()), pids(&before));
    set.stop();
}
