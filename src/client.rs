//! A client of a dispatcher: obtains a lease, sends the request to the leased worker, and retries only while it is
//! certain that no worker has started the request.
//!
//! ```no_run
//! use http_body_util::BodyExt;
//! use patou::client::{Client, Payload};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:7286".parse()?);
//! let request = http::Request::post("/convert?to=pdf").body(Payload::File("letter.odt".into()))?;
//! let call = client.call(request).await?;
//! println!("{} after {} attempts", call.response.status(), call.attempts);
//! let body = call.response.into_body().collect().await?.to_bytes();
//! # Ok(())
//! # }
//! ```
//!
//! The client needs a tokio runtime with I/O and time enabled. It waits for the worker's response without a timeout:
//! the `request_timeout` of the set bounds the wait. A caller that needs a shorter bound wraps the call in
//! `tokio::time::timeout` and must treat a timeout as *started-unknown*.

mod address;
mod connection;
mod error;
mod lease;
mod payload;
mod problem;
mod request;
mod response;
mod retry;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};

pub use address::{Address, BadAddress, Target};
pub use error::{CallError, FailureCause, FileError};
pub use lease::Lease;
pub use payload::Payload;
pub use problem::Problem;
pub use response::{ClientResponse, ResponseBody};
pub use step::{Observer, Step};

use connection::ClientSocket;
use payload::{ContinueGate, RequestBody};
use request::CallRequest;
use retry::RetryBudget;
use step::StepReporter;

/// The largest body of a dispatcher's response to a lease request, in bytes.
const LEASE_MAX: usize = 64 * 1024;

/// A client of one dispatcher. Cheap to clone; each call opens its own connections.
#[derive(Clone)]
pub struct Client {
    target: Target,
    retry_for: Duration,
    connect_timeout: Duration,
    lease_timeout: Duration,
    expect_timeout: Duration,
    observer: Option<Observer>,
}

/// The dispatcher's response to a lease request.
enum LeaseReply {
    Granted(Lease),
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

    /// How long a request that no worker has started is retried. Default: 10 s; zero: one attempt.
    pub fn retry_for(self, retry_for: Duration) -> Self {
        Self { retry_for, ..self }
    }

    /// How long connecting to a dispatcher or worker may take. Default: 5 s.
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// How long the dispatcher may take to respond, including the time in its queue. Default: 30 s.
    pub fn lease_timeout(self, lease_timeout: Duration) -> Self {
        Self { lease_timeout, ..self }
    }

    /// How long a body over 1 KiB is held back for `100 Continue` before it is sent without it, as some servers need
    /// (RFC 9110, 10.1.1). Default: 1 s.
    pub fn expect_timeout(self, expect_timeout: Duration) -> Self {
        Self { expect_timeout, ..self }
    }

    /// Calls `observer` at each [`Step`].
    pub fn observe(self, observer: impl Fn(Duration, &Step) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// Sends `request` to a worker and returns when the response head has arrived; the body is read by the caller.
    ///
    /// The URI is a path and query (`/` if absent). A `Host` header replaces that of the target. Connection, framing
    /// and `Expect` headers are set by the client; a request that has them is rejected.
    ///
    /// When the time for retries is over, the last refusal is returned as the response: a `503` of the dispatcher
    /// (without a lease), or a worker's response with `Patou-Outcome: not-started`.
    ///
    /// # Errors
    /// [`CallError::NotStarted`]: no worker has received the request. [`CallError::StartedUnknown`]: a worker may have
    /// carried it out; this is never retried.
    pub async fn call(&self, request: Request<Payload>) -> Result<ClientResponse, CallError> {
        let reporter = StepReporter::new(self.observer.clone());
        let request =
            CallRequest::new(request, &self.target).map_err(|cause| CallError::NotStarted { cause, attempts: 1 })?;
        let mut budget = RetryBudget::new(self.retry_for, Instant::now());
        loop {
            let result = self.attempt(&request, budget.attempts(), &reporter).await;
            let (reason, retry_after) = match &result {
                Ok(received) => match retry_reason(received) {
                    Some(reason) => (reason, retry::retry_after(received.response.headers())),
                    None => return result,
                },
                Err(CallError::NotStarted { cause, .. }) if cause.is_temporary() => (cause.to_string(), None),
                Err(_) => return result,
            };
            let Some(after) = budget.next_delay(retry_after, Instant::now(), jitter()) else { return result };
            // Closes the connection of this attempt before the pause.
            drop(result);
            reporter.report(|| Step::Retrying { reason, after });
            tokio::time::sleep(after).await;
        }
    }

    /// Obtains a lease for the caller to use before [`Lease::expires`]. Retries like [`Self::call`].
    ///
    /// # Errors
    /// Always [`CallError::NotStarted`].
    pub async fn lease(&self) -> Result<Lease, CallError> {
        let reporter = StepReporter::new(self.observer.clone());
        let host = request::host_of(&self.target).map_err(|cause| CallError::NotStarted { cause, attempts: 1 })?;
        let mut budget = RetryBudget::new(self.retry_for, Instant::now());
        loop {
            let attempts = budget.attempts();
            let (cause, retry_after) = match self.request_lease(&host, &reporter).await {
                Ok(LeaseReply::Granted(lease)) => return Ok(lease),
                Ok(LeaseReply::Refused(refusal)) => {
                    let problem = Problem::read(refusal.headers(), refusal.body()).unwrap_or_default();
                    let status = refusal.status();
                    let cause = FailureCause::Refused { from: self.target.clone(), status, problem };
                    (cause, retry::retry_after(refusal.headers()))
                }
                Err(cause) => (cause, None),
            };
            let delay =
                if cause.is_temporary() { budget.next_delay(retry_after, Instant::now(), jitter()) } else { None };
            let Some(after) = delay else { return Err(CallError::NotStarted { cause, attempts }) };
            reporter.report(|| Step::Retrying { reason: cause.to_string(), after });
            tokio::time::sleep(after).await;
        }
    }

    async fn attempt(
        &self,
        request: &CallRequest,
        attempts: u32,
        reporter: &StepReporter,
    ) -> Result<ClientResponse, CallError> {
        let not_started = |cause| CallError::NotStarted { cause, attempts };
        // Before the lease: a missing file must not reserve a worker for claim_timeout.
        let payload = request.payload.open().map_err(|e| not_started(e.into()))?;
        let lease = match self.request_lease(request.host(), reporter).await.map_err(not_started)? {
            LeaseReply::Granted(lease) => lease,
            LeaseReply::Refused(refusal) => {
                let response = refusal.map(|body| ResponseBody::buffered(body, reporter.clone()));
                return Ok(ClientResponse { response, lease: None, attempts });
            }
        };
        let length = payload.length;
        let (request, expects_continue) = request.to_worker(&lease, length).map_err(not_started)?;
        let socket = connection::connect(&lease.address, self.connect_timeout).await.map_err(not_started)?;
        reporter.report(|| Step::Sending { address: lease.address.clone(), length });

        let gate = expects_continue.then(Arc::<ContinueGate>::default);
        let held_back = gate.clone().map(|gate| (gate, self.expect_timeout));
        let mut request = request.map(|()| RequestBody::new(payload, held_back, reporter.clone()));
        if let Some(gate) = gate.clone() {
            let reporter = reporter.clone();
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    reporter.report(|| Step::Continue);
                    gate.open();
                }
            });
        }
        let worker = lease.worker.clone();
        let response = connection::send(socket, request).await.map_err(|failed| {
            let cause = FailureCause::Worker { error: failed.error };
            if failed.is_started {
                CallError::StartedUnknown { worker: worker.clone(), cause }
            } else {
                not_started(cause)
            }
        })?;
        // A worker may stream a 2xx response before it reads (an echo) and still needs the body. After any other final
        // response the body is useless.
        if let Some(gate) = gate
            && !response.status().is_success()
        {
            gate.shut();
        }
        reporter.report(|| Step::Responded { status: response.status(), worker: Some(worker.clone()) });
        let response = response.map(|body| ResponseBody::incoming(body, worker, reporter.clone()));
        Ok(ClientResponse { response, lease: Some(lease), attempts })
    }

    /// Steps 1 to 4: requests a lease from the dispatcher, within `lease_timeout` once connected.
    async fn request_lease(&self, host: &HeaderValue, reporter: &StepReporter) -> Result<LeaseReply, FailureCause> {
        let socket = connection::connect(self.target.address(), self.connect_timeout).await?;
        reporter.report(|| Step::Connected { to: self.target.clone() });
        reporter.report(|| Step::Requesting);
        let response = tokio::time::timeout(self.lease_timeout, self.exchange_lease(socket, host)).await;
        let after = self.lease_timeout;
        let response = response.map_err(|_| FailureCause::LeaseTimeout { from: self.target.clone(), after })??;
        if response.status() != StatusCode::OK {
            reporter.report(|| Step::Responded { status: response.status(), worker: None });
            return Ok(LeaseReply::Refused(response));
        }
        let lease = Lease::read(response.body(), self.target.address(), Instant::now());
        let lease = lease.map_err(|why| self.bad_lease(&why))?;
        reporter.report(|| Step::Leased { worker: lease.worker.clone(), address: lease.address.clone() });
        Ok(LeaseReply::Granted(lease))
    }

    async fn exchange_lease(&self, socket: ClientSocket, host: &HeaderValue) -> Result<Response<Bytes>, FailureCause> {
        let broken = |error| FailureCause::Dispatcher { from: self.target.clone(), error };
        let request = request::lease_request(host).map(|()| Empty::<Bytes>::new());
        let response = connection::send(socket, request).await.map_err(|failed| broken(failed.error))?;
        let (head, body) = response.into_parts();
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

    fn bad_lease(&self, why: &str) -> FailureCause {
        FailureCause::BadLease { from: self.target.clone(), why: problem::printable(why) }
    }
}

/// Why the call may be retried after this response; `None`: the response is final.
fn retry_reason(received: &ClientResponse) -> Option<String> {
    let status = received.response.status();
    match received.lease {
        None => (status == StatusCode::SERVICE_UNAVAILABLE).then(|| format!("{status}, no lease")),
        Some(_) => CallRequest::not_started_reason(&received.response),
    }
}

fn jitter() -> u32 {
    // Without random numbers, clients that were refused together retry together.
    getrandom::u32().unwrap_or(u32::MAX)
}
