//! The input beside a connection: the dispatcher's message to a worker, and a proxy's header before a request.

use crate::handoff::HandoffMessage;
use crate::net::{ProxyHeader, parse_proxy_header};

pub(crate) fn run(bytes: &[u8]) {
    if let Some(message) = HandoffMessage::decode(bytes) {
        let again = HandoffMessage::decode(&message.encode()).expect("a decoded message can be encoded");
        assert!(again.token.matches(message.token));
        assert_eq!((again.lease, again.peer, again.server), (message.lease, message.peer, message.server));
        assert_eq!(again.listener, message.listener);
    }
    if let ProxyHeader::Complete(length, address) = parse_proxy_header(bytes) {
        assert!(0 < length && length <= bytes.len().min(ProxyHeader::MAX), "{length}");
        // The bytes that follow make no difference, nor do pieces.
        let header = parse_proxy_header(&bytes[..length]);
        assert_eq!(header, ProxyHeader::Complete(length, address));
        let is_incomplete = |end: usize| parse_proxy_header(&bytes[..end]) == ProxyHeader::Incomplete;
        assert!((0..length).all(is_incomplete), "a prefix is complete");
    }
}
