//! The messages that a set logs when it has started: whether it is up, and commands to try.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::plan::{ChildSet, Plan};
use super::supervisor::children::ChildSupervisor;
use super::watched_set::WatchedSet;
use crate::config::{Config, HandlerConfig, ListenAddress, ListenerConfig, Origin};
use crate::log::Event;

impl ChildSupervisor {
    /// Logs that the start is complete, and commands to try.
    pub(super) fn log_set_up(&mut self, set: &WatchedSet<ChildSet>) {
        self.start_deadline = None;
        let (config, set_name) = (&set.config, &set.config.set.name);
        match parts_not_up(&set.plan) {
            Some(missing) => tracing::warn!(set = %set_name, "the set is not up: {missing}; the others serve requests"),
            None => {
                let (workers, pools) = (config.workers().count(), config.pools.len());
                tracing::info!(set = %set_name, workers, pools, dir = %self.runtime_dir.display(), event = %Event::SetUp,
                    "the set is up");
            }
        }
        let program = std::env::args().next().map_or("patou".to_owned(), |name| quoted(&name));
        let option = match &set.origin {
            Origin::File(path) if path != Path::new(Config::DEFAULT_PATH) => {
                format!(" --config {}", quoted(&path.display().to_string()))
            }
            _ => String::new(),
        };
        for (listener, socket) in config.listeners.iter().zip(&self.sockets.listeners) {
            if !speaks_http(config, listener) {
                continue;
            }
            let command = example_command(config, listener, &socket.address, &program);
            tracing::info!("try: {command}    (pool {})", listener.pool);
        }
        tracing::info!("try: {program} status{option}; stop with Ctrl-C");
    }

    /// Logs which parts are not up after watchdog.start_timeout.
    pub(super) fn log_start_timeout(&mut self, set: &WatchedSet<ChildSet>) {
        self.start_deadline = None;
        if let Some(missing) = parts_not_up(&set.plan).filter(|_| !set.plan.is_stopping()) {
            tracing::warn!(set = %set.config.set.name, "the set is not up within watchdog.start_timeout: {missing}");
        }
    }
}

/// The parts that are not up, with their state and their last end; `None` if all are up.
fn parts_not_up(plan: &Plan<ChildSet>) -> Option<String> {
    let missing = plan.status().filter(|(_, status)| status.state != "up").map(|(part, status)| {
        let cause = status.cause.map_or(String::new(), |cause| format!(", last end: {cause}"));
        format!("{part} is {}{cause}", status.state)
    });
    let missing: Vec<_> = missing.collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// The program of an `inetd` pool speaks its own protocol.
fn speaks_http(config: &Config, listener: &ListenerConfig) -> bool {
    config.pool(&listener.pool).is_none_or(|pool| !matches!(pool.handler, HandlerConfig::Inetd(_)))
}

/// A command that sends a request to a listener.
fn example_command(config: &Config, listener: &ListenerConfig, address: &ListenAddress, program: &str) -> String {
    let echo = config.pool(&listener.pool).is_some_and(|pool| pool.handler == HandlerConfig::Echo);
    let path = if echo { "/hello" } else { "/" };
    match address {
        ListenAddress::Tcp(address) => {
            let mut address = *address;
            // A wildcard address is not a destination.
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                _ => {}
            }
            // curl treats the brackets of an IPv6 address as a glob pattern.
            let globoff = if address.is_ipv6() { " -g" } else { "" };
            format!("curl{globoff} -L {}", quoted(&format!("http://{address}{path}")))
        }
        ListenAddress::Unix(file) => {
            format!("{program} call --target {} {path}", quoted(&format!("unix:{}", file.display())))
        }
    }
}

/// `word`, quoted for a shell if necessary.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/.:_-+=@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_commands_are_valid_in_a_shell() {
        let config = Config::default();
        let on = |address: &str| example_command(&config, &config.listeners[0], &address.parse().unwrap(), "patou");
        assert_eq!(on("127.0.0.1:80"), "curl -L http://127.0.0.1:80/hello");
        assert_eq!(on("0.0.0.0:80"), "curl -L http://127.0.0.1:80/hello");
        assert_eq!(on("[::]:80"), "curl -g -L 'http://[::1]:80/hello'");
        assert_eq!(on("unix:/a b/c"), "patou call --target 'unix:/a b/c' /hello");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
