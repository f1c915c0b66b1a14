//! The rules for listeners whose clients speak FastCGI. Such a client is the front server itself: what it says of a request
//! is believed, so it matters which peers may connect.

#![forbid(unsafe_code)]

use super::diagnostics::Diagnostics;
use super::fault::quote;
use super::{Config, Delivery, HandlerConfig, ListenAddress, ListenerConfig, ListenerProtocol};

/// Reports the keys of a listener that contradict its protocol.
pub(super) fn check(section: &str, listener: &ListenerConfig, config: &Config, diagnostics: &mut Diagnostics) {
    let key = |name: &str| format!("{section}.{name}");
    let [protocol, clients, address] = ["protocol", "allowed_clients", "address"].map(key);
    if listener.protocol == ListenerProtocol::Http {
        if !listener.allowed_clients.is_empty() {
            let expected = "an empty list with protocol = \"http\": a firewall, or the address, limits HTTP clients";
            diagnostics.contradiction(&clients, &[&protocol], "a list".to_owned(), expected.to_owned());
        }
        return;
    }
    let fastcgi = quote("fastcgi");
    if listener.delivery == Delivery::Redirect {
        let expected =
            "\"http\" with delivery = \"redirect\": a FastCGI client cannot follow a redirect; use \"handoff\"";
        diagnostics.contradiction(&protocol, &[&key("delivery")], fastcgi.clone(), expected.to_owned());
    }
    let pool = config.pools.iter().position(|pool| pool.name == listener.pool);
    if let Some(at) = pool.filter(|at| matches!(config.pools[*at].handler, HandlerConfig::Inetd(_))) {
        let handler = format!("pool[{}].handler", at + 1);
        let place = diagnostics.place(&handler);
        let expected = format!("\"http\": {place} is inetd, whose program gets the connection and no request");
        diagnostics.contradiction(&protocol, &[&key("pool"), &handler], fastcgi, expected);
    }
    if listener.proxy_protocol {
        let expected = "false with protocol = \"fastcgi\": the parameters of each request name the client";
        diagnostics.contradiction(&key("proxy_protocol"), &[&protocol], "true".to_owned(), expected.to_owned());
    }
    match &listener.address {
        ListenAddress::Unix(_) if !listener.allowed_clients.is_empty() => {
            let expected = "an empty list for a Unix socket: mode, owner and group say which users may connect";
            diagnostics.contradiction(&clients, &[&address], "a list".to_owned(), expected.to_owned());
        }
        ListenAddress::Tcp(tcp) if !tcp.ip().is_loopback() && listener.allowed_clients.is_empty() => {
            let expected = "the addresses of the front servers at an address that other machines can reach: whatever \
                            they say of a client is believed; \"0.0.0.0/0\" and \"::/0\" are all";
            diagnostics.contradiction(
                &clients,
                &[&address, &protocol],
                "an empty list".to_owned(),
                expected.to_owned(),
            );
        }
        ListenAddress::Tcp(_) | ListenAddress::Unix(_) => {}
    }
}
