//! What must hold between keys: names that are meant to meet, durations that would contradict each other.

use std::time::Duration;

use super::diagnostics::Record;
use super::fault::nearest;
use super::write::quote;
use super::{Config, Delivery, HandlerConfig, ListenerConfig, PoolConfig, address_conflicts};

/// Reports every contradiction of `config` to `record`, which knows the lines.
pub(super) fn check(config: &Config, record: &mut Record) {
    watchdog_times(config, record);
    if !record.is_counted() {
        return; // The keys of the lists could not be named.
    }
    pool_names(config, record);
    for (i, pool) in config.pools.iter().enumerate() {
        pool_times(&format!("pool[{}]", i + 1), pool, record);
        slot_scan(&format!("pool[{}]", i + 1), pool, config.front.slot_scan, record);
    }
    for (i, listener) in config.listeners.iter().enumerate() {
        let section = format!("listener[{}]", i + 1);
        match config.pools.iter().position(|pool| pool.name == listener.pool) {
            None => unknown_pool(&section, listener, config, record),
            Some(at) => {
                redirect_to_unix(&section, listener, config, at, record);
                only_handed_over(&section, listener, config, at, record);
            }
        }
        if listener.proxy_protocol && listener.delivery == Delivery::Redirect {
            let expected = "false with delivery = \"redirect\": who is behind a proxy cannot follow a redirect past it";
            let (key, other) = (format!("{section}.proxy_protocol"), format!("{section}.delivery"));
            record.contradiction(&key, &[&other], "true".to_owned(), expected.to_owned());
        }
        permissions_on_tcp(&section, listener, record);
    }
    address_conflicts::check(config, record);
}

/// Reports the handlers for which `wanted` says what they would have to be.
pub(super) fn handlers(config: &Config, wanted: &dyn Fn(&PoolConfig) -> Option<String>, record: &mut Record) {
    if !record.is_counted() {
        return;
    }
    for (i, pool) in config.pools.iter().enumerate() {
        if let (Some(program), Some(expected)) = (pool.handler.command().first(), wanted(pool)) {
            let key = format!("pool[{}].handler.{}", i + 1, pool.handler.name());
            record.contradiction(&key, &[], quote(program), expected);
        }
    }
}

fn pool_names(config: &Config, record: &mut Record) {
    for (i, pool) in config.pools.iter().enumerate() {
        let Some(first) = config.pools[..i].iter().position(|other| other.name == pool.name) else { continue };
        let (key, other) = (format!("pool[{}].name", i + 1), format!("pool[{}].name", first + 1));
        let expected = format!("another name: {} has this one", place(&other, record));
        record.contradiction(&key, &[&other], quote(pool.name.as_str()), expected);
    }
}

fn unknown_pool(section: &str, listener: &ListenerConfig, config: &Config, record: &mut Record) {
    let names: Vec<String> = (1..=config.pools.len()).map(|i| format!("pool[{i}].name")).collect();
    // While a pool's name could not be read, it may be the one that the listener means.
    let mut others: Vec<&str> = names.iter().map(String::as_str).collect();
    others.extend(["pool", "listener"]);
    let known = config.pools.iter().map(|pool| pool.name.as_str());
    let expected = match nearest(listener.pool.as_str(), known.clone()) {
        Some(name) => format!("the name of a pool; the nearest is {}", quote(name)),
        None => {
            let mut names: Vec<String> = Vec::new();
            for name in known.map(quote) {
                // Two pools of one name are told as such.
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            format!("the name of a pool: {}", names.join(", "))
        }
    };
    record.contradiction(&format!("{section}.pool"), &others, quote(listener.pool.as_str()), expected);
}

fn redirect_to_unix(section: &str, listener: &ListenerConfig, config: &Config, at: usize, record: &mut Record) {
    let nowhere = !listener.address.is_unix() && config.pools[at].address.is_unix();
    if nowhere && listener.delivery == Delivery::Redirect {
        let workers = format!("pool[{}].address", at + 1);
        let expected = format!(
            "a pool on TCP, since a redirect cannot lead to the Unix sockets of {}; or let this listener be one",
            place(&workers, record)
        );
        let [pool, address] = ["pool", "address"].map(|name| format!("{section}.{name}"));
        record.contradiction(&pool, &[&workers, &address], quote(listener.pool.as_str()), expected);
    }
}

/// A program that gets the socket itself reads no token: there is no way to it but that.
fn only_handed_over(section: &str, listener: &ListenerConfig, config: &Config, at: usize, record: &mut Record) {
    if listener.delivery == Delivery::Redirect && matches!(config.pools[at].handler, HandlerConfig::Inetd(_)) {
        let handler = format!("pool[{}].handler", at + 1);
        let expected = format!("\"handoff\", since {} is inetd", place(&handler, record));
        let (key, pool) = (format!("{section}.delivery"), format!("{section}.pool"));
        record.contradiction(&key, &[&pool, &handler], quote("redirect"), expected);
    }
}

fn permissions_on_tcp(section: &str, listener: &ListenerConfig, record: &mut Record) {
    if listener.address.is_unix() {
        return;
    }
    let account = |account: &Option<String>| quote(account.as_deref().unwrap_or_default());
    let all = [
        ("mode", format!("0o{:o}", listener.mode)),
        ("owner", account(&listener.owner)),
        ("group", account(&listener.group)),
    ];
    for (name, found) in all {
        let key = format!("{section}.{name}");
        if record.is_there(&key) {
            let expected = format!("no {name} on a TCP address, only on \"unix:/path\"");
            record.contradiction(&key, &[&format!("{section}.address")], found, expected);
        }
    }
}

fn pool_times(section: &str, pool: &PoolConfig, record: &mut Record) {
    let [offer, claim] = ["offer_timeout", "claim_timeout"].map(|name| format!("{section}.{name}"));
    let [queue, queue_timeout] = ["queue", "queue_timeout"].map(|name| format!("{section}.{name}"));
    if pool.claim_timeout < pool.offer_timeout {
        let expected = format!("at least offer_timeout, {}", time(pool.offer_timeout));
        record.contradiction(&claim, &[&offer], time(pool.claim_timeout), expected);
    }
    if pool.queue > 0 && pool.queue_timeout.is_zero() {
        let expected = format!("a duration longer than 0s, or queue = 0 instead of {}", pool.queue);
        record.contradiction(&queue_timeout, &[&queue], time(pool.queue_timeout), expected);
    }
}

/// A lost ring is noticed at the next scan; it must not hold a worker longer than a whole request may.
fn slot_scan(section: &str, pool: &PoolConfig, scan: Duration, record: &mut Record) {
    let request = format!("{section}.request_timeout");
    if scan > pool.request_timeout {
        let expected = format!("at most {}, {}", place(&request, record), time(pool.request_timeout));
        record.contradiction("front.slot_scan", &[&request], time(scan), expected);
    }
}

fn watchdog_times(config: &Config, record: &mut Record) {
    let watchdog = &config.watchdog;
    let longer = [("worker_timeout", watchdog.worker_timeout), ("dispatcher_timeout", watchdog.dispatcher_timeout)];
    for (name, timeout) in longer {
        if watchdog.probe_interval >= timeout {
            let expected = format!("a duration shorter than {name}, {}", time(timeout));
            let found = time(watchdog.probe_interval);
            record.contradiction("watchdog.probe_interval", &[&format!("watchdog.{name}")], found, expected);
        }
    }
    let restarts = &watchdog.restarts;
    if restarts.delay > restarts.delay_max {
        let expected = format!("at most delay_max, {}", time(restarts.delay_max));
        let key = "watchdog.restarts.delay";
        record.contradiction(key, &["watchdog.restarts.delay_max"], time(restarts.delay), expected);
    }
}

/// A key and where it stands, for a message about another one.
pub(super) fn place(key: &str, record: &Record) -> String {
    match record.line_of(key) {
        Some(line) => format!("{key} (line {line})"),
        None => format!("{key} (built in)"),
    }
}

fn time(duration: Duration) -> String {
    quote(&humantime::format_duration(duration).to_string())
}
