//! Clients that misbehave, each for a bounded time. They must not affect other clients.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::connection::{ClientStream, ServerAddress};
use super::fault::{DrillFault, FaultKind};
use super::history::AttemptOutcome;
use super::random::SplitMix64;
use super::raw_http::{self, ReceiveOutcome};
use super::traffic::{AttemptTiming, DrillRequest, Traffic, leased_worker, request_body};

/// Their own address, because the dispatcher limits the leases of an address that leaves leases unused.
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The same in PROXY headers (RFC 5737).
const PROXY_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The pause between two bytes of a slow client.
const BYTE_INTERVAL: Duration = Duration::from_millis(20);

/// Misbehaves at a listener as the kind of fault requires. The request is only checked for a second start.
pub(super) fn run(traffic: &Traffic<'_>, fault: &DrillFault, listener: usize) {
    let (id, delay) = (traffic.next_request_id(), Duration::from_millis(30));
    let request = DrillRequest { id, listener, body: Vec::new(), delay };
    let timing = AttemptTiming::now();
    if let Some(address) = traffic.address(listener) {
        let mut client = BadClient { traffic, request: &request, address, end: Instant::now() + fault.duration };
        let mut random = SplitMix64::new(fault.seed);
        // A client that cannot continue has misbehaved enough.
        let _ = match fault.kind {
            FaultKind::HalfOpen => client.half_open(&mut random),
            FaultKind::SlowHead => client.slow_head(),
            FaultKind::SlowBody => client.slow_body(),
            FaultKind::NotReading => client.not_reading(),
            FaultKind::UnusedLease => client.unused_lease(),
            _ => client.disconnect(&mut random),
        };
    }
    traffic.record(&request, 1, timing, AttemptOutcome::Disconnected);
}

struct BadClient<'a> {
    traffic: &'a Traffic<'a>,
    request: &'a DrillRequest,
    address: ServerAddress,
    end: Instant,
}

impl BadClient<'_> {
    fn connect(&self, address: &ServerAddress) -> Option<ClientStream> {
        let timeout = self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(50));
        let mut stream = address.connect_from(SOURCE, timeout).ok()?;
        let proxy_header = self.traffic.proxy_header(self.request.listener, self.request.id, PROXY_SOURCE);
        stream.write_all(&proxy_header).ok()?;
        Some(stream)
    }

    fn get_head(&self) -> Vec<u8> {
        raw_http::last_head("GET", &self.target(), &self.host(), 0)
    }

    fn post_head(&self, target: &str, length: usize) -> Vec<u8> {
        raw_http::last_head("POST", target, &self.host(), length)
    }

    fn target(&self) -> String {
        self.traffic.target(self.request, 1)
    }

    fn host(&self) -> String {
        self.traffic.host(self.request.listener, &self.address)
    }

    fn body(&self, size: usize) -> Vec<u8> {
        request_body(self.request.id, size)
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time.min(self.end.saturating_duration_since(Instant::now())));
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end || self.traffic.is_stopped()
    }

    fn is_handoff(&self) -> bool {
        !self.traffic.listeners[self.request.listener].redirects
    }

    /// Where to send the request: to the listener, or to the worker of a lease that the dispatcher grants.
    fn destination(&self) -> Option<(ServerAddress, String)> {
        if self.is_handoff() {
            return Some((self.address.clone(), self.target()));
        }
        let mut stream = self.connect(&self.address)?;
        stream.write_all(&self.get_head()).ok()?;
        match raw_http::read_to_end(&mut stream) {
            ReceiveOutcome::Complete(response) => leased_worker(&response, &self.address, &self.target()),
            _ => None,
        }
    }

    fn half_open(&mut self, random: &mut SplitMix64) -> Option<()> {
        let mut stream = self.connect(&self.address)?;
        if self.is_handoff() && random.below(2) == 0 {
            // Idle after a request, not before.
            stream.write_all(&raw_http::keepalive_head("GET", &self.target(), &self.host(), 0)).ok()?;
            raw_http::read_next(&mut stream, &mut Vec::new());
        }
        self.sleep(Duration::MAX);
        Some(())
    }

    fn slow_head(&mut self) -> Option<()> {
        let stream = self.connect(&self.address)?;
        self.send_slowly(stream, &self.get_head())
    }

    fn slow_body(&mut self) -> Option<()> {
        let (worker, target) = self.destination()?;
        let mut stream = self.connect(&worker)?;
        let body = self.body(4096);
        stream.write_all(&self.post_head(&target, body.len())).ok()?;
        self.send_slowly(stream, &body)
    }

    fn send_slowly(&self, mut stream: ClientStream, bytes: &[u8]) -> Option<()> {
        for byte in bytes {
            stream.write_all(&[*byte]).ok()?;
            self.sleep(BYTE_INTERVAL);
            if self.is_over() {
                return None;
            }
        }
        Some(())
    }

    fn not_reading(&mut self) -> Option<()> {
        let (worker, target) = self.destination()?;
        let mut stream = self.connect(&worker)?;
        let body = self.body(2_000_000);
        stream.write_all(&self.post_head(&target, body.len())).ok()?;
        // The response is larger than the socket buffers, so this may fail.
        let _ = stream.write_all(&body);
        self.sleep(Duration::MAX);
        Some(())
    }

    fn unused_lease(&mut self) -> Option<()> {
        if self.is_handoff() {
            // The first byte obtains a worker; no other byte follows.
            let mut stream = self.connect(&self.address)?;
            stream.write_all(b"G").ok()?;
            self.sleep(BYTE_INTERVAL * 10);
            return Some(());
        }
        self.destination().map(drop)
    }

    /// Disconnects within the head, while waiting for the dispatcher, within the body, or within the response.
    fn disconnect(&mut self, random: &mut SplitMix64) -> Option<()> {
        match random.below(4) {
            0 => {
                let head = self.get_head();
                let length = random.below(head.len() as u64) as usize;
                self.connect(&self.address)?.write_all(&head[..length]).ok()
            }
            1 => self.connect(&self.address)?.write_all(&self.get_head()).ok(),
            step => {
                let (worker, target) = self.destination()?;
                let mut stream = self.connect(&worker)?;
                let body = self.body(100_000);
                stream.write_all(&self.post_head(&target, body.len())).ok()?;
                if step == 2 {
                    return stream.write_all(&body[..random.below(body.len() as u64) as usize]).ok();
                }
                let mut writer = stream.try_clone().ok()?;
                std::thread::scope(|scope| {
                    scope.spawn(move || drop(writer.write_all(&body)));
                    let mut response = vec![0; 1 + random.below(50_000) as usize];
                    let read = stream.read_exact(&mut response).ok();
                    stream.shutdown();
                    read
                })
            }
        }
    }
}
