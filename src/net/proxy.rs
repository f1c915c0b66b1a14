//! The header with which a proxy tells whose connection it is (HAProxy's "The PROXY protocol", versions 1 and 2). Pure.

use std::net::{IpAddr, SocketAddr};

/// What every header of version 2 begins with (section 2.2).
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included (section 2.1).
const V1_MAX: usize = 107;
/// The longest header of version 2 that is taken: addresses, and some hundred bytes of extensions.
pub const HEADER_MAX: usize = 1024;

/// What the bytes at the beginning of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// A header of so many bytes, with the client's address if it tells one.
    Header(usize, Option<SocketAddr>),
    /// The beginning of one.
    More,
    /// None.
    Wrong,
}

/// Reads the header at the beginning of `bytes`.
pub fn proxied(bytes: &[u8]) -> ProxyHeader {
    if bytes.len() < V2.len() && V2.starts_with(bytes) {
        return ProxyHeader::More;
    }
    if bytes.starts_with(V2) {
        return version_2(bytes);
    }
    version_1(bytes)
}

fn version_1(bytes: &[u8]) -> ProxyHeader {
    let start = b"PROXY ";
    if !bytes.starts_with(start) {
        return if start.starts_with(bytes) { ProxyHeader::More } else { ProxyHeader::Wrong };
    }
    let Some(end) = bytes.windows(2).take(V1_MAX - 1).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_MAX { ProxyHeader::More } else { ProxyHeader::Wrong };
    };
    let Ok(line) = std::str::from_utf8(&bytes[start.len()..end]) else { return ProxyHeader::Wrong };
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        return ProxyHeader::Header(end + 2, None); // whatever follows is to be ignored
    }
    let mut next = || words.next().unwrap_or_default();
    let (source, destination, port, to_port) = (next(), next(), next(), next());
    let ip = |text: &str| match family {
        Some("TCP4") => text.parse().ok().map(IpAddr::V4),
        Some("TCP6") => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    match (ip(source), ip(destination), port.parse(), to_port.parse::<u16>(), words.next()) {
        (Some(source), Some(_), Ok(port), Ok(_), None) => {
            ProxyHeader::Header(end + 2, Some(SocketAddr::new(source, port)))
        }
        _ => ProxyHeader::Wrong,
    }
}

fn version_2(bytes: &[u8]) -> ProxyHeader {
    let Some(&[version, family, high, low]) = bytes.get(12..16) else { return ProxyHeader::More };
    let (length, command) = (16 + usize::from(u16::from_be_bytes([high, low])), version & 0xf);
    if version >> 4 != 2 || command > 1 || length > HEADER_MAX {
        return ProxyHeader::Wrong;
    }
    let Some(addresses) = bytes.get(16..length) else { return ProxyHeader::More };
    if command == 0 {
        return ProxyHeader::Header(length, None); // the proxy speaks for itself
    }
    // The two addresses, then the two ports.
    let source = match family {
        0x11 => source_of::<4>(addresses),
        0x21 => source_of::<16>(addresses),
        _ => return ProxyHeader::Header(length, None), // unspecified, or a Unix socket: nothing to be told from it
    };
    source.map_or(ProxyHeader::Wrong, |source| ProxyHeader::Header(length, Some(source)))
}

fn source_of<const N: usize>(addresses: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let (ip, rest) = addresses.split_first_chunk::<N>()?;
    let (port, _) = rest.get(N..N + 4)?.split_first_chunk::<2>()?;
    Some(SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(family: u8, command: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((addresses.len() as u16).to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn headers_of_both_versions_are_read_exactly() {
        let of = |text: &str| proxied(text.as_bytes());
        let peer = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            of("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET"),
            ProxyHeader::Header(42, peer("192.0.2.1:56324"))
        );
        assert_eq!(of("PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), ProxyHeader::Header(32, peer("[2001:db8::1]:1")));
        assert_eq!(of("PROXY UNKNOWN\r\n"), ProxyHeader::Header(15, None));
        assert_eq!(of("PROXY UNKNOWN ff:: x\r\nGET"), ProxyHeader::Header(22, None));
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187];
        assert_eq!(proxied(&v2(0x11, 1, &four)), ProxyHeader::Header(28, peer("192.0.2.1:80")));
        assert_eq!(proxied(&v2(0x11, 0, &four)), ProxyHeader::Header(28, None), "LOCAL");
        assert_eq!(proxied(&v2(0x31, 1, &[0; 216])), ProxyHeader::Header(232, None), "a Unix socket");
        let mut six = [0; 36];
        six[15] = 1;
        six[33] = 7;
        assert_eq!(proxied(&v2(0x21, 1, &six)), ProxyHeader::Header(52, peer("[::1]:7")));
        assert_eq!(proxied(&v2(0x11, 1, &four[..11])), ProxyHeader::Wrong);
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 1.2.3.4\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        ] {
            assert_eq!(of(wrong), ProxyHeader::Wrong, "{wrong}");
        }
        assert_eq!(of(&format!("PROXY {}", "x".repeat(200))), ProxyHeader::Wrong);
    }

    #[test]
    fn every_beginning_asks_for_more() {
        let whole = [&b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"[..], &v2(0x11, 1, &[1; 12])].map(<[u8]>::to_vec);
        for bytes in whole {
            for end in 0..bytes.len() {
                assert_eq!(proxied(&bytes[..end]), ProxyHeader::More, "{end} of {bytes:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_judged_within_what_is_there(bytes in prop::collection::vec(any::<u8>(), 0..300), v2 in any::<bool>()) {
            let bytes = if v2 { [&V2[..], &bytes].concat() } else { [&b"PROXY "[..], &bytes].concat() };
            if let ProxyHeader::Header(length, _) = proxied(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
