//! The rules for the keys that say when a program gets the body of a request.

#![forbid(unsafe_code)]

use super::diagnostics::Diagnostics;
use super::fault::quote;
use super::{HandlerConfig, PoolConfig};

/// Only commands that serve requests have these keys.
pub(super) fn check(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    if matches!(pool.handler, HandlerConfig::Exec(_) | HandlerConfig::Coprocess(_) | HandlerConfig::Http(_)) {
        return;
    }
    let handler = format!("{section}.handler");
    let place = diagnostics.place(&handler);
    let expected = format!("no such key: {place} is {}, and only exec, coprocess or http has it", pool.handler.name());
    let default = PoolConfig::default();
    let present = [
        ("request_body", (pool.request_body != default.request_body).then(|| quote("spool"))),
        ("spool_max", (pool.spool_max != default.spool_max).then(|| pool.spool_max.to_string())),
        ("spool_dir", (pool.spool_dir != default.spool_dir).then(|| quote(&pool.spool_dir))),
    ];
    for (name, found) in present {
        if let Some(found) = found {
            diagnostics.contradiction(&format!("{section}.{name}"), &[&handler], found, expected.clone());
        }
    }
}
