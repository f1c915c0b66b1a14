//! The queue as clients of several addresses see it: addresses take turns, and a full queue refuses clients of the
//! largest address.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use support::*;

/// A handoff listener, a redirect listener and their pool of one worker; `listener` are further keys of the first one,
/// `pool` of the pool.
fn pool_of_one(set: &TestSet, listener: &str, pool: &str) -> String {
    let listen = |delivery, more| {
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"{delivery}\"\npool = \"default\"\n{more}\n")
    };
    format!(
        "{}{}[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nqueue_timeout = \"10m\"\n{}\n{pool}\n",
        listen("handoff", listener),
        listen("redirect", ""),
        recording_handler(set)
    )
}

fn start(listener: &str, pool: &str) -> TestSet {
    let mut set = TestSet::prepare("");
    set.configure(&pool_of_one(&set, listener, pool));
    set.run();
    set.wait_until_up();
    set
}

fn get_from(from: [u8; 4], to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = connect_from(from, to);
    stream.write_all(request_head("GET", path, to, "Connection: close\r\n").as_bytes()).unwrap();
    stream
}

fn wait_for_start(set: &TestSet, started: usize) {
    wait_until("a request has started", || started_paths(set).len() >= started);
}

/// Sends the request and waits until it is queued as number `length`.
fn queue_one(set: &TestSet, length: usize, send: impl FnOnce() -> TcpStream) -> TcpStream {
    let stream = send();
    set.wait_for("the client is queued", |status| status["dispatcher"]["queue"] == length);
    stream
}

const A: [u8; 4] = [127, 0, 0, 2];
const B: [u8; 4] = [127, 0, 0, 3];

#[test]
fn addresses_take_turns_also_after_a_dispatcher_restart() {
    for restart in [false, true] {
        let set = start("", "");
        let address = set.address(0);
        let mut clients = vec![get_from(A, address, "/a0")];
        wait_for_start(&set, 1);
        let waiting = [(A, "/a1"), (A, "/a2"), (A, "/a3"), (B, "/b1"), (A, "/a4"), (B, "/b2")];
        for (n, (from, path)) in waiting.into_iter().enumerate() {
            clients.push(queue_one(&set, n + 1, || get_from(from, address, path)));
        }
        if restart {
            let old = set.dispatcher_pid();
            std::thread::sleep(std::time::Duration::from_millis(200)); // store_after, and the way into the store
            signal_to(old, Signal::SIGKILL);
            set.wait_for("the next dispatcher queues them", |status| {
                status["dispatcher"]["pid"] != old && status["dispatcher"]["queue"] == waiting.len()
            });
        }
        open_gate(&set);
        for stream in &mut clients {
            assert_eq!(read_response(stream).unwrap().status, 200);
        }
        assert_eq!(started_paths(&set), ["/a0", "/a1", "/b1", "/a2", "/b2", "/a3", "/a4"], "restart: {restart}");
        set.stop();
    }
}

#[test]
fn full_queue_refuses_the_newest_client_of_the_largest_address() {
    let set = start("", "queue = 3");
    let address = set.address(0);
    let mut running = get_from(A, address, "/a0");
    wait_for_start(&set, 1);
    let mut waiting: Vec<_> = ["/a1", "/a2", "/a3"]
        .iter()
        .zip(1..)
        .map(|(path, n)| queue_one(&set, n, || get_from(A, address, path)))
        .collect();
    // Its own address is the largest.
    let refused = read_response(&mut get_from(A, address, "/a4")).unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    let mut other = get_from(B, address, "/b1");
    let evicted = read_response(&mut waiting.pop().unwrap()).unwrap();
    let found = (evicted.status, evicted.header("patou-outcome"), evicted.header("retry-after"));
    assert_eq!(found, (503, Some("not-started"), Some("1")), "{evicted:?}");
    set.wait_for("the new client is queued", |status| status["dispatcher"]["queue"] == 3);
    open_gate(&set);
    for stream in waiting.iter_mut().chain([&mut running, &mut other]) {
        assert_eq!(read_response(stream).unwrap().status, 200);
    }
    assert_eq!(started_paths(&set), ["/a0", "/a1", "/b1", "/a2"], "no request that was refused has started");
    let counted = "patou_requests_refused_total{pool=\"default\",reason=\"queue_full\"} 2";
    wait_until("both refusals are counted", || admin_get(&set, "/metrics").contains(counted));
    set.stop();
}

#[test]
fn address_of_the_proxy_header_counts() {
    let set = start("proxy_protocol = true", "");
    let address = set.address(0);
    let get_for = |client: &str, path: &str| {
        let mut stream = connect(address);
        let family = if client.contains(':') { "TCP6" } else { "TCP4" };
        let head = request_head("GET", path, address, "Connection: close\r\n");
        stream.write_all(format!("PROXY {family} {client} {client} 4711 80\r\n{head}").as_bytes()).unwrap();
        stream
    };
    let mut clients = vec![get_for("192.0.2.1", "/start")];
    wait_for_start(&set, 1);
    // The addresses of an IPv6 network of 64 bits are one; an IPv4-mapped address is the IPv4 address.
    let waiting = [
        ("2001:db8::1", "/net1"),
        ("2001:db8::2", "/net2"),
        ("192.0.2.1", "/four1"),
        ("::ffff:192.0.2.1", "/four2"),
        ("2001:db8:0:1::1", "/other"),
    ];
    for (n, (client, path)) in waiting.into_iter().enumerate() {
        clients.push(queue_one(&set, n + 1, || get_for(client, path)));
    }
    open_gate(&set);
    for stream in &mut clients {
        assert_eq!(read_response(stream).unwrap().status, 200);
    }
    assert_eq!(started_paths(&set), ["/start", "/net1", "/four1", "/other", "/net2", "/four2"]);
    set.stop();
}

/// A lease that its client does not claim ends after `claim_timeout`, and limits redirect clients of its address only.
#[test]
fn redirect_that_is_not_followed_delays_no_handoff_client_of_its_address() {
    let mut set = TestSet::prepare("");
    let pool = pool_of_one(&set, "", "claim_timeout = \"1s\"").replace("workers = 1", "workers = 2");
    set.configure(&pool);
    set.run();
    set.wait_until_up();
    open_gate(&set);
    let (handoff, redirect) = (set.address(0), set.address(1));
    let status_of = |stream: &mut TcpStream| read_response(stream).unwrap().status;
    assert_eq!(status_of(&mut get_from(A, redirect, "/unused")), 307);
    set.wait_for_log(&["lease was not claimed within claim_timeout"]);
    // The address holds one unclaimed lease; its next redirect client waits until that ends.
    assert_eq!(status_of(&mut get_from(A, redirect, "/unused")), 307);
    let mut waits = queue_one(&set, 1, || get_from(A, redirect, "/waits"));
    // These would wait for that, too, if they were limited.
    assert_eq!(status_of(&mut get_from(A, handoff, "/handoff")), 200);
    assert_eq!(status_of(&mut get_from(B, redirect, "/other")), 307);
    assert_eq!(set.log().matches("lease was not claimed within claim_timeout").count(), 1, "{}", set.log());
    assert_eq!(status_of(&mut waits), 307);
    wait_until("every unused lease has ended", || set.log().matches("within claim_timeout").count() == 4);
    set.stop();
}

fn admin_get(set: &TestSet, path: &str) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(set.runtime_dir().join("admin.sock")).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    read_response(&mut stream).unwrap().text()
}
