//! The messages that a set logs when it has started: whether it is up, and commands to try.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use sd_notify::NotifyState;

use super::supervisor::child_supervisor::ChildSupervisor;
use crate::config::{Config, HandlerConfig, ListenAddress, ListenerConfig, Origin};
use crate::log::Event;
use crate::sd_notification::notify;

impl ChildSupervisor {
    /// Logs that the start is complete, and commands to try.
    pub(super) fn log_set_up(&mut self) {
        notify(&[NotifyState::Ready]);
        self.start_deadline = None;
        let set = &self.config.set.name;
        match self.parts_not_up() {
            Some(missing) => tracing::warn!(%set, "the set is not up: {missing}; the others serve requests"),
            None => {
                let (workers, pools) = (self.config.workers().count(), self.config.pools.len());
                tracing::info!(%set, workers, pools, dir = %self.runtime_dir.display(), event = %Event::SetUp, "the set is up");
            }
        }
        let program = std::env::args().next().map_or("patou".to_owned(), |name| quoted(&name));
        let config = match &self.origin {
            Origin::File(path) if path != Path::new(Config::DEFAULT_PATH) => {
                format!(" --config {}", quoted(&path.display().to_string()))
            }
            _ => String::new(),
        };
        for (listener, socket) in self.config.listeners.iter().zip(&self.sockets.listeners) {
            let command = example_command(&self.config, listener, &socket.address, &program);
            tracing::info!("try: {command}    (pool {})", listener.pool);
        }
        tracing::info!("try: {program} status{config}; stop with Ctrl-C");
    }

    /// Logs which parts are not up after watchdog.start_timeout.
    pub(super) fn log_start_timeout(&mut self) {
        self.start_deadline = None;
        if let Some(missing) = self.parts_not_up().filter(|_| !self.plan.is_stopping()) {
            tracing::warn!(set = %self.config.set.name, "the set is not up within watchdog.start_timeout: {missing}");
        }
    }

    /// The parts that are not up, with their state and their last end; `None` if all are up.
    fn parts_not_up(&self) -> Option<String> {
        let missing = self.plan.status().filter(|(_, status)| status.state != "up").map(|(part, status)| {
            let cause = status.cause.map_or(String::new(), |cause| format!(", last end: {cause}"));
            format!("{part} is {}{cause}", status.state)
        });
        let missing: Vec<_> = missing.collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
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
