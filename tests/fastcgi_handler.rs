//! The handler `fastcgi`: PHP, a program with libfcgi, and applications that break the protocol.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;

/// A pool behind a handoff listener; `more` are further keys of the pool.
fn pool(workers: u16, handler: &str, more: &str) -> String {
    one_pool(workers, handler, more).replace("pool = \"default\"\n\n", "pool = \"default\"\ndelivery = \"handoff\"\n\n")
}

/// One request on a connection of its own; `more` are further lines of its head.
fn send(address: SocketAddr, method: &str, target: &str, more: &str, body: &[u8]) -> Result<HttpResponse, String> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = request_head(method, target, address, &format!("{length}{more}Connection: close\r\n"));
    send_request(address, &[head.as_bytes(), body].concat())
}

fn fetch(set: &TestSet, target: &str) -> HttpResponse {
    send(set.address(0), "GET", target, "", b"").unwrap_or_else(|error| panic!("{target}: {error}\n{}", set.log()))
}

fn outcome(response: &HttpResponse) -> (u16, &str) {
    (response.status, response.header("patou-outcome").unwrap_or(""))
}

/// The one process that the only worker has started.
fn application(set: &TestSet) -> u32 {
    let pid = wait_for_value("an application", || children_of(set.worker_pid("default/1")).first().copied());
    set.wait_for_worker("default/1", "idle");
    pid
}

const SCRIPTS: &[(&str, &str)] = &[
    ("index.php", "<?php echo json_encode(['index', $_SERVER]);"),
    ("vars.php", "<?php echo json_encode($_SERVER);"),
    ("form.php", "<?php echo json_encode([$_GET, $_POST, strlen(file_get_contents('php://input'))]);"),
    ("upload.php", "<?php $f = $_FILES['f']; echo $f['name'], ' ', $f['size'], ' ', md5_file($f['tmp_name']);"),
    ("session.php", "<?php session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; echo $_SESSION['n'];"),
    ("exit.php", "<?php http_response_code(404); echo 'a page that is not there'; exit(1);"),
    ("fatal.php", "<?php error_log('before the fault'); function_that_is_missing();"),
    ("raw.php", "<?php $in = file_get_contents('php://input'); echo strlen($in), ' ', md5($in);"),
    ("redirect.php", "<?php header('Location: /there'); header('X-A: 1'); header('X-A: 2', false);"),
    ("local.php", "<?php setcookie('a', 'b'); header('Location: ' . $_GET['to'], true, 200);"),
    ("empty.php", "<?php http_response_code(204);"),
    ("large.php", "<?php for ($i = 0; $i < 128; $i++) echo str_repeat(chr(65 + $i % 26), 65536);"),
    ("length.php", "<?php header('Content-Length: 9'); echo 'half'; flush(); shell_exec('kill -9 ' . getmypid());"),
    ("cut.php", "<?php echo 'half'; flush(); usleep(50000); shell_exec('kill -9 ' . getmypid());"),
    ("slow.php", "<?php usleep(500000); echo getmypid();"),
    ("stuck.php", "<?php while (true) sleep(1);"),
    ("pid.php", "<?php echo getmypid();"),
    ("upload.jpg", "<?php echo 'never';"),
    ("dir/index.php", "<?php echo 'in dir ', $_SERVER['SCRIPT_NAME'];"),
];

/// A pool of php-cgi with [`SCRIPTS`]; `None` if PHP is not installed.
fn php(workers: u16, keys: &str, more: &str) -> Option<TestSet> {
    is_installed("php-cgi").then(|| {
        TestSet::start_with(|dir| {
            for (name, text) in SCRIPTS {
                let file = dir.join("www").join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            let (root, sessions) = (dir.join("www"), dir.join("sessions"));
            fs::create_dir_all(&sessions).unwrap();
            let command = toml_array(&[
                "php-cgi",
                "-d",
                &format!("session.save_path={}", sessions.display()),
                "-d",
                "post_max_size=64M",
                "-d",
                "upload_max_filesize=64M",
                "-d",
                "log_errors=1",
                "-d",
                "output_buffering=0",
                "-d",
                "display_errors=0",
            ]);
            let handler = format!("{{ fastcgi = {command}, root = \"{}\"{keys} }}", root.display());
            pool(workers, &handler, more)
        })
    })
}

fn md5(bytes: &[u8]) -> String {
    let mut child = Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    text(&output.stdout)[..32].to_owned()
}

#[test]
fn php_scripts_run_as_in_any_other_server() {
    let Some(set) = php(1, ", index = \"index.php\"", "request_timeout = \"20s\"") else { return };
    let address = set.address(0);
    let root = set.test_dir().join("www");
    // The variables of a script, with what follows its name.
    let vars = send(address, "GET", "/vars.php/more%20path?a=b", "X-Test: 1\r\n", b"").unwrap().json();
    for (name, value) in [
        ("SCRIPT_NAME", "/vars.php"),
        ("PATH_INFO", "/more path"),
        ("QUERY_STRING", "a=b"),
        ("REQUEST_URI", "/vars.php/more%20path?a=b"),
        ("PHP_SELF", "/vars.php/more path"),
        ("HTTP_X_TEST", "1"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("DOCUMENT_ROOT", root.to_str().unwrap()),
        ("SCRIPT_FILENAME", root.join("vars.php").to_str().unwrap()),
    ] {
        assert_eq!(vars[name], value, "{name}: {vars}");
    }
    // The front controller, the index of a directory, and what is neither.
    let front = fetch(&set, "/blog/2026?x=1").json();
    assert_eq!(
        (&front[0], &front[1]["SCRIPT_NAME"], &front[1]["PATH_INFO"]),
        (&"index".into(), &"/index.php".into(), &"/blog/2026".into())
    );
    assert_eq!(fetch(&set, "/").json()[1]["SCRIPT_NAME"], "/index.php");
    assert_eq!(fetch(&set, "/dir/").text(), "in dir /dir/index.php");
    assert_eq!(fetch(&set, "/dir?q=1").header("location"), Some("/dir/?q=1"));
    for target in
        ["/upload.jpg", "/upload.jpg/x.php", "/a/../pid.php", "/%2e%2e/x.php", "/a%2fb.php", "/pid.php%00.jpg"]
    {
        let refused = fetch(&set, target);
        assert_eq!(outcome(&refused), (404, "not-started"), "{target}: {}", refused.text());
    }
    // Forms, also one of unknown length.
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let posted = send(address, "POST", "/form.php?q=1", form, b"name=J%C3%BCrgen&n=2").unwrap();
    assert_eq!(posted.text(), "[{\"q\":\"1\"},{\"name\":\"J\\u00fcrgen\",\"n\":\"2\"},20]");
    let head = request_head(
        "POST",
        "/form.php",
        address,
        &format!("{form}Transfer-Encoding: chunked\r\nConnection: close\r\n"),
    );
    let chunked = send_request(address, format!("{head}3\r\na=b\r\n4\r\n&c=d\r\n0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(chunked.text(), "[[],{\"a\":\"b\",\"c\":\"d\"},7]");
    // An upload, and 8 MiB.
    let file: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let mut multipart = b"--xx\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.bin\"\r\n\r\n".to_vec();
    multipart.extend_from_slice(&file);
    multipart.extend_from_slice(b"\r\n--xx--\r\n");
    let uploaded =
        send(address, "POST", "/upload.php", "Content-Type: multipart/form-data; boundary=xx\r\n", &multipart);
    assert_eq!(uploaded.unwrap().text(), format!("a.bin 300000 {}", md5(&file)));
    let body: Vec<u8> = (0..8 << 20u32).map(|n| (n % 253) as u8).collect();
    let raw = send(address, "POST", "/raw.php", "", &body).unwrap();
    assert_eq!(raw.text(), format!("{} {}", 8 << 20, md5(&body)));
    let large = fetch(&set, "/large.php");
    assert_eq!((large.body.len(), large.body[65536], large.body[8 << 20 >> 1]), (8 << 20, b'B', b'M'));
    // A session over several requests.
    let first = fetch(&set, "/session.php");
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for n in 2..5 {
        let next = send(address, "GET", "/session.php", &format!("Cookie: {cookie}\r\n"), b"").unwrap();
        assert_eq!(next.text(), n.to_string());
    }
    // What exit(1) follows is complete, and a fault is PHP's own 500.
    let missing = fetch(&set, "/exit.php");
    assert_eq!((missing.status, missing.text().as_str()), (404, "a page that is not there"));
    assert_eq!(fetch(&set, "/fatal.php").status, 500);
    set.wait_for_log(&["before the fault"]);
    set.wait_for_log(&["PHP Fatal error:  Uncaught Error: Call to undefined function function_that_is_missing()"]);
    let redirect = fetch(&set, "/redirect.php");
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("/there")));
    assert_eq!(redirect.head.to_lowercase().matches("x-a: ").count(), 2, "{}", redirect.head);
    // A local redirect, also to a directory, and to what is not there: the script that redirects has run.
    let local = |to: &str| fetch(&set, &format!("/local.php?to={to}"));
    assert_eq!(local("/pid.php").text(), application(&set).to_string());
    let directory = local("/dir");
    assert_eq!((directory.status, directory.header("location")), (301, Some("/dir/")));
    assert_eq!(directory.header("set-cookie"), Some("a=b"));
    assert_eq!(outcome(&local("/upload.jpg")), (404, "started-unknown"));
    assert_eq!(outcome(&local("/%25zz")), (404, "started-unknown"));
    assert_eq!(fetch(&set, "/empty.php").status, 204);
    let head = send(address, "HEAD", "/large.php", "", b"").unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    // All of this was one process.
    let pid = application(&set);
    assert_eq!(fetch(&set, "/pid.php").text(), pid.to_string());
    assert_eq!(set.worker("default/1")["restarts"], 0);
    // What clients look for is no failure of a worker.
    assert_eq!(set.worker("default/1")["failed"], 0, "{}", set.log());
    set.stop();
}

#[test]
fn death_of_php_is_visible_and_idle_ones_cost_nothing() {
    let Some(set) = php(1, "", "request_timeout = \"1s\"\nping = \"400ms\"\nqueue_timeout = \"20s\"") else { return };
    // A cut is no complete response, with and without a length.
    for target in ["/cut.php", "/length.php"] {
        let cut = send(set.address(0), "GET", target, "", b"");
        assert!(cut.is_err(), "{target}: {:?}", cut.map(|response| response.text()));
    }
    // Killed while it is idle: not even the next request learns of it.
    let pid = application(&set);
    signal_to(pid, Signal::SIGKILL);
    let next = fetch(&set, "/pid.php");
    assert_eq!(next.status, 200, "{}", next.text());
    assert_ne!(next.text(), pid.to_string());
    // Killed at work, and stopped at work.
    let pid = application(&set);
    let address = set.address(0);
    let slow = std::thread::spawn(move || send(address, "GET", "/slow.php", "", b"").unwrap());
    set.wait_for_worker("default/1", "busy");
    std::thread::sleep(Duration::from_millis(100));
    signal_to(pid, Signal::SIGKILL);
    assert_eq!(outcome(&slow.join().unwrap()), (502, "started-unknown"));
    let pid = application(&set);
    assert_eq!(outcome(&fetch(&set, "/stuck.php")), (504, "started-unknown"));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let pid = application(&set);
    let slow = std::thread::spawn(move || send(address, "GET", "/slow.php", "", b"").unwrap());
    set.wait_for_worker("default/1", "busy");
    std::thread::sleep(Duration::from_millis(100));
    signal_to(pid, Signal::SIGSTOP);
    assert_eq!(outcome(&slow.join().unwrap()), (504, "started-unknown"));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // Frozen while it is idle: the ping finds it.
    let pid = application(&set);
    signal_to(pid, Signal::SIGSTOP);
    set.wait_for_log(&["has not responded to a ping for 400ms"]);
    let since = Instant::now();
    assert_ne!(fetch(&set, "/pid.php").text(), pid.to_string());
    assert!(since.elapsed() < Duration::from_secs(8));
    // No file leads to its socket, so none can be lost.
    let pid = application(&set);
    fs::remove_dir_all(set.runtime_dir()).unwrap();
    assert_eq!(fetch(&set, "/pid.php").text(), pid.to_string());
    signal_to(pid, Signal::SIGKILL);
    assert_eq!(fetch(&set, "/pid.php").status, 200);
    assert_eq!(set.worker("default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}

#[test]
fn planned_end_of_php_loses_no_request() {
    let Some(set) = php(2, "", "environment = { PHP_FCGI_MAX_REQUESTS = \"7\" }") else { return };
    let address = set.address(0);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(move || {
                let one = |_| send(address, "GET", "/pid.php", "", b"").map(|r| (r.status, r.text()));
                (0..120).map(one).collect::<Vec<_>>()
            })
        })
        .collect();
    let all: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let failed: Vec<_> = all.iter().filter(|result| !matches!(result, Ok((200, _)))).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", set.log());
    // Each process had its 7 requests.
    let mut per_process = std::collections::BTreeMap::<&str, u32>::new();
    all.iter().flatten().for_each(|(_, pid)| *per_process.entry(pid).or_default() += 1);
    assert!(per_process.len() >= 360 / 7 && per_process.values().all(|count| *count <= 7), "{per_process:?}");
    assert!(!set.log().contains("failed"), "{}", set.log());
    set.stop();
}

/// An application on libfcgi, which ends by itself after the third request.
const LIBFCGI: &str = r#"
#include <fcgiapp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    FCGX_Request r;
    int count = 0;
    FCGX_Init();
    FCGX_InitRequest(&r, 0, 0);
    while (FCGX_Accept_r(&r) >= 0) {
        const char *path = FCGX_GetParam("PATH_INFO", r.envp), *length = FCGX_GetParam("CONTENT_LENGTH", r.envp);
        if (!strcmp(path, "/again")) {
            FCGX_FPrintF(r.out, "Location: /there?x=1\r\nSet-Cookie: a=b\r\n\r\n");
        } else if (!strcmp(path, "/status")) {
            FCGX_FPrintF(r.out, "Content-Type: text/plain\r\n\r\nincomplete");
            FCGX_SetExitStatus(3, r.out);
        } else if (!strcmp(path, "/status-complete")) {
            FCGX_FPrintF(r.out, "Content-Type: text/plain\r\nContent-Length: 8\r\n\r\ncomplete");
            FCGX_SetExitStatus(3, r.out);
        } else if (!strcmp(path, "/echo")) {
            char piece[4096]; int n;
            FCGX_FPrintF(r.out, "Content-Type: text/plain\r\nContent-Length: %s\r\n\r\n", length);
            while ((n = FCGX_GetStr(piece, sizeof piece, r.in)) > 0) FCGX_PutStr(piece, n, r.out);
        } else {
            FCGX_FPrintF(r.err, "a message\nof two lines");
            FCGX_FPrintF(r.out, "Content-Type: text/plain\r\n\r\n%d [%s] [%s] %s", getpid(),
                         FCGX_GetParam("SCRIPT_NAME", r.envp), path, FCGX_GetParam("QUERY_STRING", r.envp));
        }
        FCGX_Finish_r(&r);
        if (getenv("LIMIT") && ++count == atoi(getenv("LIMIT"))) { usleep(20000); return 0; }
    }
    return 0;
}
"#;

/// The path of the compiled program; `None` without a compiler or the library.
fn libfcgi(dir: &Path) -> Option<String> {
    let (source, program) = (dir.join("app.c"), dir.join("app"));
    fs::write(&source, LIBFCGI).unwrap();
    if !is_installed("cc") || !Path::new("/usr/include/fcgiapp.h").exists() {
        return None;
    }
    let compiled = Command::new("cc").arg("-o").arg(&program).arg(&source).arg("-lfcgi").output().unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    Some(program.to_str().unwrap().to_owned())
}

#[test]
fn program_with_libfcgi_gets_the_whole_path_and_may_end_after_any_request() {
    let mut set = TestSet::prepare("");
    let Some(program) = libfcgi(set.test_dir()) else {
        assert!(std::env::var_os("CI").is_none(), "libfcgi-dev is missing");
        return;
    };
    let handler = format!("{{ fastcgi = [\"{program}\"] }}");
    set.configure(&pool(1, &handler, "environment = { LIMIT = \"3\" }\nping = \"300ms\""));
    set.run();
    set.wait_until_up();
    let response = fetch(&set, "/a%20b/c?q=1");
    assert!(response.text().ends_with(" [] [/a b/c] q=1"), "{}", response.text());
    set.wait_for_log(&["warning: a message", "lease=1.1"]);
    set.wait_for_log(&["warning: of two lines"]);
    let redirected = fetch(&set, "/again");
    assert!(redirected.text().ends_with(" [] [/there] x=1"), "{}", redirected.text());
    assert_eq!(redirected.header("set-cookie"), Some("a=b"));
    // It ends 20 ms after each third response, and no request is lost.
    let pids: std::collections::BTreeSet<_> = (0..60)
        .map(|_| {
            let response = fetch(&set, "/x");
            assert_eq!(response.status, 200, "{}\n{}", response.text(), set.log());
            response.text().split(' ').next().unwrap().to_owned()
        })
        .collect();
    assert!(pids.len() >= 20, "{pids:?}");
    let body = vec![b'x'; 3 << 20];
    assert!(send(set.address(0), "POST", "/echo", "", &body).unwrap().body == body);
    assert!(send(set.address(0), "GET", "/status", "", b"").is_err(), "a status other than 0 is a failure");
    assert_eq!(fetch(&set, "/status-complete").text(), "complete");
    assert!(!set.log().contains("failed ("), "{}", set.log());
    assert_eq!(set.worker("default/1")["restarts"], 0);
    // The same with a connection that is kept: it does not get a fourth request.
    let counted = "environment = { LIMIT = \"3\", PHP_FCGI_MAX_REQUESTS = \"3\" }";
    set.configure(&pool(1, &handler, counted));
    assert!(set.patou(&["reload"]).status.success());
    for _ in 0..30 {
        let response = fetch(&set, "/x");
        assert_eq!(response.status, 200, "{}\n{}", response.text(), set.log());
    }
    set.configure(&pool(1, &handler, "exit_status = \"ignore\""));
    assert!(set.patou(&["reload"]).status.success());
    wait_until("the status is ignored", || {
        send(set.address(0), "GET", "/status", "", b"").is_ok_and(|response| response.text() == "incomplete")
    });
    set.stop();
}

/// An application that does what the target demands. It knows no management records.
const APPLICATION: &str = r#"
import os, socket, struct, sys, time
s = socket.socket(fileno=0)
def receive(c, n):
    data = b''
    while len(data) < n:
        piece = c.recv(n - len(data))
        if not piece: raise EOFError
        data += piece
    return data
def record(kind, content=b'', request=1): return struct.pack('>BBHHBB', 1, kind, request, len(content), 3, 0) + content + b'xyz'
def out(text): return record(6, text)
def end(app=0, status=0): return record(3, struct.pack('>IB3x', app, status))
while True:
    c, _ = s.accept()
    try:
        params = b''
        while True:
            _, kind, _, n, pad, _ = struct.unpack('>BBHHBB', receive(c, 8))
            content = receive(c, n); receive(c, pad)
            if kind == 4: params += content
            if kind == 4 and not n: break
        at = params.index(b'PATH_INFO') + 9
        target = params[at:at + params[params.index(b'PATH_INFO') - 1]].decode()
        head = b'Content-Type: text/plain\r\n\r\n'
        if target == '/': c.sendall(out(head) + out(str(os.getpid()).encode()) + record(6) + end())
        elif target == '/bytes':
            for byte in out(head + b'slowly') + end(): c.sendall(bytes([byte])); time.sleep(0.001)
        elif target == '/overloaded': c.sendall(end(0, 2))
        elif target == '/multiplex': c.sendall(end(0, 1))
        elif target == '/role': c.sendall(end(0, 3))
        elif target == '/status': c.sendall(end(0, 9))
        elif target == '/garbage': c.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
        elif target == '/close': pass
        elif target == '/no-head': c.sendall(out(b'Content-Type: text/plain\r\n') + end())
        elif target == '/no-end': c.sendall(out(head + b'half'))
        elif target == '/short': c.sendall(out(b'Content-Length: 9\r\n' + head + b'half') + end())
        elif target == '/long': c.sendall(out(b'Content-Length: 4\r\n' + head + b'four and more') + end())
        elif target == '/other': c.sendall(record(6, b'X: 1\r\n\r\n', 2) + record(99, b'abc') + record(10, b'', 0) + out(head + b'mine') + end())
        elif target == '/stuck': time.sleep(1000)
        elif target == '/zero': os._exit(0)
        elif target == '/endless':
            c.sendall(out(head))
            while True: c.sendall(out(b'event')); time.sleep(0.05)
    except (OSError, EOFError): pass
    c.close()
"#;

#[test]
fn faults_of_an_application_are_never_complete_responses() {
    if !is_installed("python3") {
        return;
    }
    let command = toml_array(&["python3", "-c", APPLICATION]);
    let set =
        TestSet::start(&pool(1, &format!("{{ fastcgi = {command} }}"), "ping = \"500ms\"\nrequest_timeout = \"30s\""));
    // It does not reply to FCGI_GET_VALUES, and is ready when it accepts.
    let first = fetch(&set, "/").text();
    assert_eq!(fetch(&set, "/bytes").text(), "slowly");
    assert_eq!(fetch(&set, "/other").text(), "mine");
    assert_eq!(fetch(&set, "/long").text(), "four");
    set.wait_for_log(&["wrote more than its Content-Length"]);
    for (target, expected) in [
        ("/overloaded", (503, "not-started")),
        ("/multiplex", (503, "not-started")),
        ("/role", (502, "not-started")),
        ("/close", (502, "started-unknown")),
        ("/no-head", (502, "started-unknown")),
    ] {
        let response = fetch(&set, target);
        assert_eq!(outcome(&response), expected, "{target}: {}", response.text());
    }
    for target in ["/no-end", "/short"] {
        let cut = send(set.address(0), "GET", target, "", b"");
        assert!(cut.is_err(), "{target}: {:?}", cut.map(|response| response.text()));
    }
    assert_eq!(fetch(&set, "/").text(), first, "it can continue: {}", set.log());
    let mut pid = first;
    for target in ["/garbage", "/status", "/zero"] {
        assert_eq!(outcome(&fetch(&set, target)), (502, "started-unknown"), "{target}");
        let next = fetch(&set, "/").text();
        assert_ne!(next, pid, "{target}");
        pid = next;
    }
    set.wait_for_log(&["it exited with status 0 before the end of its response"]);
    // A client that leaves within its body, and one that leaves an endless response.
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("POST", "/stuck", set.address(0), "Content-Length: 100\r\n").as_bytes()).unwrap();
    stream.write_all(b"a part").unwrap();
    set.wait_for_worker("default/1", "busy");
    close_with_reset(stream);
    assert_ne!(fetch(&set, "/").text(), pid, "it would have taken the part for the whole");
    let mut stream = connect(set.address(0));
    stream.write_all(request_head("GET", "/endless", set.address(0), "").as_bytes()).unwrap();
    stream.read_exact(&mut [0; 300]).unwrap();
    drop(stream);
    set.wait_for_log(&["failed (its response continues 5s after its client has left): replacing it"]);
    assert_eq!(fetch(&set, "/").status, 200);
    assert_eq!(set.worker("default/1")["restarts"], 0, "{}", set.log());
    set.stop();
}
