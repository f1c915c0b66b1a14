//! Measures a whole set with redirect delivery: `PATOU_LOG=info cargo bench --bench set`.
//!
//! The time from `patou run` to the first response; requests per second and latency with 1, 8 and 64 clients, with a
//! new connection for each step of each request; the memory of each process at rest and after 100,000 requests;
//! wake-ups per second at rest. This process generates the load, on the same cores.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{ECHO, TestSet, get};

const WORKERS: u16 = 4;
/// How long wake-ups are counted.
const REST: Duration = Duration::from_secs(10);

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only checks that it starts
    }
    let total: u64 = std::env::var("PATOU_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    first_response();
    let set = TestSet::start(&ECHO.replace("workers = 2", &format!("workers = {WORKERS}")));
    get(set.address(0), "/warm").unwrap();
    memory(&set, "at rest");
    wakeups(&set);
    for clients in [1, 8, 64] {
        load(&set, clients, total / 10);
    }
    load(&set, 8, total - 3 * (total / 10));
    memory(&set, &format!("after {total} requests"));
    set.stop();
}

fn first_response() {
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            // The port must be known before the start, as in an operator's configuration.
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let toml = ECHO.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
            let mut set = TestSet::prepare(&toml);
            let since = Instant::now();
            set.run();
            while get(([127, 0, 0, 1], port).into(), "/").is_err() {
                assert!(since.elapsed() < support::EVENT_TIMEOUT, "no response\n{}", set.log());
            }
            let took = since.elapsed();
            set.stop();
            took
        })
        .collect();
    times.sort_unstable();
    println!("patou run to the first response     median {:.1} ms of {}", ms(times[times.len() / 2]), times.len());
}

fn load(set: &TestSet, clients: u64, total: u64) {
    let address = set.address(0);
    let left = AtomicU64::new(total);
    let since = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let client = || {
            let mut times = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                let since = Instant::now();
                let response = get(address, "/hello").unwrap();
                assert_eq!(response.status, 200, "{response:?}");
                times.push(since.elapsed());
            }
            times
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let rate = total as f64 / since.elapsed().as_secs_f64();
    times.sort_unstable();
    let quantile = |share: f64| ms(times[((times.len() - 1) as f64 * share) as usize]);
    let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
    let label = format!("redirect, {clients:>2} clients, {WORKERS} workers");
    println!(
        "{label:<35} {rate:>6.0} requests/s  p50 {p50:.2} ms  p99 {p99:.2} ms  max {max:.1} ms  ({total} requests)"
    );
}

/// The name and the pid of each part.
fn parts(set: &TestSet) -> Vec<(String, u64)> {
    let status = set.status();
    let mut parts = vec![
        ("watchdog".to_owned(), u64::from(set.pid())),
        ("dispatcher".to_owned(), status["dispatcher"]["pid"].as_u64().unwrap()),
    ];
    for worker in status["pools"][0]["workers"].as_array().unwrap() {
        parts.push((worker["id"].as_str().unwrap().to_owned(), worker["pid"].as_u64().unwrap()));
    }
    parts
}

fn memory(set: &TestSet, when: &str) {
    let pss = |pid: u64| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let each: Vec<_> = parts(set).into_iter().map(|(name, pid)| format!("{name} {} kB", pss(pid))).collect();
    println!("PSS {when:<32}{}", each.join(", "));
}

fn wakeups(set: &TestSet) {
    let switches = |pid: u64| -> u64 {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let of_thread = |path: std::path::PathBuf| -> u64 {
            let text = fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |n| n.trim().parse().unwrap())
        };
        threads.map(|thread| of_thread(thread.path())).sum()
    };
    let parts = parts(set);
    let before: Vec<_> = parts.iter().map(|(_, pid)| switches(*pid)).collect();
    std::thread::sleep(REST);
    let each: Vec<_> = parts
        .iter()
        .zip(before)
        .map(|((name, pid), before)| format!("{name} {:.1}", (switches(*pid) - before) as f64 / REST.as_secs_f64()))
        .collect();
    println!("wake-ups per second at rest         {}", each.join(", "));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
