//! The handler `coprocess`: one warm process per worker.
//!
//! The process reads requests from descriptor 3 and writes responses to descriptor 4 (see [`super::framing`]), one at a
//! time. The owner of the [`WarmProcess`](warm_process::WarmProcess) may use it: [`Coprocess`] owns it between
//! requests; a request takes it, and returns it only when request and response were both complete. A cancelled request
//! drops it, because it may be in the middle of a frame. [`Coprocess::end_request`] then finds no process and starts a
//! new one.

mod backoff;
mod exchange;
mod lifecycle;
mod request_feed;
mod warm_process;

pub(super) use lifecycle::Coprocess;

#[cfg(test)]
mod tests;
