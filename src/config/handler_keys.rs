//! The rules for keys of a pool that only some handlers have.

#![forbid(unsafe_code)]

use super::diagnostics::Diagnostics;
use super::fault::quote;
use super::{AuthorizationMode, BackgroundMode, ExitStatusMode, HandlerConfig, PoolConfig, RequestBodyMode};

/// Reports each key that the handler of the pool does not have.
pub(super) fn check(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    let default = PoolConfig::default();
    let handler = &pool.handler;
    let is_http = matches!(handler, HandlerConfig::Http(_));
    let body = (is_http || handler.may_lack_authorization(), "exec, scripts, coprocess, http or fastcgi");
    let authorization = (handler.may_lack_authorization(), "exec, scripts, coprocess or fastcgi");
    let cgi = (handler.is_cgi(), "exec or scripts");
    let has_status = handler.is_cgi() || matches!(handler, HandlerConfig::Fastcgi(_));
    let exit_status = (has_status, "exec, scripts or fastcgi");
    let keys = [
        ("request_body", body, (pool.request_body == RequestBodyMode::Spool).then(|| quote("spool"))),
        ("spool_max", body, (pool.spool_max != default.spool_max).then(|| pool.spool_max.to_string())),
        ("spool_dir", body, (pool.spool_dir != default.spool_dir).then(|| quote(&pool.spool_dir))),
        ("authorization", authorization, (pool.authorization == AuthorizationMode::Pass).then(|| quote("pass"))),
        ("background", cgi, (pool.background == BackgroundMode::Keep).then(|| quote("keep"))),
        ("exit_status", exit_status, (pool.exit_status == ExitStatusMode::Ignore).then(|| quote("ignore"))),
    ];
    let handler_key = format!("{section}.handler");
    for (name, (has_key, wanted), found) in keys {
        if let Some(found) = found.filter(|_| !has_key) {
            let place = diagnostics.place(&handler_key);
            let expected = format!("no such key: {place} is {}, and only {wanted} has it", handler.name());
            diagnostics.contradiction(&format!("{section}.{name}"), &[&handler_key], found, expected);
        }
    }
}
