//! Redirect delivery as clients see it: the seven steps, and what happens when one of them fails.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

use support::*;

fn pool(name: &str, workers: u16, more: &str) -> String {
    format!("[[pool]]\nname = \"{name}\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\n{LONG_TIMEOUTS}{more}\n")
}

fn listener(address: &str, pool: &str, more: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\npool = \"{pool}\"\n{more}\n")
}

fn echo(workers: u16) -> String {
    listener("127.0.0.1:0", "default", "") + &pool("default", workers, "")
}

/// The authority and the uninterpreted target of a 307's `Location`.
fn redirect_of(response: &HttpResponse) -> (String, Vec<u8>) {
    assert_eq!(response.status, 307, "{response:?}");
    let (host, target) = response.location();
    (host.to_owned(), target.as_bytes().to_owned())
}

fn send_head(address: SocketAddr, line: &str, headers: &str) -> HttpResponse {
    send_request(address, format!("{line}\r\n{headers}\r\n").as_bytes()).unwrap()
}

#[test]
fn request_is_redirected_to_a_worker_and_stop_leaves_nothing() {
    let set = TestSet::start(ECHO);
    let address = set.address(0);
    let redirect = send_request(address, request_head("GET", "/hello?a=b", address, "").as_bytes()).unwrap();
    assert_eq!(redirect.status, 307);
    let location = redirect.header("location").unwrap();
    assert!(location.starts_with("http://127.0.0.1:") && location.ends_with("/hello?a=b"), "{location}");
    assert_eq!(redirect.header("connection"), Some("close"));

    let response = get(address, "/hello?a=b").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "GET /hello?a=b\n"));
    let body: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let response = request(address, "PUT", "/", &body).unwrap();
    assert!(response.status == 200 && response.body == body);
    set.stop();
}

#[test]
fn worker_is_leased_then_busy_then_idle() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let (worker, target) = request_lease(address, "/x").unwrap();
    set.wait_for("the worker is leased", |status| worker_of(status, "default/1")["state"] == "leased");
    let mut stream = connect(worker);
    stream.write_all(request_head("POST", &target, worker, "Content-Length: 2\r\n").as_bytes()).unwrap();
    set.wait_for("the worker is busy", |status| worker_of(status, "default/1")["state"] == "busy");
    stream.write_all(b"ok").unwrap();
    let response = read_response(&mut stream).unwrap();
    assert_eq!((response.status, response.text().as_str(), response.header("connection")), (200, "ok", Some("close")));
    let status = set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    assert_eq!(worker_of(&status, "default/1")["served"], 1);
    set.stop();
}

#[test]
fn location_has_the_host_of_the_request_and_the_port_of_the_worker() {
    let set = TestSet::start(&echo(6));
    let (address, port) = (set.address(0), set.address(0).port());
    let ports: Vec<String> = (1..=6)
        .map(|n| set.worker(&format!("default/{n}"))["address"].as_str().unwrap().rsplit(':').next().unwrap().into())
        .collect();
    let cases = [
        ("GET / HTTP/1.1", format!("Host: {address}\r\n"), "127.0.0.1"),
        ("GET / HTTP/1.1", "Host: localhost\r\n".into(), "localhost"),
        ("GET / HTTP/1.1", format!("Host: LocalHost:{port}\r\n"), "LocalHost"),
        ("GET / HTTP/1.1", "host:a.localhost:1\r\n".into(), "a.localhost"),
        ("GET / HTTP/1.1", "Host: [::1]\r\n".into(), "[::1]"),
        ("GET / HTTP/1.0", String::new(), "127.0.0.1"),
    ];
    for (line, headers, name) in cases {
        let (host, _) = redirect_of(&send_head(address, line, &headers));
        let (found, port) = host.rsplit_once(':').unwrap();
        assert_eq!(found, name, "{headers}");
        assert!(ports.contains(&port.to_owned()), "{port} of {ports:?}");
    }
    set.stop();
}

#[test]
fn ipv6_listener_redirects_to_an_ipv6_worker_and_back() {
    let toml = listener("[::1]:0", "default", "") + &pool("default", 1, "").replace("127.0.0.1:0", "[::1]:0");
    let set = TestSet::start(&toml);
    let address = set.address(0);
    assert!(address.is_ipv6());
    assert_eq!(get(address, "/six").unwrap().text(), "GET /six\n");
    let (host, target) = redirect_of(&send_head(address, "GET /old HTTP/1.0", ""));
    assert!(host.starts_with("[::1]:"), "{host}");
    // Without a Host header, to the worker and back.
    let worker: SocketAddr = host.parse().unwrap();
    let response = send_head(worker, "GET /stray HTTP/1.0", "");
    assert_eq!(redirect_of(&response), (address.to_string(), b"/stray".to_vec()));
    let response = send_head(worker, &format!("GET {} HTTP/1.0", text(&target)), "");
    assert_eq!(response.text(), "GET /old\n");
    let (worker, _) = request_lease(address, "/").unwrap();
    assert!(worker.is_ipv6());
    set.stop();
}

#[test]
fn redirects_preserve_the_target_exactly() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let long = format!("/{}?{}", "a".repeat(3000), "b".repeat(3000));
    let targets = [
        "/",
        "/?",
        "/?a=b&c=%2F&&=",
        "//evil",
        "//evil.example/x?//y",
        "///",
        "/%2e%2e/../a/./b//",
        "/%00%0d%0aX:%20y",
        "/a;b=c,d@e:f!$'()*+~",
        "/*",
        "/http://other.example/",
        "/.patou",
        "/.patoux/lease",
        "/x?/.patou/lease",
        &long,
    ];
    for target in targets {
        let (host, leased) =
            redirect_of(&send_head(address, &format!("GET {target} HTTP/1.1"), &format!("Host: {address}\r\n")));
        let leased = text(&leased);
        let token = leased.strip_prefix("/.patou/").unwrap().get(..32).unwrap();
        assert_eq!(leased, format!("/.patou/{token}{target}"));
        let worker = host.parse().unwrap();
        let response = send_request(worker, request_head("GET", &leased, worker, "").as_bytes()).unwrap();
        assert_eq!(response.text(), format!("GET {target}\n"));
        // A second use of the token redirects to the original target.
        let back = send_request(worker, request_head("GET", &leased, worker, "").as_bytes()).unwrap();
        assert_eq!(redirect_of(&back), (address.to_string(), target.as_bytes().to_vec()));
    }
    set.stop();
}

#[test]
fn absolute_and_asterisk_form_targets_reach_the_worker() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let follow = |method: &str, redirect: &HttpResponse| {
        let (host, target) = redirect_of(redirect);
        let worker: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
        let mut request = format!("{method} ").into_bytes();
        request.extend(&target);
        request.extend(format!(" HTTP/1.1\r\nHost: {worker}\r\n\r\n").as_bytes());
        send_request(worker, &request).unwrap().body
    };
    // Absolute form: its host replaces the Host header (RFC 9112, section 3.2.2).
    let redirect = send_head(address, "GET http://127.0.0.1:9/a?b HTTP/1.1", "Host: localhost\r\n");
    assert_eq!(follow("GET", &redirect), b"GET /a?b\n");
    let redirect = send_head(address, &format!("GET http://{address} HTTP/1.1"), "Host: localhost\r\n");
    assert_eq!(follow("GET", &redirect), b"GET /\n");
    let response = send_head(address, "GET http://evil.example/ HTTP/1.1", "Host: localhost\r\n");
    assert_eq!(response.status, 421, "{response:?}");
    // Asterisk form: `Location` is a URI without a path (section 3.2.4).
    let redirect = send_head(address, "OPTIONS * HTTP/1.1", &format!("Host: {address}\r\n"));
    assert_eq!(follow("OPTIONS", &redirect), b"OPTIONS *\n");
    let (host, _) = redirect_of(&redirect);
    let worker: SocketAddr = host.parse().unwrap();
    let back = send_head(worker, "OPTIONS * HTTP/1.1", &format!("Host: {worker}\r\n"));
    assert_eq!(redirect_of(&back), (address.to_string(), Vec::new()));
    assert_eq!(send_head(address, "GET * HTTP/1.1", "Host: localhost\r\n").status, 400);
    assert_eq!(send_head(address, "CONNECT localhost:80 HTTP/1.1", "Host: localhost:80\r\n").status, 501);
    // Non-ASCII bytes pass unchanged.
    let redirect = send_request(address, b"GET /caf\xc3\xa9?\xc3\xa9 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    assert_eq!(follow("GET", &redirect), b"GET /caf\xc3\xa9?\xc3\xa9\n");
    set.stop();
}

#[test]
fn every_method_reaches_the_worker() {
    let set = TestSet::start(&echo(3));
    let address = set.address(0);
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "BREW"] {
        assert_eq!(request(address, method, "/m", b"").unwrap().text(), format!("{method} /m\n"));
    }
    // A response to HEAD has no body, from the dispatcher and from the worker.
    let redirect = send_request(address, request_head("HEAD", "/m", address, "").as_bytes());
    let redirect = redirect.map(|r| (r.status, r.body.len()));
    let no_body = redirect.as_ref().is_err_and(|e| e.starts_with("0 of ")) || redirect == Ok((307, 0));
    assert!(no_body, "{redirect:?}");
    let (worker, target) = request_lease(address, "/m").unwrap();
    let mut stream = connect(worker);
    stream.write_all(request_head("HEAD", &target, worker, "").as_bytes()).unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    assert!(received.starts_with("HTTP/1.1 200") && received.ends_with("\r\n\r\n"), "{received}");
    set.stop();
}

/// Sends a body while reading the response; with `expect` only after a `100 Continue`.
fn upload(worker: SocketAddr, target: &str, framing: &str, body: Vec<u8>, expect: bool) -> HttpResponse {
    let mut stream = connect(worker);
    let more = format!("{framing}{}", if expect { "Expect: 100-continue\r\n" } else { "" });
    stream.write_all(request_head("POST", target, worker, &more).as_bytes()).unwrap();
    if expect {
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).unwrap();
        assert_eq!(text(&interim), "HTTP/1.1 100 Continue\r\n\r\n");
    }
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&body));
    let response = read_response(&mut stream).unwrap();
    sending.join().unwrap().unwrap();
    response
}

#[test]
fn bodies_of_every_size_reach_the_worker_once() {
    let set = TestSet::start(&echo(2));
    let address = set.address(0);
    for (size, expect) in [(0, false), (1, false), (1, true), (900_000, false), (900_000, true), (64 << 20, true)] {
        let body: Vec<u8> = (0..size as u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let framing = format!("Content-Length: {size}\r\n");
        // The dispatcher responds at once and never sends `100 Continue`.
        let more = format!("{framing}Expect: 100-continue\r\n");
        let mut stream = connect(address);
        stream.write_all(request_head("POST", "/up", address, &more).as_bytes()).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received.starts_with(b"HTTP/1.1 307 "), "{}", text(&received));
        let (host, target) = redirect_of(&read_response(&mut &received[..]).unwrap());
        let response = upload(host.parse().unwrap(), &text(&target), &framing, body.clone(), expect);
        assert_eq!(response.status, 200);
        if size == 0 {
            assert_eq!(response.text(), "POST /up\n");
        } else {
            assert!(response.body == body, "{} of {size} bytes came back", response.body.len());
        }
    }
    set.stop();
}

#[test]
fn chunked_bodies_reach_the_worker() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    for expect in [false, true] {
        let mut body = Vec::new();
        for size in [1usize, 10, 100_000, 3] {
            body.extend(format!("{size:X};x=\"y\"\r\n").as_bytes());
            body.extend(vec![b'a' + (size % 26) as u8; size]);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        let (worker, target) = request_lease(address, "/").unwrap();
        let response = upload(worker, &target, "Transfer-Encoding: chunked\r\n", body, expect);
        assert_eq!((response.status, response.body.len()), (200, 100_014));
    }
    set.stop();
}

#[test]
fn body_of_unknown_length_gets_411_instead_of_a_redirect() {
    let mut set = TestSet::prepare("");
    let unix = format!("[[listener]]\naddress = \"unix:{}\"\n\n", set.test_dir().join("http.sock").display());
    let more = listener("127.0.0.1:0", "default", "unknown_length = \"allow\"\n") + &unix;
    // A worker for each lease, which is not used.
    set.configure(&(echo(4).replace("[[pool]]", &format!("{more}[[pool]]"))));
    set.run();
    set.wait_until_up();
    let (address, allowing) = (set.address(0), set.address(1));
    let send = |address: SocketAddr, more: &str, body: &str| {
        let mut stream = connect(address);
        stream.write_all((request_head("POST", "/", address, more) + body).as_bytes()).unwrap();
        read_response(&mut stream).unwrap()
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    let refused = send(address, chunked, "2\r\nhi\r\n0\r\n\r\n");
    assert_eq!((refused.status, refused.header("patou-outcome")), (411, Some("not-started")));
    for alternative in ["Content-Length", "Expect: 100-continue", "/.patou/lease", "handoff"] {
        assert!(refused.text().contains(alternative), "{}", refused.text());
    }
    assert_eq!(send(address, &format!("{chunked}Expect: 100-Continue\r\n"), "").status, 307);
    assert_eq!(send(address, "Content-Length: 2\r\n", "hi").status, 307);
    assert_eq!(send(allowing, chunked, "2\r\nhi\r\n0\r\n\r\n").status, 307);
    let mut stream = UnixStream::connect(set.test_dir().join("http.sock")).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{chunked}\r\n2\r\nhi\r\n0\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().status, 200, "a lease");
    set.stop();
}

/// Why 411 is the default.
#[test]
fn python_requests_loses_a_generated_body_in_a_redirect() {
    let runs = |script: &str, argument: &str| Command::new("python3").args(["-c", script, argument]).output();
    if !runs("import requests", "").is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "python3-requests is missing");
        return eprintln!("SKIPPED: no python3-requests on this machine");
    }
    let set = TestSet::start(&echo(1).replace("[[pool]]", "unknown_length = \"allow\"\n\n[[pool]]"));
    let script =
        "import requests, sys\nr = requests.post(sys.argv[1], data=iter([b'hello']))\nprint(r.status_code, r.text)";
    let output = runs(script, &format!("http://{}/up", set.address(0))).unwrap();
    assert_eq!(text(&output.stdout), "200 \n", "an empty body came back");
    set.stop();
}

#[test]
fn request_with_a_stale_token_is_redirected_before_its_body() {
    let set = TestSet::start(&echo(1));
    let (address, token) = (set.address(0), "0".repeat(32));
    let (worker, _) = request_lease(address, "/").unwrap();
    let more = "Content-Length: 900000\r\nExpect: 100-continue\r\n";
    let mut stream = connect(worker);
    stream.write_all(request_head("PUT", &format!("/.patou/{token}/a"), worker, more).as_bytes()).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received.starts_with(b"HTTP/1.1 307 "), "{}", text(&received));
    set.stop();
}

#[test]
fn lease_request_gets_json() {
    let set = TestSet::start(&echo(2));
    let address = set.address(0);
    let response = send_request(address, request_head("POST", "/.patou/lease", address, "").as_bytes()).unwrap();
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let json = response.json();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["address", "expires_ms", "token", "worker"]);
    let id = json["worker"].as_str().unwrap();
    assert_eq!(set.worker(id)["address"], json["address"]);
    assert!((1..=30_000).contains(&json["expires_ms"].as_u64().unwrap()), "{json}");
    assert!(json["token"].as_str().unwrap().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));

    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let mut stream = connect(address);
        stream.write_all(request_head(method, "/.patou/lease", address, "").as_bytes()).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert!(received.starts_with("HTTP/1.1 405 "), "{received}");
        assert!(received.to_lowercase().contains("\r\nallow: post\r\n"), "{received}");
    }
    for target in ["/.patou/", "/.patou/x", "/.patou/lease/", "/.patou/leases", "/.patou/0123456789abcdef/a"] {
        let response = send_request(address, request_head("POST", target, address, "").as_bytes()).unwrap();
        assert_eq!(
            (response.status, response.header("content-type")),
            (404, Some("application/problem+json")),
            "{target}"
        );
    }
    let response = send_request(address, request_head("POST", "/.patou/lease?pool=x", address, "").as_bytes()).unwrap();
    assert_eq!(response.status, 200);
    set.stop();
}

#[test]
fn every_request_to_a_unix_redirect_listener_gets_a_lease() {
    let set = TestSet::prepare("");
    let path = set.test_dir().join("front.sock");
    let group = nix::unistd::getgid();
    let more = format!("mode = 0o606\ngroup = \"{group}\"");
    let toml = listener("127.0.0.1:0", "default", "")
        + &listener(&format!("unix:{}", path.display()), "default", &more)
        + &pool("default", 2, "");
    set.configure(&toml);
    let set = start(set);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.gid()), (0o606, group.as_raw()));
    for line in ["GET /a HTTP/1.1\r\nHost: any.example", "POST /.patou/lease HTTP/1.1\r\nHost: x", "PUT /b HTTP/1.0"] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(format!("{line}\r\n\r\n").as_bytes()).unwrap();
        let response = read_response(&mut stream).unwrap();
        assert_eq!(response.status, 200, "{response:?}");
        let json = response.json();
        let worker: SocketAddr = json["address"].as_str().unwrap().parse().unwrap();
        let target = format!("/.patou/{}/c", json["token"].as_str().unwrap());
        let response = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
        assert_eq!(response.text(), "GET /c\n");
    }
    set.stop();
    assert!(!path.exists());
}

fn start(mut set: TestSet) -> TestSet {
    set.run();
    set.wait_until_up();
    set
}

/// A set with one gated pool.
fn gated_set(workers: u16, more: &str) -> TestSet {
    let set = TestSet::prepare("");
    let keys = format!("{}\n{more}", recording_handler(&set));
    set.configure(&(listener("127.0.0.1:0", "default", "") + &pool("default", workers, &keys)));
    start(set)
}

#[test]
fn every_invalid_token_redirects_back_and_no_token_works_twice() {
    let set = gated_set(2, "queue_timeout = \"60s\"");
    let address = set.address(0);
    let (one, first) = request_lease(address, "/first").unwrap();
    let (two, other) = request_lease(address, "/other").unwrap();
    assert_ne!(one, two);
    let send = |worker: SocketAddr, method: &str, target: &str| {
        send_request(worker, request_head(method, target, worker, "").as_bytes()).unwrap()
    };
    // A token of another worker, an unknown token, a malformed token, no token.
    let back = |target: &str| (address.to_string(), target.as_bytes().to_vec());
    assert_eq!(redirect_of(&send(one, "DELETE", &other)), back("/other"));
    assert_eq!(redirect_of(&send(one, "GET", &format!("/.patou/{}/a?b", "f".repeat(32)))), back("/a?b"));
    assert_eq!(redirect_of(&send(one, "GET", &first.to_uppercase().replace("/.PATOU", "/.patou"))), back("/FIRST"));
    assert_eq!(redirect_of(&send(one, "GET", "/plain?q")), back("/plain?q"));
    assert_eq!(redirect_of(&send(one, "GET", "//evil/")), back("//evil/"));
    let response = send(one, "GET", "/plain");
    assert_eq!(response.header("patou-outcome"), Some("not-started"));
    assert!(started_paths(&set).is_empty());

    // A used token of a running request.
    let running = std::thread::spawn(move || send_request(one, request_head("GET", &first, one, "").as_bytes()));
    set.wait_for("the first request runs", |_| started_paths(&set) == ["/first"]);
    let used = other.replace("/other", "/again");
    let second_running = std::thread::spawn(move || send_request(two, request_head("GET", &other, two, "").as_bytes()));
    set.wait_for("the second request runs", |_| started_paths(&set).len() == 2);
    for _ in 0..20 {
        assert_eq!(redirect_of(&send(two, "GET", &used)), back("/again"));
    }
    assert_eq!(started_paths(&set).len(), 2);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /first");
    assert_eq!(second_running.join().unwrap().unwrap().text(), "done /other");
    // A used token of a finished request. The target of its redirect is served.
    assert_eq!(redirect_of(&send(two, "GET", &used)), back("/again"));
    assert_eq!(get(address, "/again").unwrap().text(), "done /again");
    assert_eq!(started_paths(&set).len(), 3);
    set.stop();
}

#[test]
fn request_without_a_matching_host_is_redirected_to_the_listener_address() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let (worker, _) = request_lease(address, "/").unwrap();
    let back = (address.to_string(), b"/a?b".to_vec());
    assert_eq!(redirect_of(&send_head(worker, "GET /a?b HTTP/1.0", "")), back);
    assert_eq!(redirect_of(&send_head(worker, "GET http://127.0.0.1/a?b HTTP/1.1", "Host: other\r\n")), back);
    set.stop();
}

#[test]
fn unused_lease_expires_and_its_peer_gets_one_lease_at_a_time() {
    let more = "claim_timeout = \"500ms\"\noffer_timeout = \"500ms\"\nqueue_timeout = \"60s\"";
    let pool = pool("default", 2, "").replace(LONG_TIMEOUTS, "") + more;
    let set = TestSet::start(&(listener("127.0.0.1:0", "default", "") + &pool));
    let address = set.address(0);
    let (worker, target) = request_lease(address, "/late").unwrap();
    set.wait_for_log(&["not claimed within claim_timeout"]);
    set.wait_for("the worker is idle", |status| worker_of(status, "default/1")["state"] == "idle");
    let back = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    assert_eq!(redirect_of(&back), (address.to_string(), b"/late".to_vec()));
    // This peer may have one unused lease, although two workers are idle; its next request is queued.
    let _unused = request_lease(address, "/").unwrap();
    let mut second = connect(address);
    second.write_all(request_head("GET", "/second", address, "").as_bytes()).unwrap();
    set.wait_for("the second request is queued", |status| status["dispatcher"]["queue"] == 1);
    // Another peer is served first.
    let mut other = connect_from([127, 0, 0, 2], address);
    other.write_all(request_head("GET", "/other", address, "").as_bytes()).unwrap();
    assert_eq!(read_response(&mut other).unwrap().status, 307);
    // The second request is served when the first lease expires.
    assert_eq!(read_response(&mut second).unwrap().status, 307);
    set.stop();
}

#[test]
fn each_listener_serves_its_own_pool() {
    let print = |body: &str| {
        format!("handler = {{ exec = [\"sh\", \"-c\", \"printf 'Content-Type: text/plain\\\\n\\\\n{body}'\"] }}")
    };
    let toml = listener("127.0.0.1:0", "one", "")
        + &listener("127.0.0.1:0", "two", "allowed_hosts = [\"two.example\"]")
        + &listener("[::1]:0", "three", "")
        + &pool("one", 1, "")
        + &pool("two", 2, &print("two"))
        + &pool("three", 1, &print("three")).replace("127.0.0.1:0", "[::1]:0");
    let set = TestSet::start(&toml);
    let [one, two, three] = [0, 1, 2].map(|index| set.address(index));
    for _ in 0..3 {
        assert_eq!(get(one, "/1").unwrap().text(), "GET /1\n");
        assert_eq!(get(three, "/3").unwrap().text(), "three");
        assert_eq!(get(two, "/2").unwrap().status, 421);
        let redirect = send_head(two, "GET /2 HTTP/1.1", "Host: Two.Example:80\r\n");
        let (host, target) = redirect_of(&redirect);
        let port = host.strip_prefix("Two.Example:").unwrap();
        let worker: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let response = send_request(worker, request_head("GET", &text(&target), worker, "").as_bytes()).unwrap();
        assert_eq!(response.text(), "two");
        // A worker redirects to its own listener, under the host of the request.
        let back = send_head(worker, "GET /2 HTTP/1.1", "Host: two.example:1\r\n");
        assert_eq!(redirect_of(&back).0, format!("two.example:{}", two.port()));
    }
    set.stop();
}

/// In every framing an incomplete response is recognisable.
#[test]
fn incomplete_response_ends_with_a_reset() {
    let set = TestSet::prepare("");
    let fifo = set.test_dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("printf 'Content-Type: text/plain\\n\\nhalf'; read x < {}; kill -9 $$", fifo.display());
    let handler = format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}");
    set.configure(&(listener("127.0.0.1:0", "default", "") + &pool("default", 1, &handler)));
    let set = start(set);
    let address = set.address(0);
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let (worker, target) = request_lease(address, "/").unwrap();
        let mut stream = connect(worker);
        stream.write_all(format!("GET {target} {version}\r\nHost: {worker}\r\n\r\n").as_bytes()).unwrap();
        let mut received = Vec::new();
        let mut buffer = [0; 512];
        while !text(&received).contains("half") {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "{}", text(&received));
            received.extend(&buffer[..count]);
        }
        std::fs::write(&fifo, "x\n").unwrap();
        let end = stream.read_to_end(&mut received);
        let reset = end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(reset, "{version}: {}", text(&received));
    }
    set.stop();
}
