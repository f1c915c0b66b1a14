//! The handler `http`: an HTTP/1.1 server of any language as the warm process of a worker.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;

/// A server that behaves as the target demands. `/` responds with its pid and the number of requests so far. It accepts
/// one connection after the other.
const SERVER: &str = r#"
import json, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print('loading', file=sys.stderr, flush=True)
time.sleep(float(os.environ.get('LOAD', '0')))
path = os.environ.get('PATOU_SOCKET')
if path:
    s = socket.socket(socket.AF_UNIX); s.bind(path)
else:
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('127.0.0.1', int(os.environ['PORT'])))
s.listen(8)
count = 0
def chunk(b): return b'%x\r\n' % len(b) + b + b'\r\n'
def exchange(f, c):
    global count
    line = f.readline()
    if not line: return False
    method, target, _ = line.decode().split(' ')
    h = {}
    while (l := f.readline().decode().strip()):
        name, value = l.split(': ', 1)
        h.setdefault(name.lower(), []).append(value)
    if target == '/ready':
        status = b'200 OK' if not os.path.exists(os.environ.get('NOT_READY', '/none')) else b'503 Not Ready'
        c.sendall(b'HTTP/1.1 ' + status + b'\r\nContent-Length: 0\r\n\r\n'); return True
    count += 1
    def body():
        if 'expect' in h: c.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        n = int(h.get('content-length', ['0'])[0])
        while n > 0:
            piece = f.read1(min(n, 1 << 16))
            if not piece: return
            n -= len(piece); yield piece
        if 'transfer-encoding' in h:
            while (size := int(f.readline(), 16)) > 0:
                yield f.read(size); f.readline()
            while (trailer := f.readline().strip()): h.setdefault('trailers', []).append(trailer.decode())
    def respond(data, *more, status='200 OK'):
        head = [f'HTTP/1.1 {status}', f'Content-Length: {len(data)}', *more, '', '']
        c.sendall('\r\n'.join(head).encode() + (b'' if method == 'HEAD' else data))
    if target == '/unread': time.sleep(3); return False
    if target == '/early': respond(b'early', status='413 Content Too Large'); return False
    if target == '/stream':
        c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
        for piece in body(): c.sendall(chunk(piece))
        c.sendall(b'0\r\n\r\n'); return True
    received = b''.join(body())
    if target == '/': respond(b'%d %d' % (os.getpid(), count))
    elif target == '/echo': respond(received, 'X-A: 1', 'X-A: 2')
    elif target == '/head': respond(json.dumps(h).encode(), 'Connection: X-Mine', 'X-Mine: 1', 'Keep-Alive: timeout=5')
    elif target == '/empty': c.sendall(b'HTTP/1.1 204 No Content\r\n\r\n')
    elif target == '/unchanged': c.sendall(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 7\r\n\r\n')
    elif target == '/trailers': c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n' + chunk(b'data') + b'0\r\nX-Sum: 4\r\n\r\n')
    elif target == '/close': return False
    elif target == '/bye': respond(b'bye'); return False
    elif target == '/garbage': c.sendall(b'Hello, I am garbage\r\n\r\n')
    elif target == '/switch': c.sendall(b'HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n')
    elif target == '/cut': c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'); return False
    elif target == '/die': os._exit(7)
    elif target == '/close-die': c.shutdown(socket.SHUT_RDWR); time.sleep(0.5); os._exit(7)
    elif target == '/cut-by-death': c.sendall(b'HTTP/1.1 200 OK\r\n\r\nhalf'); time.sleep(0.01); os.kill(os.getpid(), 9)
    elif target == '/no-length': c.sendall(b'HTTP/1.1 200 OK\r\n\r\nwhole'); return False
    elif target == '/two-lengths': c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n' + chunk(b'whole') + b'0\r\n\r\n')
    elif target == '/gzip': c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n' + chunk(b'zipped') + b'0\r\n\r\n')
    elif target == '/many-fields': respond(b'', *(f'X-{n}: 1' for n in range(500)))
    elif target == '/old': c.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold'); return False
    elif target == '/stuck': time.sleep(1000)
    elif target == '/endless':
        c.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
        while True: c.sendall(chunk(b'event')); time.sleep(0.05)
    elif target == '/slow': time.sleep(0.5); respond(b'slow'); 
    elif target == '/interim': c.sendall(b'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n'); respond(b'final')
    return True
while True:
    c, _ = s.accept()
    f = c.makefile('rb')
    try:
        while exchange(f, c): pass
    except OSError: pass
    f.close(); c.close()
"#;

fn pool(workers: u16, argument: &str, more: &str) -> String {
    let command = toml_array(&["python3", "-c", SERVER, argument]);
    handoff_pool(workers, &format!("{{ http = {command} }}"), more)
}

fn handoff_pool(workers: u16, handler: &str, more: &str) -> String {
    one_pool(workers, handler, more).replace("pool = \"default\"\n\n", "pool = \"default\"\ndelivery = \"handoff\"\n\n")
}

fn server(more: &str) -> Option<TestSet> {
    is_installed("python3").then(|| TestSet::start(&pool(1, "{socket}", more)))
}

/// The pid of the server, and how many requests it has had.
fn identity(set: &TestSet) -> (u32, u32) {
    let text = get(set.address(0), "/").unwrap().text();
    let (pid, count) = text.split_once(' ').unwrap_or_else(|| panic!("{text}\n{}", set.log()));
    (pid.parse().unwrap(), count.parse().unwrap())
}

/// One request on a connection of its own.
fn request(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> Result<HttpResponse, String> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = request_head(method, target, address, &format!("{length}Connection: close\r\n"));
    send_request(address, &[head.into_bytes(), body.to_vec()].concat())
}

fn get(address: SocketAddr, target: &str) -> Result<HttpResponse, String> {
    request(address, "GET", target, b"")
}

/// Reads one response with `Content-Length` from a connection that stays open.
fn read_kept_response(stream: &mut impl Read) -> HttpResponse {
    let mut bytes = Vec::new();
    loop {
        if let Some((response, length)) = HttpResponse::parse_head(&bytes).unwrap() {
            let body = response.header("content-length").unwrap().parse::<usize>().unwrap();
            if bytes.len() >= length + body {
                return read_response(&mut bytes.as_slice()).unwrap();
            }
        }
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{}", text(&bytes));
        bytes.extend_from_slice(&buffer[..length]);
    }
}

fn send_bytes(address: SocketAddr, head: &str, body: &[u8]) -> HttpResponse {
    let (method, target) = head.split_once(' ').unwrap();
    let (target, more) = target.split_once('\n').unwrap_or((target, ""));
    let close = format!("{more}Connection: close\r\n");
    let request = [request_head(method, target, address, &close).into_bytes(), body.to_vec()].concat();
    send_request(address, &request).unwrap()
}

#[test]
fn requests_and_responses_pass_unchanged() {
    let Some(set) = server("") else { return };
    let address = set.address(0);
    let echo = request(address, "POST", "/echo", b"some body").unwrap();
    assert_eq!((echo.status, echo.text().as_str()), (200, "some body"));
    assert_eq!(echo.head.matches("x-a: ").count(), 2, "{}", echo.head);
    let chunked =
        send_bytes(address, "POST /echo\nTransfer-Encoding: chunked\r\n", b"4\r\nfour\r\n3\r\nten\r\n0\r\n\r\n");
    assert_eq!(chunked.text(), "fourten");
    let continued = send_bytes(address, "POST /echo\nExpect: 100-continue\r\nContent-Length: 4\r\n", b"four");
    assert_eq!(continued.text(), "four");
    let mut stream = connect(address);
    stream.write_all(request_head("HEAD", "/head", address, "Connection: close\r\n").as_bytes()).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let (head, length) = HttpResponse::parse_head(&received).unwrap().unwrap();
    assert!(head.header("content-length").unwrap().parse::<u32>().unwrap() > 0 && length == received.len());
    for (target, status) in [("/empty", 204), ("/unchanged", 304)] {
        let response = send_bytes(address, &format!("GET {target}"), b"");
        assert_eq!((response.status, response.body.len()), (status, 0), "{}", response.head);
    }
    assert_eq!(get(address, "/interim").unwrap().text(), "final");
    let mut stream = connect(address);
    stream
        .write_all(request_head("GET", "/trailers", address, "TE: trailers\r\nConnection: close, TE\r\n").as_bytes())
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.to_lowercase().ends_with("4\r\ndata\r\n0\r\nx-sum: 4\r\n\r\n"), "{response}");
    set.stop();
}

#[test]
fn fields_of_one_connection_stay_on_it_and_a_client_cannot_forge_its_address() {
    let Some(set) = server("") else { return };
    let address = set.address(0);
    let more = "X-Forwarded-For: 10.0.0.1\r\nX_Forwarded_For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nKeep-Alive: 5\r\n\
                Connection: X-Private\r\nX-Private: 1\r\nCookie: a=b\r\n";
    let response = send_bytes(address, &format!("GET /head\n{more}"), b"");
    let seen = response.json();
    let field = |name: &str| seen[name][0].as_str().map(str::to_owned);
    assert_eq!(field("x-forwarded-for").as_deref(), Some("127.0.0.1"), "{seen}");
    assert_eq!(field("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(field("x-forwarded-host"), field("host"));
    assert_eq!(field("host"), Some(address.to_string()));
    assert_eq!(field("cookie").as_deref(), Some("a=b"));
    for absent in ["x_forwarded_for", "forwarded", "keep-alive", "x-private", "connection"] {
        assert!(seen.get(absent).is_none(), "{absent} in {seen}");
    }
    for absent in ["x-mine", "keep-alive"] {
        assert_eq!(response.header(absent), None, "{}", response.head);
    }
    let more = "Transfer-Encoding: chunked\r\nTrailer: X-Sum, X-Forwarded-For, X_Real_Ip\r\n";
    let trailers = b"1\r\na\r\n0\r\nX-Sum: 1\r\nX-Forwarded-For: 10.0.0.1\r\nX_Real_Ip: 10.0.0.1\r\n\r\n";
    let seen = send_bytes(address, &format!("POST /head\n{more}"), trailers).json();
    assert_eq!(seen["trailers"], serde_json::json!(["x-sum: 1"]), "{seen}");
    set.stop();
}

/// The size of a streamed body in MiB, overridden by `PATOU_TEST_MIB=1024`.
fn stream_size() -> usize {
    std::env::var("PATOU_TEST_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(64)
}

#[test]
fn bodies_are_streamed_both_ways_without_growth() {
    let Some(set) = server("request_timeout = \"120s\"") else { return };
    let (address, size) = (set.address(0), stream_size() << 20);
    let worker = set.worker_pid("default/1");
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    let before = resident();
    let mut stream = connect(address);
    let mut reader = stream.try_clone().unwrap();
    stream
        .write_all(
            request_head("POST", "/stream", address, &format!("Content-Length: {size}\r\nConnection: close\r\n"))
                .as_bytes(),
        )
        .unwrap();
    let received = std::thread::spawn(move || {
        let (mut buffer, mut count, mut head) = (vec![0; 1 << 16], 0, Vec::new());
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return (head, count),
                read => {
                    if head.is_empty() {
                        head.extend_from_slice(&buffer[..read.min(64)]);
                    }
                    count += buffer[..read].iter().filter(|byte| **byte == b'z').count();
                }
            }
        }
    });
    let piece = vec![b'z'; 1 << 16];
    for _ in 0..size / piece.len() {
        stream.write_all(&piece).unwrap();
    }
    let (head, count) = received.join().unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", text(&head));
    assert_eq!(count, size);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "the worker has grown by {grown} bytes");
    set.stop();
}

#[test]
fn early_response_reaches_the_client() {
    let Some(set) = server("") else { return };
    let (pid, _) = identity(&set);
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("POST", "/early", set.address(0), "Content-Length: 9000000\r\n").as_bytes()).unwrap();
    let _ = stream.write_all(&vec![0; 1 << 20]);
    let response = read_response(&mut stream).unwrap();
    assert_eq!((response.status, response.text().as_str()), (413, "early"));
    assert_eq!(identity(&set).0, pid);
    set.stop();
}

/// The status and the outcome of a response that patou itself has made.
fn outcome(response: &HttpResponse) -> (u16, &str) {
    (response.status, response.header("patou-outcome").unwrap_or("none"))
}

#[test]
fn faults_of_the_server_are_502_and_it_is_replaced_if_it_cannot_continue() {
    let Some(set) = server("") else { return };
    let address = set.address(0);
    let mut pid = identity(&set).0;
    for (target, why, is_replaced) in [
        ("/close", "closed the connection before the end of a response head", false),
        ("/switch", "switched to another protocol (101)", false),
        ("/many-fields", "too many fields or bytes", false),
        ("/garbage", "not HTTP/1.1", true),
        ("/gzip", "another transfer coding than chunked", true),
        ("/die", "it exited with status 7", true),
    ] {
        let response = get(address, target).unwrap();
        assert_eq!(outcome(&response), (502, "started-unknown"), "{target} {}", response.text());
        assert!(response.text().contains(why), "{target}: {}", response.text());
        let next = identity(&set).0;
        assert_eq!(next != pid, is_replaced, "{target}\n{}", set.log());
        pid = next;
    }
    let cut = get(address, "/cut").unwrap_err();
    assert!(cut.contains("4 of 9 bytes") || cut.contains("reset"), "{cut}");
    assert_eq!(identity(&set).0, pid);
    // A connection that the server closes after its response costs nothing.
    for _ in 0..20 {
        assert_eq!(get(address, "/bye").unwrap().text(), "bye");
    }
    assert_eq!(identity(&set).0, pid);
    // One that dies between two requests as well.
    signal_to(pid, Signal::SIGKILL);
    wait_until("the server is replaced", || get(address, "/").is_ok_and(|response| response.status == 200));
    assert_ne!(identity(&set).0, pid);
    set.stop();
}

#[test]
fn end_of_a_response_is_that_of_the_server() {
    let Some(set) = server("") else { return };
    let address = set.address(0);
    // The chunks determine the length.
    assert_eq!(get(address, "/two-lengths").unwrap().text(), "whole");
    assert_eq!(get(address, "/no-length").unwrap().text(), "whole");
    // A server that speaks HTTP/1.0 does not end the client's connection.
    let mut stream = connect(address);
    for _ in 0..2 {
        stream.write_all(request_head("GET", "/old", address, "").as_bytes()).unwrap();
        let response = read_kept_response(&mut stream);
        assert_eq!((response.text().as_str(), response.header("connection")), ("old", None), "{}", response.head);
        assert!(response.head.starts_with("http/1.1 ") || response.head.starts_with("HTTP/1.1 "), "{}", response.head);
    }
    drop(stream);
    // Its death ends no response.
    for _ in 0..6 {
        let cut = get(address, "/cut-by-death");
        assert!(cut.is_err(), "{:?}\n{}", cut.map(|response| response.text()), set.log());
    }
    set.stop();
}

#[test]
fn server_that_was_ready_and_is_no_more_costs_no_worker() {
    let Some(set) = server("ready_path = \"/ready\"") else { return };
    let (pid, _) = identity(&set);
    let response = get(set.address(0), "/close-die").unwrap();
    assert_eq!(outcome(&response), (502, "started-unknown"), "{}", response.text());
    assert_ne!(identity(&set).0, pid);
    assert_eq!(set.worker("default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}

#[test]
fn server_that_is_busy_without_its_client_has_to_become_ready() {
    let Some(set) = server("ready_path = \"/ready\"") else { return };
    let (pid, _) = identity(&set);
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("POST", "/unread", set.address(0), "Content-Length: 100\r\n").as_bytes()).unwrap();
    stream.write_all(b"a part").unwrap();
    set.wait_for_worker("default/1", "busy");
    drop(stream);
    set.wait_for_worker("default/1", "starting");
    set.wait_for_worker("default/1", "idle");
    assert_eq!(identity(&set).0, pid);
    set.stop();
}

#[test]
fn stuck_server_is_504_and_killed_with_what_it_has_started() {
    let Some(set) = server("request_timeout = \"700ms\"") else { return };
    let (pid, _) = identity(&set);
    let response = get(set.address(0), "/stuck").unwrap();
    assert_eq!(outcome(&response), (504, "started-unknown"));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_ne!(identity(&set).0, pid);
    set.stop();
}

#[test]
fn log_names_the_keys_of_the_sandbox_by_whose_signal_a_program_dies() {
    let Some(set) = server("") else { return };
    signal_to(identity(&set).0, Signal::SIGSYS);
    set.wait_for_log(&["failed (it was killed by SIGSYS (in a unit: SystemCallFilter="]);
    signal_to(identity(&set).0, Signal::SIGTRAP);
    set.wait_for_log(&["failed (it was killed by SIGTRAP (in a unit: its runtime may need MemoryDenyWriteExecute=no"]);
    set.stop();
}

#[test]
fn client_that_hangs_up_costs_no_process() {
    let Some(set) = server("") else { return };
    let (pid, count) = identity(&set);
    for (target, length) in [("/slow", ""), ("/echo", "Content-Length: 100\r\n")] {
        let mut stream = connect(set.address(0));
        stream.write_all(request_head("POST", target, set.address(0), length).as_bytes()).unwrap();
        set.wait_for_worker("default/1", "busy");
        close_with_reset(stream);
        set.wait_for_worker("default/1", "idle");
    }
    let (after, requests) = identity(&set);
    assert_eq!((after, requests), (pid, count + 3), "{}", set.log());
    set.stop();
}

#[test]
fn client_that_leaves_an_endless_response_does_not_keep_the_worker() {
    let Some(set) = server("request_timeout = \"120s\"") else { return };
    let (pid, _) = identity(&set);
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("GET", "/endless", set.address(0), "").as_bytes()).unwrap();
    stream.read_exact(&mut [0; 300]).unwrap();
    drop(stream);
    set.wait_for_log(&["failed (its response continues 5s after its client has left): replacing it"]);
    assert_ne!(identity(&set).0, pid);
    set.stop();
}

#[test]
fn failed_replacement_of_a_server_that_had_to_end_first_is_logged_so() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start_with(|dir| {
        let environment = format!("environment = {{ NOT_READY = \"{}/not_ready\" }}", dir.display());
        let more = format!("ready_path = \"/ready\"\nreplace = \"after\"\n{environment}\n");
        pool(1, "{socket}", &more) + "[watchdog]\nstart_timeout = \"2s\"\n"
    });
    fs::write(set.test_dir().join("not_ready"), "").unwrap();
    assert!(!set.patou(&["recycle", "default"]).status.success());
    set.wait_for_log(&["the next process of the handler cannot start, and the old one has ended", "503"]);
    fs::remove_file(set.test_dir().join("not_ready")).unwrap();
    wait_until("it serves again", || get(set.address(0), "/").is_ok_and(|response| response.status == 200));
    set.stop();
}

#[test]
fn server_may_listen_on_a_port_from_the_environment() {
    if !is_installed("python3") {
        return;
    }
    let more = "environment = { PORT = \"{port}\", NUMBER = \"{n}\" }\nworking_dir = \"/usr\"";
    let set = TestSet::start(&pool(2, "no placeholder", more));
    identity(&set);
    for id in ["default/1", "default/2"] {
        let server = children_of(set.worker_pid(id))[0];
        let environment = fs::read_to_string(format!("/proc/{server}/environ")).unwrap();
        let has = |variable: String| environment.split('\0').any(|entry| entry == variable);
        assert!(has(format!("NUMBER={}", &id[8..])) && has(format!("HOME={}", std::env::var("HOME").unwrap())));
        assert!(!environment.contains("PATOU_SOCKET="));
        assert_eq!(fs::read_link(format!("/proc/{server}/cwd")).unwrap(), Path::new("/usr"));
    }
    set.stop();
}

#[test]
fn check_refuses_an_http_pool_that_cannot_work() {
    for (handler, more, line) in [
        ("{ http = [\"sh\", \"-c\", \"app ${port}\"] }", "", "pool[1].handler.http"),
        ("{ http = [\"sh\", \"{socket}\"] }", "ping = \"5s\"", "pool[1].ping"),
        ("{ exec = [\"sh\"] }", "ping = \"5s\"", "pool[1].ping"),
        ("{ exec = [\"sh\"] }", "ready_path = \"/a\"", "pool[1].ready_path"),
        ("{ http = [\"sh\", \"{socket}\"] }", "ready_frame = true", "pool[1].ready_frame"),
    ] {
        let set = TestSet::prepare(&handoff_pool(2, handler, more));
        let output = set.patou(&["check"]);
        let errors = text(&output.stderr);
        assert!(!output.status.success() && errors.contains(line), "{handler} {more}: {errors}");
        let at = if more.is_empty() { "handler = " } else { more };
        let file = fs::read_to_string(set.config_file()).unwrap();
        let number = file.lines().position(|line| line.starts_with(at)).unwrap() + 1;
        assert!(errors.contains(&format!("patou.toml:{number}:")), "{number}: {errors}");
    }
}

#[test]
fn worker_is_starting_until_its_server_is_ready() {
    if !is_installed("python3") {
        return;
    }
    let not_ready = |dir: &Path| dir.join("not-ready");
    let mut set = TestSet::prepare("");
    let file = not_ready(set.test_dir());
    fs::write(&file, "").unwrap();
    set.configure(&pool(
        1,
        "{socket}",
        &format!("ready_path = \"/ready\"\nenvironment = {{ NOT_READY = {:?} }}", file.display().to_string()),
    ));
    set.run();
    set.wait_for_worker("default/1", "starting");
    fs::remove_file(&file).unwrap();
    set.wait_until_up();
    identity(&set);
    set.stop();
}

#[test]
fn server_that_is_never_ready_fails_with_its_last_lines_and_harms_no_other_worker() {
    if !is_installed("python3") {
        return;
    }
    let bad = toml_array(&["sh", "-c", "echo 'ImportError: no module named app' >&2; exit 3", "{socket}"]);
    let mut set = TestSet::prepare("");
    set.configure(&format!(
        "{ECHO}\n[[pool]]\nname = \"bad\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {{ http = {bad} }}\n\
         [watchdog]\nrestarts = {{ max = 2, within = \"60s\", delay = \"10ms\", delay_max = \"20ms\" }}\n"
    ));
    set.run();
    set.wait_for_worker("bad/1", "failed");
    set.wait_for_log(&["worker bad/1", "it exited with status 3", "its last lines: ImportError: no module named app"]);
    assert_eq!(support::get(set.address(0), "/").unwrap().status, 200);
    set.stop();
}

#[test]
fn planned_replacement_of_slow_servers_delays_no_request() {
    if !is_installed("python3") {
        return;
    }
    let total: usize = std::env::var("PATOU_TEST_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let more = "max_requests = 10\nready_path = \"/ready\"\nenvironment = { LOAD = \"1.5\" }";
    let set = TestSet::start(&pool(2, "{socket}", more));
    let address = set.address(0);
    let mut times = Vec::new();
    let replacements = || set.log().lines().filter(|line| line.contains("warm process recycled")).count();
    while times.len() < total || times.len() % 100 != 0 || replacements() < 6 {
        let since = Instant::now();
        let response = get(address, "/").unwrap();
        assert_eq!(response.status, 200, "{}\n{}", response.text(), set.log());
        times.push(since.elapsed());
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{} requests, {} replacements: median {median:?}, slowest {slowest:?}", times.len(), replacements());
    // Twice the median, and what a busy machine adds; a request that waits for a server takes 1.5 s.
    assert!(slowest < median * 2 + Duration::from_secs(1), "median {median:?}, slowest {slowest:?}\n{}", set.log());
    set.stop();
}

#[test]
fn frozen_idle_server_is_replaced_by_its_ping() {
    let Some(set) = server("ready_path = \"/ready\"\nping = \"300ms\"\nrequest_timeout = \"20s\"") else { return };
    let (pid, _) = identity(&set);
    signal_to(pid, Signal::SIGSTOP);
    set.wait_for_log(&["has not responded to a ping for 300ms", "replacing it"]);
    let since = Instant::now();
    assert_ne!(identity(&set).0, pid);
    assert!(since.elapsed() < Duration::from_secs(10));
    assert_eq!(set.worker("default/1")["restarts"], 0);
    set.stop();
}

#[test]
fn server_whose_socket_was_removed_is_still_reached() {
    let Some(set) = server("ready_path = \"/ready\"\nping = \"300ms\"") else { return };
    let (pid, _) = identity(&set);
    fs::remove_dir_all(set.runtime_dir()).unwrap();
    // A new connection, since an idle one is not used for longer than a second.
    std::thread::sleep(Duration::from_millis(1100));
    for _ in 0..20 {
        assert_eq!(identity(&set).0, pid, "{}", set.log());
    }
    set.stop();
}

#[test]
fn server_whose_socket_is_removed_before_it_is_ready_is_replaced() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare(&pool(1, "{socket}", "environment = { LOAD = \"0.5\" }"));
    set.run();
    set.wait_for_log(&["loading"]);
    fs::remove_dir_all(set.runtime_dir()).unwrap();
    set.wait_until_up();
    identity(&set);
    assert_eq!(set.worker("default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}

/// A server that begins to listen when a file allows it, and shuts down as slowly as another file demands. As many do, it
/// then removes its socket by its name.
const SLOW_SERVER: &str = r#"
import os, signal, socket, sys, time
path, listen, end = sys.argv[1:]
def wait_for(file):
    while not os.path.exists(file): time.sleep(0.01)
def shut_down(*_):
    wait_for(end)
    if os.path.exists(path): os.unlink(path)
    os._exit(0)
signal.signal(signal.SIGTERM, shut_down)
s = socket.socket(socket.AF_UNIX); s.bind(path)
wait_for(listen)
s.listen(8)
while True:
    c, _ = s.accept()
    if c.recv(4096): c.sendall(b'HTTP/1.0 200 OK\r\n\r\n%d' % os.getpid())
    c.close()
"#;

/// A server that the test has started, killed at its end.
struct RunningServer(Child);

impl Drop for RunningServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn server_that_removes_its_socket_after_the_death_of_its_worker_harms_no_successor() {
    if !is_installed("python3") {
        return;
    }
    // The handler's own process only has the server started elsewhere, as the client of a container manager does. So the
    // server outlives the worker.
    let mut set = TestSet::prepare("");
    let script = format!("echo \"$PATOU_SOCKET\" >>{}/wanted; exec sleep 1000", set.test_dir().display());
    let command = toml_array(&["sh", "-c", &script, "{socket}"]);
    set.configure(&handoff_pool(1, &format!("{{ http = {command} }}"), ""));
    set.run();
    let file = |name: &str| set.test_dir().join(name);
    let wanted =
        || fs::read_to_string(file("wanted")).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let start_server = |path: &str, listen: &str| {
        let files = [listen, "end"].map(file);
        let mut command = Command::new("python3");
        command.args(["-c", SLOW_SERVER, path]).args(files).stdout(Stdio::null()).stderr(Stdio::null());
        let server = RunningServer(command.spawn().unwrap());
        wait_until("the server has bound its address", || Path::new(path).exists());
        server
    };
    wait_until("the server is wanted", || wanted().len() == 1);
    fs::write(file("first"), "").unwrap();
    let mut first = start_server(&wanted()[0], "first");
    set.wait_until_up();
    signal_to(first.0.id(), Signal::SIGTERM);
    signal_to(set.worker_pid("default/1"), Signal::SIGKILL);
    wait_until("its successor is wanted", || wanted().len() == 2);
    let second = start_server(&wanted()[1], "second");
    fs::write(file("end"), "").unwrap();
    assert!(first.0.wait().unwrap().success());
    fs::write(file("second"), "").unwrap();
    set.wait_until_up();
    assert_eq!(get(set.address(0), "/").unwrap().text(), second.0.id().to_string());
    assert_eq!(wanted().len(), 2, "{}", set.log());
    set.stop();
}

const FLASK: &str = r#"
from flask import Flask, request, session
app = Flask(__name__)
app.secret_key = 'a key for the test'
@app.get('/healthz')
def health(): return 'ok'
@app.route('/count')
def count():
    session['count'] = session.get('count', 0) + 1
    return f"{session['count']} {request.headers['X-Forwarded-For']}"
@app.post('/upload')
def upload(): return str(len(request.get_data()))
"#;

#[test]
fn flask_application_runs_in_gunicorn_unchanged() {
    if !is_installed("gunicorn") {
        return;
    }
    // Debian's packages are those of Debian's Python.
    let command = toml_array(&["gunicorn", "--workers", "1", "--bind", "unix:{socket}", "app:app"]);
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("app.py"), FLASK).unwrap();
        let more =
            format!("working_dir = {:?}\nready_path = \"/healthz\"\nmax_requests = 20\n", dir.display().to_string());
        handoff_pool(2, &format!("{{ http = {command} }}"), &more)
    });
    let address = set.address(0);
    let mut cookie = String::new();
    for count in 1..=100 {
        let response = send_bytes(address, &format!("GET /count\n{cookie}"), b"");
        assert_eq!(response.text(), format!("{count} 127.0.0.1"), "{}\n{}", response.head, set.log());
        cookie = format!("Cookie: {}\r\n", response.header("set-cookie").unwrap().split(';').next().unwrap());
    }
    let body = vec![b'x'; 5 << 20];
    assert_eq!(request(address, "POST", "/upload", &body).unwrap().text(), body.len().to_string());
    assert_eq!(get(address, "/none").unwrap().status, 404);
    set.stop();
}

#[test]
fn node_server_runs_unchanged() {
    if !is_installed("node") {
        return;
    }
    let script = "require('http').createServer((request, response) => { let n = 0; request.on('data', d => n += d.length); \
                  request.on('end', () => response.end(`${request.method} ${request.url} ${n}`)) }).listen(process.env.PORT)";
    let command = toml_array(&["node", "-e", script, "{port}"]);
    let set = TestSet::start(&handoff_pool(1, &format!("{{ http = {command} }}"), "ready_path = \"/\""));
    for _ in 0..50 {
        assert_eq!(get(set.address(0), "/a?b").unwrap().text(), "GET /a?b 0");
    }
    assert_eq!(request(set.address(0), "POST", "/", &vec![0; 1 << 20]).unwrap().text(), "POST / 1048576");
    set.stop();
}

/// Requests, bodies, planned replacement, and a death by a signal, for a server that responds on `/pid` with its process,
/// on `/length` with the length of the body, and on `/large` with 1 MiB.
fn assert_serves(set: TestSet) {
    let address = set.address(0);
    let pid = || get(address, "/pid").unwrap().text().parse::<u32>().unwrap_or_else(|_| panic!("{}", set.log()));
    let mut pids = BTreeSet::new();
    for _ in 0..60 {
        pids.insert(pid());
    }
    while pids.len() < 3 {
        pids.insert(pid());
    }
    let body = vec![b'x'; 5 << 20];
    assert_eq!(request(address, "POST", "/length", &body).unwrap().text(), body.len().to_string());
    let chunked = b"4\r\nfour\r\n3\r\nten\r\n0\r\n\r\n";
    assert_eq!(send_bytes(address, "POST /length\nTransfer-Encoding: chunked\r\n", chunked).text(), "7");
    let continued = send_bytes(address, "POST /length\nExpect: 100-continue\r\nContent-Length: 4\r\n", b"four");
    assert_eq!(continued.text(), "4");
    assert_eq!(get(address, "/large").unwrap().body.len(), 1 << 20);
    assert_eq!(get(address, "/none").unwrap().status, 404);
    let mut stream = connect(address);
    for _ in 0..5 {
        stream.write_all(request_head("GET", "/pid", address, "").as_bytes()).unwrap();
        assert_eq!(read_kept_response(&mut stream).status, 200);
    }
    drop(stream);
    for _ in 0..3 {
        let killed = pid();
        signal_to(killed, Signal::SIGKILL);
        wait_until("the server has ended", || !is_alive(killed));
        wait_until("the next one serves", || {
            get(address, "/pid").is_ok_and(|r| r.status == 200 && r.text() != killed.to_string())
        });
    }
    assert_eq!(set.worker("default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}

const PUMA: &str = r#"
run ->(env) do
  case env['PATH_INFO']
  when '/pid' then [200, {'content-type' => 'text/plain'}, [Process.pid.to_s]]
  when '/length' then [200, {'content-type' => 'text/plain'}, [env['rack.input'].read.bytesize.to_s]]
  when '/large' then [200, {'content-type' => 'text/plain'}, ['x' * 1024] * 1024]
  else [404, {}, []]
  end
end
"#;

#[test]
fn rack_application_runs_in_puma_unchanged() {
    if !is_installed("puma") {
        return;
    }
    let command = ["puma", "--environment", "production", "--threads", "1:1", "--bind", "unix://{socket}", "config.ru"];
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("config.ru"), PUMA).unwrap();
        let more = format!("working_dir = {:?}\nready_path = \"/pid\"\nmax_requests = 20\n", dir.display().to_string());
        handoff_pool(1, &format!("{{ http = {} }}", toml_array(&command)), &more)
    });
    assert_serves(set);
}

const GO: &str = r#"
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

func main() {
	listener, err := net.Listen("unix", os.Getenv("PATOU_SOCKET"))
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/pid", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) })
	http.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		length, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, length)
	})
	http.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 1024; i++ {
			io.WriteString(w, strings.Repeat("x", 1024))
		}
	})
	panic(http.Serve(listener, nil))
}
"#;

#[test]
fn go_program_runs_unchanged() {
    if !is_installed("go") {
        return;
    }
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("main.go"), GO).unwrap();
        let mut build = Command::new("go");
        build.args(["build", "-o", "server", "main.go"]).current_dir(dir).env("GOCACHE", dir.join("cache"));
        assert!(build.status().unwrap().success());
        let command = toml_array(&[dir.join("server").to_str().unwrap(), "{socket}"]);
        handoff_pool(1, &format!("{{ http = {command} }}"), "ready_path = \"/pid\"\nmax_requests = 20\n")
    });
    assert_serves(set);
}
