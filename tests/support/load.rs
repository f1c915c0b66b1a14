//! Load: clients that send requests to a set until the test stops them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{EVENT_TIMEOUT, request_head, send_request, wait_until};

/// Threads that repeat one request. They retry a request that was certainly not started, as any client may.
pub(crate) struct LoadGenerator {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl LoadGenerator {
    pub(crate) fn start(address: SocketAddr, target: &'static str, threads: usize) -> Self {
        let (stop, served) = Default::default();
        let load = Self { stop, served, clients: Vec::new() };
        let client = |_| {
            let (stop, served) = (load.stop.clone(), load.served.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match get_with_retries(address, target) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(failure) => failures.push(failure),
                    }
                }
                failures
            })
        };
        let clients = (0..threads).map(client).collect();
        Self { clients, ..load }
    }

    pub(crate) fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests have been served.
    pub(crate) fn wait_for(&self, more: u32) {
        let target = self.served() + more;
        wait_until("the clients are served", || self.served() >= target);
    }

    /// Stops the clients; returns every request that failed.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn get_with_retries(first: SocketAddr, target: &str) -> Result<(), String> {
    let (mut address, mut path) = (first, target.to_owned());
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while Instant::now() < deadline {
        match send_request(address, request_head("GET", &path, address, "Connection: close\r\n").as_bytes()) {
            Ok(response) if response.status == 200 => return Ok(()),
            Ok(response) if response.status == 307 => {
                let (host, rest) = response.location();
                (address, path) = (host.parse().map_err(|e| format!("{host}: {e}"))?, rest.to_owned());
            }
            Ok(response) if response.status == 503 && response.header("patou-outcome") == Some("not-started") => {
                (address, path) = (first, target.to_owned());
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(response) => return Err(format!("from {address}: {response:?}")),
            // A dispatcher that closes without a byte has started nothing.
            Err(error) if address == first && error.contains(": \"\"") => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(format!("from {address}{path}: {error}")),
        }
    }
    Err(format!("not served within {EVENT_TIMEOUT:?}"))
}
