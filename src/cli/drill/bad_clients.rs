//! Clients that misbehave, each for a bounded time. None of them may harm anybody else.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::checker::{Attempt, End};
use super::generator::{Fault, Kind, Random};
use super::raw_http::{self, Came, Place, Stream};
use super::traffic::{Traffic, content, goes_on};
use crate::clock;

/// They come from an address of their own: a client that does not use its lease is given one at a time.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The same as a proxy tells it (RFC 5737).
const TOLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A pause between two bytes of a slow client.
const BYTE: Duration = Duration::from_millis(20);

/// Misbehaves at listener `door` as the fault says. What becomes of such a client itself is nobody's promise, but that
/// its request does not start twice.
pub fn run(traffic: &Traffic<'_>, fault: &Fault, door: usize) {
    let id = traffic.number();
    let begun = clock::now();
    if let Some(place) = traffic.place(door) {
        let mut client = Rude { traffic, door, id, place, end: Instant::now() + fault.amount };
        let mut random = Random::new(fault.seed);
        // Wherever it got to: the rest is silence.
        let _ = match fault.kind {
            Kind::HalfOpen => client.half_open(&mut random),
            Kind::SlowHead => client.slow_head(),
            Kind::SlowBody => client.slow_body(),
            Kind::Deaf => client.deaf(),
            Kind::NoShow => client.no_show(),
            _ => client.hang_up(&mut random),
        };
    }
    let end = End::Left;
    traffic.note(Attempt {
        request: id,
        number: 1,
        door,
        begun,
        ended: clock::now(),
        own: Duration::ZERO,
        kept: None,
        end,
    });
}

struct Rude<'a> {
    traffic: &'a Traffic<'a>,
    door: usize,
    id: u64,
    place: Place,
    end: Instant,
}

impl Rude<'_> {
    fn connect(&self, place: &Place) -> Option<Stream> {
        let left = self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(50));
        let mut stream = place.connect_as(FROM, left).ok()?;
        stream.write_all(&self.traffic.introduction(self.door, self.id, TOLD)).ok()?;
        Some(stream)
    }

    fn head(&self, method: &str, target: &str, host: &str, length: usize) -> Vec<u8> {
        raw_http::head(method, target, host, length)
    }

    fn target(&self) -> String {
        self.traffic.target(self.door, self.id, 1, Duration::from_millis(30))
    }

    fn host(&self) -> String {
        self.traffic.host(self.door, &self.place)
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time.min(self.end.saturating_duration_since(Instant::now())));
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end || self.traffic.is_over()
    }

    /// Whether everything is done at one address.
    fn is_handed(&self) -> bool {
        !self.traffic.entrances[self.door].redirects
    }

    /// Asks the dispatcher: where the worker is, and the target there.
    fn lease(&self) -> Option<(Place, String)> {
        if self.is_handed() {
            return Some((self.place.clone(), self.target()));
        }
        let mut stream = self.connect(&self.place)?;
        stream.write_all(&self.head("GET", &self.target(), &self.host(), 0)).ok()?;
        match raw_http::receive(&mut stream) {
            Came::Whole(answer) => goes_on(&answer, &self.place, &self.target()),
            _ => None,
        }
    }

    fn half_open(&mut self, random: &mut Random) -> Option<()> {
        let mut stream = self.connect(&self.place)?;
        if self.is_handed() && random.below(2) == 0 {
            // It rests after a request.
            stream.write_all(&raw_http::going_on("GET", &self.target(), &self.host(), 0)).ok()?;
            raw_http::next(&mut stream, &mut Vec::new());
        }
        self.sleep(Duration::MAX);
        Some(())
    }

    fn slow_head(&mut self) -> Option<()> {
        let mut stream = self.connect(&self.place)?;
        for byte in self.head("GET", &self.target(), &self.host(), 0) {
            stream.write_all(&[byte]).ok()?;
            self.sleep(BYTE);
            if self.is_over() {
                return None;
            }
        }
        Some(())
    }

    fn slow_body(&mut self) -> Option<()> {
        let (worker, target) = self.lease()?;
        let mut stream = self.connect(&worker)?;
        let body = content(self.id, 4096);
        stream.write_all(&self.head("POST", &target, &self.host(), body.len())).ok()?;
        for byte in body {
            stream.write_all(&[byte]).ok()?;
            self.sleep(BYTE);
            if self.is_over() {
                return None;
            }
        }
        Some(())
    }

    fn deaf(&mut self) -> Option<()> {
        let (worker, target) = self.lease()?;
        let mut stream = self.connect(&worker)?;
        let body = content(self.id, 2_000_000);
        stream.write_all(&self.head("POST", &target, &self.host(), body.len())).ok()?;
        // More than the buffers hold comes back, and nobody takes it.
        let _ = stream.write_all(&body);
        self.sleep(Duration::MAX);
        Some(())
    }

    fn no_show(&mut self) -> Option<()> {
        if self.is_handed() {
            // It is given a worker for its first byte, and sends no other.
            let mut stream = self.connect(&self.place)?;
            stream.write_all(b"G").ok()?;
            self.sleep(BYTE * 10);
            return Some(());
        }
        self.lease().map(drop)
    }

    /// Leaves within the head, waiting for the dispatcher, within the body, or within the response.
    fn hang_up(&mut self, random: &mut Random) -> Option<()> {
        match random.below(4) {
            0 => {
                let head = self.head("GET", &self.target(), &self.host(), 0);
                let some = random.below(head.len() as u64) as usize;
                self.connect(&self.place)?.write_all(&head[..some]).ok()
            }
            1 => self.connect(&self.place)?.write_all(&self.head("GET", &self.target(), &self.host(), 0)).ok(),
            step => {
                let (worker, target) = self.lease()?;
                let mut stream = self.connect(&worker)?;
                let body = content(self.id, 100_000);
                stream.write_all(&self.head("POST", &target, &self.host(), body.len())).ok()?;
                if step == 2 {
                    return stream.write_all(&body[..random.below(body.len() as u64) as usize]).ok();
                }
                let mut writer = stream.again().ok()?;
                std::thread::scope(|scope| {
                    scope.spawn(move || drop(writer.write_all(&body)));
                    let mut some = vec![0; 1 + random.below(50_000) as usize];
                    let read = stream.read_exact(&mut some).ok();
                    stream.shut();
                    read
                })
            }
        }
    }
}
