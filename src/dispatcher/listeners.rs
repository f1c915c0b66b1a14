//! The listeners of the configuration in force.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{self, Config, Delivery, ListenAddress, ListenerProtocol, digest};
use crate::handoff::ListenerInfo;
use crate::net::WireProtocol;

/// How long after a log line about a connection without a valid start there is no other.
pub(super) const BAD_START_LOG: Duration = Duration::from_secs(10);

/// A listener.
#[derive(Debug)]
pub(super) struct Listener {
    pub config: config::ListenerConfig,
    /// Passed to workers with each connection.
    pub info: ListenerInfo,
    /// Identifies it to the next dispatcher, wherever it stands in the file by then.
    pub key: u64,
}

impl Listener {
    /// What is known of a connection to it before its first byte.
    pub(super) fn wire(&self) -> WireProtocol {
        match self.config.protocol {
            ListenerProtocol::Http => WireProtocol::Http,
            ListenerProtocol::Fastcgi => WireProtocol::Fastcgi(0),
        }
    }

    /// Whether the peer may connect.
    pub(super) fn allows(&self, peer: Option<SocketAddr>) -> bool {
        let clients = &self.config.allowed_clients;
        clients.is_empty() || peer.is_some_and(|peer| clients.iter().any(|network| network.contains(peer.ip())))
    }
}

/// All listeners in the order of the file, and the bounds of their connections.
#[derive(Debug)]
pub(super) struct Listeners {
    all: RefCell<Vec<Rc<Listener>>>,
    settings: RefCell<Rc<config::FrontConfig>>,
    /// When a connection without a valid start was last logged.
    bad_start_logged: Cell<Option<Instant>>,
}

impl Listeners {
    pub(super) fn new(config: &Config) -> Rc<Self> {
        Rc::new(Self {
            all: RefCell::new(listeners(config)),
            settings: RefCell::new(Rc::new(config.front.clone())),
            bad_start_logged: Cell::new(None),
        })
    }

    /// Applies a reloaded configuration.
    pub(super) fn apply(&self, config: &Config) {
        *self.all.borrow_mut() = listeners(config);
        *self.settings.borrow_mut() = Rc::new(config.front.clone());
    }

    pub(super) fn settings(&self) -> Rc<config::FrontConfig> {
        self.settings.borrow().clone()
    }

    /// Whether another connection without a valid start may be logged; if so, the next ones may not.
    pub(super) fn may_log_bad_start(&self, now: Instant) -> bool {
        let may_log = self.bad_start_logged.get().is_none_or(|at| now.duration_since(at) >= BAD_START_LOG);
        if may_log {
            self.bad_start_logged.set(Some(now));
        }
        may_log
    }

    /// The key of the listener at this place in the file.
    pub(super) fn key_at(&self, index: usize) -> Option<u64> {
        self.all.borrow().get(index).map(|listener| listener.key)
    }

    /// The listener with this key.
    pub(super) fn find(&self, key: u64) -> Option<Rc<Listener>> {
        self.all.borrow().iter().find(|listener| listener.key == key).cloned()
    }

    /// The listener with this key, if its delivery is handoff.
    pub(super) fn find_handoff(&self, key: u64) -> Option<Rc<Listener>> {
        self.find(key).filter(|listener| listener.config.delivery == Delivery::Handoff)
    }
}

fn listeners(config: &Config) -> Vec<Rc<Listener>> {
    let info = |listener: &config::ListenerConfig| {
        let listens_on = match &listener.address {
            // No browser speaks FastCGI, so there is no DNS rebinding: without allowed_hosts any name is served.
            ListenAddress::Tcp(address) if listener.protocol == ListenerProtocol::Http => Some(address.ip()),
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) => None,
        };
        ListenerInfo {
            listens_on,
            access_log: listener.access_log,
            allowed_hosts: listener.allowed_hosts.clone(),
            proxies: listener.proxies.clone(),
        }
    };
    let key = |index: usize| {
        let same = |at: &config::ListenerConfig| (at.address.to_string(), at.delivery.as_str());
        let listener = &config.listeners[index];
        // Several listeners may have port 0, each of which gets another port.
        let before = config.listeners[..index].iter().filter(|other| same(other) == same(listener)).count();
        let (address, delivery) = same(listener);
        digest(&[address.as_bytes(), delivery.as_bytes(), &before.to_le_bytes()])
    };
    let listener = |(index, config): (usize, &config::ListenerConfig)| {
        Rc::new(Listener { config: config.clone(), info: info(config), key: key(index) })
    };
    config.listeners.iter().enumerate().map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listeners: &[(&str, &str)]) -> Config {
        let listener = |(address, delivery): &(&str, &str)| {
            format!("[[listener]]\naddress = \"{address}\"\ndelivery = \"{delivery}\"\n")
        };
        let text = listeners.iter().map(listener).collect::<String>() + "[[pool]]\nname = \"default\"\n";
        Config::parse(&text, "test").unwrap()
    }

    #[test]
    fn listener_keeps_its_key_when_its_position_changes() {
        let all = [("127.0.0.1:1", "handoff"), ("127.0.0.1:2", "handoff"), ("unix:/x", "handoff")];
        let listeners = Listeners::new(&config(&all));
        let key = listeners.key_at(1).unwrap();
        assert_eq!(listeners.find_handoff(key).unwrap().config.address.to_string(), "127.0.0.1:2");
        assert_eq!(Listeners::new(&config(&all[1..])).key_at(0), Some(key));
        assert!(Listeners::new(&config(&[all[0], all[2]])).find_handoff(key).is_none());
        // Its delivery is redirect now.
        assert!(Listeners::new(&config(&[("127.0.0.1:2", "redirect")])).find_handoff(key).is_none());
        let twins = Listeners::new(&config(&[("127.0.0.1:0", "handoff"); 2]));
        assert_ne!(twins.key_at(0), twins.key_at(1));
    }
}
