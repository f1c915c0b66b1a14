//! What the drill's own clients share, and those that use the house's client library.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;

use super::checker::{Attempt, Doubt, End, Reason};
use super::generator::Random;
use super::raw_http::{self, Answer, Place};
use super::recording_handler;
use super::set::{Set, Speaks};
use super::watch::Watch;
use crate::client::{CallError, Cause, Client, Payload};
use crate::clock;
use crate::ids::Monotonic;
use crate::sync;

/// How many clients of each kind there are.
const PLAIN: u64 = 4;
const LIBRARY: u64 = 2;
const KEEPING: u64 = 3;

/// Who comes, as a proxy tells it (RFC 5737).
pub const HONEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A client gives a request up after so many attempts, certain that none has started.
pub const ATTEMPTS: u32 = 12;

/// Sizes of bodies, in bytes. The last do not fit into the buffers of a socket.
const SIZES: &[usize] = &[0, 0, 1, 100, 1000, 1000, 20_000, 300_000];

/// A listener as a client sees it.
#[derive(Clone, Debug)]
pub struct Entrance {
    pub speaks: Speaks,
    /// Whether it tells its clients where to go.
    pub redirects: bool,
    /// Whether a proxy is to say first who comes.
    pub behind_proxy: bool,
    /// What stands in `Host`, if not its address.
    pub host: Option<String>,
    /// Why no client goes there.
    pub closed: Option<&'static str>,
}

/// What clients share.
pub struct Traffic<'a> {
    pub watch: &'a Watch,
    pub entrances: Vec<Entrance>,
    /// The path of requests where nothing is known of the handler.
    pub path: String,
    /// How long a client waits for anything before it calls it silence.
    pub patience: Duration,
    pub attempts: Mutex<Vec<Attempt>>,
    /// The files in which handlers record starts, and how many of each are from before this drill.
    books: Vec<(PathBuf, usize)>,
    next: AtomicU64,
    over: AtomicBool,
}

/// One request as its client means it.
pub struct Request {
    pub id: u64,
    pub door: usize,
    /// Empty: GET.
    pub body: Vec<u8>,
    /// How long the handler is asked to think.
    pub think: Duration,
}

impl<'a> Traffic<'a> {
    pub fn new(set: &Set, watch: &'a Watch, path: String) -> Self {
        let bounds = set.bounds();
        let longest = bounds.attempt.iter().max().copied().unwrap_or_default();
        let doors = set.doors();
        let pool = |index: usize| doors[index].pool;
        let is_foreign = |index| set.is_inetd(pool(index)) && set.speaks(pool(index)) == Speaks::Other;
        let entrance = |(index, listener): (usize, &crate::config::ListenerConfig)| Entrance {
            speaks: set.speaks(pool(index)),
            redirects: set.redirects(index),
            behind_proxy: listener.proxy_protocol,
            host: listener.allowed_hosts.first().cloned(),
            closed: is_foreign(index).then_some("what its program speaks is not known"),
        };
        let entrances: Vec<_> = set.config.listeners.iter().enumerate().map(entrance).collect();
        let files = entrances.iter().filter_map(|entrance: &Entrance| match &entrance.speaks {
            Speaks::Record(file) => Some(file.clone()),
            _ => None,
        });
        // A file that cannot be read now cannot be in the end either, and is told then.
        let before = |file: PathBuf| (recording_handler::read(&file).map_or(0, |starts| starts.len()), file);
        let books = files.collect::<BTreeSet<_>>().into_iter().map(before).map(|(count, file)| (file, count));
        Self {
            watch,
            books: books.collect(),
            entrances,
            path,
            patience: longest + (bounds.worker + bounds.dispatcher + bounds.watchdog + bounds.leave) * 2,
            attempts: Mutex::default(),
            next: AtomicU64::new(1),
            over: AtomicBool::new(false),
        }
    }

    /// Ends it: requests under way come to their end.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The number of a new request.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Where listener `index` is now; `None` while that is not known.
    pub fn place(&self, index: usize) -> Option<Place> {
        Place::parse(self.watch.listeners().get(index)?)
    }

    pub fn host(&self, index: usize, place: &Place) -> String {
        self.entrances[index].host.clone().unwrap_or_else(|| place.host())
    }

    /// What a proxy would write first, were there one; nothing where none is expected.
    pub fn introduction(&self, door: usize, id: u64, from: Ipv4Addr) -> Vec<u8> {
        if self.entrances[door].behind_proxy { raw_http::proxied(from, id.is_multiple_of(2)) } else { Vec::new() }
    }

    /// The target of an attempt.
    pub fn target(&self, door: usize, id: u64, number: u32, think: Duration) -> String {
        match &self.entrances[door].speaks {
            Speaks::Record(_) => format!("/{id}/{number}?ms={}", think.as_millis()),
            Speaks::Echo => format!("/{id}/{number}"),
            Speaks::Other => self.path.clone(),
        }
    }

    /// What handlers have recorded since the drill began.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of records.
    pub fn records(&self) -> Result<Vec<(u64, u32)>, String> {
        let mut all = Vec::new();
        for (file, before) in &self.books {
            let starts = recording_handler::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            all.extend(starts.into_iter().skip(*before));
        }
        Ok(all)
    }

    pub fn note(&self, attempt: Attempt) {
        sync::lock(&self.attempts).push(attempt);
    }

    /// Runs all clients, until [`Traffic::end`], on threads of this scope.
    pub fn start<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, seed: u64) {
        for client in 0..PLAIN {
            scope.spawn(move || self.plain(Random::new(seed ^ (client + 1) << 32)));
        }
        for client in 0..KEEPING {
            scope.spawn(move || self.keeping(Random::new(seed ^ (client + 201) << 32)));
        }
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime needs three descriptors, and the drill has them");
            runtime.block_on(async {
                let client = |client| self.library(Random::new(seed ^ (client + 101) << 32));
                futures(LIBRARY, client).await;
            });
        });
    }

    /// A request to one of the listeners that this kind of client may use; `None` if there is none.
    pub fn request(&self, random: &mut Random, may: fn(&Entrance) -> bool) -> Option<Request> {
        let door = self.door(random, may)?;
        Some(self.request_at(random, door))
    }

    /// The listeners to which clients go.
    pub fn open(&self) -> impl Iterator<Item = usize> {
        (0..self.entrances.len()).filter(|index| self.entrances[*index].closed.is_none())
    }

    /// One of the listeners that this kind of client may use; `None` if there is none.
    pub fn door(&self, random: &mut Random, may: fn(&Entrance) -> bool) -> Option<usize> {
        let open: Vec<_> = self.open().filter(|index| may(&self.entrances[*index])).collect();
        open.get(random.next() as usize % open.len().max(1)).copied()
    }

    /// A request to this listener.
    pub fn request_at(&self, random: &mut Random, door: usize) -> Request {
        let size = match self.entrances[door].speaks {
            Speaks::Other => 0,
            _ => *random.of(SIZES),
        };
        let id = self.number();
        let think = if random.below(4) == 0 {
            random.between(Duration::ZERO, Duration::from_millis(60))
        } else {
            Duration::ZERO
        };
        Request { id, door, body: content(id, size), think }
    }

    pub fn told(
        &self,
        request: &Request,
        number: u32,
        begun: Monotonic,
        own: Duration,
        kept: Option<Monotonic>,
        end: End,
    ) {
        let (id, door, ended) = (request.id, request.door, clock::now());
        self.note(Attempt { request: id, number, door, begun, ended, own: own + request.think, kept, end });
    }

    pub fn judge(&self, request: &Request, number: u32, answer: &Answer) -> End {
        self.judge_parts(request, number, answer.status, answer.header("patou-outcome"), &answer.body)
    }

    fn judge_parts(&self, request: &Request, number: u32, status: u16, outcome: Option<&str>, body: &[u8]) -> End {
        match outcome {
            Some("not-started") => return End::NotStarted(Reason::Refused(status)),
            Some(_) => return End::Unknown(Doubt::Told(status)),
            None => {}
        }
        let speaks = &self.entrances[request.door].speaks;
        if *speaks == Speaks::Other {
            return End::Served; // whatever it says, it is the application's word
        }
        if status != 200 {
            return End::Odd(status);
        }
        let expected = match (request.body.is_empty(), speaks) {
            (false, _) => request.body.clone(),
            (true, Speaks::Record(_)) => recording_handler::words(request.id, number).into_bytes(),
            (true, _) => format!("GET {}\n", self.target(request.door, request.id, number, request.think)).into_bytes(),
        };
        if body == expected {
            return End::Served;
        }
        let same = body.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        End::Wrong(format!("{} bytes, expected {}, the first {same} alike", body.len(), expected.len()))
    }

    /// A client that uses the library, with and without its own retries.
    async fn library(&self, mut random: Random) {
        while !self.is_over() {
            let Some(request) = self.request(&mut random, |entrance| entrance.redirects) else { return };
            let retry = if random.below(2) == 0 { Duration::ZERO } else { Duration::from_secs(2) };
            for number in 1..=ATTEMPTS {
                let begun = clock::now();
                let end = match tokio::time::timeout(self.patience, self.call(&request, number, retry)).await {
                    Ok(end) => end,
                    Err(_) => End::Silent("in a call of the client library"),
                };
                let again = matches!(end, End::NotStarted(_)) && !self.is_over();
                // Its last attempt begins when the time for retries is over.
                self.told(&request, number, begun, retry, None, end);
                if !again {
                    break;
                }
                tokio::time::sleep(random.between(Duration::from_millis(2), Duration::from_millis(50))).await;
            }
            tokio::time::sleep(random.between(Duration::ZERO, Duration::from_millis(40))).await;
        }
    }

    async fn call(&self, request: &Request, number: u32, retry: Duration) -> End {
        let Some(place) = self.place(request.door) else { return End::NotStarted(Reason::Unreached) };
        let url = match &place {
            Place::Tcp(address) => format!("http://{address}"),
            Place::Unix(path) => format!("unix:{}", path.display()),
        };
        let Ok(target) = url.parse() else { return End::NotStarted(Reason::Unreached) };
        let payload =
            if request.body.is_empty() { Payload::Empty } else { Payload::Bytes(request.body.clone().into()) };
        let method = if request.body.is_empty() { http::Method::GET } else { http::Method::POST };
        let uri = self.target(request.door, request.id, number, request.think);
        let mut message = http::Request::builder().method(method).uri(uri);
        if let Some(host) = &self.entrances[request.door].host {
            message = message.header("host", host);
        }
        let message = message.body(payload).expect("the parts of a drill's request are valid");
        let answer = match Client::new(target).retry_for(retry).call(message).await {
            Ok(answer) => answer,
            Err(CallError::StartedUnknown { .. }) => return End::Unknown(Doubt::Lost),
            Err(CallError::NotStarted { cause, .. }) => {
                return End::NotStarted(match cause {
                    Cause::Dispatcher { .. } | Cause::LeaseTimeout { .. } => Reason::Closed,
                    Cause::Connect { to, .. } | Cause::ConnectTimeout { to, .. }
                        if to.to_string() != url_less(&url) =>
                    {
                        Reason::Unmet
                    }
                    _ => Reason::Unreached,
                });
            }
        };
        let leased = answer.lease.is_some();
        let (head, body) = answer.response.into_parts();
        let outcome = head.headers.get("patou-outcome").and_then(|value| value.to_str().ok());
        let Ok(body) = body.collect().await else { return End::Unknown(Doubt::Cut) };
        match self.judge_parts(request, number, head.status.as_u16(), outcome, &body.to_bytes()) {
            End::NotStarted(_) if leased => End::NotStarted(Reason::SentBack),
            end => end,
        }
    }
}

fn url_less(url: &str) -> &str {
    url.trim_start_matches("http://")
}

/// Polls `count` futures to their end on this task.
async fn futures<F: Future<Output = ()>>(count: u64, make: impl Fn(u64) -> F) {
    let mut all: Vec<_> = (0..count).map(|n| Some(Box::pin(make(n)))).collect();
    std::future::poll_fn(|task| {
        for one in &mut all {
            if one.as_mut().is_some_and(|future| future.as_mut().poll(task).is_ready()) {
                *one = None;
            }
        }
        if all.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Bytes that tell a request from every other.
pub fn content(id: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(id);
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(size.div_ceil(8)).flatten().collect();
    bytes.truncate(size);
    bytes
}

/// Where a dispatcher's answer sends the client: `307`, or a lease in JSON.
pub fn goes_on(answer: &Answer, asked: &Place, target: &str) -> Option<(Place, String)> {
    match answer.status {
        307 => {
            let rest = answer.header("location")?.strip_prefix("http://")?;
            let (host, path) = rest.split_at(rest.find('/')?);
            // The host is what we called the dispatcher; the port is the worker's.
            let port = host.rsplit_once(':')?.1.parse().ok()?;
            let Place::Tcp(mut address) = asked.clone() else { return None };
            address.set_port(port);
            Some((Place::Tcp(address), path.to_owned()))
        }
        200 => {
            let lease: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
            let place = Place::parse(lease["address"].as_str()?)?;
            Some((place, format!("/.patou/{}{target}", lease["token"].as_str()?)))
        }
        _ => None,
    }
}
