//! The protocol of co-processes as patou-coprocess(7) describes it, and the example programs that speak it.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use support::*;

/// A pool behind a handoff listener that believes a proxy at 127.0.0.1.
fn pool(workers: u16, command: &[&str], more: &str) -> String {
    let handler = format!("{{ coprocess = {} }}", toml_array(command));
    let listener = "pool = \"default\"\ndelivery = \"handoff\"\nallowed_hosts = [\"*\"]\n\
                    trusted_proxies = [\"127.0.0.1\"]\n\n";
    one_pool(workers, &handler, more).replace("pool = \"default\"\n\n", listener)
}

fn example(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn head(method: &str, target: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\n{more}Connection: close\r\n\r\n")
}

/// One request with a body of known length.
fn send(address: SocketAddr, method: &str, target: &str, more: &str, body: &[u8]) -> HttpResponse {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = [head(method, target, &(length + more)).as_bytes(), body].concat();
    send_request(address, &request).unwrap()
}

/// One request with its body in chunks.
fn send_chunked(address: SocketAddr, target: &str, more: &str, chunks: &[&[u8]]) -> HttpResponse {
    let mut request = head("POST", target, &format!("Transfer-Encoding: chunked\r\n{more}")).into_bytes();
    for chunk in chunks {
        request.extend_from_slice(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    }
    request.extend_from_slice(b"0\r\n\r\n");
    send_request(address, &request).unwrap()
}

/// The response to HEAD, and what follows its head.
fn send_head(address: SocketAddr, target: &str) -> (HttpResponse, Vec<u8>) {
    let mut stream = connect(address);
    stream.write_all(head("HEAD", target, "").as_bytes()).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let (response, length) = HttpResponse::parse_head(&received).unwrap().unwrap();
    (response, received.split_off(length))
}

/// A frame of the transcript in patou-coprocess(7).
#[derive(Debug)]
struct Frame {
    is_by_worker: bool,
    bytes: String,
}

/// The frames in the transcript, in order. The page shows CRLF as the end of a line.
fn transcript() -> Vec<Frame> {
    let page = fs::read_to_string(format!("{}/packaging/man/patou-coprocess.7", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut frames = Vec::new();
    let mut rest = page.split_once("\n.Sh EXAMPLES\n").unwrap().1;
    while let Some((before, after)) = rest.split_once("\n.Bd -literal -offset indent\n") {
        let (block, after) = after.split_once("\n.Ed\n").unwrap();
        let by = before.lines().last().unwrap();
        assert!(by.ends_with("orker writes:") || by.ends_with("rocess writes:") || by == "It writes:", "{by}");
        let (head, body) = block.split_once("\n\n").unwrap_or((block.trim_end(), ""));
        let head = head.lines().map(|line| format!("{line}\r\n")).collect::<String>();
        frames.push(Frame { is_by_worker: by.ends_with("orker writes:"), bytes: format!("{head}\r\n{body}") });
        rest = after;
    }
    frames
}

/// The value of a field in a frame.
fn field<'f>(frame: &'f str, name: &str) -> &'f str {
    let line = frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {frame}"))
}

/// The process records what it gets, and writes what the page says.
const RECORDER: &str = "import json, sys\n\
    frames, record = json.load(open(sys.argv[1])), open(sys.argv[2], 'wb', 0)\n\
    requests, responses = open(3, 'rb'), open(4, 'wb', 0)\n\
    ready, ping, replies = frames[0], frames[-1], frames[1:-1]\n\
    responses.write(ready.encode())\n\
    while line := requests.readline():\n\
    \x20   frame, length = b'', 0\n\
    \x20   while line.strip():\n\
    \x20       name, value = line.split(b': ', 1)\n\
    \x20       if name == b'Content-Length': length = int(value)\n\
    \x20       frame, line = frame + line, requests.readline()\n\
    \x20   frame += line + requests.read(length)\n\
    \x20   record.write(b'%d\\n' % len(frame) + frame)\n\
    \x20   responses.write((ping if b'\\nPing: ' in frame else replies.pop(0)).encode())\n";

#[test]
fn worker_and_process_write_the_bytes_of_the_manual_page() {
    if !is_installed("python3") {
        return;
    }
    let frames = transcript();
    let order: Vec<bool> = frames.iter().map(|frame| frame.is_by_worker).collect();
    assert_eq!(order, [false, true, false, true, false, true, false], "{frames:?}");
    let mut record = None;
    let set = TestSet::start_with(|dir| {
        let file = |name: &str| dir.join(name).into_os_string().into_string().unwrap();
        let written: Vec<&str> = frames.iter().filter(|f| !f.is_by_worker).map(|f| f.bytes.as_str()).collect();
        fs::write(file("frames"), serde_json::to_string(&written).unwrap()).unwrap();
        let command = ["python3", "-c", RECORDER, &file("frames"), record.insert(file("record"))];
        pool(1, &command, "ready_frame = true\nping = \"3s\"")
    });
    let address = set.address(0);
    let port = address.port().to_string();
    // The clients that the page describes.
    let sign = "POST /sign?lang=fr HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: text/html\r\n\
                Accept: text/plain\r\nCookie: session=3f2a\r\nCookie: theme=dark\r\nX-Forwarded-For: 192.0.2.7\r\n\
                X-Forwarded-Proto: https\r\nX_Forwarded_For: 6.6.6.6\r\n\
                Connection: close, X-Hop\r\nX-Hop: 1\r\nProxy: evil:1\r\nPatou-Lease: 1\r\n\
                Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nname=\r\na\r\nAnna+Smith\r\n0\r\n\r\n";
    let signed = send_request(address, sign.as_bytes()).unwrap();
    assert_eq!((signed.status, signed.text().as_str()), (201, "Hello, Anna!"), "{}", set.log());
    assert_eq!(signed.head.matches("set-cookie: ").count(), 2, "{}", signed.head);
    let mut stream = connect(address);
    stream.write_all(b"HEAD /report HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut report = String::new();
    stream.read_to_string(&mut report).unwrap();
    assert!(report.contains("content-length: 48211\r\n") && report.ends_with("\r\n\r\n"), "{report}");

    let is_ping = |frame: &String| frame.contains("\r\nPing: 1\r\n");
    let recorded = || -> Vec<String> {
        let bytes = text(&fs::read(record.as_ref().unwrap()).unwrap());
        let (mut frames, mut rest) = (Vec::new(), bytes.as_str());
        while let Some((length, after)) = rest.split_once('\n') {
            let Some((frame, after)) = after.split_at_checked(length.parse().unwrap()) else { break };
            frames.push(frame.to_owned());
            rest = after;
        }
        frames
    };
    wait_until("the idle process is pinged", || recorded().iter().any(is_ping));
    let (pings, requests): (Vec<_>, Vec<_>) = recorded().into_iter().partition(is_ping);
    let mut expected: Vec<String> = frames.iter().filter(|f| f.is_by_worker).map(|f| f.bytes.clone()).collect();
    assert_eq!(pings[0], expected.pop().unwrap());
    // What differs from run to run.
    for (frame, real) in expected.iter_mut().zip(&requests) {
        *frame =
            frame.replace(&format!("Lease: {}", field(frame, "Lease")), &format!("Lease: {}", field(real, "Lease")));
    }
    expected[1] = expected[1].replace("Server-Port: 8080", &format!("Server-Port: {port}"));
    assert_eq!(requests, expected);
    set.stop();
}

#[test]
fn worker_offers_no_request_to_a_process_that_loads() {
    if !is_installed("python3") {
        return;
    }
    let mut set = TestSet::prepare("");
    let (gate, example) = (set.test_dir().join("gate"), example("coprocess.py"));
    let script = format!(
        "import os, runpy, time\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\n\
         open(4, 'wb', 0, closefd=False).write(b'Ready: 1\\n\\n')\nrunpy.run_path({example:?}, run_name='__main__')"
    );
    set.configure(&pool(1, &["python3", "-c", &script], "ready_frame = true"));
    set.run();
    set.wait_for_worker("default/1", "starting");
    let address = set.address(0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| send(address, "GET", "/", "", b""));
        set.wait_for("the client waits", |status| status["dispatcher"]["queue"] == 1);
        assert_eq!(set.worker("default/1")["state"], "starting");
        fs::write(&gate, "").unwrap();
        assert_eq!(waiting.join().unwrap().text(), "GET /: request 1, 0 bytes\n");
    });
    set.stop();
}

#[test]
fn frozen_idle_process_is_replaced_before_a_client_meets_it() {
    if !is_installed("python3") {
        return;
    }
    let set = TestSet::start(&pool(1, &["python3", &example("coprocess.py")], "ping = \"500ms\""));
    let worker = set.worker_pid("default/1");
    let process = children_of(worker)[0];
    assert_eq!(send(set.address(0), "GET", "/", "", b"").text(), "GET /: request 1, 0 bytes\n");
    signal_to(process, nix::sys::signal::Signal::SIGSTOP);
    set.wait_for_log(&["co-process", "ping"]);
    wait_until("the frozen process is gone", || !is_alive(process));
    assert_eq!(send(set.address(0), "GET", "/", "", b"").text(), "GET /: request 1, 0 bytes\n");
    let after = set.wait_for_worker("default/1", "idle");
    assert_eq!((after["restarts"].as_u64(), after["failed"].as_u64()), (Some(0), Some(0)), "{after}");
    set.stop();
}

#[test]
fn client_cannot_add_a_field() {
    if !is_installed("python3") {
        return;
    }
    let script = "requests, responses = open(3, 'rb'), open(4, 'wb', 0)\n\
        while line := requests.readline():\n\
        \x20   head = line\n\
        \x20   while line.strip(): line = requests.readline(); head += line\n\
        \x20   responses.write(b'Content-Length: %d\\r\\n\\r\\n' % len(head) + head)\n";
    let set = TestSet::start(&pool(1, &["python3", "-c", script], ""));
    let address = set.address(0);
    let target = "/%0d%0aLease:%209?a=%0aMethod:%20PUT";
    let headers = "X-A: b\tc: \u{e9}\r\nMethod: PUT\r\nLease: 9\r\nHttp-Lease: 9\r\nRemote-Address: 6.6.6.6\r\n";
    let seen = send(address, "GET", target, headers, b"").text();
    let lines: Vec<&str> = seen.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = [
        "Content-Length",
        "Method",
        "Target",
        "Scheme",
        "Remote-Address",
        "Server-Name",
        "Server-Port",
        "Lease",
        "Http-Host",
        "Http-X-A",
        "Http-Method",
        "Http-Lease",
        "Http-Http-Lease",
        "Http-Remote-Address",
        "",
    ];
    assert_eq!(lines, expected, "{seen}");
    assert_eq!((field(&seen, "Target"), field(&seen, "Remote-Address")), (target, "127.0.0.1"));
    for raw in ["X: a\rLease: 9\r\n", "X: a\0b\r\n", "X: a\r\n Lease: 9\r\n"] {
        let refused = send(address, "GET", "/", raw, b"");
        assert_eq!(refused.status, 400, "{raw:?}: {refused:?}");
    }
    set.stop();
}

/// With `ping` a process gets no request before it has responded to a ping.
#[test]
fn examples_in_three_languages_serve_requests_and_pings() {
    for (interpreter, file, expected) in [
        ("python3", "coprocess.py", "POST /x?y: request 1, 3000000 bytes\n"),
        ("node", "coprocess.js", "{\"method\":\"POST\",\"target\":\"/x?y\",\"agent\":\"a: b\",\"bytes\":3000000}\n"),
        ("perl", "coprocess.pl", "POST /x?y from a: b: 3000000 bytes\n"),
    ] {
        if !is_installed(interpreter) {
            continue;
        }
        let set = TestSet::start(&pool(1, &[interpreter, &example(file)], "ping = \"5s\""));
        let (address, body) = (set.address(0), vec![b'\n'; 3_000_000]);
        let response = send(address, "POST", "/x?y", "User-Agent: a: b\r\n", &body);
        assert_eq!((response.status, response.text().as_str()), (200, expected), "{file}\n{}", set.log());
        let chunked = send_chunked(address, "/x?y", "User-Agent: a: b\r\n", &[b"one\r\n\r\n", b"two"]);
        let expected = expected.replace("request 1", "request 2").replace("3000000", "10");
        assert_eq!(chunked.text(), expected, "{file}");
        assert_eq!(send(address, "GET", "/", "", b"").status, 200);
        let worker = set.wait_for_worker("default/1", "idle");
        assert_eq!((&worker["served"], &worker["failed"]), (&3.into(), &0.into()), "{file}");
        set.stop();
    }
}

const FLASK: &str = r#"
from flask import Flask, Response, request, session
application = Flask(__name__)
application.secret_key = 'a key for the test'
@application.get('/session')
def count():
    session['count'] = session.get('count', 0) + 1
    return str(session['count'])
@application.post('/form')
def form(): return f"{request.form['name']} {request.files['file'].read().decode() if request.files else '-'}"
@application.post('/json')
def json(): return {'sum': sum(request.get_json()['numbers'])}
@application.post('/upload')
def upload(): return str(len(request.get_data()))
@application.post('/unread')
def unread(): return 'unread'
@application.get('/client/<name>')
def client(name): return f"{name} {request.remote_addr} {request.scheme} {request.host} {request.cookies.get('theme')}"
@application.get('/stream')
def stream(): return Response((f'{n}\n' for n in range(3)), headers=[('X-A', '1'), ('X-A', '2')])
@application.get('/broken')
def broken(): raise RuntimeError('broken for the test')
"#;

const DJANGO: &str = r#"
import json as codec
from django.conf import settings
settings.configure(SECRET_KEY='a key for the test', ALLOWED_HOSTS=['*'], ROOT_URLCONF=__name__,
    SESSION_ENGINE='django.contrib.sessions.backends.signed_cookies',
    MIDDLEWARE=['django.contrib.sessions.middleware.SessionMiddleware', 'django.middleware.common.CommonMiddleware'])
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
def count(request):
    request.session['count'] = request.session.get('count', 0) + 1
    return HttpResponse(str(request.session['count']))
def form(request):
    files = request.FILES
    return HttpResponse(f"{request.POST['name']} {files['file'].read().decode() if files else '-'}")
def json(request): return JsonResponse({'sum': sum(codec.loads(request.body)['numbers'])})
def upload(request):
    return HttpResponse(str(len(request.read())))
def unread(request): return HttpResponse('unread')
def client(request, name):
    meta, cookie = request.META, request.COOKIES.get('theme')
    return HttpResponse(f"{name} {meta['REMOTE_ADDR']} {request.scheme} {request.get_host()} {cookie}")
def stream(request):
    response = StreamingHttpResponse(f'{n}\n' for n in range(3))
    response['X-A'] = '1, 2'
    return response
def broken(request): raise RuntimeError('broken for the test')
urlpatterns = [path('session', count), path('form', form), path('json', json), path('upload', upload),
    path('unread', unread), path('client/<name>', client), path('stream', stream), path('broken', broken)]
application = get_wsgi_application()
"#;

/// Debian's Python has Debian's packages; another one that comes first in PATH may not.
const PYTHON: &str = "/usr/bin/python3";

fn has_module(name: &str) -> bool {
    let found = Command::new(PYTHON).args(["-c", &format!("import {name}")]).output().is_ok_and(|o| o.status.success());
    if !found {
        is_installed(&format!("{PYTHON} with {name}")); // which it is not, and this says so
    }
    found
}

#[test]
fn flask_and_django_applications_run_unchanged() {
    for (module, source) in [("flask", FLASK), ("django", DJANGO)] {
        if has_module(module) {
            exercise(module, source);
        }
    }
}

fn exercise(module: &str, source: &str) {
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("site_of_the_test.py"), source).unwrap();
        let command = [PYTHON, &example("coprocess_wsgi.py"), "site_of_the_test:application"];
        let working_dir = dir.display().to_string();
        pool(2, &command, &format!("working_dir = {working_dir:?}\nping = \"5s\"\nmax_requests = 20\n"))
    });
    let address = set.address(0);
    // The session is kept over requests, workers and replaced processes.
    let mut cookie = String::new();
    for count in 1..=60 {
        let response = send(address, "GET", "/session", &cookie, b"");
        assert_eq!(response.text(), count.to_string(), "{module}: {}\n{}", response.head, set.log());
        cookie = format!("Cookie: {}\r\n", response.header("set-cookie").unwrap().split(';').next().unwrap());
    }
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    assert_eq!(send(address, "POST", "/form", form, b"name=Anna+Smith").text(), "Anna Smith -", "{module}");
    assert_eq!(send_chunked(address, "/form", form, &[b"name=An", b"na"]).text(), "Anna -", "{module}");
    let multipart = "--xx\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nAnna\r\n--xx\r\nContent-Disposition: \
                     form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\ncontent\r\n--xx--\r\n";
    let kind = "Content-Type: multipart/form-data; boundary=xx\r\n";
    assert_eq!(send(address, "POST", "/form", kind, multipart.as_bytes()).text(), "Anna content", "{module}");
    let json = send(address, "POST", "/json", "Content-Type: application/json\r\n", b"{\"numbers\": [1, 2, 39]}");
    assert_eq!((&json.json()["sum"], json.header("content-type")), (&42.into(), Some("application/json")), "{module}");
    let large = vec![b'x'; 5 << 20];
    assert_eq!(send(address, "POST", "/upload", "", &large).text(), large.len().to_string(), "{module}");
    assert_eq!(
        send_chunked(address, "/upload", "", &[&large, b"more"]).text(),
        (large.len() + 4).to_string(),
        "{module}"
    );
    for _ in 0..3 {
        assert_eq!(send(address, "POST", "/unread", "", &large).text(), "unread", "{module}");
    }

    let proxied = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nCookie: a=b\r\nCookie: theme=dark\r\n";
    let seen = send(address, "GET", "/client/caf%C3%A9", proxied, b"").text();
    assert_eq!(seen, "caf\u{e9} 192.0.2.7 https www.example.com dark", "{module}");
    let mut forged = connect_from([127, 0, 0, 2], address);
    forged.write_all(head("GET", "/client/x", proxied).as_bytes()).unwrap();
    assert_eq!(read_response(&mut forged).unwrap().text(), "x 127.0.0.2 http www.example.com dark", "{module}");

    let stream = send(address, "GET", "/stream", "", b"");
    assert_eq!(
        (stream.text().as_str(), stream.head.contains("x-a: ")),
        ("0\n1\n2\n", true),
        "{module}: {}",
        stream.head
    );
    let (length, (to_head, rest)) =
        (send(address, "GET", "/client/x", "", b"").body.len(), send_head(address, "/client/x"));
    let of_head = to_head.header("content-length").map(str::to_owned);
    assert_eq!((to_head.status, of_head, rest.len()), (200, Some(length.to_string()), 0), "{module}: {}", to_head.head);
    assert_eq!(send(address, "GET", "/none", "", b"").status, 404, "{module}");
    assert_eq!(send(address, "GET", "/broken", "", b"").status, 500, "{module}");
    let status = set.wait_for("all workers are idle", |status| {
        status["pools"][0]["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "idle")
    });
    for worker in status["pools"][0]["workers"].as_array().unwrap() {
        assert_eq!((&worker["failed"], &worker["restarts"]), (&0.into(), &0.into()), "{module}: {worker}");
    }
    assert!(!Path::new(&example("__pycache__")).exists());
    set.stop();
}

#[test]
fn wsgi_bridge_holds_no_large_response_in_memory() {
    if !is_installed(PYTHON) {
        return;
    }
    let source = "import os\ndef application(environ, start):\n  start('200 OK', [])\n  \
                  if environ['PATH_INFO'] == '/pid': return [b'%d' % os.getpid()]\n  \
                  return (b'x' * (1 << 20) for _ in range(128))\n";
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("large.py"), source).unwrap();
        let command = [PYTHON, &example("coprocess_wsgi.py"), "large:application"];
        pool(1, &command, &format!("working_dir = {:?}\n", dir.display().to_string()))
    });
    let address = set.address(0);
    let pid = send(address, "GET", "/pid", "", b"").text().parse().unwrap();
    let before = resident_kib(pid);
    assert_eq!(send(address, "GET", "/large", "", b"").body.len(), 128 << 20);
    let peak = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak =
        peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(peak.unwrap() < before + (16 << 10), "{before} KiB before, {peak:?} KiB at most");
    set.stop();
}

#[test]
fn wsgi_bridge_is_short() {
    let lines = fs::read_to_string(example("coprocess_wsgi.py")).unwrap().lines().count();
    assert!(lines <= 60, "{lines}");
}
