//! One request to the co-process and its response, both at once.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::cgi_response::{Event, NoHead, cut};
use super::super::head;
use super::super::stream::{First, Step, race, unfold};
use super::super::{Body, Context, Failure, LimitedBody, framing};
use super::{Coprocess, DEAF, IdleProcess, Mark, Place};

/// How long a process that closes its descriptors may take to be dead, if it is dying.
const DYING: Duration = Duration::from_millis(100);

/// Why a request was not written to its end.
#[derive(Debug)]
pub enum FeedError {
    /// The client's body failed; the co-process can do nothing for it.
    Client(Failure),
    /// The co-process does not read any more.
    Deaf,
}

/// The task that writes a request, and gives descriptor 3 back when it is written. Dropping it ends it.
#[derive(Debug)]
pub struct Feed(JoinHandle<Result<Sender, FeedError>>);

impl Feed {
    /// Waits for its end. Not to be called again after that.
    pub async fn outcome(&mut self) -> Result<Sender, FeedError> {
        (&mut self.0).await.unwrap_or(Err(FeedError::Deaf))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes head and body. The body must have exactly `length` bytes, else the framing would lose step.
async fn feed(mut requests: Sender, head: Vec<u8>, mut body: LimitedBody, length: u64) -> Result<Sender, FeedError> {
    let wrong =
        || FeedError::Client(Failure::new(StatusCode::BAD_REQUEST, "the request body has not the announced length"));
    requests.write_all(&head).await.map_err(|_| FeedError::Deaf)?;
    let mut left = length;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FeedError::Client(error.into()))?;
        if let Ok(data) = frame.into_data() {
            left = left.checked_sub(data.len() as u64).ok_or_else(wrong)?;
            requests.write_all(&data).await.map_err(|_| FeedError::Deaf)?;
        }
    }
    if left == 0 { Ok(requests) } else { Err(wrong()) }
}

/// A process out on a request. Dropped before the end, it does not come back.
struct Exchange {
    home: Arc<Coprocess>,
    warm: IdleProcess,
    feed: Option<Feed>,
    /// Bytes of the response still to come.
    left: u64,
    patience: Duration,
}

impl Coprocess {
    /// Serves one request.
    pub(in super::super) async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let context = Context::of(request.extensions())?;
        let (parts, body) = request.into_parts();
        let body = LimitedBody::new(body, &context)?;
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| head::length(length).ok());
        let length = body.size_hint().exact().or(announced).ok_or_else(|| {
            let reason = "a co-process takes no request of unknown length: send a Content-Length";
            Failure::new(StatusCode::LENGTH_REQUIRED, reason).not_started()
        })?;
        self.turn_to(Some(context.lease.as_str().into()));
        let head = framing::request_head(&parts.method, &parts.uri, &parts.headers, &context.lease, length);
        let mut warm = self.ready().await?;
        let feed = warm.requests.take().map(|requests| Feed(tokio::spawn(feed(requests, head, body, length))));
        let mut exchange = Exchange { home: self, warm, feed, left: 0, patience: context.body_timeout };
        let answer = exchange.head().await?;
        exchange.left = answer.length;
        exchange.respond(answer, parts.method == Method::HEAD).await
    }
}

impl Exchange {
    async fn head(&mut self) -> Result<framing::Answer, Failure> {
        let head = match race(unfed(&mut self.feed, &mut self.warm.requests), self.warm.output.head()).await {
            First::Left(FeedError::Client(failure)) => return Err(failure),
            First::Left(FeedError::Deaf) => {
                self.deaf();
                self.warm.output.head().await
            }
            First::Right(head) => head,
        };
        match head {
            Ok(head) => framing::answer(&head).map_err(|wrong| self.fault(&wrong)),
            Err(NoHead::Malformed(wrong)) => Err(self.fault(&wrong)),
            Err(NoHead::Closed) => {
                let what = self.closed().await;
                Err(self.fault(&format!("{what} before the end of a response head")))
            }
            Err(NoHead::Ended(ended)) => Err(self.fault(&format!("{ended} before the end of a response head"))),
        }
    }

    /// Makes the response; one that has no body is read to its end here, as nobody else would.
    async fn respond(mut self, answer: framing::Answer, bodiless: bool) -> Result<Response<Body>, Failure> {
        let body = if bodiless || answer.length == 0 || head::bodiless(answer.status) {
            while self.left > 0 {
                self.piece().await?;
            }
            self.go_home();
            Empty::new().map_err(|never| match never {}).boxed_unsync()
        } else {
            unfold(Some(self), Self::step)
        };
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }

    /// The next piece of the body. With the last one the process goes home already: who knows the
    /// length asks for no further piece.
    async fn step(this: Option<Self>) -> Step<Option<Self>> {
        let Some(mut this) = this else { return Ok(None) };
        let data = this.piece().await?;
        if this.left > 0 {
            return Ok(Some((data, Some(this))));
        }
        this.go_home();
        Ok(Some((data, None)))
    }

    async fn piece(&mut self) -> Result<bytes::Bytes, Failure> {
        let event = match race(unfed(&mut self.feed, &mut self.warm.requests), self.warm.output.next()).await {
            First::Left(FeedError::Client(failure)) => return Err(failure),
            First::Left(FeedError::Deaf) => {
                self.deaf();
                self.warm.output.next().await
            }
            First::Right(event) => event,
        };
        match event {
            Event::Data(mut data) => {
                let beyond = cut(&mut data, &mut self.left);
                self.warm.output.unread(beyond);
                Ok(data)
            }
            Event::Closed => {
                let what = self.closed().await;
                Err(self.short(&what))
            }
            Event::Ended(ended) => Err(self.short(&ended)),
        }
    }

    /// What happened when descriptor 4 was closed: a dying process closes it before it is dead.
    async fn closed(&mut self) -> String {
        match timeout(DYING, self.warm.output.child.wait()).await {
            Ok(ended) => ended.to_string(),
            Err(_) => "closed its descriptor for responses".to_owned(),
        }
    }

    fn short(&self, what: &dyn std::fmt::Display) -> Failure {
        self.fault(&format!("{what}, {} bytes short of its Content-Length", self.left))
    }

    /// Puts the process back in its place. If it is not in step any more, that is found out there.
    fn go_home(self) {
        let Self { home, warm, feed, patience, .. } = self;
        match feed {
            None => home.put(Place::IdleProcess(warm)),
            Some(feed) => home.put(Place::Fed(warm, feed, patience)),
        }
    }

    /// A process that has closed descriptor 3 is at its end, whatever it thinks. It may have answered before:
    /// so it is killed, and what it wrote is read until the end of the process.
    fn deaf(&mut self) {
        let (worker, lease, event) = (self.home.voice.worker(), self.home.lock().lease.clone(), Mark::HandlerFault);
        let lease = lease.as_deref();
        tracing::warn!(%worker, lease, %event, "the co-process {DEAF} within a request: it is killed");
        self.warm.output.child.kill_group();
    }

    fn fault(&self, why: &dyn std::fmt::Display) -> Failure {
        self.home.fault(&self.warm, why);
        Failure::broken(format!("the co-process is broken: {why}"))
    }
}

/// Done only when the request cannot be written to its end; puts descriptor 3 back when it is written.
async fn unfed(feed: &mut Option<Feed>, requests: &mut Option<Sender>) -> FeedError {
    if let Some(running) = feed {
        let outcome = running.outcome().await;
        *feed = None;
        match outcome {
            Ok(done) => *requests = Some(done),
            Err(unfed) => return unfed,
        }
    }
    std::future::pending().await
}
