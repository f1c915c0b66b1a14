//! What is fuzzed: a function over bytes for each place where bytes of others come in. It panics when a promise does
//! not hold. `tests/corpus.rs` runs the kept corpus through the same functions.

mod answer;
mod config;
mod coprocess;
mod handoff;
mod input;
mod notify;
mod probe;
mod request;
mod respondent;
mod slot;
mod token;

/// One of them.
pub type Target = fn(&[u8]);

/// All, by the names of their corpora.
pub const ALL: &[(&str, Target)] = &[
    ("answer", answer::run),
    ("config", config::run),
    ("coprocess", coprocess::run),
    ("handoff", handoff::run),
    ("notify", notify::run),
    ("probe", probe::run),
    ("request", request::run),
    ("respondent", respondent::run),
    ("slot", slot::run),
    ("token", token::run),
];
