//! Redirect delivery from outside: the seven steps, and what happens when one of them does not.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use support::*;

/// Times that no busy machine meets by accident; a stop waits for leases that nobody has used.
const PATIENT: &str = "offer_timeout = \"5s\"\nclaim_timeout = \"5s\"\nrequest_timeout = \"60s\"\n";

fn pool(name: &str, workers: u16, more: &str) -> String {
    format!("[[pool]]\nname = \"{name}\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\n{PATIENT}{more}\n")
}

fn listener(address: &str, pool: &str, more: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\npool = \"{pool}\"\n{more}\n")
}

fn echo(workers: u16) -> String {
    listener("127.0.0.1:0", "default", "") + &pool("default", workers, "")
}

/// Where a 307 leads: address and target, taken apart without interpreting the target.
fn follow(answer: &HttpResponse) -> (String, Vec<u8>) {
    assert_eq!(answer.status, 307, "{answer:?}");
    let location = answer.header("location").unwrap();
    let rest = location.strip_prefix("http://").unwrap();
    let (host, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (host.to_owned(), target.as_bytes().to_owned())
}

fn ask(address: SocketAddr, line: &str, headers: &str) -> HttpResponse {
    send_request(address, format!("{line}\r\n{headers}\r\n").as_bytes()).unwrap()
}

#[test]
fn a_request_is_answered_by_a_worker_and_nothing_is_left() {
    let set = TestSet::start(ECHO);
    let address = set.address(0);
    let told = send_request(address, request_head("GET", "/hello?a=b", address, "").as_bytes()).unwrap();
    assert_eq!(told.status, 307);
    let location = told.header("location").unwrap();
    assert!(location.starts_with("http://127.0.0.1:") && location.ends_with("/hello?a=b"), "{location}");
    assert_eq!(told.header("connection"), Some("close"));

    let answer = get(address, "/hello?a=b").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "GET /hello?a=b\n"));
    let body: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let answer = request(address, "PUT", "/", &body).unwrap();
    assert!(answer.status == 200 && answer.body == body);
    set.stop();
}

#[test]
fn a_worker_is_leased_then_busy_then_idle_again() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let (worker, target) = request_lease(address, "/x").unwrap();
    set.wait_for("the lease", |status| worker_of(status, "default/1")["state"] == "leased");
    let mut stream = connect(worker);
    stream.write_all(request_head("POST", &target, worker, "Content-Length: 2\r\n").as_bytes()).unwrap();
    set.wait_for("the claim", |status| worker_of(status, "default/1")["state"] == "busy");
    stream.write_all(b"ok").unwrap();
    let answer = read_response(&mut stream).unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.header("connection")), (200, "ok", Some("close")));
    let status = set.wait_for("the end", |status| worker_of(status, "default/1")["state"] == "idle");
    assert_eq!(worker_of(&status, "default/1")["served"], 1);
    set.stop();
}

#[test]
fn the_location_has_the_clients_name_for_us_and_the_workers_port() {
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
        let (host, _) = follow(&ask(address, line, &headers));
        let (found, port) = host.rsplit_once(':').unwrap();
        assert_eq!(found, name, "{headers}");
        assert!(ports.contains(&port.to_owned()), "{port} of {ports:?}");
    }
    set.stop();
}

#[test]
fn ipv6_all_the_way() {
    let toml = listener("[::1]:0", "default", "") + &pool("default", 1, "").replace("127.0.0.1:0", "[::1]:0");
    let set = TestSet::start(&toml);
    let address = set.address(0);
    assert!(address.is_ipv6());
    assert_eq!(get(address, "/six").unwrap().text(), "GET /six\n");
    let (host, target) = follow(&ask(address, "GET /old HTTP/1.0", ""));
    assert!(host.starts_with("[::1]:"), "{host}");
    // Without a name, back and forth.
    let worker: SocketAddr = host.parse().unwrap();
    let answer = ask(worker, "GET /lost HTTP/1.0", "");
    assert_eq!(follow(&answer), (address.to_string(), b"/lost".to_vec()));
    let answer = ask(worker, &format!("GET {} HTTP/1.0", text(&target)), "");
    assert_eq!(answer.text(), "GET /old\n");
    let (worker, _) = request_lease(address, "/").unwrap();
    assert!(worker.is_ipv6());
    set.stop();
}

#[test]
fn targets_survive_exactly() {
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
        let (host, there) = follow(&ask(address, &format!("GET {target} HTTP/1.1"), &format!("Host: {address}\r\n")));
        let there = text(&there);
        let token = there.strip_prefix("/.patou/").unwrap().get(..32).unwrap();
        assert_eq!(there, format!("/.patou/{token}{target}"));
        let worker = host.parse().unwrap();
        let answer = send_request(worker, request_head("GET", &there, worker, "").as_bytes()).unwrap();
        assert_eq!(answer.text(), format!("GET {target}\n"));
        // The second use leads back to where it began.
        let back = send_request(worker, request_head("GET", &there, worker, "").as_bytes()).unwrap();
        assert_eq!(follow(&back), (address.to_string(), target.as_bytes().to_vec()));
    }
    set.stop();
}

#[test]
fn targets_of_other_forms_arrive() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let via = |method: &str, told: &HttpResponse| {
        let (host, target) = follow(told);
        let worker: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
        let mut request = format!("{method} ").into_bytes();
        request.extend(&target);
        request.extend(format!(" HTTP/1.1\r\nHost: {worker}\r\n\r\n").as_bytes());
        send_request(worker, &request).unwrap().body
    };
    // Absolute form: its host is what counts (RFC 9112, section 3.2.2).
    let told = ask(address, "GET http://127.0.0.1:9/a?b HTTP/1.1", "Host: localhost\r\n");
    assert_eq!(via("GET", &told), b"GET /a?b\n");
    let told = ask(address, &format!("GET http://{address} HTTP/1.1"), "Host: localhost\r\n");
    assert_eq!(via("GET", &told), b"GET /\n");
    let told = ask(address, "GET http://evil.example/ HTTP/1.1", "Host: localhost\r\n");
    assert_eq!(told.status, 421, "{told:?}");
    // Asterisk form: a URI without a path (section 3.2.4).
    let told = ask(address, "OPTIONS * HTTP/1.1", &format!("Host: {address}\r\n"));
    assert_eq!(via("OPTIONS", &told), b"OPTIONS *\n");
    let (host, _) = follow(&told);
    let worker: SocketAddr = host.parse().unwrap();
    let back = ask(worker, "OPTIONS * HTTP/1.1", &format!("Host: {worker}\r\n"));
    assert_eq!(follow(&back), (address.to_string(), Vec::new()));
    assert_eq!(ask(address, "GET * HTTP/1.1", "Host: localhost\r\n").status, 400);
    assert_eq!(ask(address, "CONNECT localhost:80 HTTP/1.1", "Host: localhost:80\r\n").status, 400);
    // Bytes beyond ASCII are not for us to judge.
    let told = send_request(address, b"GET /caf\xc3\xa9?\xc3\xa9 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    assert_eq!(via("GET", &told), b"GET /caf\xc3\xa9?\xc3\xa9\n");
    set.stop();
}

#[test]
fn every_method_arrives() {
    let set = TestSet::start(&echo(3));
    let address = set.address(0);
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "BREW"] {
        assert_eq!(request(address, method, "/m", b"").unwrap().text(), format!("{method} /m\n"));
    }
    // HEAD has no body, here as there.
    let told =
        send_request(address, request_head("HEAD", "/m", address, "").as_bytes()).map(|a| (a.status, a.body.len()));
    assert!(told.as_ref().is_err_and(|e| e.starts_with("0 of ")) || told == Ok((307, 0)), "{told:?}");
    let (worker, target) = request_lease(address, "/m").unwrap();
    let mut stream = connect(worker);
    stream.write_all(request_head("HEAD", &target, worker, "").as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("\r\n\r\n"), "{all}");
    set.stop();
}

/// Sends a body and reads the answer at the same time, as far as `expect` says after the 100.
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
    let answer = read_response(&mut stream).unwrap();
    sending.join().unwrap().unwrap();
    answer
}

#[test]
fn bodies_of_every_size_arrive_once() {
    let set = TestSet::start(&echo(2));
    let address = set.address(0);
    for (size, expect) in [(0, false), (1, false), (1, true), (900_000, false), (900_000, true), (64 << 20, true)] {
        let body: Vec<u8> = (0..size as u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let framing = format!("Content-Length: {size}\r\n");
        // The dispatcher answers at once and never asks for the body.
        let more = format!("{framing}Expect: 100-continue\r\n");
        let mut stream = connect(address);
        stream.write_all(request_head("POST", "/up", address, &more).as_bytes()).unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).unwrap();
        assert!(told.starts_with(b"HTTP/1.1 307 "), "{}", text(&told));
        let (host, target) = follow(&read_response(&mut &told[..]).unwrap());
        let answer = upload(host.parse().unwrap(), &text(&target), &framing, body.clone(), expect);
        assert_eq!(answer.status, 200);
        if size == 0 {
            assert_eq!(answer.text(), "POST /up\n");
        } else {
            assert!(answer.body == body, "{} of {size} bytes came back", answer.body.len());
        }
    }
    set.stop();
}

#[test]
fn chunked_bodies_arrive() {
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
        let answer = upload(worker, &target, "Transfer-Encoding: chunked\r\n", body, expect);
        assert_eq!((answer.status, answer.body.len()), (200, 100_014));
    }
    set.stop();
}

#[test]
fn a_stale_token_is_told_before_the_body_is_sent() {
    let set = TestSet::start(&echo(1));
    let (address, token) = (set.address(0), "0".repeat(32));
    let (worker, _) = request_lease(address, "/").unwrap();
    let more = "Content-Length: 900000\r\nExpect: 100-continue\r\n";
    let mut stream = connect(worker);
    stream.write_all(request_head("PUT", &format!("/.patou/{token}/a"), worker, more).as_bytes()).unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    assert!(told.starts_with(b"HTTP/1.1 307 "), "{}", text(&told));
    set.stop();
}

#[test]
fn a_lease_is_told_as_json() {
    let set = TestSet::start(&echo(2));
    let address = set.address(0);
    let told = send_request(address, request_head("POST", "/.patou/lease", address, "").as_bytes()).unwrap();
    assert_eq!((told.status, told.header("content-type")), (200, Some("application/json")));
    assert_eq!(told.header("cache-control"), Some("no-store"));
    let json = told.json();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["address", "expires_ms", "token", "worker"]);
    let id = json["worker"].as_str().unwrap();
    assert_eq!(set.worker(id)["address"], json["address"]);
    assert!((1..=30_000).contains(&json["expires_ms"].as_u64().unwrap()), "{json}");
    assert!(json["token"].as_str().unwrap().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));

    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let mut stream = connect(address);
        stream.write_all(request_head(method, "/.patou/lease", address, "").as_bytes()).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert!(told.starts_with("HTTP/1.1 405 ") && told.to_lowercase().contains("\r\nallow: post\r\n"), "{told}");
    }
    for target in ["/.patou/", "/.patou/x", "/.patou/lease/", "/.patou/leases", "/.patou/0123456789abcdef/a"] {
        let told = send_request(address, request_head("POST", target, address, "").as_bytes()).unwrap();
        assert_eq!((told.status, told.header("content-type")), (404, Some("application/problem+json")), "{target}");
    }
    let told = send_request(address, request_head("POST", "/.patou/lease?pool=x", address, "").as_bytes()).unwrap();
    assert_eq!(told.status, 200);
    set.stop();
}

#[test]
fn on_a_unix_socket_everything_is_a_lease() {
    let set = TestSet::prepare("");
    let path = set.test_dir().join("front.sock");
    let group = nix::unistd::getgid();
    let more = format!("mode = 0o606\ngroup = \"{group}\"");
    let toml = listener("127.0.0.1:0", "default", "")
        + &listener(&format!("unix:{}", path.display()), "default", &more)
        + &pool("default", 2, "");
    set.configure(&toml);
    let set = start(set);
    let status = std::fs::metadata(&path).unwrap();
    assert_eq!((status.permissions().mode() & 0o7777, status.gid()), (0o606, group.as_raw()));
    for line in ["GET /a HTTP/1.1\r\nHost: any.example", "POST /.patou/lease HTTP/1.1\r\nHost: x", "PUT /b HTTP/1.0"] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(format!("{line}\r\n\r\n").as_bytes()).unwrap();
        let told = read_response(&mut stream).unwrap();
        assert_eq!(told.status, 200, "{told:?}");
        let json = told.json();
        let worker: SocketAddr = json["address"].as_str().unwrap().parse().unwrap();
        let target = format!("/.patou/{}/c", json["token"].as_str().unwrap());
        let answer = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
        assert_eq!(answer.text(), "GET /c\n");
    }
    set.stop();
    assert!(!path.exists());
}

fn start(mut set: TestSet) -> TestSet {
    set.run();
    set.wait_until_up();
    set
}

/// A set with one gated pool: each request notes its path in `started` and ends when the file `go` is there.
fn gated(workers: u16, more: &str) -> TestSet {
    let set = TestSet::prepare("");
    let top = set.test_dir().display().to_string();
    let script = format!(
        "echo $PATH_INFO >> {top}/started; while [ ! -e {top}/go ]; do sleep 0.02; done; \
         printf 'Content-Type: text/plain\\n\\ndone %s' $PATH_INFO"
    );
    let handler = format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}\n{more}");
    set.configure(&(listener("127.0.0.1:0", "default", "") + &pool("default", workers, &handler)));
    start(set)
}

fn started(set: &TestSet) -> Vec<String> {
    let text = std::fs::read_to_string(set.test_dir().join("started")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn open_gate(set: &TestSet) {
    std::fs::write(set.test_dir().join("go"), "").unwrap();
}

#[test]
fn no_token_is_a_dead_end_and_none_opens_twice() {
    let set = gated(2, "queue_timeout = \"60s\"");
    let address = set.address(0);
    let (one, first) = request_lease(address, "/first").unwrap();
    let (two, other) = request_lease(address, "/other").unwrap();
    assert_ne!(one, two);
    let send = |worker: SocketAddr, method: &str, target: &str| {
        send_request(worker, request_head(method, target, worker, "").as_bytes()).unwrap()
    };
    // Of another worker, of nobody, of no shape, none at all.
    let back = |target: &str| (address.to_string(), target.as_bytes().to_vec());
    assert_eq!(follow(&send(one, "DELETE", &other)), back("/other"));
    assert_eq!(follow(&send(one, "GET", &format!("/.patou/{}/a?b", "f".repeat(32)))), back("/a?b"));
    assert_eq!(follow(&send(one, "GET", &first.to_uppercase().replace("/.PATOU", "/.patou"))), back("/FIRST"));
    assert_eq!(follow(&send(one, "GET", "/plain?q")), back("/plain?q"));
    assert_eq!(follow(&send(one, "GET", "//evil/")), back("//evil/"));
    let answer = send(one, "GET", "/plain");
    assert_eq!(answer.header("patou-outcome"), Some("not-started"));
    assert!(started(&set).is_empty());

    // A used token, while its request runs.
    let running = std::thread::spawn(move || send_request(one, request_head("GET", &first, one, "").as_bytes()));
    set.wait_for("the start", |_| started(&set) == ["/first"]);
    let used = other.replace("/other", "/again");
    let running_too = std::thread::spawn(move || send_request(two, request_head("GET", &other, two, "").as_bytes()));
    set.wait_for("the second start", |_| started(&set).len() == 2);
    for _ in 0..20 {
        assert_eq!(follow(&send(two, "GET", &used)), back("/again"));
    }
    assert_eq!(started(&set).len(), 2);
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().text(), "done /first");
    assert_eq!(running_too.join().unwrap().unwrap().text(), "done /other");
    // Used up, and the way back leads to an answer.
    assert_eq!(follow(&send(two, "GET", &used)), back("/again"));
    assert_eq!(get(address, "/again").unwrap().text(), "done /again");
    assert_eq!(started(&set).len(), 3);
    set.stop();
}

#[test]
fn without_a_host_a_worker_still_knows_the_way_back() {
    let set = TestSet::start(&echo(1));
    let address = set.address(0);
    let (worker, _) = request_lease(address, "/").unwrap();
    let back = (address.to_string(), b"/a?b".to_vec());
    assert_eq!(follow(&ask(worker, "GET /a?b HTTP/1.0", "")), back);
    assert_eq!(follow(&ask(worker, "GET http://127.0.0.1/a?b HTTP/1.1", "Host: other\r\n")), back);
    set.stop();
}

#[test]
fn an_unused_lease_ends_and_its_peer_gets_one_at_a_time() {
    let more = "claim_timeout = \"500ms\"\noffer_timeout = \"500ms\"\nqueue_timeout = \"60s\"";
    let pool = pool("default", 2, "").replace(PATIENT, "") + more;
    let set = TestSet::start(&(listener("127.0.0.1:0", "default", "") + &pool));
    let address = set.address(0);
    let (worker, target) = request_lease(address, "/late").unwrap();
    set.wait_for_log(&["not used within claim_timeout"]);
    set.wait_for("the worker's return", |status| worker_of(status, "default/1")["state"] == "idle");
    let back = send_request(worker, request_head("GET", &target, worker, "").as_bytes()).unwrap();
    assert_eq!(follow(&back), (address.to_string(), b"/late".to_vec()));
    // One lease for this peer, although two workers are idle; the next one waits.
    let _unused = request_lease(address, "/").unwrap();
    let mut second = connect(address);
    second.write_all(request_head("GET", "/second", address, "").as_bytes()).unwrap();
    set.wait_for("the wait", |status| status["dispatcher"]["queue"] == 1);
    // Somebody else overtakes.
    let mut other = connect_from([127, 0, 0, 2], address);
    other.write_all(request_head("GET", "/other", address, "").as_bytes()).unwrap();
    assert_eq!(read_response(&mut other).unwrap().status, 307);
    // Its turn comes when the first lease is over.
    assert_eq!(read_response(&mut second).unwrap().status, 307);
    set.stop();
}

#[test]
fn each_listener_has_its_pool() {
    let print = |word: &str| {
        format!("handler = {{ exec = [\"sh\", \"-c\", \"printf 'Content-Type: text/plain\\\\n\\\\n{word}'\"] }}")
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
        let told = ask(two, "GET /2 HTTP/1.1", "Host: Two.Example:80\r\n");
        let (host, target) = follow(&told);
        let port = host.strip_prefix("Two.Example:").unwrap();
        let worker: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let answer = send_request(worker, request_head("GET", &text(&target), worker, "").as_bytes()).unwrap();
        assert_eq!(answer.text(), "two");
        // Back to its own listener, by whatever name.
        let back = ask(worker, "GET /2 HTTP/1.1", "Host: two.example:1\r\n");
        assert_eq!(follow(&back).0, format!("two.example:{}", two.port()));
    }
    set.stop();
}

/// Whatever its framing, half an answer does not look like one.
#[test]
fn an_answer_that_was_cut_ends_with_a_reset() {
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
        let mut all = Vec::new();
        let mut piece = [0; 512];
        while !text(&all).contains("half") {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "{}", text(&all));
            all.extend(&piece[..count]);
        }
        std::fs::write(&fifo, "x\n").unwrap();
        let end = stream.read_to_end(&mut all);
        assert!(end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{version}: {}", text(&all));
    }
    set.stop();
}
