//! Waits for what a client sends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

/// Turns of the runtime in which it asks the kernel once more, and the tasks run that pass the answer on.
const TURNS: u32 = 3;

/// What `future` returns until `deadline`, or `None`.
///
/// At the deadline it gets some turns more. If this process was stopped meanwhile, epoll_wait(2) returns EINTR when it
/// continues, so that the runtime sees the time before it sees what arrived; and time in which this process did not run
/// is no silence of the client.
pub(crate) async fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    if let Ok(output) = timeout_at(deadline, future.as_mut()).await {
        return Some(output);
    }
    for _ in 0..TURNS {
        yield_now().await;
        if let Poll::Ready(output) = poll_fn(|task| Poll::Ready(future.as_mut().poll(task))).await {
            return Some(output);
        }
    }
    None
}
