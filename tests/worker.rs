//! Workers with misbehaving programs and clients: timeouts, disconnects, deaths during a response, limits.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::*;

/// A pool of one worker that runs this shell script, with `$DIR` for its files.
fn script_pool(script: &str, more: &str) -> TestSet {
    TestSet::start_with(|dir| {
        fs::write(dir.join("script"), format!("DIR={}\n{script}", dir.display())).unwrap();
        let file = dir.join("script").into_os_string().into_string().unwrap();
        one_pool(1, &format!("{{ exec = {} }}", toml_array(&["/bin/sh", &file])), more)
    })
}

/// Writes `part` and runs until it is killed, unless the path is `/ok`.
const ENDLESS: &str = r#"
printf 'Content-Type: text/plain\n\n'
[ "$PATH_INFO" = /ok ] && exec echo ok
echo $$ >$DIR/pid
echo part
exec sleep 1000
"#;

/// The pid that a script has written.
fn pid_in(file: &Path) -> u32 {
    wait_for_value("a pid file", || fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok())
}

/// Reads up to the end of `terminator`.
fn read_until(stream: &mut impl Read, terminator: &str) -> String {
    let (mut received, mut byte) = (Vec::new(), [0]);
    while !received.ends_with(terminator.as_bytes()) {
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {:?}", text(&received)));
        received.push(byte[0]);
    }
    text(&received)
}

/// Checks that a started response ends with a reset, because an incomplete response must not look complete.
fn assert_reset(mut stream: impl Read, context: &str) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{context}"),
        Ok(_) => panic!("{context}: the response ends as if it were complete: {:?}", text(&rest)),
    }
}

#[test]
fn request_timeout_kills_all_processes_of_the_request_before_the_504() {
    let set = script_pool(
        r#"
        [ "$PATH_INFO" = /ok ] && { printf 'Content-Type: text/plain\n\nok\n'; exit; }
        trap '' TERM INT HUP
        export DIR
        setsid sh -c 'trap "" TERM HUP; echo $$ >$DIR/two; (setsid sh -c "echo \$\$ >$DIR/three; sleep 1000" &); sleep 1000' &
        echo $$ >$DIR/one
        while :; do sleep 1000; done
        "#,
        "request_timeout = \"2s\"",
    );
    let address = set.address(0);
    let response = get(address, "/hang").unwrap();
    let alive = ["one", "two", "three"].map(|file| is_alive(pid_in(&set.test_dir().join(file))));
    assert_eq!(alive, [false; 3], "{}", set.log());
    assert_eq!(response.status, 504);
    assert_eq!(response.header("patou-outcome"), Some("started-unknown"));
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert_eq!(response.json()["outcome"], "started-unknown");
    assert_eq!(get(address, "/ok").unwrap().text(), "ok\n");
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["served"], &worker["failed"], &worker["restarts"]), (&1.into(), &1.into(), &0.into()));
    set.stop();
}

#[test]
fn request_timeout_during_the_response_ends_it_with_a_reset() {
    let set = script_pool(ENDLESS, "request_timeout = \"1s\"");
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        read_until(&mut stream, "part\n");
        assert_reset(stream, version);
        let pid = pid_in(&set.test_dir().join("pid"));
        wait_for_value("the program is killed", || (!is_alive(pid)).then_some(()));
        assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
    }
    set.stop();
}

#[test]
fn program_that_dies_during_its_response_ends_it_with_a_reset() {
    let set = script_pool("printf 'Content-Type: text/plain\n\npart\n'; echo $$ >$DIR/pid; exec sleep 1000", "");
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        let head = read_until(&mut stream, "part\n");
        assert!(head.contains(" 200 "), "{head}");
        signal_to(pid_in(&set.test_dir().join("pid")), Signal::SIGKILL);
        assert_reset(stream, version);
        fs::remove_file(set.test_dir().join("pid")).unwrap();
    }
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["served"], &worker["failed"]), (&0.into(), &2.into()));
    set.stop();
}

#[test]
fn worker_that_dies_during_a_response_ends_it_with_a_reset_and_its_programs_die() {
    let set = script_pool(
        r#"
        printf 'Content-Type: text/plain\n\n'
        [ "$PATH_INFO" = /ok ] && exec echo ok
        export DIR
        setsid sh -c '(setsid sh -c "echo \$\$ >$DIR/grandchild; exec sleep 1000" &)' &
        while [ ! -s $DIR/grandchild ]; do sleep 0.01; done
        echo part
        exec sleep 1000
        "#,
        "[watchdog]\nworker_timeout = \"500ms\"",
    );
    for (signal, version) in [(Signal::SIGKILL, "1.0"), (Signal::SIGSTOP, "1.0"), (Signal::SIGKILL, "1.1")] {
        let before = set.wait_for_worker("default/1", "idle");
        let mut stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        read_until(&mut stream, "part\n");
        let grandchild = pid_in(&set.test_dir().join("grandchild"));
        assert!(is_alive(grandchild));
        signal_to(before["pid"].as_u64().unwrap() as u32, signal);
        assert_reset(stream, signal.as_str());
        wait_for_value("the grandchild is killed", || (!is_alive(grandchild)).then_some(()));
        fs::remove_file(set.test_dir().join("grandchild")).unwrap();
        assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
        let after = set.wait_for_worker("default/1", "idle");
        assert_eq!(after["restarts"].as_u64(), before["restarts"].as_u64().map(|n| n + 1));
    }
    set.stop();
}

#[test]
fn client_that_disconnects_during_the_response_cancels_its_request() {
    let set = script_pool(ENDLESS, "");
    let file = set.test_dir().join("pid");
    let start_request = |version| {
        let stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        (pid_in(&file), stream)
    };
    let (pid, stream) = start_request("1.1");
    close_with_reset(stream);
    wait_for_value("the program is killed after a reset by the client", || (!is_alive(pid)).then_some(()));
    set.wait_for_worker("default/1", "idle");
    fs::remove_file(&file).unwrap();
    let (pid, stream) = start_request("1.0");
    close_with_reset(stream);
    wait_for_value("the program is killed after a reset by the HTTP/1.0 client", || (!is_alive(pid)).then_some(()));
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["failed"], &worker["restarts"]), (&2.into(), &0.into()));
    set.wait_for_log(&["the client has disconnected", "worker=default/1", "lease="]);
    set.stop();
}

#[test]
fn client_that_closes_before_the_response_cancels_its_request() {
    let set = script_pool("echo $$ >$DIR/pid; exec sleep 1000", "");
    let stream = send_to_worker(set.address(0), "POST", "/", "1.1", "Content-Length: 5\r\n", b"hello");
    let pid = pid_in(&set.test_dir().join("pid"));
    drop(stream);
    wait_for_value("the program is killed after the client has closed", || (!is_alive(pid)).then_some(()));
    set.wait_for_worker("default/1", "idle");
    set.stop();
}

#[test]
fn client_that_half_closes_gets_its_response() {
    let set = script_pool(
        "echo $$ >$DIR/pid; while [ ! -e $DIR/go ]; do sleep 0.02; done; printf 'Content-Type: text/plain\n\n'; cat",
        "",
    );
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "POST", "/", version, "Content-Length: 5\r\n", b"hello");
        stream.shutdown(Shutdown::Write).unwrap();
        let pid = pid_in(&set.test_dir().join("pid"));
        // Longer than a worker needs to probe its client, so that a wrong verdict would show.
        std::thread::sleep(Duration::from_millis(300));
        assert!(is_alive(pid), "HTTP/{version}");
        fs::write(set.test_dir().join("go"), "").unwrap();
        let response = read_response(&mut stream).unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "hello"), "HTTP/{version}");
        for file in ["go", "pid"] {
            fs::remove_file(set.test_dir().join(file)).unwrap();
        }
    }
    set.stop();
}

#[test]
fn client_that_does_not_read_occupies_its_worker_until_request_timeout_at_most() {
    let more = "request_timeout = \"1s\"";
    let set =
        script_pool("printf 'Content-Type: text/plain\n\n'; [ $PATH_INFO = /ok ] && exec echo ok; exec yes", more);
    let mut stream = send_to_worker(set.address(0), "GET", "/", "1.0", "", b"");
    read_until(&mut stream, "y\n");
    assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["failed"], &worker["restarts"]), (&1.into(), &0.into()));
    assert_reset(stream, "a response that the client did not read");
    set.stop();
}

#[test]
fn one_token_serves_one_request() {
    let set = TestSet::start(&one_pool(1, "\"echo\"", ""));
    let address = set.address(0);
    for _ in 0..20 {
        let (worker, target) = request_lease(address, "/mine").unwrap();
        let request = request_head("GET", &target, worker, "");
        let responses = std::thread::scope(|scope| {
            let clients = [0; 4].map(|_| scope.spawn(|| send_request(worker, request.as_bytes()).unwrap()));
            clients.map(|client| client.join().unwrap())
        });
        let served = responses.iter().filter(|response| response.status == 200).count();
        assert_eq!(served, 1, "{responses:?}");
        for other in responses.iter().filter(|response| response.status != 200) {
            assert_eq!((other.status, other.header("location")), (307, Some(&*format!("http://{address}/mine"))));
        }
    }
    // Two pipelined requests: the token serves only the first.
    let (worker, target) = request_lease(address, "/twice").unwrap();
    let mut stream = connect(worker);
    stream.write_all(request_head("GET", &target, worker, "").repeat(2).as_bytes()).unwrap();
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert_eq!(text(&received).matches("HTTP/1.1 200").count(), 1, "{}", text(&received));
    assert_eq!(set.wait_for_worker("default/1", "idle")["served"], 21);
    set.stop();
}

#[test]
fn body_limits_hold_for_every_handler() {
    let coprocess = format!("{}/examples/coprocess.py", env!("CARGO_MANIFEST_DIR"));
    let handlers = [
        "\"echo\"".to_owned(),
        format!("{{ exec = {} }}", toml_array(&["sh", "-c", "printf 'Content-Type: text/plain\\n\\n'; exec cat"])),
        format!("{{ coprocess = {} }}", toml_array(&["python3", &coprocess])),
        format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")])),
    ];
    for handler in &handlers {
        if handler.contains("python3") && !is_installed("python3") {
            continue;
        }
        let set = TestSet::start(&one_pool(1, handler, "[front]\nmax_body = \"100K\"\nbody_timeout = \"300ms\""));
        let address = set.address(0);
        let body = vec![b'x'; 100 * 1024];
        assert_eq!(request(address, "POST", "/echo", &body).unwrap().status, 200, "{handler}");
        // With a lease, because the dispatcher rejects a redirect request by its Content-Length.
        let large = vec![b'x'; 900 * 1024];
        let length = format!("Content-Length: {}\r\n", large.len());
        let large = read_response(&mut send_to_worker(address, "POST", "/echo", "1.1", &length, &large)).unwrap();
        assert_eq!(large.status, 413, "{handler}: {large:?}");
        assert_eq!(large.header("patou-outcome"), Some("not-started"), "{handler}");
        // Without a Content-Length, a response that has started must end with a reset.
        let chunks = "4000\r\n".to_owned() + &"x".repeat(0x4000) + "\r\n";
        let mut stream = send_to_worker(address, "POST", "/echo", "1.1", "Transfer-Encoding: chunked\r\n", b"");
        for _ in 0..10 {
            let _ = stream.write_all(chunks.as_bytes());
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        match read_response(&mut stream) {
            Ok(response) => {
                // A program that needs the length has not started.
                let needs_length = handler.contains("exec") || handler.contains("coprocess");
                let outcome = if needs_length { "not-started" } else { "started-unknown" };
                let found = (response.status, response.header("patou-outcome"));
                assert_eq!(found, (413, Some(outcome)), "{handler}: {}", response.head);
            }
            Err(error) => println!("{handler}: {error}"),
        }
        let mut stream = send_to_worker(address, "POST", "/echo", "1.1", "Content-Length: 50000\r\n", b"only this");
        match read_response(&mut stream) {
            Ok(response) => assert_eq!(response.status, 408, "{handler}"),
            Err(error) => println!("{handler}: {error}"),
        }
        let worker = set.wait_for_worker("default/1", "idle");
        let counts = ["served", "failed", "restarts"].map(|key| worker[key].as_u64().unwrap());
        assert_eq!(counts, [1, 3, 0], "{handler}\n{}", set.log());
        set.stop();
    }
}

#[test]
fn stderr_of_programs_is_logged_and_successful_requests_are_not() {
    let mut set = TestSet::prepare(&one_pool(
        1,
        &format!(
            "{{ exec = {} }}",
            toml_array(&[
                "sh",
                "-c",
                "printf 'Content-Type: a/b\\n\\n'; [ $PATH_INFO = /quiet ] || { echo first; echo second; } >&2"
            ])
        ),
        "",
    ));
    set.run_with_log_level("info");
    set.wait_until_up();
    set.wait_for_log(&["stop with Ctrl-C"]); // the last line of the start
    let before = set.log();
    for _ in 0..20 {
        assert_eq!(get(set.address(0), "/quiet").unwrap().status, 200);
    }
    set.wait_for_worker("default/1", "idle");
    assert_eq!(set.log(), before);
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    for line in ["first", "second"] {
        set.wait_for_log(&["worker default/1", line, "worker=default/1", "lease="]);
    }
    set.stop();
}

/// Sends this many MiB through the worker and back at the same time; the growth of its memory in KiB.
fn memory_growth(set: &TestSet, target: &str, mib: usize) -> u64 {
    let pid = set.worker_pid("default/1");
    let before = resident_kib(pid);
    let chunk = vec![b'p'; 1 << 20];
    let length = format!("Content-Length: {}\r\n", mib << 20);
    let mut stream = send_to_worker(set.address(0), "POST", target, "1.1", &length, b"");
    let mut reader = stream.try_clone().unwrap();
    let mut peak = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..mib).for_each(|_| stream.write_all(&chunk).unwrap()));
        let head = read_until(&mut reader, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (mut buffer, mut count, mut reads) = (vec![0; 1 << 20], 0, 0u64);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                n => count += n,
            }
            reads += 1;
            if reads % 64 == 0 {
                peak = peak.max(resident_kib(pid));
            }
        }
        assert!(count >= mib << 20, "{count}");
    });
    set.wait_for_worker("default/1", "idle");
    peak.max(resident_kib(pid)).saturating_sub(before)
}

fn assert_memory_is_bounded(mib: usize) {
    let cat = format!("{{ exec = {} }}", toml_array(&["sh", "-c", "printf 'Content-Type: a/b\\n\\n'; exec cat"]));
    let program = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    for handler in ["\"echo\"", &cat, &program] {
        let set = TestSet::start(&one_pool(1, handler, "request_timeout = \"10m\""));
        let growth = memory_growth(&set, "/echo", mib);
        println!("{handler}: {mib} MiB both ways, the worker grew by {growth} KiB");
        assert!(growth < 6 * 1024, "{handler}: grew by {growth} KiB");
        set.stop();
    }
}

#[test]
fn bodies_of_256_mib_are_streamed_both_ways() {
    assert_memory_is_bounded(256);
}

#[test]
#[ignore = "takes more than a minute in a debug build"]
fn bodies_of_one_gibibyte_are_streamed_both_ways() {
    assert_memory_is_bounded(1024);
}

fn axum_pool(more: &str) -> TestSet {
    TestSet::start(&one_pool(1, &format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")])), more))
}

#[test]
fn axum_router_runs_as_a_worker_and_survives_panics() {
    let set = axum_pool("");
    let address = set.address(0);
    let response = get(address, "/hello").unwrap();
    assert!(response.text().starts_with("hello from default/1 to 127.0.0.1 under lease "), "{}", response.text());
    let body: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert!(request(address, "POST", "/echo", &body).unwrap().body == body);
    assert_eq!(get(address, "/nowhere").unwrap().status, 404);
    let pid = set.worker_pid("default/1");
    let response = get(address, "/panic").unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (500, Some("started-unknown")));
    let late = get(address, "/panic/late");
    assert!(late.is_err(), "{late:?}");
    assert_eq!(get(address, "/hello").unwrap().status, 200);
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((worker["pid"].as_u64(), worker["restarts"].as_u64()), (Some(pid.into()), Some(0)));
    assert_eq!((worker["served"].as_u64(), worker["failed"].as_u64()), (Some(4), Some(2)));
    set.stop();
}

#[test]
fn request_timeout_drops_a_waiting_handler_and_restarts_the_worker_of_a_blocking_one() {
    let set = axum_pool("request_timeout = \"500ms\"");
    let address = set.address(0);
    let pid = set.worker_pid("default/1");
    let response = get(address, "/slow?ms=100000").unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (504, Some("started-unknown")));
    assert_eq!(set.wait_for_worker("default/1", "idle")["pid"], pid);

    let response = get(address, "/block?ms=100000").unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (504, Some("started-unknown")), "{}", set.log());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    set.wait_for_log(&["the handler blocks its thread past request_timeout", "lease="]);

    // A client that reads only after it has sent its body gets the response as well.
    let mut stream = send_to_worker(address, "GET", "/block?ms=100000", "1.1", "Content-Length: 300000\r\n", b"");
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    for _ in 0..30 {
        stream.write_all(&[b'x'; 10_000]).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(read_response(&mut first.chain(&mut stream)).unwrap().status, 504);
    drop(stream);
    assert_eq!(get(address, "/hello").unwrap().status, 200);
    let worker = set.wait_for_worker("default/1", "idle");
    assert_ne!(worker["pid"], pid);
    assert_eq!(worker["restarts"], 2);
    set.stop();
}

#[test]
fn worker_with_a_blocking_handler_is_not_declared_frozen() {
    let set = axum_pool("request_timeout = \"10s\"\n[watchdog]\nworker_timeout = \"300ms\"");
    let before = set.worker("default/1");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| get(set.address(0), "/block?ms=2000").unwrap());
        set.wait_for_worker("default/1", "busy");
        while !client.is_finished() {
            let state = set.worker("default/1")["state"].clone();
            assert!(state == "busy" || state == "idle", "{state}");
        }
        assert_eq!(client.join().unwrap().text(), "blocked\n");
    });
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &0.into()));
    set.stop();
}

#[test]
fn worker_exits_if_a_task_blocks_its_thread_after_the_response() {
    // No request timeout applies any more, and the control loop still answers the watchdog.
    let mut set = axum_pool("request_timeout = \"1s\"");
    let address = set.address(0);
    let block = |set: &TestSet, ms: u32, duration: &str| {
        assert_eq!(get(address, &format!("/block/later?ms={ms}")).unwrap().text(), "later\n", "{}", set.log());
        set.wait_for_log(&["blocking the thread for", duration]);
    };
    let pid = set.worker_pid("default/1");
    block(&set, 100_000, "100s");
    // This client waits until the worker has exited; the next worker redirects it to the dispatcher.
    assert_eq!(get(address, "/hello").unwrap().status, 200, "{}", set.log());
    set.wait_for_log(&["worker=default/1", "the worker gets no client until the thread responds"]);
    set.wait_for_log(&["worker=default/1", "without a request: the worker exits"]);
    assert_ne!(set.worker_pid("default/1"), pid);

    // A short block does not restart the worker.
    let before = set.wait_for_worker("default/1", "idle");
    block(&set, 1000, " 1s");
    assert_eq!(get(address, "/hello").unwrap().status, 200, "{}", set.log());
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &before["restarts"]), "{}", set.log());

    // A blocked worker also exits after the death of its watchdog, which cannot kill it any more.
    block(&set, 101_000, "101s");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    let pid = after["pid"].as_u64().unwrap() as u32;
    wait_until("the worker exits", || !is_alive(pid));
    set.run();
    set.wait_until_up();
    set.stop();
}

#[test]
fn worker_with_a_coprocess_that_keeps_dying_is_not_considered_blocked() {
    // The co-process dies of every request, so that its restart delay grows beyond request_timeout.
    let handler = format!("{{ coprocess = {} }}", toml_array(&["sh", "-c", "read -r line <&3"]));
    let set = TestSet::start(&one_pool(1, &handler, "request_timeout = \"200ms\"\nqueue_timeout = \"20s\""));
    let before = set.worker_pid("default/1");
    for _ in 0..7 {
        let mut stream = send_to_worker(set.address(0), "GET", "/", "1.1", "", b"");
        let start = std::time::Instant::now();
        let head = read_until(&mut stream, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        assert!(start.elapsed() < Duration::from_secs(1), "the response waited for the restart");
    }
    set.wait_for_worker("default/1", "idle");
    let worker = set.worker("default/1");
    assert_eq!((worker["pid"].as_u64(), worker["restarts"].as_u64()), (Some(before.into()), Some(0)), "{}", set.log());
    set.stop();
}

#[test]
fn http_1_0_on_a_unix_socket_gets_a_length_or_an_error() {
    // A Unix socket has no reset: an aborted response of unknown length would look complete.
    let set = TestSet::prepare("");
    let dir = set.test_dir().display().to_string();
    let script = r#"case $PATH_INFO in /known) printf 'Content-Type: a/b\nContent-Length: 5\n\nknown';; /long) printf 'Content-Type: a/b\n\n'; head -c 1048577 /dev/zero;; /fails) printf 'Content-Type: a/b\n\npart'; exit 1;; *) printf 'Content-Type: a/b\n\nwhole'; esac"#;
    let listener = format!("[[listener]]\naddress = \"unix:{dir}/front.sock\"\npool = \"default\"\n");
    let handler = format!("{{ exec = {} }}", toml_array(&["sh", "-c", script]));
    let pool = format!(
        "[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"unix:{dir}/w{{n}}.sock\"\nhandler = {handler}\n"
    );
    set.configure(&(listener + &pool));
    let mut set = set;
    set.run();
    set.wait_until_up();
    let send_unix = |name: &str, head: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(set.test_dir().join(name)).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        read_response(&mut stream).unwrap()
    };
    let send_with_lease = |method: &str, target: &str, version: &str| {
        let token =
            send_unix("front.sock", "POST /.patou/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").json();
        let token = token["token"].as_str().unwrap().to_owned();
        send_unix("w1.sock", &format!("{method} /.patou/{token}{target} HTTP/{version}\r\nHost: x\r\n\r\n"))
    };
    for (method, target, version, status) in [
        ("GET", "/known", "1.0", 200),
        ("GET", "/unknown", "1.1", 200),
        ("HEAD", "/unknown", "1.0", 200),
        ("GET", "/unknown", "1.0", 200),
        ("GET", "/fails", "1.0", 502),
        ("GET", "/long", "1.0", 502),
    ] {
        let response = send_with_lease(method, target, version);
        assert_eq!(response.status, status, "{method} {target} {version}: {response:?}");
        if (target, version) == ("/unknown", "1.0") {
            assert_eq!(response.header("content-length"), (method == "GET").then_some("5"), "{response:?}");
        }
        if status == 502 {
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
            assert_eq!(response.header("patou-outcome"), Some("started-unknown"));
            assert_eq!(response.text().contains("HTTP/1.1"), target == "/long", "{response:?}");
        }
    }
    set.stop();
}

/// The value of `key=` in a log line.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn log_lines_of_a_request_are_found_by_its_lease() {
    let pool = |name: &str, handler: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{name}\"\n\
             [[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n"
        )
    };
    let stderr_writer =
        toml_array(&["sh", "-c", "echo some words >&2; printf 'Content-Type: a/b\\nStatus: 201 Made\\n\\n'"]);
    let set = TestSet::start(&(pool("one", "\"echo\"") + &pool("two", &format!("{{ exec = {stderr_writer} }}"))));
    for index in [0, 1, 0] {
        assert!(get(set.address(index), "/").unwrap().status < 300);
    }
    // The last lease of each pool is released after its client has the response.
    let released = |log: &str| log.lines().filter(|line| line.contains("lease is released")).count();
    let is_complete =
        |log: &str| released(log) == 3 && log.matches("request finished").count() == 3 && log.contains("some words");
    let log = wait_for_value("all leases are released", || Some(set.log()).filter(|log| is_complete(log)));
    let leases: Vec<_> =
        log.lines().filter(|line| line.contains("lease is offered")).filter_map(|line| field(line, "lease")).collect();
    assert_eq!(leases.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{leases:?}");
    for (lease, worker, status, writes_stderr) in
        [(leases[0], "one/1", "200", false), (leases[1], "two/1", "201", true), (leases[2], "one/1", "200", false)]
    {
        let lines: Vec<_> = log.lines().filter(|line| field(line, "lease") == Some(lease)).collect();
        assert!(lines.iter().all(|line| field(line, "worker") == Some(worker)), "{lines:?}");
        for step in ["lease is offered", "accepts the offer", "is granted", "lease is claimed", "lease is released"] {
            assert_eq!(lines.iter().filter(|line| line.contains(step)).count(), 1, "{step} of {lease}: {lines:?}");
        }
        let end = lines.iter().find(|line| line.contains("request finished")).unwrap();
        assert!(field(end, "status") == Some(status) && field(end, "took_ms").is_some(), "{end}");
        assert_eq!(lines.iter().any(|line| line.contains("some words")), writes_stderr, "{lines:?}");
    }
    set.stop();
}
