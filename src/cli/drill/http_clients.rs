//! Clients that know nothing but HTTP, one request on a connection, and that tell every end of it apart.

use std::io::{Read, Write};
use std::time::Duration;

use super::checker::{Doubt, End, Reason};
use super::generator::Random;
use super::raw_http::{self, Came};
use super::traffic::{ATTEMPTS, HONEST, Request, Traffic, goes_on};
use crate::clock;

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Plain,
    /// The body is sent to the dispatcher too, unasked.
    Eager,
    /// The body is held back until it is wanted.
    Expecting,
    /// As HTTP/1.0.
    Old,
}

const MANNERS: &[Manner] =
    &[Manner::Plain, Manner::Plain, Manner::Eager, Manner::Eager, Manner::Expecting, Manner::Old];

impl Manner {
    fn head(self, request: &Request, target: &str, host: &str) -> Vec<u8> {
        let length = request.body.len();
        match self {
            Manner::Old if length == 0 => raw_http::old("GET", target, host, 0),
            Manner::Old => raw_http::old("POST", target, host, length),
            _ if length == 0 => raw_http::head("GET", target, host, 0),
            Manner::Expecting => raw_http::expecting("POST", target, host, length),
            Manner::Plain | Manner::Eager => raw_http::head("POST", target, host, length),
        }
    }
}

impl Traffic<'_> {
    /// A client that sends again what has certainly not started.
    pub fn plain(&self, mut random: Random) {
        while !self.is_over() {
            let Some(request) = self.request(&mut random, |_| true) else { return };
            for number in 1..=ATTEMPTS {
                let manner = *random.of(MANNERS);
                let (begun, end) = (clock::now(), self.attempt(&request, number, manner));
                let again = matches!(end, End::NotStarted(_)) && !self.is_over();
                self.told(&request, number, begun, Duration::ZERO, None, end);
                if !again {
                    break;
                }
                std::thread::sleep(random.between(Duration::from_millis(2), Duration::from_millis(50)));
            }
            std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(30)));
        }
    }

    /// One attempt, from the dispatcher to the worker.
    fn attempt(&self, request: &Request, number: u32, manner: Manner) -> End {
        let Some(place) = self.place(request.door) else { return End::NotStarted(Reason::Unreached) };
        let target = self.target(request.door, request.id, number, request.think);
        let host = self.host(request.door, &place);
        let Ok(stream) = place.connect(self.patience) else { return End::NotStarted(Reason::Unreached) };
        let entrance = &self.entrances[request.door];
        let direct = !entrance.redirects;
        let mut head = self.introduction(request.door, request.id, HONEST);
        head.extend(manner.head(request, &target, &host));
        let body: &[u8] = if direct || manner == Manner::Eager { &request.body } else { &[] };
        let answer = match exchange(stream, &head, body, manner) {
            Came::Silence => return End::Silent("waiting for the dispatcher"),
            Came::Nothing | Came::Part if !direct => return End::NotStarted(Reason::Closed),
            Came::Nothing => return End::Unknown(Doubt::Lost),
            Came::Part => return End::Unknown(Doubt::Cut),
            Came::Whole(answer) => answer,
        };
        let (worker, target) = match goes_on(&answer, &place, &target) {
            Some(next) if !direct => next,
            _ => return self.judge(request, number, &answer),
        };
        let Ok(stream) = worker.connect(self.patience) else { return End::NotStarted(Reason::Unmet) };
        let head = manner.head(request, &target, &self.host(request.door, &worker));
        match exchange(stream, &head, &request.body, manner) {
            Came::Silence => End::Silent("waiting for the worker"),
            Came::Nothing => End::Unknown(Doubt::Lost),
            Came::Part => End::Unknown(Doubt::Cut),
            Came::Whole(answer) if answer.header("patou-outcome") == Some("not-started") => {
                End::NotStarted(Reason::SentBack)
            }
            Came::Whole(answer) => self.judge(request, number, &answer),
        }
    }
}

/// Sends all of it while reading what comes: who answers early, or streams back, must not wait for us.
fn exchange(mut stream: raw_http::Stream, head: &[u8], body: &[u8], manner: Manner) -> Came {
    /// What the buffers of a socket hold in any case.
    const AT_ONCE: usize = 32 * 1024;
    let (mut bytes, mut begun) = (head.to_vec(), Vec::new());
    if manner == Manner::Expecting && !body.is_empty() {
        let _ = stream.write_all(head); // what became of it is read
        match raw_http::first_head(&mut stream) {
            None => return Came::Silence,
            Some((read, false)) => return raw_http::receive(&mut read.chain(&mut stream)),
            Some((read, true)) => begun = read,
        }
        bytes.clear();
    }
    bytes.extend(body);
    if bytes.len() <= AT_ONCE {
        let _ = stream.write_all(&bytes); // what became of it is read
        return raw_http::receive(&mut begun.chain(&mut stream));
    }
    let Ok(mut writer) = stream.again() else { return Came::Nothing };
    std::thread::scope(|scope| {
        scope.spawn(move || drop(writer.write_all(&bytes)));
        raw_http::receive(&mut begun.chain(&mut stream))
    })
}
