//! Reloads that move addresses of the set itself: between listeners, workers and the admin endpoint, and to addresses that
//! conflict with the previous ones.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use support::*;

/// The first of `count` consecutive ports that are free, below those that the kernel chooses. No other test of this
/// process gets them.
fn free_ports(count: u16) -> u16 {
    static TAKEN: Mutex<u16> = Mutex::new(0);
    let mut taken = TAKEN.lock().unwrap();
    let start = (*taken).max(20_000 + (std::process::id() % 1000) as u16 * 10);
    let is_free = |port: &u16| {
        TcpListener::bind(("0.0.0.0", *port)).is_ok() && TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok()
    };
    let first =
        (start..32_000).step_by(usize::from(count)).find(|first| (*first..first + count).all(|port| is_free(&port)));
    *taken = first.expect("free ports") + count;
    *taken - count
}

fn get_once(address: SocketAddr, target: &str) -> Result<HttpResponse, String> {
    send_request(address, request_head("GET", target, address, "Connection: close\r\n").as_bytes())
}

/// Clients of one handoff listener that no reload touches. None of them retries anything.
struct SteadyClients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl SteadyClients {
    fn start(address: SocketAddr) -> Self {
        let (stop, served): (Arc<AtomicBool>, Arc<AtomicU32>) = Default::default();
        let client = |_| {
            let (stop, served) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match get_once(address, "/steady") {
                        Ok(response) if response.status == 200 => drop(served.fetch_add(1, Ordering::Relaxed)),
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            })
        };
        let clients = (0..2).map(client).collect();
        Self { stop, served, clients }
    }

    fn wait_for(&self, more: u32) {
        let target = self.served.load(Ordering::Relaxed) + more;
        wait_until("the clients are served", || self.served.load(Ordering::Relaxed) >= target);
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

/// A listener and a pool that stay.
const STEADY: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\npool = \"steady\"\n\n[[pool]]\nname = \"steady\"\n\
                      workers = 2\naddress = \"127.0.0.1:0\"\n\n";

fn listener(address: &str, delivery: &str, pool: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\ndelivery = \"{delivery}\"\npool = \"{pool}\"\n\n")
}

fn pool(name: &str, workers: u16, address: &str) -> String {
    format!("[[pool]]\nname = \"{name}\"\nworkers = {workers}\naddress = \"{address}\"\n\n")
}

/// Sends SIGHUP and waits until the whole set is up with the new configuration.
fn reload(set: &TestSet, config: &str) {
    let outcomes = |text: &str| set.log().matches(text).count();
    let (applied, refused) = (outcomes("configuration applied"), outcomes("nothing has changed"));
    set.configure(&format!("{STEADY}{config}"));
    set.signal(Signal::SIGHUP);
    wait_until("the reload is over", || {
        outcomes("configuration applied") > applied || outcomes("nothing has changed") > refused
    });
    assert_eq!(outcomes("nothing has changed"), refused, "{config}\n{}", set.log());
    set.wait_until_up();
}

/// A request to a listener at 127.0.0.1, followed as curl does: a worker sends the client of another one back.
fn assert_served(port: u16) {
    let (mut address, mut path) = (SocketAddr::from(([127, 0, 0, 1], port)), "/moved".to_owned());
    for _ in 0..50 {
        let response = get_once(address, &path).unwrap_or_else(|error| panic!("{address}{path}: {error}"));
        if response.status != 307 {
            assert_eq!(response.status, 200, "port {port}: {response:?}");
            return;
        }
        let (to, target) = response.location();
        (address, path) = (to.parse().unwrap(), target.to_owned());
    }
    panic!("port {port}: too many redirects");
}

fn is_refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

#[test]
fn addresses_move_between_all_uses_and_untouched_listeners_refuse_no_client() {
    let first = free_ports(8);
    let at = |offset: u16| format!("127.0.0.1:{}", first + offset);
    let all = |offset: u16| format!("0.0.0.0:{}", first + offset);
    let admin = |offset: u16| format!("[admin]\naddress = \"{}\"\n", at(offset));
    let set = TestSet::start(&format!("{STEADY}{}{}", listener(&at(0), "handoff", "a"), pool("a", 3, &at(2))));
    let steady = SteadyClients::start(set.address(0));
    let step = |config: String, served: &[u16], refused: &[u16]| {
        steady.wait_for(5);
        reload(&set, &config);
        served.iter().for_each(|offset| assert_served(first + offset));
        refused.iter().for_each(|offset| {
            wait_until("the address is closed", || is_refused(first + offset));
        });
    };
    // To all addresses and back, also with IPv6.
    step(listener(&all(0), "handoff", "a") + &pool("a", 3, &at(2)), &[0], &[]);
    step(listener(&format!("[::]:{first}"), "handoff", "a") + &pool("a", 3, &at(2)), &[0], &[]);
    step(listener(&at(0), "handoff", "a") + &pool("a", 3, &at(2)), &[0], &[]);
    // Workers, too; and their ports are shifted by one, up and down.
    step(listener(&at(0), "redirect", "a") + &pool("a", 3, &all(2)), &[0], &[]);
    step(listener(&at(0), "redirect", "a") + &pool("a", 3, &at(3)), &[0], &[2]);
    step(listener(&at(0), "redirect", "a") + &pool("a", 3, &at(2)), &[0], &[5]);
    // The pool is renamed.
    step(listener(&at(0), "redirect", "b") + &pool("b", 3, &at(2)), &[0], &[]);
    // Two pools exchange their addresses.
    let two = listener(&at(0), "redirect", "b") + &listener(&at(1), "redirect", "c");
    step(two.clone() + &pool("b", 2, &at(2)) + &pool("c", 2, &at(4)), &[0, 1], &[]);
    step(two + &pool("b", 2, &at(4)) + &pool("c", 2, &at(2)), &[0, 1], &[]);
    // A pool goes, and a listener gets the port of its first worker.
    step(
        listener(&at(0), "redirect", "b") + &listener(&at(2), "handoff", "b") + &pool("b", 2, &at(4)),
        &[0, 2],
        &[1, 3],
    );
    // A listener and a worker exchange their addresses, and the admin endpoint gets that of another listener.
    step(listener(&at(4), "redirect", "b") + &pool("b", 1, &at(0)) + &admin(2), &[4], &[5]);
    step(listener(&at(2), "redirect", "b") + &pool("b", 1, &at(4)) + &admin(0), &[2], &[]);
    assert_eq!(steady.stop(), Vec::<String>::new(), "{}", set.log());
    assert!(!set.log().contains("restarting it"), "{}", set.log());
    set.stop();
}

#[test]
fn client_that_has_just_connected_is_served_after_a_restart_of_the_dispatcher() {
    let set = TestSet::start(STEADY);
    let (address, old) = (set.address(0), set.dispatcher_pid());
    let mut silent = connect(address);
    let mut kept = connect(address);
    kept.write_all(request_head("GET", "/first", address, "").as_bytes()).unwrap();
    let mut response = [0; 4096];
    let length = kept.read(&mut response).unwrap();
    assert_eq!(response_status(&response[..length]), Some(200));
    wait_until("both are accepted", || held_connections(old, address) == 2);
    reload(&set, &listener("127.0.0.1:0", "redirect", "steady"));
    set.wait_for("the next dispatcher", |status| status["dispatcher"]["pid"].as_u64() != Some(old.into()));
    silent.write_all(request_head("GET", "/late", address, "Connection: close\r\n").as_bytes()).unwrap();
    assert_eq!(read_response(&mut silent).unwrap().status, 200, "{}", set.log());
    // One that has had a response may be closed at any time.
    assert_eq!(kept.read(&mut response).unwrap(), 0);
    set.stop();
}

#[test]
fn clients_in_the_queue_of_a_listener_that_moves_are_served() {
    let first = free_ports(2);
    let at = |offset: u16| format!("127.0.0.1:{}", first + offset);
    for delivery in ["handoff", "redirect"] {
        let config = |offset: u16| listener(&at(offset), delivery, "a") + &pool("a", 2, "127.0.0.1:0");
        let set = TestSet::start(&format!("{STEADY}{}", config(0)));
        let dispatcher = set.dispatcher_pid();
        signal_to(dispatcher, Signal::SIGSTOP);
        let address = SocketAddr::from(([127, 0, 0, 1], first));
        let mut clients: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
        let request = request_head("GET", "/queued", address, "Connection: close\r\n");
        clients.iter_mut().for_each(|client| client.write_all(request.as_bytes()).unwrap());
        set.configure(&format!("{STEADY}{}", config(1)));
        set.signal(Signal::SIGHUP);
        set.wait_for_log(&["configuration applied"]);
        signal_to(dispatcher, Signal::SIGCONT);
        for client in &mut clients {
            let response = read_response(client).unwrap_or_else(|error| panic!("{delivery}: {error}\n{}", set.log()));
            assert!([200, 307, 503].contains(&response.status), "{delivery}: {response:?}");
        }
        wait_until("the address is closed", || is_refused(first));
        set.wait_until_up();
        assert_served(first + 1);
        set.stop();
    }
}

#[test]
fn unix_sockets_move_between_listeners_and_workers() {
    let mut set = TestSet::prepare("");
    let file = |name: &str| format!("unix:{}", set.test_dir().join(name).display());
    let (x, y) = (file("x-1.sock"), file("y-1.sock"));
    let config = |listener_at: &str, pool_name: &str, workers_at: &str| {
        listener(listener_at, "handoff", pool_name) + &pool(pool_name, 1, workers_at)
    };
    set.configure(&format!("{STEADY}{}", config(&x, "a", &y)));
    set.run();
    set.wait_until_up();
    let is_served = |address: &str| {
        let mut stream = UnixStream::connect(address.strip_prefix("unix:").unwrap()).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        read_response(&mut stream).unwrap().status == 200
    };
    assert!(is_served(&x));
    // The pool is renamed, then listener and worker exchange their paths.
    reload(&set, &config(&x, "b", &y));
    assert!(is_served(&x));
    reload(&set, &config(&y, "b", &x));
    assert!(is_served(&y));
    wait_until("no file is missing", || set.status()["problems"].as_array().is_none_or(Vec::is_empty));
    assert!(!set.log().contains("cannot be bound again"), "{}", set.log());
    set.stop();
}

#[test]
fn a_move_to_an_address_that_another_process_blocks_is_refused_and_nothing_changes() {
    let first = free_ports(1);
    let at = |ip: &str| listener(&format!("{ip}:{first}"), "handoff", "a") + &pool("a", 1, "127.0.0.1:0");
    let set = TestSet::start(&format!("{STEADY}{}", at("127.0.0.1")));
    let stranger = TcpListener::bind(("127.0.0.2", first)).unwrap();
    let steady = SteadyClients::start(set.address(0));
    set.configure(&format!("{STEADY}{}", at("0.0.0.0")));
    set.signal(Signal::SIGHUP);
    set.wait_for_log(&["nothing has changed", "0.0.0.0", "ss -ltnp"]);
    assert_served(first);
    drop(stranger);
    reload(&set, &at("0.0.0.0"));
    assert_served(first);
    assert_eq!(steady.stop(), Vec::<String>::new(), "{}", set.log());
    set.stop();
}
