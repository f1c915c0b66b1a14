//! A client of a dispatcher: asks for a lease, sends the request to the leased worker, and begins again
//! only while it is certain that no worker has begun.
//!
//! ```no_run
//! use http_body_util::BodyExt;
//! use patou::client::{Client, Payload};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:7286".parse()?);
//! let request = http::Request::post("/convert?to=pdf").body(Payload::File("letter.odt".into()))?;
//! let answer = client.call(request).await?;
//! println!("{} after {} attempts", answer.response.status(), answer.attempts);
//! let body = answer.response.into_body().collect().await?.to_bytes();
//! # Ok(())
//! # }
//! ```
//!
//! The client needs a tokio runtime with I/O and time. It waits for the worker's answer without a bound of
//! its own: the set's `request_timeout` is the bound. A caller that wants a shorter one wraps the call in
//! `tokio::time::timeout`, and has to treat its end as *started-unknown*.

mod address;
mod answer;
mod error;
mod lease;
mod order;
mod problem;
mod retry;
mod step;
#[cfg(test)]
mod tests;
mod upload;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};

pub use address::{Address, BadAddress, Target};
pub use answer::{Answer, AnswerBody};
pub use error::{CallError, Cause, FileError};
pub use lease::Lease;
pub use problem::Problem;
pub use step::{Observer, Step};
pub use upload::Payload;

use order::Order;
use retry::Budget;
use step::Watch;
use upload::{Gate, Upload};

/// The largest answer of a dispatcher to a request for a lease, in bytes.
const LEASE_MAX: usize = 64 * 1024;

/// A client of one dispatcher. Cheap to clone; each call has its own connections.
#[derive(Clone)]
pub struct Client {
    target: Target,
    retry_for: Duration,
    connect_timeout: Duration,
    lease_timeout: Duration,
    expect_timeout: Duration,
    observer: Option<Observer>,
}

/// What the dispatcher answered.
enum Asked {
    Leased(Lease),
    Refused(Response<Bytes>),
}

impl Client {
    /// A client of the dispatcher at `target`.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            retry_for: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            lease_timeout: Duration::from_secs(30),
            expect_timeout: Duration::from_secs(1),
            observer: None,
        }
    }

    /// For how long a request that no worker has begun is tried again: 10 s unless set, zero for one attempt.
    pub fn retry_for(self, retry_for: Duration) -> Self {
        Self { retry_for, ..self }
    }

    /// How long a connection to dispatcher or worker may take: 5 s unless set.
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// How long the dispatcher may take to answer, time in its queue included: 30 s unless set.
    pub fn lease_timeout(self, lease_timeout: Duration) -> Self {
        Self { lease_timeout, ..self }
    }

    /// How long a body over 1 KiB waits for `100 Continue` before it is sent unasked, as some servers need
    /// (RFC 9110, 10.1.1): 1 s unless set.
    pub fn expect_timeout(self, expect_timeout: Duration) -> Self {
        Self { expect_timeout, ..self }
    }

    /// Calls `observer` at each [`Step`].
    pub fn observe(self, observer: impl Fn(Duration, &Step) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// Sends `request` to a worker and returns the head of its answer, the body still coming in.
    ///
    /// The URI is a path and query (`/` if absent). A `Host` header replaces the target's own. Connection,
    /// framing and `Expect` headers are the client's business and refused.
    ///
    /// When the time for retries is over, the last refusal is the answer: a `503` of the dispatcher
    /// (then without a lease), or a worker's answer that says `Patou-Outcome: not-started`.
    ///
    /// # Errors
    /// [`CallError::NotStarted`]: no worker has seen the request. [`CallError::StartedUnknown`]: a worker
    /// may have carried it out; this is never retried.
    pub async fn call(&self, request: Request<Payload>) -> Result<Answer, CallError> {
        let watch = Watch::new(self.observer.clone());
        let order = Order::new(request, &self.target).map_err(|cause| CallError::NotStarted { cause, attempts: 1 })?;
        let mut budget = Budget::new(self.retry_for, Instant::now());
        loop {
            let result = self.attempt(&order, budget.attempts(), &watch).await;
            let (reason, asked) = match &result {
                Ok(answer) => match refusal(&order, answer) {
                    Some(reason) => (reason, retry::asked(answer.response.headers())),
                    None => return result,
                },
                Err(CallError::NotStarted { cause, .. }) if cause.may_pass() => (cause.to_string(), None),
                Err(_) => return result,
            };
            let Some(after) = budget.wait(asked, Instant::now(), jitter()) else { return result };
            // Closes what is left of the attempt before the pause.
            drop(result);
            watch.tell(|| Step::Retrying { reason, after });
            tokio::time::sleep(after).await;
        }
    }

    /// Gets a lease and leaves its use to the caller, who has until [`Lease::expires`]. Retries like [`Self::call`].
    ///
    /// # Errors
    /// [`CallError::NotStarted`] in all cases.
    pub async fn lease(&self) -> Result<Lease, CallError> {
        let watch = Watch::new(self.observer.clone());
        let host = order::host_of(&self.target).map_err(|cause| CallError::NotStarted { cause, attempts: 1 })?;
        let mut budget = Budget::new(self.retry_for, Instant::now());
        loop {
            let attempts = budget.attempts();
            let (cause, asked) = match self.ask(&host, &watch).await {
                Ok(Asked::Leased(lease)) => return Ok(lease),
                Ok(Asked::Refused(refusal)) => {
                    let problem = Problem::read(refusal.headers(), refusal.body()).unwrap_or_default();
                    let cause = Cause::Refused { from: self.target.clone(), status: refusal.status(), problem };
                    (cause, retry::asked(refusal.headers()))
                }
                Err(cause) => (cause, None),
            };
            let wait = if cause.may_pass() { budget.wait(asked, Instant::now(), jitter()) } else { None };
            let Some(after) = wait else { return Err(CallError::NotStarted { cause, attempts }) };
            watch.tell(|| Step::Retrying { reason: cause.to_string(), after });
            tokio::time::sleep(after).await;
        }
    }

    async fn attempt(&self, order: &Order, attempts: u32, watch: &Watch) -> Result<Answer, CallError> {
        let not_started = |cause| CallError::NotStarted { cause, attempts };
        // Before the lease: a file that is not there should cost no worker a claim_timeout.
        let source = order.payload.open().map_err(|e| not_started(e.into()))?;
        let lease = match self.ask(order.host(), watch).await.map_err(not_started)? {
            Asked::Leased(lease) => lease,
            Asked::Refused(refusal) => {
                let response = refusal.map(|body| AnswerBody::whole(body, watch.clone()));
                return Ok(Answer { response, lease: None, attempts });
            }
        };
        let length = source.length;
        let (request, expect) = order.to_worker(&lease, length).map_err(not_started)?;
        let wire = wire::connect(&lease.address, self.connect_timeout).await.map_err(not_started)?;
        watch.tell(|| Step::Sending { address: lease.address.clone(), length });

        let gate = expect.then(Arc::<Gate>::default);
        let held = gate.clone().map(|gate| (gate, self.expect_timeout));
        let mut request = request.map(|()| Upload::new(source, held, watch.clone()));
        if let Some(gate) = gate.clone() {
            let watch = watch.clone();
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE {
                    watch.tell(|| Step::Continue);
                    gate.proceed();
                }
            });
        }
        let worker = lease.worker.clone();
        let answer = wire::send(wire, request).await.map_err(|unanswered| {
            let cause = Cause::Worker { error: unanswered.error };
            if unanswered.begun {
                CallError::StartedUnknown { worker: worker.clone(), cause }
            } else {
                not_started(cause)
            }
        })?;
        // A worker that streams its 2xx back before it reads (an echo) still needs the body; any other
        // final answer has no use for it.
        if let Some(gate) = gate
            && !answer.status().is_success()
        {
            gate.refuse();
        }
        watch.tell(|| Step::Answered { status: answer.status(), worker: Some(worker.clone()) });
        let response = answer.map(|live| AnswerBody::live(live, worker, watch.clone()));
        Ok(Answer { response, lease: Some(lease), attempts })
    }

    /// Steps 1 to 4: asks the dispatcher for a lease, within `lease_timeout` once connected.
    async fn ask(&self, host: &HeaderValue, watch: &Watch) -> Result<Asked, Cause> {
        let wire = wire::connect(self.target.address(), self.connect_timeout).await?;
        watch.tell(|| Step::Connected { to: self.target.clone() });
        watch.tell(|| Step::Asked);
        let answer = tokio::time::timeout(self.lease_timeout, self.ask_on(wire, host)).await;
        let after = self.lease_timeout;
        let answer = answer.map_err(|_| Cause::LeaseTimeout { from: self.target.clone(), after })??;
        if answer.status() != StatusCode::OK {
            watch.tell(|| Step::Answered { status: answer.status(), worker: None });
            return Ok(Asked::Refused(answer));
        }
        let lease = Lease::read(answer.body(), self.target.address(), Instant::now());
        let lease = lease.map_err(|why| self.bad_lease(&why))?;
        watch.tell(|| Step::Leased { worker: lease.worker.clone(), address: lease.address.clone() });
        Ok(Asked::Leased(lease))
    }

    async fn ask_on(&self, wire: wire::Wire, host: &HeaderValue) -> Result<Response<Bytes>, Cause> {
        let broken = |error| Cause::Dispatcher { from: self.target.clone(), error };
        let request = order::lease_request(host).map(|()| Empty::<Bytes>::new());
        let answer = wire::send(wire, request).await.map_err(|unanswered| broken(unanswered.error))?;
        let (head, body) = answer.into_parts();
        let body =
            Limited::new(body, LEASE_MAX).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => broken(*error),
                Err(error) => {
                    debug_assert!(error.is::<LengthLimitError>());
                    self.bad_lease(&format!("longer than {LEASE_MAX} bytes"))
                }
            })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    fn bad_lease(&self, why: &str) -> Cause {
        Cause::BadLease { from: self.target.clone(), why: problem::printable(why) }
    }
}

/// Why this answer is a refusal after which the call may be made again; `None`: it is the answer.
fn refusal(order: &Order, answer: &Answer) -> Option<String> {
    let status = answer.response.status();
    match answer.lease {
        None => (status == StatusCode::SERVICE_UNAVAILABLE).then(|| format!("{status}, no lease")),
        Some(_) => order.not_begun(&answer.response),
    }
}

fn jitter() -> u32 {
    // Without random numbers clients merely come back together.
    getrandom::u32().unwrap_or(u32::MAX)
}
