//! Clients of listeners that hand connections over: plain ones, each connection with several requests, one after the
//! other.

use std::io::Write;
use std::time::Duration;

use super::ledger::{Doubt, End, Reason};
use super::schedule::Random;
use super::traffic::{ATTEMPTS, Request, Traffic};
use super::wire::{self, Answer, Came, Stream};
use crate::clock;

/// The most requests on one connection.
const REQUESTS: u64 = 8;

/// How a response was received: the connection goes on, or not.
enum Received {
    GoesOn(Answer),
    Last(Came),
}

impl Traffic<'_> {
    /// A client that keeps its connection, and sends again what has certainly not started.
    pub fn keeping(&self, mut random: Random) {
        let mut again: Option<(Request, u32)> = None;
        while !self.is_over() {
            let door = again.as_ref().map(|(request, _)| request.door);
            let Some(door) = door.or_else(|| self.door(&mut random, |entrance| !entrance.redirects)) else { return };
            let mut stream = self.place(door).and_then(|place| place.connect(self.patience).ok());
            let mut left = 1 + random.below(REQUESTS);
            let mut kept = false;
            loop {
                let (request, number) = again.take().unwrap_or_else(|| (self.request_at(&mut random, door), 1));
                left -= 1;
                let begun = clock::now();
                let received = stream.as_mut().map(|stream| self.exchange(stream, &request, number, left == 0));
                let (end, goes_on) = match received {
                    None => (End::NotStarted(Reason::Unreached), false),
                    Some(Received::GoesOn(answer)) => (self.judge(&request, number, &answer), left > 0),
                    Some(Received::Last(Came::Whole(answer))) => (self.judge(&request, number, &answer), false),
                    Some(Received::Last(Came::Silence)) => (End::Silent("on a connection that is handed over"), false),
                    Some(Received::Last(Came::Nothing)) => (End::Unknown(Doubt::Lost), false),
                    Some(Received::Last(Came::Part)) => (End::Unknown(Doubt::Cut), false),
                };
                let retry = matches!(end, End::NotStarted(_)) && number < ATTEMPTS;
                self.told(&request, number, begun, Duration::ZERO, kept, end);
                again = retry.then_some((request, number + 1));
                kept = true;
                if !goes_on || self.is_over() {
                    break;
                }
                // Longer than the dispatcher needs to wait for it again, or not.
                std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(20)));
            }
            drop(stream);
            std::thread::sleep(random.between(Duration::from_millis(2), Duration::from_millis(40)));
        }
    }

    /// One request and its response.
    fn exchange(&self, stream: &mut Stream, request: &Request, number: u32, last: bool) -> Received {
        let Some(place) = self.place(request.door) else { return Received::Last(Came::Nothing) };
        let target = self.target(request.door, request.id, number, request.think);
        let (method, host) = (if request.body.is_empty() { "GET" } else { "POST" }, self.host(request.door, &place));
        let head = if last { wire::head } else { wire::going_on };
        let mut bytes = head(method, &target, &host, request.body.len());
        bytes.extend(&request.body);
        let Ok(mut writer) = stream.again() else { return Received::Last(Came::Silence) };
        std::thread::scope(|scope| {
            let mut send = move || writer.write_all(&bytes).is_ok();
            // A small one fits into the buffers of the socket, and needs no thread.
            let sending = match request.body.len() {
                0..=30_000 => Err(send()),
                _ => Ok(scope.spawn(send)),
            };
            let came = wire::next(stream);
            let closes = |answer: &Answer| answer.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
            match came {
                Came::Whole(answer) if !last && !closes(&answer) => {
                    let sent = sending.map_or_else(|sent| sent, |thread| thread.join().unwrap_or(false));
                    if sent { Received::GoesOn(answer) } else { Received::Last(Came::Whole(answer)) }
                }
                came => {
                    stream.shut(); // whoever still sends need not
                    Received::Last(came)
                }
            }
        })
    }
}
