//! The fuzz targets: one function over bytes for each input from another process. It panics when a promise does not
//! hold. `tests/model/corpus.rs` replays the kept corpus through the same functions.

mod cgi_response;
mod config;
mod coprocess;
mod fastcgi;
mod fastcgi_request;
mod forwarded;
mod handoff;
mod input;
mod notify;
mod probe;
mod request;
mod slot;
mod token;
mod worker_side;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const ALL: &[(&str, Target)] = &[
    ("cgi_response", cgi_response::run),
    ("config", config::run),
    ("coprocess", coprocess::run),
    ("fastcgi", fastcgi::run),
    ("fastcgi_request", fastcgi_request::run),
    ("forwarded", forwarded::run),
    ("handoff", handoff::run),
    ("notify", notify::run),
    ("probe", probe::run),
    ("request", request::run),
    ("slot", slot::run),
    ("token", token::run),
    ("worker_side", worker_side::run),
];
