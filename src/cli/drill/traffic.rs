//! What all clients of the drill share: the listeners, the requests, and the record of each attempt.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::connection::ServerAddress;
use super::history::{AttemptOutcome, NotStartedReason, RequestAttempt, SessionSpan, UnknownReason};
use super::random::SplitMix64;
use super::raw_http::{self, RawResponse, ReceiveOutcome};
use super::recording_handler;
use super::set::{DrillHandler, DrillSet};
use super::watch::SetWatch;
use crate::clock;
use crate::config::{ListenerConfig, ListenerProtocol};
use crate::ids::Monotonic;
use crate::sync::lock;

/// The client address in PROXY headers (RFC 5737).
pub(super) const PROXY_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A client abandons a request after this many attempts that have not started.
pub(super) const MAX_ATTEMPTS: u32 = 12;

/// Sizes of bodies, in bytes. The last does not fit into the buffers of a socket.
const BODY_SIZES: &[usize] = &[0, 0, 1, 100, 1000, 1000, 20_000, 300_000];

/// A listener as a client sees it.
#[derive(Clone, Debug)]
pub(super) struct ClientListener {
    pub handler: DrillHandler,
    /// Its delivery is redirect.
    pub redirects: bool,
    /// The most sessions of its pool.
    pub max_sessions: u16,
    /// It expects a PROXY header first.
    pub proxy_protocol: bool,
    /// Its clients speak FastCGI.
    pub is_fastcgi: bool,
    /// The value of `Host`, if not the address.
    pub host: Option<String>,
    /// Why clients send it no requests.
    pub unused: Option<&'static str>,
}

pub(super) struct Traffic<'a> {
    pub watch: &'a SetWatch,
    pub listeners: Vec<ClientListener>,
    /// The path of requests to unknown handlers.
    path: String,
    /// The bound on every wait of a client.
    pub timeout: Duration,
    pub attempts: Mutex<Vec<RequestAttempt>>,
    pub sessions: Mutex<Vec<SessionSpan>>,
    record_files: Vec<RecordFile>,
    next_request: AtomicU64,
    stopped: AtomicBool,
}

/// A file in which handlers record starts.
struct RecordFile {
    path: PathBuf,
    /// How many starts it held before the drill.
    earlier: usize,
}

/// One request of a client.
pub(super) struct DrillRequest {
    pub id: u64,
    pub listener: usize,
    /// If empty, the method is GET.
    pub body: Vec<u8>,
    /// How long a recording handler delays its response.
    pub delay: Duration,
}

impl DrillRequest {
    pub(super) fn method(&self) -> &'static str {
        if self.body.is_empty() { "GET" } else { "POST" }
    }
}

/// When an attempt was sent; see [`RequestAttempt`].
#[derive(Clone, Copy)]
pub(super) struct AttemptTiming {
    pub sent: Monotonic,
    pub client_time: Duration,
    pub previous_sent: Option<Monotonic>,
}

impl AttemptTiming {
    /// The first request on its connection, sent now.
    pub(super) fn now() -> Self {
        Self { sent: clock::now(), client_time: Duration::ZERO, previous_sent: None }
    }
}

impl<'a> Traffic<'a> {
    pub(super) fn new(set: &DrillSet, watch: &'a SetWatch, path: String) -> Self {
        let bounds = set.bounds();
        let longest = bounds.attempt.iter().max().copied().unwrap_or_default();
        let checked = set.listeners();
        let listener = |(index, listener): (usize, &ListenerConfig)| {
            let pool = checked[index].pool;
            let handler = set.handler(pool);
            let is_unknown = set.is_inetd(pool) && handler == DrillHandler::Unknown;
            ClientListener {
                handler,
                redirects: set.redirects(index),
                max_sessions: checked[index].max_sessions,
                proxy_protocol: listener.proxy_protocol,
                host: listener.allowed_hosts.first().cloned(),
                is_fastcgi: listener.protocol == ListenerProtocol::Fastcgi,
                unused: is_unknown.then_some("the protocol of its program is unknown"),
            }
        };
        let listeners: Vec<_> = set.config.listeners.iter().enumerate().map(listener).collect();
        let files = listeners.iter().filter_map(|listener: &ClientListener| match &listener.handler {
            DrillHandler::Recording(file) => Some(file.clone()),
            _ => None,
        });
        let record_file = |path: PathBuf| {
            // A file that cannot be read now is reported at the end, when it cannot be read either.
            let earlier = recording_handler::read_starts(&path).map_or(0, |starts| starts.len());
            RecordFile { path, earlier }
        };
        Self {
            watch,
            record_files: files.collect::<BTreeSet<_>>().into_iter().map(record_file).collect(),
            listeners,
            path,
            timeout: longest + (bounds.worker + bounds.dispatcher + bounds.watchdog + bounds.drain) * 2,
            attempts: Mutex::default(),
            sessions: Mutex::default(),
            next_request: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
        }
    }

    /// Stops all clients after the requests that they have sent.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn next_request_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// The current address of a listener; `None` while the watchdog has not published it.
    pub(super) fn address(&self, listener: usize) -> Option<ServerAddress> {
        ServerAddress::parse(self.watch.listeners().get(listener)?)
    }

    /// The value of `Host` at a listener, or at one of its workers, with this address.
    pub(super) fn host(&self, listener: usize, address: &ServerAddress) -> String {
        self.listeners[listener].host.clone().unwrap_or_else(|| address.host())
    }

    /// The PROXY header for a client address, or nothing where the listener expects none.
    pub(super) fn proxy_header(&self, listener: usize, request: u64, from: Ipv4Addr) -> Vec<u8> {
        if self.listeners[listener].proxy_protocol {
            raw_http::proxy_header(from, request.is_multiple_of(2))
        } else {
            Vec::new()
        }
    }

    /// The target of an attempt of this request.
    pub(super) fn target(&self, request: &DrillRequest, attempt: u32) -> String {
        let DrillRequest { id, listener, delay, .. } = request;
        match &self.listeners[*listener].handler {
            DrillHandler::Recording(_) => format!("/{id}/{attempt}?ms={}", delay.as_millis()),
            DrillHandler::Echo => format!("/{id}/{attempt}"),
            DrillHandler::Unknown => self.path.clone(),
        }
    }

    /// What handlers have recorded since the start of the drill.
    ///
    /// # Errors
    /// A file cannot be read or is not a record of starts.
    pub(super) fn recorded_starts(&self) -> Result<Vec<(u64, u32)>, String> {
        let mut all = Vec::new();
        for RecordFile { path, earlier } in &self.record_files {
            let starts =
                recording_handler::read_starts(path).map_err(|error| format!("{}: {error}", path.display()))?;
            all.extend(starts.into_iter().skip(*earlier));
        }
        Ok(all)
    }

    /// The listeners to which clients send requests.
    pub(super) fn used_listeners(&self) -> impl Iterator<Item = usize> {
        (0..self.listeners.len()).filter(|index| self.listeners[*index].unused.is_none())
    }

    /// A random listener that `accepts`; `None` if there is none.
    pub(super) fn choose_listener(
        &self,
        random: &mut SplitMix64,
        accepts: fn(&ClientListener) -> bool,
    ) -> Option<usize> {
        let accepted: Vec<_> = self.used_listeners().filter(|index| accepts(&self.listeners[*index])).collect();
        accepted.get(random.next() as usize % accepted.len().max(1)).copied()
    }

    /// A new request to this listener.
    pub(super) fn new_request(&self, random: &mut SplitMix64, listener: usize) -> DrillRequest {
        let size = match self.listeners[listener].handler {
            DrillHandler::Unknown => 0,
            _ => *random.pick(BODY_SIZES),
        };
        let id = self.next_request_id();
        let delay = if random.below(4) == 0 {
            random.between(Duration::ZERO, Duration::from_millis(60))
        } else {
            Duration::ZERO
        };
        DrillRequest { id, listener, body: request_body(id, size), delay }
    }

    /// Records an attempt that has just ended.
    pub(super) fn record(&self, request: &DrillRequest, number: u32, timing: AttemptTiming, outcome: AttemptOutcome) {
        let AttemptTiming { sent, client_time, previous_sent } = timing;
        let attempt = RequestAttempt {
            request: request.id,
            number,
            listener: request.listener,
            sent,
            ended: clock::now(),
            client_time: client_time + request.delay,
            previous_sent,
            outcome,
        };
        lock(&self.attempts).push(attempt);
    }

    pub(super) fn outcome_of(&self, request: &DrillRequest, number: u32, response: &RawResponse) -> AttemptOutcome {
        self.outcome_of_parts(request, number, response.status, response.header("patou-outcome"), &response.body)
    }

    /// The outcome of an attempt, by the status, `Patou-Outcome` and body of its response.
    pub(super) fn outcome_of_parts(
        &self,
        request: &DrillRequest,
        number: u32,
        status: u16,
        patou_outcome: Option<&str>,
        body: &[u8],
    ) -> AttemptOutcome {
        match patou_outcome {
            Some("not-started") => return AttemptOutcome::NotStarted(NotStartedReason::Refused(status)),
            Some(_) => return AttemptOutcome::Unknown(UnknownReason::Reported(status)),
            None => {}
        }
        let handler = &self.listeners[request.listener].handler;
        if *handler == DrillHandler::Unknown {
            return AttemptOutcome::Served; // any response of an unknown handler is its own
        }
        if status != 200 {
            return AttemptOutcome::NoOutcome(status);
        }
        let expected = if !request.body.is_empty() {
            request.body.clone()
        } else if let DrillHandler::Recording(_) = handler {
            recording_handler::default_body(request.id, number).into_bytes()
        } else {
            format!("GET {}\n", self.target(request, number)).into_bytes()
        };
        if body == expected {
            return AttemptOutcome::Served;
        }
        let same = body.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let what = format!("{} bytes instead of {}, of which the first {same} are equal", body.len(), expected.len());
        AttemptOutcome::WrongResponse(what)
    }
}

/// The response of a connection that was to reach a worker, or the attempt's outcome if it is incomplete.
pub(super) fn complete_response(received: ReceiveOutcome, step: &'static str) -> Result<RawResponse, AttemptOutcome> {
    match received {
        ReceiveOutcome::Complete(response) => Ok(response),
        ReceiveOutcome::TimedOut => Err(AttemptOutcome::TimedOut(step)),
        ReceiveOutcome::NoBytes => Err(AttemptOutcome::Unknown(UnknownReason::NoResponse)),
        ReceiveOutcome::Truncated => Err(AttemptOutcome::Unknown(UnknownReason::Truncated)),
    }
}

/// A body that no other request has.
pub(super) fn request_body(request: u64, size: usize) -> Vec<u8> {
    let mut random = SplitMix64::new(request);
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(size.div_ceil(8)).flatten().collect();
    bytes.truncate(size);
    bytes
}

/// The worker's address and the target there, if the dispatcher's response is a `307` or a lease in JSON.
pub(super) fn leased_worker(
    response: &RawResponse,
    dispatcher: &ServerAddress,
    target: &str,
) -> Option<(ServerAddress, String)> {
    match response.status {
        307 => {
            let rest = response.header("location")?.strip_prefix("http://")?;
            let (host, path) = rest.split_at(rest.find('/')?);
            // The host is that of the request's `Host`; the port is the worker's.
            let port = host.rsplit_once(':')?.1.parse().ok()?;
            let ServerAddress::Tcp(mut address) = dispatcher.clone() else { return None };
            address.set_port(port);
            Some((ServerAddress::Tcp(address), path.to_owned()))
        }
        200 => {
            let lease: serde_json::Value = serde_json::from_slice(&response.body).ok()?;
            let address = ServerAddress::parse(lease["address"].as_str()?)?;
            Some((address, format!("/.patou/{}{target}", lease["token"].as_str()?)))
        }
        _ => None,
    }
}
