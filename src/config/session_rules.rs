//! The rules for the sessions of a pool: connections that switch to another protocol.

#![forbid(unsafe_code)]

use super::diagnostics::Diagnostics;
use super::{HandlerConfig, PoolConfig};

/// A pool keeps a worker without a session, so that its sessions never keep all other requests waiting.
pub(super) fn check(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    let [upgrade, max, workers, handler] =
        ["upgrade", "max_sessions", "workers", "handler"].map(|name| format!("{section}.{name}"));
    let protocols = "[\"websocket\"]".to_owned();
    if !pool.upgrade.is_empty() && !matches!(pool.handler, HandlerConfig::Http(_) | HandlerConfig::Program(_)) {
        let (place, name) = (diagnostics.place(&handler), pool.handler.name());
        let expected = format!("[]: {place} is {name}, and only http and program can switch protocols");
        diagnostics.contradiction(&upgrade, &[&handler], protocols, expected);
    } else if !pool.upgrade.is_empty() && pool.workers < 2 {
        let place = diagnostics.place(&workers);
        let expected =
            format!("[] with one worker ({place}): a session has a worker of its own, and requests need another");
        diagnostics.contradiction(&upgrade, &[&workers], protocols, expected);
    } else if pool.max_sessions >= pool.workers {
        let expected =
            format!("fewer than {}, the value of workers: requests need a worker without a session", pool.workers);
        diagnostics.contradiction(&max, &[&workers], pool.max_sessions.to_string(), expected);
    }
}
