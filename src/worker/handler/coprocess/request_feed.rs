//! The task that writes a request to a co-process.

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

use super::super::body_feed::BodyFeed;
use super::super::failure::RequestFailure;
use super::super::limited_body::LimitedBody;

/// Why a request was not written completely.
#[derive(Debug)]
pub(super) enum FeedError {
    /// The body from the client failed. The co-process is not to blame.
    Client(RequestFailure),
    /// The co-process has closed its descriptor 3.
    PipeClosed,
}

/// The task; it returns our end of descriptor 3. Dropping this aborts it.
#[derive(Debug)]
pub(super) struct RequestFeed(BodyFeed<Result<Sender, FeedError>>);

impl RequestFeed {
    /// Starts to write `head` and `body`, which must have exactly `length` bytes.
    pub(super) fn spawn(requests: Sender, head: Vec<u8>, body: LimitedBody, length: u64) -> Self {
        Self(BodyFeed::spawn(write_request(requests, head, body, length)))
    }

    /// Waits for the end of the task. May be dropped and called again, but not after it has returned.
    pub(super) async fn outcome(&mut self) -> Result<Sender, FeedError> {
        self.0.join().await.unwrap_or(Err(FeedError::PipeClosed))
    }
}

async fn write_request(
    mut requests: Sender,
    head: Vec<u8>,
    mut body: LimitedBody,
    length: u64,
) -> Result<Sender, FeedError> {
    // Any other length would shift all following frames.
    let wrong_length = || {
        let reason = "the request body does not have the announced length";
        FeedError::Client(RequestFailure::new(StatusCode::BAD_REQUEST, reason))
    };
    requests.write_all(&head).await.map_err(|_| FeedError::PipeClosed)?;
    let mut remaining = length;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FeedError::Client(error.into()))?;
        if let Ok(data) = frame.into_data() {
            remaining = remaining.checked_sub(data.len() as u64).ok_or_else(wrong_length)?;
            requests.write_all(&data).await.map_err(|_| FeedError::PipeClosed)?;
        }
    }
    if remaining == 0 { Ok(requests) } else { Err(wrong_length()) }
}
