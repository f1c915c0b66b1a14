//! The clients of a drill: how many there are of each kind, and the threads that run them.

use std::thread::Scope;

use super::random::SplitMix64;
use super::traffic::Traffic;
use super::{fastcgi_clients, http_clients, keepalive_clients, library_clients, session_clients};

const HTTP_CLIENTS: u64 = 4;
const KEEPALIVE_CLIENTS: u64 = 3;
const FASTCGI_CLIENTS: u64 = 3;
/// More than a pool of the private set may have sessions.
const SESSION_CLIENTS: u64 = 3;

/// Runs all clients on threads of this scope until [`Traffic::stop`].
pub(super) fn start<'s>(traffic: &'s Traffic<'_>, scope: &'s Scope<'s, '_>, seed: u64) {
    let random = move |client: u64| SplitMix64::new(seed ^ (client + 1) << 32);
    for client in 0..HTTP_CLIENTS {
        scope.spawn(move || http_clients::run(traffic, random(client)));
    }
    for client in 0..KEEPALIVE_CLIENTS {
        scope.spawn(move || keepalive_clients::run(traffic, random(200 + client)));
    }
    for client in 0..FASTCGI_CLIENTS {
        scope.spawn(move || fastcgi_clients::run(traffic, random(400 + client)));
    }
    for client in 0..SESSION_CLIENTS {
        scope.spawn(move || session_clients::run(traffic, random(300 + client)));
    }
    scope.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the drill has the three descriptors that a runtime needs");
        runtime.block_on(async {
            let client = |client: u64| library_clients::run(traffic, random(100 + client));
            tokio::join!(client(0), client(1))
        });
    });
}
