//! The handler `http`: one warm HTTP/1.1 server per worker, any program that listens on a Unix socket or a TCP port.
//!
//! A request is sent on the connection of the last one, or on a new one. It is sent again only if not one byte of it was
//! written ([`delivery`]). Both bodies are streamed: hyper's connection runs as a task, because a response body is
//! polled only while the client reads.

mod address;
mod connection;
mod delivery;
mod exchange;
mod give_back;
mod headers;
mod relay;
mod request_body;
mod response_body;
mod server;

pub(super) use address::private_path;
pub(super) use delivery::{AfterFailure, after_failure, may_reuse};
pub(super) use request_body::SharedBody;
pub(super) use server::HttpServer;
