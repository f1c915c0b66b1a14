//! A configuration as TOML: every key, so that it means the same to every reader, whoever and wherever it is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::quantity::write_bytes;
use super::{
    AdminConfig, Config, FrontConfig, HandlerConfig, LimitsConfig, ListenerConfig, PoolConfig, WatchdogConfig,
};

impl Config {
    /// The whole configuration as TOML: for a configuration that was parsed, parsing the result gives it again.
    /// Only `mode`, `owner` and `group` of a TCP listener are left out; they are not allowed there.
    pub fn to_toml(&self) -> String {
        let mut out = Out(String::new());
        out.line("[set]");
        out.text("name", &self.set.name);
        out.text("runtime_dir", &self.set.runtime_dir.to_string_lossy());
        self.listeners.iter().for_each(|listener| out.listener(listener));
        self.pools.iter().for_each(|pool| out.pool(pool));
        out.front(&self.front);
        out.watchdog(&self.watchdog);
        out.admin(&self.admin);
        out.0
    }
}

struct Out(String);

impl Out {
    fn listener(&mut self, listener: &ListenerConfig) {
        self.line("\n[[listener]]");
        self.text("address", &listener.address.to_string());
        if listener.address.is_unix() {
            self.key("mode", format_args!("0o{:o}", listener.mode));
            listener.owner.iter().for_each(|owner| self.text("owner", owner));
            listener.group.iter().for_each(|group| self.text("group", group));
        }
        self.text("delivery", listener.delivery.as_str());
        self.text("pool", listener.pool.as_str());
        self.key("allowed_hosts", list(&listener.allowed_hosts));
        self.key("proxy_protocol", listener.proxy_protocol);
        self.key("access_log", listener.access_log);
    }

    fn pool(&mut self, pool: &PoolConfig) {
        self.line("\n[[pool]]");
        self.text("name", pool.name.as_str());
        self.key("workers", pool.workers);
        match &pool.handler {
            HandlerConfig::Echo => self.text("handler", "echo"),
            other => self.key("handler", format_args!("{{ {} = {} }}", other.name(), list(other.command()))),
        }
        self.text("address", &pool.address.to_string());
        self.time("offer_timeout", pool.offer_timeout);
        self.time("claim_timeout", pool.claim_timeout);
        self.time("request_timeout", pool.request_timeout);
        self.key("queue", pool.queue);
        self.time("queue_timeout", pool.queue_timeout);
        self.time("drain_timeout", pool.drain_timeout);
        self.key("max_requests", pool.max_requests);
        self.time("max_age", pool.max_age);
        self.text("max_memory", &write_bytes(pool.max_memory));
        self.key("environment", table(&pool.environment));
        self.text("user", &pool.user);
        self.key("limits", limits(&pool.limits));
    }

    fn front(&mut self, front: &FrontConfig) {
        self.line("\n[front]");
        self.key("connections", front.connections);
        self.key("head_bytes", front.head_bytes);
        self.time("head_timeout", front.head_timeout);
        self.time("body_timeout", front.body_timeout);
        self.time("linger_timeout", front.linger_timeout);
        self.text("max_body", &write_bytes(front.max_body));
        self.time("store_after", front.store_after);
        self.time("slot_scan", front.slot_scan);
        self.time("idle_timeout", front.idle_timeout);
    }

    fn watchdog(&mut self, watchdog: &WatchdogConfig) {
        self.line("\n[watchdog]");
        self.time("probe_interval", watchdog.probe_interval);
        self.time("worker_timeout", watchdog.worker_timeout);
        self.time("dispatcher_timeout", watchdog.dispatcher_timeout);
        self.time("start_timeout", watchdog.start_timeout);
        self.time("abort_grace", watchdog.abort_grace);
        let restarts = &watchdog.restarts;
        let [within, delay, most] = [restarts.within, restarts.delay, restarts.delay_max].map(time);
        let max = restarts.max;
        self.key("restarts", format_args!("{{ max = {max}, within = {within}, delay = {delay}, delay_max = {most} }}"));
    }

    fn admin(&mut self, admin: &AdminConfig) {
        self.line("\n[admin]");
        self.text("address", &admin.address.as_ref().map_or(String::new(), ToString::to_string));
        self.key("allowed_hosts", list(&admin.allowed_hosts));
        self.key("mode", format_args!("0o{:o}", admin.mode));
        admin.owner.iter().for_each(|owner| self.text("owner", owner));
        admin.group.iter().for_each(|group| self.text("group", group));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{key} = {value}").expect("a String takes all");
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, quote(text));
    }

    fn time(&mut self, key: &str, duration: Duration) {
        self.key(key, time(duration));
    }
}

fn time(duration: Duration) -> String {
    format!("\"{}\"", humantime::format_duration(duration))
}

fn list(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", words.join(", "))
}

fn table(map: &BTreeMap<String, String>) -> String {
    braces(map.iter().map(|(key, value)| format!("{} = {}", quote(key), quote(value))).collect())
}

fn limits(limits: &LimitsConfig) -> String {
    let all = [
        ("memory_max", &limits.memory_max),
        ("cpu_quota", &limits.cpu_quota),
        ("tasks_max", &limits.tasks_max),
        ("open_files", &limits.open_files),
    ];
    braces(
        all.iter().filter_map(|(key, limit)| limit.as_ref().map(|text| format!("{key} = {}", quote(text)))).collect(),
    )
}

fn braces(pairs: Vec<String>) -> String {
    if pairs.is_empty() { "{}".into() } else { format!("{{ {} }}", pairs.join(", ")) }
}

/// A basic string of TOML (v1.0.0, String): in quotes, one line, control characters escaped.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\u{:04X}", c as u32).expect("a String takes all"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
