//! Clients that open sessions: connections that switch to WebSocket. The handler sends back what it receives.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::connection::ClientStream;
use super::history::SessionSpan;
use super::random::SplitMix64;
use super::raw_http::{self, ReceiveOutcome};
use super::recording_handler::SESSION_TARGET;
use super::traffic::{ClientListener, PROXY_CLIENT, Traffic, leased_worker};
use crate::clock;
use crate::sync::lock;

/// The longest sessions that their clients end: of most, and of some that are longer than `session_timeout` of the private
/// set.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(2);

/// An open session.
pub(super) struct OpenSession {
    stream: ClientStream,
    span: SessionSpan,
}

/// One client, which opens one session after the other.
pub(super) fn run(traffic: &Traffic<'_>, mut random: SplitMix64) {
    while !traffic.is_stopped() {
        let has_sessions = |listener: &ClientListener| listener.max_sessions > 0 && !listener.is_fastcgi;
        let Some(listener) = traffic.choose_listener(&mut random, has_sessions) else { return };
        if let Some(mut session) = open(traffic, listener) {
            let longest = if random.below(8) == 0 { LONG } else { SHORT };
            let end = Instant::now() + random.between(Duration::ZERO, longest);
            while session.span.fault.is_none() && Instant::now() < end && !traffic.is_stopped() {
                if !session.echo(random.next()) {
                    break;
                }
                std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(40)));
            }
            lock(&traffic.sessions).push(session.span);
        }
        std::thread::sleep(random.between(Duration::ZERO, Duration::from_millis(100)));
    }
}

/// A session at this listener; `None` if there is another response than 101, or none.
pub(super) fn open(traffic: &Traffic<'_>, listener: usize) -> Option<OpenSession> {
    let address = traffic.address(listener)?;
    let mut stream = address.connect(traffic.timeout).ok()?;
    let mut head = traffic.proxy_header(listener, traffic.next_request_id(), PROXY_CLIENT);
    let redirects = traffic.listeners[listener].redirects;
    if redirects {
        let host = traffic.host(listener, &address);
        head.extend(raw_http::last_head("GET", SESSION_TARGET, &host, 0));
        stream.write_all(&head).ok()?;
        let ReceiveOutcome::Complete(response) = raw_http::read_to_end(&mut stream) else { return None };
        let (worker, target) = leased_worker(&response, &address, SESSION_TARGET)?;
        stream = worker.connect(traffic.timeout).ok()?;
        head = raw_http::upgrade_head(&target, &traffic.host(listener, &worker));
    } else {
        head.extend(raw_http::upgrade_head(SESSION_TARGET, &traffic.host(listener, &address)));
    }
    stream.write_all(&head).ok()?;
    let first = raw_http::read_first_head(&mut stream)?;
    let now = clock::now();
    let span = SessionSpan { listener, opened: now, alive_until: now, fault: None };
    first.bytes.starts_with(b"HTTP/1.1 101 ").then_some(OpenSession { stream, span })
}

impl OpenSession {
    /// Sends a message and waits for it. Returns whether the session continues.
    pub(super) fn echo(&mut self, message: u64) -> bool {
        let (sent, mut received) = (clock::now(), [0; 8]);
        let echoed = self.stream.write_all(&message.to_be_bytes()).and_then(|()| self.stream.read_exact(&mut received));
        match echoed {
            Ok(()) if received == message.to_be_bytes() => self.span.alive_until = sent,
            Ok(()) => self.span.fault = Some("received other bytes than it had sent"),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.span.fault = Some("neither continued nor ended");
            }
            Err(_) => return false, // it was cut, or has ended
        }
        self.span.fault.is_none()
    }
}
