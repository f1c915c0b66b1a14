//! The rules between keys: names that must match, durations that must not contradict each other.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use super::diagnostics::Diagnostics;
use super::fault::{UnusableFile, nearest, quote};
use super::{
    Config, Delivery, HandlerConfig, LISTENERS_MAX, ListenerConfig, POOLS_MAX, PoolConfig, ProxyTrust, TrustedProxies,
    UnknownLength, WORKERS_MAX, address_conflicts, fastcgi, fastcgi_rules, handler_keys, placeholder, session_rules,
};

/// How many names a message lists.
const NAMES_SHOWN: usize = 8;

/// Reports every contradiction in `config`.
pub(super) fn check(config: &Config, diagnostics: &mut Diagnostics) {
    watchdog_times(config, diagnostics);
    if diagnostics.has_gaps() {
        return; // The numbers in the keys would be wrong.
    }
    pool_names(config, diagnostics);
    numbers_of_parts(config, diagnostics);
    for (i, pool) in config.pools.iter().enumerate() {
        pool_times(&format!("pool[{}]", i + 1), pool, diagnostics);
        slot_scan(&format!("pool[{}]", i + 1), pool, config.front.slot_scan, diagnostics);
        warm_process(&format!("pool[{}]", i + 1), pool, diagnostics);
        fastcgi::check(&format!("pool[{}]", i + 1), pool, diagnostics);
        handler_keys::check(&format!("pool[{}]", i + 1), pool, diagnostics);
        session_rules::check(&format!("pool[{}]", i + 1), pool, diagnostics);
        size_of_command(&format!("pool[{}]", i + 1), pool, diagnostics);
    }
    for (i, listener) in config.listeners.iter().enumerate() {
        let section = format!("listener[{}]", i + 1);
        match config.pools.iter().position(|pool| pool.name == listener.pool) {
            None => unknown_pool(&section, listener, config, diagnostics),
            Some(at) => {
                redirect_needs_tcp_pool(&section, listener, config, at, diagnostics);
                inetd_needs_handoff(&section, listener, config, at, diagnostics);
                inetd_hides_headers(&section, listener, config, at, diagnostics);
            }
        }
        if listener.proxy_protocol && listener.delivery == Delivery::Redirect {
            let expected =
                "false with delivery = \"redirect\": a client behind a proxy cannot follow a redirect to a worker";
            let (key, other) = (format!("{section}.proxy_protocol"), format!("{section}.delivery"));
            diagnostics.contradiction(&key, &[&other], "true".to_owned(), expected.to_owned());
        }
        if listener.unknown_length == UnknownLength::Allow && listener.delivery == Delivery::Handoff {
            let expected = "\"411\", or no such key, with delivery = \"handoff\": its requests are not redirected";
            let (key, other) = (format!("{section}.unknown_length"), format!("{section}.delivery"));
            diagnostics.contradiction(&key, &[&other], "\"allow\"".to_owned(), expected.to_owned());
        }
        fastcgi_rules::check(&section, listener, config, diagnostics);
        proxies(&section, listener, diagnostics);
        permissions_on_tcp(&section, listener, diagnostics);
        hosts_fit_into_message(&section, listener, diagnostics);
    }
    address_conflicts::check(config, diagnostics);
    let size = config.to_copy().len();
    if size > Config::BYTES_MAX {
        let (found, most) = (format!("{size} bytes with every key of every section"), Config::BYTES_MAX);
        diagnostics.contradiction("pool", &[], found, format!("at most {most} bytes"));
    }
}

/// Limits of what a set can report and start, see [`WORKERS_MAX`], [`POOLS_MAX`] and [`LISTENERS_MAX`].
fn numbers_of_parts(config: &Config, diagnostics: &mut Diagnostics) {
    let workers: usize = config.pools.iter().map(|pool| usize::from(pool.workers)).sum();
    if workers > WORKERS_MAX {
        let expected = format!("at most {WORKERS_MAX} workers in all pools of a set");
        diagnostics.contradiction("pool", &[], format!("{workers} workers"), expected);
    }
    let pools = config.pools.len();
    if pools > POOLS_MAX {
        diagnostics.contradiction("pool", &[], format!("{pools} pools"), format!("at most {POOLS_MAX} pools of a set"));
    }
    let listeners = config.listeners.len();
    if listeners > LISTENERS_MAX {
        let expected = format!("at most {LISTENERS_MAX} listeners of a set");
        diagnostics.contradiction("listener", &[], format!("{listeners} listeners"), expected);
    }
}

/// The names travel with each connection that is handed to a worker.
fn hosts_fit_into_message(section: &str, listener: &ListenerConfig, diagnostics: &mut Diagnostics) {
    let size = listener.hosts_size();
    if listener.delivery == Delivery::Handoff && size > ListenerConfig::HOSTS_MAX {
        let (key, delivery) = (format!("{section}.allowed_hosts"), format!("{section}.delivery"));
        let found = format!("{} names of {size} bytes", listener.allowed_hosts.len());
        let expected = format!(
            "at most {} bytes with delivery = \"handoff\", each name with 2 more: use several listeners, or have the \
             proxy in front check the names",
            ListenerConfig::HOSTS_MAX
        );
        diagnostics.contradiction(&key, &[&delivery], found, expected);
    }
}

/// Headers of proxies count where a worker reads them from the proxy's connection, and from a peer that is named.
fn proxies(section: &str, listener: &ListenerConfig, diagnostics: &mut Diagnostics) {
    let ProxyTrust { trusted, user_header, .. } = &listener.proxies;
    let [key, delivery, header] =
        ["trusted_proxies", "delivery", "remote_user_header"].map(|name| format!("{section}.{name}"));
    let networks = trusted.networks.len();
    if networks > TrustedProxies::NETWORKS_MAX {
        let expected = format!("at most {} addresses and networks", TrustedProxies::NETWORKS_MAX);
        diagnostics.contradiction(&key, &[], format!("{networks} of them"), expected);
    }
    if !trusted.is_empty() && listener.delivery == Delivery::Redirect {
        let expected = "an empty list with delivery = \"redirect\": the request reaches its worker without the proxy";
        diagnostics.contradiction(&key, &[&delivery], "a list".to_owned(), expected.to_owned());
    }
    if let Some(name) = user_header.as_ref().filter(|_| trusted.is_empty()) {
        let expected = "\"\" without trusted_proxies, from which alone the header is accepted";
        diagnostics.contradiction(&header, &[&key], quote(name.as_str()), expected.to_owned());
    }
}

/// An inetd program reads its connection itself.
fn inetd_hides_headers(
    section: &str,
    listener: &ListenerConfig,
    config: &Config,
    at: usize,
    diagnostics: &mut Diagnostics,
) {
    if !listener.proxies.trusted.is_empty() && matches!(config.pools[at].handler, HandlerConfig::Inetd(_)) {
        let handler = format!("pool[{}].handler", at + 1);
        let expected =
            format!("an empty list: {} is inetd, whose connections are not read", diagnostics.place(&handler));
        let (key, pool) = (format!("{section}.trusted_proxies"), format!("{section}.pool"));
        diagnostics.contradiction(&key, &[&pool, &handler], "a list".to_owned(), expected);
    }
}

/// The address of an `http` program, and the keys that only some handlers have.
fn warm_process(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    let key = |name: &str| format!("{section}.{name}");
    let handler = key("handler");
    let is_http = matches!(pool.handler, HandlerConfig::Http(_));
    if is_http && !pool.mentions(placeholder::SOCKET) && !pool.mentions(placeholder::PORT) {
        let expected = "{socket} or {port} in the command or in the environment, in the place of the address on which \
                        the program listens, for instance \"unix:{socket}\" or environment = { PORT = \"{port}\" }";
        let command = pool.handler.command().iter().map(|argument| quote(argument)).collect::<Vec<_>>().join(", ");
        diagnostics.contradiction(
            &key("handler.http"),
            &[&key("environment")],
            format!("[{command}]"),
            expected.into(),
        );
    }
    let is_coprocess = matches!(pool.handler, HandlerConfig::Coprocess(_));
    let is_fastcgi = matches!(pool.handler, HandlerConfig::Fastcgi(_));
    if !pool.ping.is_zero() && is_http && pool.ready_path.is_empty() {
        let expected = "a ready_path as well, which the pings request".to_owned();
        diagnostics.contradiction(&key("ping"), &[&key("ready_path")], time(pool.ping), expected);
    }
    let place = diagnostics.place(&handler);
    let name = pool.handler.name();
    let only_for = |wanted: &str| format!("no such key: {place} is {name}, and only {wanted} has it");
    if !pool.ping.is_zero() && !is_http && !is_coprocess && !is_fastcgi {
        diagnostics.contradiction(&key("ping"), &[&handler], time(pool.ping), only_for("http, coprocess or fastcgi"));
    }
    if !pool.ready_path.is_empty() && !is_http {
        diagnostics.contradiction(&key("ready_path"), &[&handler], quote(&pool.ready_path), only_for("http"));
    }
    if pool.ready_frame && !is_coprocess {
        diagnostics.contradiction(&key("ready_frame"), &[&handler], "true".to_owned(), only_for("coprocess"));
    }
}

/// What execve(2) can pass: one string has at most 128 KiB (`MAX_ARG_STRLEN`), and all together must leave room for what
/// a request adds.
fn size_of_command(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    const STRING_MAX: usize = (128 << 10) - 1;
    const ALL_MAX: usize = 512 << 10;
    let arguments = pool.handler.command().iter().map(|argument| argument.len() + 1);
    let variables = pool.environment.iter().map(|(name, value)| name.len() + value.len() + 2);
    for (key, longest) in [("handler", arguments.clone().max()), ("environment", variables.clone().max())] {
        if let Some(longest) = longest.filter(|longest| *longest > STRING_MAX) {
            let expected = format!("at most {STRING_MAX} bytes in one argument or variable (execve(2))");
            diagnostics.contradiction(&format!("{section}.{key}"), &[], format!("{longest} bytes"), expected);
        }
    }
    let all: usize = arguments.chain(variables).sum();
    if all > ALL_MAX {
        let expected = format!("at most {ALL_MAX} bytes in the command and the environment together");
        diagnostics.contradiction(&format!("{section}.environment"), &[], format!("{all} bytes"), expected);
    }
}

/// Reports the files that the workers of a pool cannot use, as `unusable` finds them.
pub(super) fn pool_files(
    config: &Config,
    unusable: &dyn Fn(&PoolConfig) -> Vec<UnusableFile>,
    diagnostics: &mut Diagnostics,
) {
    if diagnostics.has_gaps() {
        return;
    }
    for (i, pool) in config.pools.iter().enumerate() {
        for UnusableFile { key, found, expected } in unusable(pool) {
            diagnostics.contradiction(&format!("pool[{}].{key}", i + 1), &[], quote(&found), expected);
        }
    }
}

fn pool_names(config: &Config, diagnostics: &mut Diagnostics) {
    for (i, pool) in config.pools.iter().enumerate() {
        let Some(first) = config.pools[..i].iter().position(|other| other.name == pool.name) else { continue };
        let (key, other) = (format!("pool[{}].name", i + 1), format!("pool[{}].name", first + 1));
        let expected = format!("a unique name: {} has the same one", diagnostics.place(&other));
        diagnostics.contradiction(&key, &[&other], quote(pool.name.as_str()), expected);
    }
}

fn unknown_pool(section: &str, listener: &ListenerConfig, config: &Config, diagnostics: &mut Diagnostics) {
    let names: Vec<String> = (1..=config.pools.len()).map(|i| format!("pool[{i}].name")).collect();
    // A pool whose name could not be read may be the one that the listener names.
    let mut others: Vec<&str> = names.iter().map(String::as_str).collect();
    others.extend(["pool", "listener"]);
    let known = config.pools.iter().map(|pool| pool.name.as_str());
    let expected = match nearest(listener.pool.as_str(), known.clone()) {
        Some(name) => format!("the name of a pool; the nearest is {}", quote(name)),
        None => {
            // Duplicate names are reported by `pool_names`.
            let names: BTreeSet<String> = known.map(quote).collect();
            let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
            let shown: Vec<String> = names.into_iter().take(NAMES_SHOWN).collect();
            format!("the name of a pool: {}{more}", shown.join(", "))
        }
    };
    diagnostics.contradiction(&format!("{section}.pool"), &others, quote(listener.pool.as_str()), expected);
}

fn redirect_needs_tcp_pool(
    section: &str,
    listener: &ListenerConfig,
    config: &Config,
    at: usize,
    diagnostics: &mut Diagnostics,
) {
    let unreachable = !listener.address.is_unix() && config.pools[at].address.is_unix();
    if unreachable && listener.delivery == Delivery::Redirect {
        let workers = format!("pool[{}].address", at + 1);
        let expected = format!(
            "a pool on TCP: a redirect cannot lead to the Unix sockets of {}; or a Unix socket as this listener's address",
            diagnostics.place(&workers)
        );
        let [pool, address] = ["pool", "address"].map(|name| format!("{section}.{name}"));
        diagnostics.contradiction(&pool, &[&workers, &address], quote(listener.pool.as_str()), expected);
    }
}

/// An inetd program receives the socket itself and reads no token, so a redirected client could not reach it.
fn inetd_needs_handoff(
    section: &str,
    listener: &ListenerConfig,
    config: &Config,
    at: usize,
    diagnostics: &mut Diagnostics,
) {
    if listener.delivery == Delivery::Redirect && matches!(config.pools[at].handler, HandlerConfig::Inetd(_)) {
        let handler = format!("pool[{}].handler", at + 1);
        let expected =
            format!("\"handoff\": {} is inetd, which cannot serve redirected clients", diagnostics.place(&handler));
        let (key, pool) = (format!("{section}.delivery"), format!("{section}.pool"));
        diagnostics.contradiction(&key, &[&pool, &handler], quote("redirect"), expected);
    }
}

fn permissions_on_tcp(section: &str, listener: &ListenerConfig, diagnostics: &mut Diagnostics) {
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
        if diagnostics.is_present(&key) {
            let expected = format!("no {name} with a TCP address, only with \"unix:/path\"");
            diagnostics.contradiction(&key, &[&format!("{section}.address")], found, expected);
        }
    }
}

fn pool_times(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    let [offer, claim] = ["offer_timeout", "claim_timeout"].map(|name| format!("{section}.{name}"));
    let [queue, queue_timeout] = ["queue", "queue_timeout"].map(|name| format!("{section}.{name}"));
    if pool.claim_timeout < pool.offer_timeout {
        let expected = format!("at least {}, the value of offer_timeout", time(pool.offer_timeout));
        diagnostics.contradiction(&claim, &[&offer], time(pool.claim_timeout), expected);
    }
    if pool.queue > 0 && pool.queue_timeout.is_zero() {
        let expected = format!("a duration longer than 0s, or queue = 0 instead of {}", pool.queue);
        diagnostics.contradiction(&queue_timeout, &[&queue], time(pool.queue_timeout), expected);
    }
}

/// A lost doorbell is noticed at the next scan, which must not delay a worker longer than a request may take.
fn slot_scan(section: &str, pool: &PoolConfig, scan: Duration, diagnostics: &mut Diagnostics) {
    let request = format!("{section}.request_timeout");
    if scan > pool.request_timeout {
        let expected = format!("at most {}, the value of {}", time(pool.request_timeout), diagnostics.place(&request));
        diagnostics.contradiction("front.slot_scan", &[&request], time(scan), expected);
    }
}

fn watchdog_times(config: &Config, diagnostics: &mut Diagnostics) {
    let watchdog = &config.watchdog;
    let longer = [("worker_timeout", watchdog.worker_timeout), ("dispatcher_timeout", watchdog.dispatcher_timeout)];
    for (name, timeout) in longer {
        if watchdog.probe_interval >= timeout {
            let expected = format!("a duration shorter than {}, the value of {name}", time(timeout));
            let found = time(watchdog.probe_interval);
            diagnostics.contradiction("watchdog.probe_interval", &[&format!("watchdog.{name}")], found, expected);
        }
    }
    let restarts = &watchdog.restarts;
    if restarts.delay > restarts.delay_max {
        let expected = format!("at most {}, the value of delay_max", time(restarts.delay_max));
        let key = "watchdog.restarts.delay";
        diagnostics.contradiction(key, &["watchdog.restarts.delay_max"], time(restarts.delay), expected);
    }
}

fn time(duration: Duration) -> String {
    quote(&humantime::format_duration(duration).to_string())
}
