//! Clients of listeners that hand connections over: plain ones, each connection with several requests, one after the
//! other.

use std::io::Write;
use std::time::Duration;

use super::checker::{Doubt, End, Reason};
use super::generator::Random;
use super::raw_http::{self, Answer, Came, Stream};
use super::traffic::{ATTEMPTS, HONEST, Request, Traffic};
use crate::clock;
use crate::ids::Monotonic;

/// The most requests on one connection.
const REQUESTS: u64 = 8;

/// The most that are sent together (RFC 9112, section 9.3.2).
const TOGETHER: u64 = 3;

impl Traffic<'_> {
    /// A client that keeps its connection, and sends again what has certainly not started.
    pub fn keeping(&self, mut random: Random) {
        let mut again: Vec<(Request, u32)> = Vec::new();
        while !self.is_over() {
            let door = again.first().map(|(request, _)| request.door);
            let Some(door) = door.or_else(|| self.door(&mut random, |entrance| !entrance.redirects)) else { return };
            let mut stream = self.place(door).and_then(|place| place.connect(self.patience).ok());
            let mut left = 1 + random.below(REQUESTS);
            let mut kept = None;
            loop {
                let count = if random.below(4) == 0 { (1 + random.below(TOGETHER)).min(left) } else { 1 };
                let mut burst = std::mem::take(&mut again);
                while (burst.len() as u64) < count {
                    burst.push((self.request_at(&mut random, door), 1));
                }
                left = left.saturating_sub(burst.len() as u64);
                let begun = clock::now();
                let goes_on = self.send(stream.as_mut(), burst, begun, (kept, left == 0), &mut again);
                kept = Some(begun);
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

    /// Sends these requests together and takes their responses, which are noted. What is to be sent again is put into
    /// `again`. Whether the connection goes on.
    fn send(
        &self,
        mut stream: Option<&mut Stream>,
        burst: Vec<(Request, u32)>,
        begun: Monotonic,
        (kept, last): (Option<Monotonic>, bool),
        again: &mut Vec<(Request, u32)>,
    ) -> bool {
        let bytes = self.bytes(&burst, (kept.is_some(), last));
        let writer = stream.as_ref().and_then(|stream| stream.again().ok());
        std::thread::scope(|scope| {
            let sending = writer.map(|mut writer| {
                let send = move || writer.write_all(&bytes).is_ok();
                scope.spawn(send)
            });
            let (mut held, mut own, mut over) = (Vec::new(), Duration::ZERO, None);
            let count = burst.len();
            for (at, (request, number)) in burst.into_iter().enumerate() {
                let end = match (&over, stream.as_mut()) {
                    (Some(end), _) => behind(end),
                    (None, None) => End::NotStarted(Reason::Unreached),
                    (None, Some(stream)) => match raw_http::next(stream, &mut held) {
                        Came::Whole(mut answer) => {
                            if at + 1 == count {
                                answer.body.append(&mut held); // nobody has asked for it
                            }
                            let end = self.judge(&request, number, &answer);
                            if closes(&answer) || last && at + 1 == count {
                                over = Some(end.clone());
                            }
                            end
                        }
                        Came::Silence => End::Silent("on a connection that is handed over"),
                        Came::Nothing => End::Unknown(Doubt::Lost),
                        Came::Part => End::Unknown(Doubt::Cut),
                    },
                };
                if over.is_none() && !matches!(end, End::Served | End::NotStarted(Reason::Refused(_))) {
                    over = Some(end.clone());
                }
                let retry = matches!(end, End::NotStarted(_)) && number < ATTEMPTS;
                self.told(&request, number, begun, own, kept, end);
                own += request.think;
                if retry {
                    again.push((request, number + 1));
                }
            }
            if let (Some(_), Some(stream)) = (&over, &stream) {
                stream.shut(); // whoever still sends need not
            }
            sending.is_some_and(|thread| thread.join().unwrap_or(false)) && over.is_none()
        })
    }

    fn bytes(&self, burst: &[(Request, u32)], (kept, last): (bool, bool)) -> Vec<u8> {
        let mut bytes = match burst.first() {
            Some((request, _)) if !kept => self.introduction(request.door, request.id, HONEST),
            _ => Vec::new(),
        };
        for (at, (request, number)) in burst.iter().enumerate() {
            let Some(place) = self.place(request.door) else { return bytes };
            let target = self.target(request.door, request.id, *number, request.think);
            let (method, host) =
                (if request.body.is_empty() { "GET" } else { "POST" }, self.host(request.door, &place));
            let head = if last && at + 1 == burst.len() { raw_http::head } else { raw_http::going_on };
            bytes.extend(head(method, &target, &host, request.body.len()));
            bytes.extend(&request.body);
        }
        bytes
    }
}

fn closes(answer: &Answer) -> bool {
    answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// What is to be thought of a request that was sent behind one which ended so, and with it the connection. Behind a
/// whole response nothing is begun; 502 and 504 are sent where the worker had answered nothing.
fn behind(end: &End) -> End {
    match end {
        End::Unknown(Doubt::Lost | Doubt::Cut) => End::Unknown(Doubt::Lost),
        End::Silent(_) => End::Left,
        End::NotStarted(Reason::Unreached) => End::NotStarted(Reason::Unreached),
        _ => End::NotStarted(Reason::Behind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_whole_response_that_ends_its_connection_nothing_begins() {
        for end in [End::Served, End::Unknown(Doubt::Told(502)), End::NotStarted(Reason::Refused(503))] {
            assert_eq!(behind(&end), End::NotStarted(Reason::Behind));
        }
        assert_eq!(behind(&End::Unknown(Doubt::Cut)), End::Unknown(Doubt::Lost));
    }
}
