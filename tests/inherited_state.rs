//! What a parent or a container leaves to a set does not change how it behaves: signals, timers, descriptors, umask,
//! children, pid namespaces, denied system calls.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

/// Executes the rest of the command line after `prelude`, which is Python.
fn python(prelude: &str) -> Vec<String> {
    let script = format!("import os, signal, sys\n{prelude}\nos.execv(sys.argv[1], sys.argv[1:])");
    ["python3", "-c", &script].map(str::to_owned).to_vec()
}

/// Executes the rest of the command line in new namespaces of these kinds (options of unshare(1)). `None`, visibly, where
/// this user may not create them.
fn unshare(kinds: &[&str]) -> Option<Vec<String>> {
    let mut command = vec!["unshare"];
    if !nix::unistd::geteuid().is_root() {
        command.extend(["--user", "--map-root-user"]);
    }
    command.extend(kinds);
    let tried = Command::new(command[0]).args(&command[1..]).arg("true").stdin(Stdio::null()).output();
    let allowed = tried.is_ok_and(|output| output.status.success());
    assert!(allowed || std::env::var("CI").as_deref() != Ok("true"), "{command:?} is not permitted");
    if !allowed {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "{test}: SKIPPED, {command:?} is not permitted");
    }
    allowed.then(|| command.into_iter().map(str::to_owned).collect())
}

fn strs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

/// The pids of processes with exactly these arguments.
fn running(arguments: &[&str]) -> Vec<u32> {
    let wanted: Vec<u8> = arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted)).collect()
}

/// A number of seconds that no other process sleeps for.
fn unique_sleep() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("1000.{}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The target of a descriptor of a process.
fn descriptor(pid: u32, number: u32) -> String {
    let target = fs::read_link(format!("/proc/{pid}/fd/{number}"));
    target.map(|path| path.display().to_string()).unwrap_or_default()
}

/// The pids of all parts in a status.
fn part_pids(status: &Value) -> Vec<u32> {
    let workers = status["pools"].as_array().unwrap().iter().flat_map(|pool| pool["workers"].as_array().unwrap());
    let parts = [&status["watchdog"], &status["dispatcher"]].into_iter().chain(workers);
    parts.map(|part| part["pid"].as_u64().unwrap() as u32).collect()
}

/// One worker whose handler reports its signal state, descriptors and umask, without a length.
fn reporting_pool() -> String {
    let script = "printf 'Content-Type: text/plain\\n\\n'; grep -E '^(Sig|Shd)' /proc/self/status; umask; \
                  for fd in /proc/self/fd/*; do echo \"fd ${fd##*/}\"; done; exit 0";
    one_pool(1, &format!("{{ exec = {} }}", toml_array(&["sh", "-c", script])), "")
}

#[test]
fn inherited_signal_state_timers_descriptors_and_umask_change_nothing() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&reporting_pool());
    let launcher = python(
        "for number in range(1, 65):\n    if number not in (9, 19, 32, 33): signal.signal(number, signal.SIG_IGN)\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n\
         signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)\nsignal.setitimer(signal.ITIMER_PROF, 0.1, 0.1)\n\
         signal.setitimer(signal.ITIMER_VIRTUAL, 0.1, 0.1)\n\
         os.umask(0o777)\n\
         leak = os.open('/etc/passwd', os.O_RDONLY)\nos.dup2(leak, 77, inheritable=True)\nos.dup2(leak, 3, inheritable=True)",
    );
    set.run_through(&strs(&launcher));
    set.wait_until_up();
    let report = get(set.address(0), "/").unwrap();
    assert_eq!(report.status, 200, "{}", set.log());
    let text = text(&report.body);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("missing").trim();
    for mask in ["SigBlk:", "SigIgn:", "SigPnd:", "ShdPnd:"] {
        assert_eq!(field(mask), "0000000000000000", "{mask} in\n{text}");
    }
    assert!(text.contains("\n0077\n"), "the handler's umask denies its owner: {text}");
    let descriptors: Vec<_> = text.lines().filter(|line| line.starts_with("fd ")).collect();
    assert!(!descriptors.contains(&"fd 77") && descriptors.len() <= 5, "{descriptors:?}");
    for pid in part_pids(&set.status()) {
        if pid != set.pid() {
            assert_eq!(descriptor(pid, 77), "", "an inherited descriptor has leaked into process {pid}");
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        // SIGPIPE, which the standard library ignores, and SIGTTOU.
        assert!(status.contains("SigIgn:\t0000000000201000"), "{status}");
    }
    set.stop();
}

#[test]
fn files_of_a_set_are_not_writable_for_others_whatever_the_umask() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&reporting_pool());
    fs::create_dir(set.runtime_dir()).unwrap();
    fs::set_permissions(set.runtime_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    set.run_through(&strs(&python("os.umask(0)")));
    set.wait_until_up();
    let entries = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let files = [entries(&set.runtime_dir()), entries(&set.runtime_dir().join("default"))].concat();
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let status = fs::symlink_metadata(&file).unwrap();
        let (mode, is_socket) = (status.permissions().mode(), status.file_type().is_socket());
        // `admin.sock` has a configured mode.
        assert_eq!(mode & if is_socket { 0o002 } else { 0o022 }, 0, "{} has mode {mode:o}", file.display());
    }
    let report = text(&get(set.address(0), "/").unwrap().body);
    assert!(report.contains("\n0000\n"), "the handler has another umask than the set: {report}");
    set.stop();
}

#[test]
fn timers_are_punctual_whatever_the_inherited_timer_slack() {
    if !is_installed("python3") {
        return;
    }
    let script = "printf 'Content-Type: text/plain\\n\\n'; cat /proc/self/timerslack_ns";
    let mut set = TestSet::prepare(&one_pool(1, &format!("{{ exec = {} }}", toml_array(&["sh", "-c", script])), ""));
    let slack = "import ctypes\nctypes.CDLL(None).prctl(29, ctypes.c_ulong(5_000_000_000), 0, 0, 0)";
    set.run_through(&strs(&python(slack)));
    set.wait_until_up();
    // The handler has that of its worker.
    assert_eq!(text(&get(set.address(0), "/").unwrap().body).trim(), "50000");
    set.stop();
}

#[test]
fn environment_of_another_process_and_a_lost_directory_change_nothing() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&one_pool(1, "\"echo\"", "max_requests = 1"));
    let launcher = python(
        "os.environ.update(LISTEN_FDS='7', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='a:b', NOTIFY_SOCKET='/nowhere',\n    \
         WATCHDOG_USEC='1000', WATCHDOG_PID='1', PATOU_BIN='/nowhere', PATOU_WORKER='other-9')\n\
         import tempfile\nlost = tempfile.mkdtemp()\nos.chdir(lost)\nos.rmdir(lost)",
    );
    set.run_through(&strs(&launcher));
    set.wait_until_up();
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    // The next incarnation is this program in the same process, not the one that `PATOU_BIN` names.
    let recycled = set.wait_for("the worker is recycled", |status| {
        worker_of(status, "default/1")["epoch"] == 2 && worker_of(status, "default/1")["state"] == "idle"
    });
    assert_eq!(worker_of(&recycled, "default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}

#[test]
fn closed_standard_descriptors_are_never_sockets() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&reporting_pool());
    set.run_through(&strs(&python("os.closerange(0, 100)")));
    set.wait_until_up();
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    for pid in part_pids(&set.status()) {
        for number in 0..3 {
            assert_eq!(descriptor(pid, number), "/dev/null", "descriptor {number} of process {pid}");
        }
    }
    set.stop();
}

#[test]
fn terminal_that_stops_background_output_stops_no_part() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(ECHO);
    let launcher = python(
        "import pty, termios\nterminal = pty.fork()\n\
         if terminal[0]:\n    signal.signal(signal.SIGTERM, lambda *_: os.kill(terminal[0], signal.SIGTERM))\n    \
         try:\n        while True: os.write(2, os.read(terminal[1], 4096))\n    \
         except OSError: sys.exit(os.waitstatus_to_exitcode(os.waitpid(terminal[0], 0)[1]))\n\
         attributes = termios.tcgetattr(0)\nattributes[3] |= termios.TOSTOP\n\
         termios.tcsetattr(0, termios.TCSANOW, attributes)",
    );
    set.run_through(&strs(&launcher));
    set.wait_until_up();
    assert_eq!(set.status()["dispatcher"]["restarts"], 0, "{}", set.log());
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn stray_signals_end_no_part() {
    let set = TestSet::start(ECHO);
    let pids = part_pids(&set.status());
    for pid in &pids {
        // USR1 USR2 ALRM STKFLT XCPU XFSZ VTALRM PROF IO PWR, and the first and last real-time signal.
        for number in [10, 12, 14, 16, 24, 25, 26, 27, 29, 30, 34, 35, 64] {
            let kill = format!("kill -{number} {pid}");
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
    }
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    assert_eq!(part_pids(&set.status()), pids, "{}", set.log());
    set.stop();
}

#[test]
fn sigquit_stops_at_once_and_leaves_nothing() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, LONG_TIMEOUTS, ""));
    set.run();
    set.wait_until_up();
    let client = start_gated_request(&set, "cut");
    set.signal(Signal::SIGQUIT);
    assert_eq!(set.wait_for_exit(), Some(0), "{}", set.log());
    set.assert_nothing_left();
    let _ = client.join();
    assert!(set.log().contains("stopping now, on SIGQUIT"), "{}", set.log());
}

/// A worker dies while a request has left a process of its own session; then only that process is killed, with a log
/// line, and the processes in `foreign` live on.
fn check_only_own_orphans_are_killed(set: &TestSet, own: &str, foreign: &[&str]) {
    let client = {
        let address = set.address(0);
        std::thread::spawn(move || get(address, "/"))
    };
    wait_until("the handler's process runs", || running(&["sleep", own]).len() == 1);
    let worker = wait_for_value("the worker's process", || {
        let script = running(&["sleep", own]).first().copied()?;
        ancestors(script).into_iter().find(|pid| arguments(*pid).contains("worker\0default-1"))
    });
    signal_to(worker, Signal::SIGKILL);
    wait_until("the handler's process is killed", || running(&["sleep", own]).is_empty());
    let _ = client.join();
    set.wait_for_log(&["(sleep)", "was started by a part that has ended: killing it"]);
    set.wait_for_log(&["default/1 is back in service"]);
    for seconds in foreign {
        assert_eq!(running(&["sleep", seconds]).len(), 1, "a foreign process was killed\n{}", set.log());
    }
}

fn arguments(pid: u32) -> String {
    text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
}

fn ancestors(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    std::iter::successors(Some(pid), |pid| parent(*pid)).take_while(|pid| *pid > 1).collect()
}

/// The pids of the zombies below a process.
fn zombies_below(root: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| !is_alive(*pid) && ancestors(*pid).contains(&root)).collect()
}

fn pool_that_leaves(seconds: &str) -> String {
    let script = format!("setsid sleep {seconds}; true");
    one_pool(1, &format!("{{ exec = {} }}", toml_array(&["sh", "-c", &script])), LONG_TIMEOUTS)
}

#[test]
fn as_pid_1_a_set_reaps_orphans_at_once_and_leaves_foreign_processes_alone() {
    let Some(mut launcher) = unshare(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else { return };
    let [own, child, orphan] = std::array::from_fn(|_| unique_sleep());
    // A child of the shell that becomes patou; one whose parent ends, as after `docker exec`; and one that ends soon.
    let script = format!("sleep {child} & (sleep {orphan} &); (sleep 0.5 &); exec \"$@\"");
    launcher.extend(["sh", "-c", &script, "sh"].map(str::to_owned));
    let mut set = TestSet::prepare(&pool_that_leaves(&own));
    set.run_through(&strs(&launcher));
    let init = wait_for_value("PID 1", || {
        let pid = *children_of(set.pid()).first()?;
        arguments(pid).contains("\0run\0").then_some(pid)
    });
    set.wait_for_log(&["the set is up"]);
    wait_until("the orphan is reaped", || {
        running(&["sleep", "0.5"]).iter().all(|pid| !ancestors(*pid).contains(&init)) && zombies_below(init).is_empty()
    });
    check_only_own_orphans_are_killed(&set, &own, &[&child, &orphan]);
    wait_until("no zombie is left", || zombies_below(init).is_empty());
    signal_to(init, Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(0), "{}", set.log());
    set.assert_nothing_left();
    assert!(set.log().contains("nothing of it is left"), "{}", set.log());
}

#[test]
fn as_pid_1_a_killed_watchdog_lets_requests_finish() {
    let Some(launcher) = unshare(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else { return };
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, LONG_TIMEOUTS, ""));
    set.run_through(&strs(&launcher));
    set.wait_for_log(&["the set is up"]);
    let watchdog = wait_for_value("the watchdog", || {
        let init = *children_of(set.pid()).first()?;
        children_of(init).first().copied()
    });
    let client = start_gated_request(&set, "kept");
    signal_to(watchdog, Signal::SIGKILL);
    set.wait_for_log(&["worker default/1", "the watchdog has died"]);
    // A start outside cannot see the worker, whose pid there is another process, and kills nothing.
    let output = run_until_exit(&set, &["env".to_owned()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("not in this pid namespace"), "{}", text(&output.stderr));
    open_gate(&set);
    assert_eq!(client.join().unwrap().unwrap().status, 200);
    assert_eq!(set.wait_for_exit(), Some(1), "{}", set.log());
    assert!(set.log().contains("the watchdog was killed by SIGKILL"), "{}", set.log());
    wait_until("every process ends", || set.processes().is_empty());
    if nix::unistd::geteuid().is_root() {
        // In a user namespace the set had another user id, and its segments are those of another user.
        set.run();
        set.wait_until_up();
        set.stop();
    }
}

#[test]
fn as_pid_1_a_stop_signal_ends_the_set_of_a_killed_watchdog() {
    let Some(launcher) = unshare(&["--pid", "--fork", "--kill-child", "--mount-proc"]) else { return };
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, &format!("{LONG_TIMEOUTS}drain_timeout = \"60s\"\n"), ""));
    set.run_through(&strs(&launcher));
    set.wait_for_log(&["the set is up"]);
    let (init, watchdog) = wait_for_value("the watchdog", || {
        let init = *children_of(set.pid()).first()?;
        Some((init, *children_of(init).first()?))
    });
    let client = start_gated_request(&set, "cut");
    signal_to(watchdog, Signal::SIGKILL);
    set.wait_for_log(&["worker default/1", "the watchdog has died"]);
    signal_to(init, Signal::SIGTERM);
    assert_eq!(set.wait_for_exit(), Some(1), "{}", set.log());
    assert!(client.join().unwrap().is_err(), "the request was not waited for");
    if nix::unistd::geteuid().is_root() {
        set.run();
        set.wait_until_up();
        set.stop();
    }
}

#[test]
fn children_of_the_program_that_became_patou_are_left_alone() {
    let [own, child] = std::array::from_fn(|_| unique_sleep());
    let script = format!("sleep {child} & exec \"$@\"");
    let mut set = TestSet::prepare(&pool_that_leaves(&own));
    set.run_through(&["sh", "-c", &script, "sh"]);
    set.wait_until_up();
    check_only_own_orphans_are_killed(&set, &own, &[&child]);
    set.stop();
    for pid in running(&["sleep", &child]) {
        signal_to(pid, Signal::SIGKILL);
    }
}

/// Runs `patou run` through `launcher` until it exits.
fn run_until_exit(set: &TestSet, launcher: &[String]) -> Output {
    let run = set.command(&["run"]);
    let mut command = Command::new(&launcher[0]);
    command.args(&launcher[1..]).arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_value("patou run exits", || child.try_wait().unwrap());
    child.wait_with_output().unwrap()
}

/// Python that has the kernel fail a system call with this error, optionally only for one second argument.
fn deny(call: i64, error: i32, argument: Option<u32>) -> String {
    // Without one, the comparison of the argument is left out.
    let (skip, check) = match argument {
        Some(value) => (3, format!("[op(0x20, 0, 0, 24), op(0x15, 0, 1, {value})]")),
        None => (1, "[]".to_owned()),
    };
    format!(
        "import ctypes, struct\n\
         op = lambda code, jt, jf, k: struct.pack('HBBI', code, jt, jf, k)\n\
         allow, fail = op(6, 0, 0, 0x7fff0000), op(6, 0, 0, 0x00050000 | {error})\n\
         code = [op(0x20, 0, 0, 0), op(0x15, 0, {skip}, {call})] + {check} + [fail, allow]\n\
         text = ctypes.create_string_buffer(b''.join(code))\n\
         class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]\n\
         program = Program(len(code), ctypes.addressof(text))\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0"
    )
}

#[test]
fn missing_system_call_is_named_at_the_start() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::prepare(ECHO);
    const ENOSYS: i32 = 38;
    const EPERM: i32 = 1;
    let get_ofd_lock = Some(36);
    let calls = [
        ("pidfd_open", nix::libc::SYS_pidfd_open, None, [ENOSYS, EPERM].as_slice()),
        ("pidfd_send_signal", nix::libc::SYS_pidfd_send_signal, None, &[ENOSYS, EPERM]),
        ("F_OFD_GETLK", nix::libc::SYS_fcntl, get_ofd_lock, &[ENOSYS, EPERM]),
        ("wait4", nix::libc::SYS_wait4, None, &[ENOSYS, EPERM]),
        ("accept4", nix::libc::SYS_accept4, None, &[EPERM]),
        ("epoll_create1", nix::libc::SYS_epoll_create1, None, &[EPERM]),
        // Without clone3, libc uses clone; where it is denied, libc cannot start a thread.
        ("clone3", nix::libc::SYS_clone3, None, &[EPERM]),
    ];
    for (name, call, argument, errors) in calls {
        for &error in errors {
            let output = run_until_exit(&set, &python(&deny(call, error, argument)));
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name}: {message}");
            assert!(message.contains(name) && message.contains("Linux") && message.contains("seccomp"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
            set.assert_nothing_left();
        }
    }
}

#[test]
fn set_runs_where_close_range_is_denied_and_still_leaks_no_descriptor() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&reporting_pool());
    let leak = "leak = os.open('/etc/passwd', os.O_RDONLY)\nos.dup2(leak, 77, inheritable=True)\n";
    set.run_through(&strs(&python(&(leak.to_owned() + &deny(nix::libc::SYS_close_range, 1, None)))));
    set.wait_until_up();
    let report = text(&get(set.address(0), "/").unwrap().body);
    assert!(report.contains("fd 0\n") && !report.contains("fd 77\n"), "{report}");
    for pid in part_pids(&set.status()).into_iter().filter(|pid| *pid != set.pid()) {
        assert_eq!(descriptor(pid, 77), "");
    }
    set.stop();
}

#[test]
fn unusable_proc_is_named_at_the_start() {
    let set = TestSet::prepare(ECHO);
    if let Some(mut launcher) = unshare(&["--mount"]) {
        launcher.extend(["sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"].map(str::to_owned));
        let output = run_until_exit(&set, &launcher);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("/proc does not show this process"), "{}", text(&output.stderr));
    }
    if let Some(launcher) = unshare(&["--pid", "--fork"]) {
        // The proc file system is that of the outer pid namespace.
        let output = run_until_exit(&set, &launcher);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("pid namespace"), "{}", text(&output.stderr));
    }
    set.assert_nothing_left();
}

#[test]
fn program_that_still_prepares_does_not_block_the_next_start() {
    let seconds = unique_sleep();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Neither the program nor what it has started ends on SIGTERM.
    let script = format!("trap '' TERM; sleep {seconds}");
    let config = |handler: &str| {
        one_pool(1, handler, "")
            .replace("address = \"127.0.0.1:0\"\nhandler", &format!("address = \"127.0.0.1:{port}\"\nhandler"))
    };
    let program = format!("{{ program = {} }}", toml_array(&["sh", "-c", &script]));
    let mut set = TestSet::prepare(&config(&program));
    set.run();
    wait_until("the program prepares", || running(&["sleep", &seconds]).len() == 1);
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    assert_eq!(running(&["sleep", &seconds]).len(), 1);
    set.configure(&config("\"echo\""));
    set.run();
    set.wait_until_up();
    assert!(running(&["sleep", &seconds]).is_empty());
    set.wait_for_log(&["sleep", "of the previous set", "killing it"]);
    set.stop();
}

#[test]
fn status_from_another_pid_namespace_tells_the_truth() {
    let Some(launcher) = unshare(&["--pid", "--fork", "--mount-proc"]) else { return };
    let mut set = TestSet::start(ECHO);
    let run = set.command(&["status", "--json"]);
    let status = || {
        let mut command = Command::new(&launcher[0]);
        command.args(&launcher[1..]).arg(run.get_program()).args(run.get_args()).output().unwrap()
    };
    let output = status();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["watchdog"]["state"], "up");
    assert_eq!(seen["dispatcher"]["state"], "up");
    assert_eq!(worker_of(&seen, "default/2")["state"], "idle");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    wait_until("the parts end", || set.processes().is_empty());
    let output = status();
    assert_eq!(output.status.code(), Some(1));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["watchdog"]["state"], "gone");
    assert_eq!(seen["dispatcher"]["state"], "gone");
    assert_eq!(worker_of(&seen, "default/2")["state"], "gone");
}
