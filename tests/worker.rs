//! Workers under hostile programs and clients: deadlines, vanished clients, deaths in the middle, limits.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use support::*;

/// A pool of one worker that runs this shell script, with `$DIR` for its files.
fn script(script: &str, more: &str) -> TestSet {
    TestSet::start_with(|dir| {
        fs::write(dir.join("script"), format!("DIR={}\n{script}", dir.display())).unwrap();
        let file = dir.join("script").into_os_string().into_string().unwrap();
        one_pool(1, &format!("{{ exec = {} }}", toml_array(&["/bin/sh", &file])), more)
    })
}

/// Says `part` and goes on until it is killed, unless the path is `/ok`.
const ENDLESS: &str = r#"
printf 'Content-Type: text/plain\n\n'
[ "$PATH_INFO" = /ok ] && exec echo ok
echo $$ >$DIR/pid
echo part
exec sleep 1000
"#;

/// A pid that a script has written.
fn pid_in(file: &Path) -> u32 {
    wait_for_value("a pid file", || fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok())
}

/// Reads exactly up to the end of `word`.
fn read_until(stream: &mut impl Read, word: &str) -> String {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(word.as_bytes()) {
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {:?}", text(&seen)));
        seen.push(byte[0]);
    }
    text(&seen)
}

/// The rest of a response that began and must not look complete: an error, in HTTP/1.0 as in HTTP/1.1.
fn assert_cut(mut stream: impl Read, what: &str) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}"),
        Ok(_) => panic!("{what}: the response ends as if it were complete: {:?}", text(&rest)),
    }
}

fn reset(stream: std::net::TcpStream) {
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

#[test]
fn at_the_deadline_all_that_was_started_is_dead_before_the_client_hears() {
    let set = script(
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
    let answer = get(address, "/hang").unwrap();
    let alive = ["one", "two", "three"].map(|file| is_alive(pid_in(&set.test_dir().join(file))));
    assert_eq!(alive, [false; 3], "{}", set.log());
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("patou-outcome"), Some("started-unknown"));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.json()["outcome"], "started-unknown");
    assert_eq!(get(address, "/ok").unwrap().text(), "ok\n");
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["served"], &worker["failed"], &worker["restarts"]), (&1.into(), &1.into(), &0.into()));
    set.stop();
}

#[test]
fn a_deadline_within_the_response_is_visible() {
    let set = script(ENDLESS, "request_timeout = \"1s\"");
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        read_until(&mut stream, "part\n");
        assert_cut(stream, version);
        let pid = pid_in(&set.test_dir().join("pid"));
        wait_for_value("the program's end", || (!is_alive(pid)).then_some(()));
        assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
    }
    set.stop();
}

#[test]
fn a_program_that_dies_within_its_response_is_visible() {
    let set = script("printf 'Content-Type: text/plain\n\npart\n'; echo $$ >$DIR/pid; exec sleep 1000", "");
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        let head = read_until(&mut stream, "part\n");
        assert!(head.contains(" 200 "), "{head}");
        signal_to(pid_in(&set.test_dir().join("pid")), Signal::SIGKILL);
        assert_cut(stream, version);
        fs::remove_file(set.test_dir().join("pid")).unwrap();
    }
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["served"], &worker["failed"]), (&0.into(), &2.into()));
    set.stop();
}

#[test]
fn a_worker_that_dies_within_a_response_is_visible_and_takes_its_programs_along() {
    let set = script(
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
        assert_cut(stream, signal.as_str());
        wait_for_value("the grandchild's end", || (!is_alive(grandchild)).then_some(()));
        fs::remove_file(set.test_dir().join("grandchild")).unwrap();
        assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
        let after = set.wait_for_worker("default/1", "idle");
        assert_eq!(after["restarts"].as_u64(), before["restarts"].as_u64().map(|n| n + 1));
    }
    set.stop();
}

#[test]
fn a_client_that_goes_cancels_its_request() {
    let set = script(ENDLESS, "");
    let file = set.test_dir().join("pid");
    let runs = |version| {
        let stream = send_to_worker(set.address(0), "GET", "/", version, "", b"");
        (pid_in(&file), stream)
    };
    let (pid, stream) = runs("1.1");
    reset(stream);
    wait_for_value("the end of a program whose client has reset", || (!is_alive(pid)).then_some(()));
    set.wait_for_worker("default/1", "idle");
    fs::remove_file(&file).unwrap();
    let (pid, stream) = runs("1.0");
    reset(stream);
    wait_for_value("the end of a program whose HTTP/1.0 client has reset", || (!is_alive(pid)).then_some(()));
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["failed"], &worker["restarts"]), (&2.into(), &0.into()));
    set.wait_for_log(&["the client has disconnected", "worker=default/1", "lease="]);
    set.stop();
}

#[test]
fn a_client_that_closes_before_the_answer_cancels_its_request() {
    let set = script("echo $$ >$DIR/pid; exec sleep 1000", "");
    let stream = send_to_worker(set.address(0), "POST", "/", "1.1", "Content-Length: 5\r\n", b"hello");
    let pid = pid_in(&set.test_dir().join("pid"));
    drop(stream);
    wait_for_value("the end of a program whose client has closed", || (!is_alive(pid)).then_some(()));
    set.wait_for_worker("default/1", "idle");
    set.stop();
}

#[test]
fn a_client_that_has_only_ended_its_own_direction_is_still_there() {
    let set = script(
        "echo $$ >$DIR/pid; while [ ! -e $DIR/go ]; do sleep 0.02; done; printf 'Content-Type: text/plain\n\n'; cat",
        "",
    );
    for version in ["1.1", "1.0"] {
        let mut stream = send_to_worker(set.address(0), "POST", "/", version, "Content-Length: 5\r\n", b"hello");
        stream.shutdown(Shutdown::Write).unwrap();
        let pid = pid_in(&set.test_dir().join("pid"));
        // Longer than it takes a worker to look at its client: a wrong verdict would come now.
        std::thread::sleep(Duration::from_millis(300));
        assert!(is_alive(pid), "HTTP/{version}");
        fs::write(set.test_dir().join("go"), "").unwrap();
        let answer = read_response(&mut stream).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "HTTP/{version}");
        for file in ["go", "pid"] {
            fs::remove_file(set.test_dir().join(file)).unwrap();
        }
    }
    set.stop();
}

#[test]
fn a_client_that_does_not_read_holds_its_worker_no_longer_than_request_timeout() {
    let more = "request_timeout = \"1s\"";
    let set = script("printf 'Content-Type: text/plain\n\n'; [ $PATH_INFO = /ok ] && exec echo ok; exec yes", more);
    let mut stream = send_to_worker(set.address(0), "GET", "/", "1.0", "", b"");
    read_until(&mut stream, "y\n");
    assert_eq!(get(set.address(0), "/ok").unwrap().text(), "ok\n");
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((&worker["failed"], &worker["restarts"]), (&1.into(), &0.into()));
    assert_cut(stream, "a response that nobody read");
    set.stop();
}

#[test]
fn one_token_serves_one_request() {
    let set = TestSet::start(&one_pool(1, "\"echo\"", ""));
    let address = set.address(0);
    for _ in 0..20 {
        let (worker, target) = request_lease(address, "/mine").unwrap();
        let request = request_head("GET", &target, worker, "");
        let answers = std::thread::scope(|scope| {
            let clients = [0; 4].map(|_| scope.spawn(|| send_request(worker, request.as_bytes()).unwrap()));
            clients.map(|client| client.join().unwrap())
        });
        let served = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(served, 1, "{answers:?}");
        for other in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!((other.status, other.header("location")), (307, Some(&*format!("http://{address}/mine"))));
        }
    }
    // Two requests in one go: the second has no claim of its own.
    let (worker, target) = request_lease(address, "/twice").unwrap();
    let mut stream = connect(worker);
    stream.write_all(request_head("GET", &target, worker, "").repeat(2).as_bytes()).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert_eq!(text(&all).matches("HTTP/1.1 200").count(), 1, "{}", text(&all));
    assert_eq!(set.wait_for_worker("default/1", "idle")["served"], 21);
    set.stop();
}

#[test]
fn the_limits_of_a_body_hold_for_every_handler() {
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
        // With a lease, since a dispatcher that sees the length refuses it by itself.
        let large = vec![b'x'; 900 * 1024];
        let length = format!("Content-Length: {}\r\n", large.len());
        let large = read_response(&mut send_to_worker(address, "POST", "/echo", "1.1", &length, &large)).unwrap();
        assert_eq!(large.status, 413, "{handler}: {large:?}");
        assert_eq!(large.header("patou-outcome"), Some("not-started"), "{handler}");
        // Unannounced: a response that has begun must be cut.
        let chunks = "4000\r\n".to_owned() + &"x".repeat(0x4000) + "\r\n";
        let mut stream = send_to_worker(address, "POST", "/echo", "1.1", "Transfer-Encoding: chunked\r\n", b"");
        for _ in 0..10 {
            let _ = stream.write_all(chunks.as_bytes());
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        match read_response(&mut stream) {
            Ok(answer) => assert!([411, 413].contains(&answer.status), "{handler}: {}", answer.head),
            Err(cut) => println!("{handler}: {cut}"),
        }
        let mut stream = send_to_worker(address, "POST", "/echo", "1.1", "Content-Length: 50000\r\n", b"only this");
        match read_response(&mut stream) {
            Ok(answer) => assert_eq!(answer.status, 408, "{handler}"),
            Err(cut) => println!("{handler}: {cut}"),
        }
        let worker = set.wait_for_worker("default/1", "idle");
        let counts = ["served", "failed", "restarts"].map(|key| worker[key].as_u64().unwrap());
        assert_eq!(counts, [1, 3, 0], "{handler}\n{}", set.log());
        set.stop();
    }
}

#[test]
fn what_programs_say_is_logged_and_healthy_requests_are_not() {
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
    let before = set.log();
    for _ in 0..20 {
        assert_eq!(get(set.address(0), "/quiet").unwrap().status, 200);
    }
    set.wait_for_worker("default/1", "idle");
    assert_eq!(set.log(), before);
    assert_eq!(get(set.address(0), "/").unwrap().status, 200);
    for word in ["first", "second"] {
        set.wait_for_log(&["worker default/1", word, "worker=default/1", "lease="]);
    }
    set.stop();
}

/// Sends so many MiB through and back at once, while the memory of worker 1 is watched; its growth in KiB.
fn growth(set: &TestSet, target: &str, mib: usize) -> u64 {
    let pid = set.worker_pid("default/1");
    let before = resident_kib(pid);
    let piece = vec![b'p'; 1 << 20];
    let length = format!("Content-Length: {}\r\n", mib << 20);
    let mut stream = send_to_worker(set.address(0), "POST", target, "1.1", &length, b"");
    let mut back = stream.try_clone().unwrap();
    let mut most = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..mib).for_each(|_| stream.write_all(&piece).unwrap()));
        let head = read_until(&mut back, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (mut buffer, mut count, mut reads) = (vec![0; 1 << 20], 0, 0u64);
        loop {
            match back.read(&mut buffer).unwrap() {
                0 => break,
                n => count += n,
            }
            reads += 1;
            if reads % 64 == 0 {
                most = most.max(resident_kib(pid));
            }
        }
        assert!(count >= mib << 20, "{count}");
    });
    set.wait_for_worker("default/1", "idle");
    most.max(resident_kib(pid)).saturating_sub(before)
}

fn memory_stays(mib: usize) {
    let cat = format!("{{ exec = {} }}", toml_array(&["sh", "-c", "printf 'Content-Type: a/b\\n\\n'; exec cat"]));
    let program = format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")]));
    for handler in ["\"echo\"", &cat, &program] {
        let set = TestSet::start(&one_pool(1, handler, "request_timeout = \"10m\""));
        let grown = growth(&set, "/echo", mib);
        println!("{handler}: {mib} MiB both ways, the worker grew by {grown} KiB");
        assert!(grown < 6 * 1024, "{handler}: grew by {grown} KiB");
        set.stop();
    }
}

#[test]
fn bodies_are_streamed_both_ways() {
    memory_stays(256);
}

#[test]
#[ignore = "a long minute in debug"]
fn a_gibibyte_is_streamed_both_ways() {
    memory_stays(1024);
}

fn axum(more: &str) -> TestSet {
    TestSet::start(&one_pool(1, &format!("{{ program = {} }}", toml_array(&[&build_example("axum_worker")])), more))
}

#[test]
fn an_axum_router_is_a_worker() {
    let set = axum("");
    let address = set.address(0);
    let answer = get(address, "/hello").unwrap();
    assert!(answer.text().starts_with("hello from default/1 to 127.0.0.1 under lease "), "{}", answer.text());
    let body: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert!(request(address, "POST", "/echo", &body).unwrap().body == body);
    assert_eq!(get(address, "/nowhere").unwrap().status, 404);
    let pid = set.worker_pid("default/1");
    let answer = get(address, "/panic").unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (500, Some("started-unknown")));
    let late = get(address, "/panic/late");
    assert!(late.is_err(), "{late:?}");
    assert_eq!(get(address, "/hello").unwrap().status, 200);
    let worker = set.wait_for_worker("default/1", "idle");
    assert_eq!((worker["pid"].as_u64(), worker["restarts"].as_u64()), (Some(pid.into()), Some(0)));
    assert_eq!((worker["served"].as_u64(), worker["failed"].as_u64()), (Some(4), Some(2)));
    set.stop();
}

#[test]
fn a_handler_that_waits_too_long_is_dropped_and_one_that_blocks_costs_its_worker() {
    let set = axum("request_timeout = \"500ms\"");
    let address = set.address(0);
    let pid = set.worker_pid("default/1");
    let answer = get(address, "/slow?ms=100000").unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (504, Some("started-unknown")));
    assert_eq!(set.wait_for_worker("default/1", "idle")["pid"], pid);

    let answer = get(address, "/block?ms=100000").unwrap();
    assert_eq!((answer.status, answer.header("patou-outcome")), (504, Some("started-unknown")), "{}", set.log());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    set.wait_for_log(&["the handler blocks its thread past request_timeout", "lease="]);

    // A client that is still sending, and reads when it is through, gets its answer too.
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
fn a_blocking_handler_is_not_frozen() {
    let set = axum("request_timeout = \"10s\"\n[watchdog]\nworker_timeout = \"300ms\"");
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
fn what_a_handler_leaves_behind_on_its_thread_keeps_nobody_waiting_for_ever() {
    // Nothing is in hand that has a deadline, and the control loop answers for a thread that meets nobody.
    let mut set = axum("request_timeout = \"1s\"");
    let address = set.address(0);
    let block = |set: &TestSet, ms: u32, words: &str| {
        assert_eq!(get(address, &format!("/block/later?ms={ms}")).unwrap().text(), "later\n", "{}", set.log());
        set.wait_for_log(&["blocking the thread for", words]);
    };
    let pid = set.worker_pid("default/1");
    block(&set, 100_000, "100s");
    // This client stands before the door until the worker has ended itself, and is led back by the next one.
    assert_eq!(get(address, "/hello").unwrap().status, 200, "{}", set.log());
    set.wait_for_log(&["worker=default/1", "the worker gets no client until the thread responds"]);
    set.wait_for_log(&["worker=default/1", "without a request: the worker exits"]);
    assert_ne!(set.worker_pid("default/1"), pid);

    // What passes by itself costs the worker nothing.
    let before = set.wait_for_worker("default/1", "idle");
    block(&set, 1000, " 1s");
    assert_eq!(get(address, "/hello").unwrap().status, 200, "{}", set.log());
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((&after["pid"], &after["restarts"]), (&before["pid"], &before["restarts"]), "{}", set.log());

    // Nor does it keep a worker whose watchdog has died, and whom nobody else would end.
    block(&set, 101_000, "101s");
    set.signal(Signal::SIGKILL);
    set.wait_for_exit();
    let pid = after["pid"].as_u64().unwrap() as u32;
    wait_until("the worker ends", || !is_alive(pid));
    set.run();
    set.wait_until_up();
    set.stop();
}

#[test]
fn a_worker_whose_coprocess_keeps_dying_is_not_taken_for_blocked() {
    // It dies of every request, so that its start is put off longer and longer: beyond request_timeout.
    let handler = format!("{{ coprocess = {} }}", toml_array(&["sh", "-c", "read -r line <&3"]));
    let set = TestSet::start(&one_pool(1, &handler, "request_timeout = \"200ms\"\nqueue_timeout = \"20s\""));
    let before = set.worker_pid("default/1");
    for _ in 0..7 {
        let mut stream = send_to_worker(set.address(0), "GET", "/", "1.1", "", b"");
        let since = std::time::Instant::now();
        let head = read_until(&mut stream, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        assert!(since.elapsed() < Duration::from_secs(1), "the answer waited for the next start");
    }
    set.wait_for_worker("default/1", "idle");
    let worker = set.worker("default/1");
    assert_eq!((worker["pid"].as_u64(), worker["restarts"].as_u64()), (Some(before.into()), Some(0)), "{}", set.log());
    set.stop();
}

#[test]
fn on_a_unix_socket_http_1_0_gets_no_response_whose_end_it_could_not_tell() {
    // A Unix socket has no reset: there the end of the connection would look like the end of the response.
    let set = TestSet::prepare("");
    let top = set.test_dir().display().to_string();
    let script = r#"case $PATH_INFO in /known) printf 'Content-Type: a/b\nContent-Length: 5\n\nknown';; *) printf 'Content-Type: a/b\n\npart'; esac"#;
    let listener = format!("[[listener]]\naddress = \"unix:{top}/front.sock\"\npool = \"default\"\n");
    let handler = format!("{{ exec = {} }}", toml_array(&["sh", "-c", script]));
    let pool = format!(
        "[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"unix:{top}/w{{n}}.sock\"\nhandler = {handler}\n"
    );
    set.configure(&(listener + &pool));
    let mut set = set;
    set.run();
    set.wait_until_up();
    let unix = |name: &str, head: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(set.test_dir().join(name)).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        read_response(&mut stream).unwrap()
    };
    let ask = |method: &str, target: &str, version: &str| {
        let token = unix("front.sock", "POST /.patou/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").json();
        let token = token["token"].as_str().unwrap().to_owned();
        unix("w1.sock", &format!("{method} /.patou/{token}{target} HTTP/{version}\r\nHost: x\r\n\r\n"))
    };
    for (method, target, version, status) in [
        ("GET", "/known", "1.0", 200),
        ("GET", "/unknown", "1.1", 200),
        ("HEAD", "/unknown", "1.0", 200),
        ("GET", "/unknown", "1.0", 505),
    ] {
        let answer = ask(method, target, version);
        assert_eq!(answer.status, status, "{method} {target} {version}: {answer:?}");
        if status == 505 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            assert_eq!(answer.header("patou-outcome"), Some("started-unknown"));
            assert!(answer.text().contains("HTTP/1.1"), "{answer:?}");
        }
    }
    set.stop();
}

/// The value of `key=` in a line of the log.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn each_request_can_be_followed_by_its_lease_alone() {
    let pool = |name: &str, handler: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{name}\"\n\
             [[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n"
        )
    };
    let says = toml_array(&["sh", "-c", "echo some words >&2; printf 'Content-Type: a/b\\nStatus: 201 Made\\n\\n'"]);
    let set = TestSet::start(&(pool("one", "\"echo\"") + &pool("two", &format!("{{ exec = {says} }}"))));
    for index in [0, 1, 0] {
        assert!(get(set.address(index), "/").unwrap().status < 300);
    }
    // A pool's next request waits for its last to be over, and this is the last of each.
    let over = |log: &str| log.lines().filter(|line| line.contains("lease is released")).count();
    wait_for_value("all leases being over", || (over(&set.log()) == 3).then_some(()));
    let log = set.log();
    let leases: Vec<_> =
        log.lines().filter(|line| line.contains("lease is offered")).filter_map(|line| field(line, "lease")).collect();
    assert_eq!(leases.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{leases:?}");
    for (lease, worker, status, said) in
        [(leases[0], "one/1", "200", false), (leases[1], "two/1", "201", true), (leases[2], "one/1", "200", false)]
    {
        let lines: Vec<_> = log.lines().filter(|line| field(line, "lease") == Some(lease)).collect();
        assert!(lines.iter().all(|line| field(line, "worker") == Some(worker)), "{lines:?}");
        for step in ["lease is offered", "accepts the offer", "is granted", "lease is claimed", "lease is released"] {
            assert_eq!(lines.iter().filter(|line| line.contains(step)).count(), 1, "{step} of {lease}: {lines:?}");
        }
        let end = lines.iter().find(|line| line.contains("request finished")).unwrap();
        assert!(field(end, "status") == Some(status) && field(end, "took_ms").is_some(), "{end}");
        assert_eq!(lines.iter().any(|line| line.contains("some words")), said, "{lines:?}");
    }
    set.stop();
}
