//! The handler `coprocess`: one warm process per worker.
//!
//! The process reads requests from descriptor 3 and writes responses to descriptor 4 (see [`super::framing`]), one at a
//! time.

mod exchange;
mod process;
mod request_feed;

pub(super) use process::Coprocess;

#[cfg(test)]
mod tests;
