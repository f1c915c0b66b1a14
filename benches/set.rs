//! The figures of a whole set with redirect delivery: `PATOU_LOG=info cargo bench --bench figures`.
//!
//! Time from `patou run` to the first answer; requests per second and latency with 1, 8 and 64 clients, a new
//! connection for each step of each request; memory of each process at rest and after 100,000 requests;
//! wake-ups per second at rest. The load comes from this process, on the same cores.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{ECHO, TestSet, get};

const WORKERS: u16 = 4;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only wants to know that it starts
    }
    let total: u64 = std::env::var("PATOU_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    first_answer();
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

fn first_answer() {
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            // A port that is known beforehand: what an operator would have configured.
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let toml = ECHO.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
            let mut set = TestSet::prepare(&toml);
            let since = Instant::now();
            set.run();
            while get(([127, 0, 0, 1], port).into(), "/").is_err() {
                assert!(since.elapsed() < support::EVENT_TIMEOUT, "no answer\n{}", set.log());
            }
            let took = since.elapsed();
            set.stop();
            took
        })
        .collect();
    times.sort_unstable();
    println!("patou run to the first answer       median {:.1} ms of {}", ms(times[times.len() / 2]), times.len());
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
                let answer = get(address, "/hello").unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                times.push(since.elapsed());
            }
            times
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let took = since.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| ms(times[((times.len() - 1) as f64 * share) as usize]);
    println!(
        "redirect, {clients:>2} clients, {WORKERS} workers     {:>6.0} requests/s  p50 {:.2} ms  p99 {:.2} ms  max {:.1} ms  ({total} requests)",
        total as f64 / took,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

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
    const TIME: Duration = Duration::from_secs(10);
    let count = |pid: u64| -> u64 {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let of = |path: std::path::PathBuf| -> u64 {
            let text = fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |n| n.trim().parse().unwrap())
        };
        threads.map(|thread| of(thread.path())).sum()
    };
    let parts = parts(set);
    let before: Vec<_> = parts.iter().map(|(_, pid)| count(*pid)).collect();
    std::thread::sleep(TIME); // here time itself is what is measured
    let each: Vec<_> = parts
        .iter()
        .zip(before)
        .map(|((name, pid), before)| format!("{name} {:.1}", (count(*pid) - before) as f64 / TIME.as_secs_f64()))
        .collect();
    println!("wake-ups per second at rest         {}", each.join(", "));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
