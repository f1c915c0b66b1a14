//! The handler `fastcgi`: one warm FastCGI application per worker, PHP for example, with its listening socket as
//! descriptor 0 ("FastCGI Specification" 1.0, section 2.2).
//!
//! The worker holds that socket as well. When an application ends, a connection that is still in its queue was never
//! accepted: then not a byte of the request was read, and the successor gets it. On a connection that is kept for another
//! request this cannot be known, so one is kept only while it is known that the application serves another request
//! ([`request_limit`]).

mod application;
mod connection;
mod exchange;
mod feed;
mod give_back;
mod listener;
mod probe;
mod request_limit;
mod response;
mod script;
mod variables;

pub(super) use application::FastcgiApplication;
pub(crate) use script::ScriptRoot;
