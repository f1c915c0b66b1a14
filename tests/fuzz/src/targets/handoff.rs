//! What comes beside a connection: the dispatcher's message to a worker, and a proxy's header before a request.

use crate::handoff::HandoffMessage;
use crate::net::{HEADER_MAX, ProxyHeader, proxied};

pub fn run(bytes: &[u8]) {
    if let Some(message) = HandoffMessage::decode(bytes) {
        let again = HandoffMessage::decode(&message.encode()).expect("what was read can be written");
        assert!(again.token.matches(message.token));
        assert_eq!((again.lease, again.peer, again.server), (message.lease, message.peer, message.server));
        assert_eq!(again.entrance, message.entrance);
    }
    if let ProxyHeader::Header(length, address) = proxied(bytes) {
        assert!(0 < length && length <= bytes.len().min(HEADER_MAX), "{length}");
        // What follows is the client's, and what came in pieces is what came at once.
        assert!(matches!(proxied(&bytes[..length]), ProxyHeader::Header(l, a) if (l, a) == (length, address)));
        assert!((0..length).all(|end| matches!(proxied(&bytes[..end]), ProxyHeader::More)), "it was whole too early");
    }
}
