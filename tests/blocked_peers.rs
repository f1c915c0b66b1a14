//! Peers that stop reading, or change what they share with patou: no part waits for them.

mod support;

use std::fs::File;
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use support::*;

/// An echo pool whose every request is logged.
fn logged_pool() -> String {
    ECHO.replace("pool = \"default\"", "pool = \"default\"\ndelivery = \"handoff\"\naccess_log = true")
}

/// One request on a connection of its own.
fn fetch(address: SocketAddr, target: &str) -> HttpResponse {
    send_request(address, request_head("GET", target, address, "Connection: close\r\n").as_bytes()).unwrap()
}

/// Starts `patou run` with a pipe as stderr, and waits until it is up.
fn start_with_pipe(toml: &str) -> (TestSet, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut set = TestSet::prepare(toml);
    let mut command = set.command(&["run"]);
    set.run_command(command.stderr(writer));
    drop(command);
    set.wait_until_up();
    (set, reader)
}

fn is_full(reader: &PipeReader) -> bool {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK;
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let writer = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap();
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().is_some_and(|events| !events.contains(PollFlags::POLLOUT))
}

fn shrink(reader: &PipeReader) {
    fcntl(reader, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
}

#[test]
fn set_serves_while_the_reader_of_its_log_does_not_read() {
    let (set, mut reader) = start_with_pipe(&logged_pool());
    shrink(&reader);
    let (address, parts) = (set.address(0), set.status());
    // More than the pipe and the queues of the workers hold.
    let long = format!("/{}", "x".repeat(6000));
    for _ in 0..150 {
        assert_eq!(fetch(address, &long).status, 200);
    }
    assert!(is_full(&reader), "the log has been read");
    // The other worker has served at least half of the requests, more than its queue holds.
    let status = set.status();
    let served = |id| worker_of(&status, id)["served"].as_u64().unwrap();
    let killed = if served("default/1") <= served("default/2") { "default/1" } else { "default/2" };
    let worker = set.worker_pid(killed);
    signal_to(worker, Signal::SIGKILL);
    set.wait_for("the watchdog replaces a worker", |status| {
        let pid = worker_of(status, killed)["pid"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(worker)) && worker_of(status, killed)["state"] == "idle"
    });
    assert_eq!(set.status()["dispatcher"]["pid"], parts["dispatcher"]["pid"], "the dispatcher was not replaced");
    assert_eq!(fetch(address, "/x").status, 200);

    // The reader reads again: the lines that were kept, and the number of those that were not.
    let (mut log, mut buffer) = (String::new(), [0; 4096]);
    while !log.contains("log lines of this process were dropped") {
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::try_from(EVENT_TIMEOUT).unwrap()), Ok(1), "no more lines: {log}");
        let length = reader.read(&mut buffer).unwrap();
        assert!(length > 0, "{log}");
        log.push_str(&text(&buffer[..length]));
    }
    let reader = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    set.stop();
    reader.join().unwrap().unwrap();
}

#[test]
fn set_stops_while_the_reader_of_its_log_does_not_read() {
    let (set, reader) = start_with_pipe(&logged_pool());
    shrink(&reader);
    let (address, long) = (set.address(0), format!("/{}", "x".repeat(6000)));
    wait_until("the pipe is full", || {
        assert_eq!(fetch(address, &long).status, 200);
        is_full(&reader)
    });
    set.stop();
}

#[test]
fn set_serves_and_stops_without_a_reader_of_its_log() {
    let (set, reader) = start_with_pipe(&logged_pool());
    drop(reader);
    let parts = set.status();
    for _ in 0..50 {
        assert_eq!(fetch(set.address(0), "/x").status, 200);
    }
    assert_eq!(set.status()["dispatcher"]["pid"], parts["dispatcher"]["pid"]);
    set.stop();
}

#[test]
fn flags_of_the_inherited_stderr_stay_as_they_are() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut set = TestSet::prepare(&logged_pool());
    let mut command = set.command(&["run"]);
    set.run_command(command.stderr(writer.try_clone().unwrap()));
    set.wait_until_up();
    let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK));
    drop((writer, command));
    let mut reader = File::from(OwnedFd::from(reader));
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).map(|_| log)
    });
    set.stop();
    let log = log.join().unwrap().unwrap();
    assert!(log.contains("the set has stopped, and nothing of it is left"), "the last line is printed: {log}");
}

#[test]
fn failed_start_exits_while_nothing_reads_its_message() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let mut set = TestSet::prepare("[front]\nno_such_key = 1\n");
    let mut command = set.command(&["run"]);
    set.run_command(command.stderr(writer));
    assert_eq!(set.wait_for_exit(), Some(78));
    drop(reader);
}

#[test]
fn start_does_not_wait_for_a_supervisor_that_does_not_read() {
    let mut set = TestSet::prepare(ECHO);
    let path = set.test_dir().join("supervisor.sock");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"STATUS=x", &path).is_ok() {}
    let log = File::create(set.test_dir().join("log")).unwrap();
    let mut command = set.command(&["run"]);
    set.run_command(command.env("NOTIFY_SOCKET", &path).stderr(log));
    set.wait_until_up();
    assert_eq!(request_lease(set.address(0), "/").map(drop).map_err(|refused| refused.status), Ok(()));
    // It reads again: nothing that it must know is lost.
    supervisor.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        let length = supervisor.recv(&mut buffer).expect("READY=1 follows");
        if text(&buffer[..length]).contains("READY=1") {
            break;
        }
    }
    set.stop();
}

/// Takes the socket of a client out of its worker, fills it, makes it blocking, lets its close wait, and kills the worker.
const HOSTILE_WORKER: &str = r#"
import ctypes, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, peer, linger = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pidfd = os.pidfd_open(pid)
for fd in os.listdir(f'/proc/{pid}/fd'):
    copy = libc.syscall(438, pidfd, int(fd), 0)
    if copy < 0 and ctypes.get_errno() == 1: sys.exit(77)
    if copy < 0: continue
    try:
        s = socket.socket(fileno=copy)
        if s.getpeername()[1] != peer: continue
    except (OSError, IndexError): continue
    try:
        while True: s.send(b'x' * 65536, socket.MSG_DONTWAIT)
    except BlockingIOError: pass
    try:
        while True: s.send(b'x', socket.MSG_DONTWAIT)
    except BlockingIOError: pass
    fcntl.fcntl(s.fileno(), fcntl.F_SETFL, fcntl.fcntl(s.fileno(), fcntl.F_GETFL) & ~os.O_NONBLOCK)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', linger > 0, linger))
    os.kill(pid, 9)
    sys.exit(0)
sys.exit(1)
"#;

#[test]
fn dispatcher_does_not_block_on_a_socket_that_a_worker_made_blocking() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare("");
    let gated = gated_pool(&set, 2, LONG_TIMEOUTS, "")
        .replace("pool = \"default\"\n", "pool = \"default\"\ndelivery = \"handoff\"\n");
    let other = "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"other\"\n\n[[pool]]\nname = \"other\"\n\
                 workers = 1\naddress = \"127.0.0.1:0\"\n[front]\nlinger_timeout = \"500ms\"\n";
    set.configure(&format!("{gated}{other}"));
    set.run();
    set.wait_until_up();
    let dispatcher = set.dispatcher_pid();
    let (address, other): (SocketAddr, SocketAddr) = (set.address(0), set.address(1));
    for linger in ["0", "3600"] {
        let mut client = connect(address);
        client.write_all(request_head("GET", &format!("/{linger}"), address, "").as_bytes()).unwrap();
        let started = set.test_dir().join(format!("started{linger}"));
        wait_until("the request has started", || started.exists());
        let port = client.local_addr().unwrap().port().to_string();
        let status = set.wait_for("a worker is busy", |status| {
            ["default/1", "default/2"].iter().any(|id| worker_of(status, id)["state"] == "busy")
        });
        let busy = ["default/1", "default/2"].into_iter().find(|id| worker_of(&status, id)["state"] == "busy").unwrap();
        let pid = worker_of(&status, busy)["pid"].to_string();
        let hostile = Command::new("python3")
            .args(["-c", HOSTILE_WORKER, &pid, &port, linger])
            .stderr(Stdio::inherit())
            .status()
            .unwrap();
        if hostile.code() == Some(77) && std::env::var("CI").as_deref() != Ok("true") {
            let _ = writeln!(std::io::stderr(), "SKIPPED: pidfd_getfd(2) of a worker is not permitted");
            return set.stop();
        }
        assert!(hostile.success(), "{hostile}\n{}", set.log());
        // The dispatcher responds for the dead worker, closes, and serves the other pool all the time.
        set.wait_for("the worker is replaced", |status| {
            let worker = worker_of(status, busy);
            worker["pid"].as_u64() != pid.parse().ok() && worker["state"] == "idle"
        });
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            let since = Instant::now();
            assert_eq!(fetch(other, "/x").status, 200);
            assert!(since.elapsed() < Duration::from_secs(2), "the other pool was blocked: {:?}", since.elapsed());
        }
        assert_eq!(set.dispatcher_pid(), dispatcher, "the dispatcher was replaced\n{}", set.log());
        drop(client);
    }
    set.stop();
}

#[test]
fn check_does_not_read_what_is_no_regular_file() {
    let set = TestSet::prepare(ECHO);
    let fifo = set.test_dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, kind) in [(fifo.to_str().unwrap(), "a FIFO"), ("/dev/zero", "a device"), ("/", "a directory")] {
        for command in ["check", "run", "status"] {
            let mut child = Command::new(PATOU)
                .args([command, "--config", path])
                .env_remove("PATOU_CONFIG")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id();
            let deadline = Instant::now() + EVENT_TIMEOUT;
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > deadline {
                    signal_to(pid, Signal::SIGKILL);
                    panic!("patou {command} waits for {path}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let output = child.wait_with_output().unwrap();
            let message = text(&output.stderr);
            assert!(!output.status.success() && message.contains(path) && message.contains(kind), "{message}");
        }
    }
}

#[test]
fn reload_of_a_file_that_was_emptied_changes_nothing() {
    let set = TestSet::start(ECHO);
    let before = set.status();
    let file = set.config_file();
    let good = std::fs::read_to_string(&file).unwrap();
    for content in ["", "# the pools follow\n", "[front]\nconnections = 7\n"] {
        std::fs::write(&file, content).unwrap();
        let refused = set.log().matches("reload refused").count();
        set.signal(Signal::SIGHUP);
        wait_until("the reload is refused", || set.log().matches("reload refused").count() > refused);
        let line = set.wait_for_log(&["reload refused", file.to_str().unwrap(), "at least one [[pool]]"]);
        assert!(line.contains("error"), "{line}");
        let check = set.patou(&["check"]);
        assert_eq!(check.status.code(), Some(78));
        assert!(text(&check.stderr).contains("at least one [[pool]]"), "{}", text(&check.stderr));
        assert_eq!(set.patou(&["run"]).status.code(), Some(78), "a start is refused, too");
    }
    std::fs::write(&file, good).unwrap();
    let after = set.status();
    assert_eq!((&after["listeners"], &after["dispatcher"]), (&before["listeners"], &before["dispatcher"]));
    set.stop();
}

#[test]
fn reload_that_reads_a_fifo_is_refused_and_later_reloads_work() {
    let set = TestSet::start(ECHO);
    let file = set.config_file();
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["reload refused", "a FIFO"]);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, good.replace("workers = 2", "workers = 3")).unwrap();
    set.signal(Signal::SIGHUP);
    set.wait_for_worker("default/3", "idle");
    set.stop();
}

#[test]
fn messages_about_a_bad_file_are_bounded() {
    let set = TestSet::prepare("");
    std::fs::write(set.config_file(), "x = \"\\u001b[2J\"\n= \n".repeat(50_000)).unwrap();
    for command in ["check", "run", "status"] {
        let output = set.patou(&[command]);
        let message = text(&output.stderr);
        assert!(!output.status.success() && message.len() < 20_000, "{} bytes from patou {command}", message.len());
        assert!(!message.contains('\u{1b}'), "{message}");
    }
}

/// Not a peer that blocks, but a reader that has just closed: the message is lost, the exit code is not.
#[test]
fn closed_stderr_changes_no_exit_code() {
    let set = TestSet::prepare("[front]\nno_such_key = 1\n");
    for command in ["check", "run", "dispatcher"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = set.command(&[command]).stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(78), "patou {command}");
    }
    let (_, writer) = std::io::pipe().unwrap();
    assert_eq!(File::from(OwnedFd::from(writer)).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}
