//! Where clients come in, as the configuration in force has it.

use std::cell::RefCell;
use std::rc::Rc;

use crate::config::{self, Config, Delivery, ListenAddress, digest};
use crate::handoff::ListenerInfo;

/// A listener, and what others need to know of it.
#[derive(Debug)]
pub struct Listener {
    pub listener: config::ListenerConfig,
    /// What its workers are told.
    pub entrance: ListenerInfo,
    /// By which the next dispatcher knows it again, wherever it stands in the file by then.
    pub key: u64,
}

/// All of them, in the order of the file, and the bounds that hold for who comes in.
#[derive(Debug)]
pub struct Listeners {
    all: RefCell<Vec<Rc<Listener>>>,
    settings: RefCell<Rc<config::FrontConfig>>,
}

impl Listeners {
    pub fn new(config: &Config) -> Rc<Self> {
        Rc::new(Self { all: RefCell::new(doors(config)), settings: RefCell::new(Rc::new(config.front.clone())) })
    }

    /// Takes what a reload has brought; the addresses are still the same. Returns the bounds that held before.
    pub fn apply(&self, config: &Config) -> Rc<config::FrontConfig> {
        *self.all.borrow_mut() = doors(config);
        self.settings.replace(Rc::new(config.front.clone()))
    }

    pub fn settings(&self) -> Rc<config::FrontConfig> {
        self.settings.borrow().clone()
    }

    pub fn at(&self, index: usize) -> Option<Rc<Listener>> {
        self.all.borrow().get(index).cloned()
    }

    /// The one with this index, if it hands connections over.
    pub fn handing(&self, index: usize) -> Option<Rc<Listener>> {
        self.at(index).filter(|door| door.listener.delivery == Delivery::Handoff)
    }

    /// The one that hands connections over and has this key, with its index.
    pub fn find(&self, key: u64) -> Option<(usize, Rc<Listener>)> {
        let index = self.all.borrow().iter().position(|door| door.key == key)?;
        Some((index, self.handing(index)?))
    }
}

fn doors(config: &Config) -> Vec<Rc<Listener>> {
    let entrance = |listener: &config::ListenerConfig| {
        let listens_on = match &listener.address {
            ListenAddress::Tcp(address) => Some(address.ip()),
            ListenAddress::Unix(_) => None,
        };
        ListenerInfo { listens_on, access_log: listener.access_log, allowed_hosts: listener.allowed_hosts.clone() }
    };
    let key = |index: usize| {
        let same = |at: &config::ListenerConfig| (at.address.to_string(), at.delivery.as_str());
        let listener = &config.listeners[index];
        // Several may be on port 0, each with a port of its own.
        let before = config.listeners[..index].iter().filter(|other| same(other) == same(listener)).count();
        let (address, delivery) = same(listener);
        digest(&[address.as_bytes(), delivery.as_bytes(), &before.to_le_bytes()])
    };
    let door = |(index, listener): (usize, &config::ListenerConfig)| {
        Rc::new(Listener { listener: listener.clone(), entrance: entrance(listener), key: key(index) })
    };
    config.listeners.iter().enumerate().map(door).collect()
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
    fn a_door_is_known_again_by_its_address_wherever_it_stands() {
        let all = [("127.0.0.1:1", "handoff"), ("127.0.0.1:2", "handoff"), ("unix:/x", "handoff")];
        let doors = Listeners::new(&config(&all));
        let key = doors.at(1).unwrap().key;
        assert_eq!(doors.find(key).unwrap().0, 1);
        assert_eq!(Listeners::new(&config(&all[1..])).find(key).unwrap().0, 0);
        assert!(Listeners::new(&config(&[all[0], all[2]])).find(key).is_none());
        // Nobody is handed over there any more.
        assert!(Listeners::new(&config(&[("127.0.0.1:2", "redirect")])).find(key).is_none());
        let twins = Listeners::new(&config(&[("127.0.0.1:0", "handoff"); 2]));
        assert_ne!(twins.at(0).unwrap().key, twins.at(1).unwrap().key);
    }
}
