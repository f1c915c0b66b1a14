//! The built-in handlers: what a worker does with a request.
//!
//! [`BuiltinHandler`] is a `tower` service over `http` types, so the worker serves it with the same code as a
//! user's own service. The worker inserts a [`RequestContext`] into the extensions of each request. It cancels a
//! request by dropping the future and the response body. After each request, completed or cancelled, it awaits
//! [`BuiltinHandler::end_request`].
//!
//! The worker is a child subreaper, and with a built-in handler every child of the process belongs to the handler:
//! `end_request` kills the children that it does not know.

mod body;
mod body_feed;
mod builtin;
pub(crate) mod cgi;
mod child;
mod context;
mod coprocess;
mod echo;
mod exec;
mod failure;
mod fastcgi;
pub(crate) mod framing;
pub(crate) mod head;
mod http;
mod inetd;
mod limited_body;
mod log_rate_limit;
mod oneshot;
mod output_log;
mod response_reader;
mod session;
mod spool;
#[cfg(test)]
pub(crate) mod test_process;
#[cfg(test)]
mod test_request;
mod warm;

pub use body::{Body, BoxError};
pub(crate) use builtin::BuiltinHandler;
pub(crate) use child::HandlerStartError;
pub use context::RequestContext;
pub(crate) use context::RequestStart;
pub(crate) use failure::RequestFailure;
pub(crate) use limited_body::LimitedBody;
pub(crate) use session::Session;
pub(crate) use warm::{HandlerReadiness, WarmEvent};
