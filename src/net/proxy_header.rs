//! The header in which a proxy names the client of a connection (HAProxy's "The PROXY protocol", versions 1 and 2).
//! Pure code.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

/// The first bytes of every header of version 2 (section 2.2).
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included (section 2.1).
const V1_MAX: usize = 107;

/// The start of a connection from a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyHeader {
    /// A header of so many bytes, and the addresses if it contains any.
    Complete(usize, Option<ProxiedAddresses>),
    /// The first part of a header.
    Incomplete,
    /// No header.
    Invalid,
}

/// The ends of a client's connection to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxiedAddresses {
    pub client: SocketAddr,
    /// The end of the proxy; `None` if it is not known any more.
    pub server: Option<SocketAddr>,
    /// Whether the client has used TLS.
    pub is_https: bool,
}

impl ProxyHeader {
    /// The longest accepted header in bytes: the start of version 2, the addresses of a Unix socket, and 4 KiB of
    /// extensions (type-length-value fields).
    pub(crate) const MAX: usize = 16 + 216 + 4096;
}

/// Parses the header at the start of `bytes`.
pub(crate) fn parse_proxy_header(bytes: &[u8]) -> ProxyHeader {
    if bytes.len() < V2.len() && V2.starts_with(bytes) {
        return ProxyHeader::Incomplete;
    }
    if bytes.starts_with(V2) {
        return version_2(bytes);
    }
    version_1(bytes)
}

fn version_1(bytes: &[u8]) -> ProxyHeader {
    let start = b"PROXY ";
    if !bytes.starts_with(start) {
        return if start.starts_with(bytes) { ProxyHeader::Incomplete } else { ProxyHeader::Invalid };
    }
    let Some(end) = bytes.windows(2).take(V1_MAX - 1).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_MAX { ProxyHeader::Incomplete } else { ProxyHeader::Invalid };
    };
    let line = &bytes[start.len()..end];
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return ProxyHeader::Complete(end + 2, None); // the receiver ignores the rest of the line (section 2.1)
    }
    let Ok(line) = std::str::from_utf8(line) else { return ProxyHeader::Invalid };
    let mut words = line.split(' ');
    let family = words.next();
    let mut next = || words.next().unwrap_or_default();
    let (source, destination, from_port, to_port) = (next(), next(), next(), next());
    let ip = |text: &str| match family {
        Some("TCP4") => text.parse().ok().map(IpAddr::V4),
        Some("TCP6") => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    match (ip(source), ip(destination), port(from_port), port(to_port), words.next()) {
        (Some(source), Some(destination), Some(port), Some(to_port), None) => {
            let server = Some(SocketAddr::new(destination, to_port));
            let client = SocketAddr::new(source, port);
            ProxyHeader::Complete(end + 2, Some(ProxiedAddresses { client, server, is_https: false }))
        }
        _ => ProxyHeader::Invalid,
    }
}

/// A port in decimal digits, without leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_canonical)
}

fn version_2(bytes: &[u8]) -> ProxyHeader {
    let Some(&[version, family, high, low]) = bytes.get(12..16) else { return ProxyHeader::Incomplete };
    let (length, command) = (16 + usize::from(u16::from_be_bytes([high, low])), version & 0xf);
    if version >> 4 != 2 || command > 1 || length > ProxyHeader::MAX {
        return ProxyHeader::Invalid;
    }
    let Some(addresses) = bytes.get(16..length) else { return ProxyHeader::Incomplete };
    if command == 0 {
        return ProxyHeader::Complete(length, None); // LOCAL: a connection of the proxy itself
    }
    // Family and protocol, each with its smallest address block. Other values are not part of version 2.
    let ends = match (family >> 4, family & 0xf) {
        (0, 0..=2) | (1..=3, 0) => return ProxyHeader::Complete(length, None), // not known to the proxy
        (1, 1) => ends_of::<4>(addresses),
        (2, 1) => ends_of::<16>(addresses),
        // Datagrams and Unix sockets: no TCP address.
        (1, 2) if addresses.len() >= 12 => return ProxyHeader::Complete(length, None),
        (2, 2) if addresses.len() >= 36 => return ProxyHeader::Complete(length, None),
        (3, 1 | 2) if addresses.len() >= 216 => return ProxyHeader::Complete(length, None),
        _ => return ProxyHeader::Invalid,
    };
    ends.map_or(ProxyHeader::Invalid, |ends| ProxyHeader::Complete(length, Some(ends)))
}

/// Two addresses that two ports follow.
fn ends_of<const N: usize>(addresses: &[u8]) -> Option<ProxiedAddresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = addresses.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (ports, extensions) = rest.split_first_chunk::<4>()?;
    let address = |ip: &[u8; N], port: [u8; 2]| SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(port));
    let server = Some(address(destination, [ports[2], ports[3]]));
    let client = address(source, [ports[0], ports[1]]);
    Some(ProxiedAddresses { client, server, is_https: says_tls(extensions) })
}

/// Whether the extensions, each a type, a length and a value, say that the client has used TLS (section 2.2.5). What else
/// they say does not matter.
fn says_tls(mut extensions: &[u8]) -> bool {
    const SSL: u8 = 0x20;
    const CLIENT_SSL: u8 = 0x01;
    while let Some((&[kind, high, low], rest)) = extensions.split_first_chunk::<3>() {
        let Some((value, rest)) = rest.split_at_checked(u16::from_be_bytes([high, low]).into()) else { return false };
        if kind == SSL {
            return value.first().is_some_and(|client| client & CLIENT_SSL != 0);
        }
        extensions = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(client: &str, server: &str) -> ProxiedAddresses {
        ProxiedAddresses { client: client.parse().unwrap(), server: Some(server.parse().unwrap()), is_https: false }
    }

    fn v2(family: u8, command: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((addresses.len() as u16).to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn headers_of_both_versions_are_parsed_exactly() {
        let of = |text: &str| parse_proxy_header(text.as_bytes());
        let ends = |client: &str, server: &str| Some(ends(client, server));
        assert_eq!(
            of("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET"),
            ProxyHeader::Complete(42, ends("192.0.2.1:56324", "192.0.2.2:443"))
        );
        assert_eq!(
            of("PROXY TCP6 2001:db8::1 ::1 1 2\r\n"),
            ProxyHeader::Complete(32, ends("[2001:db8::1]:1", "[::1]:2"))
        );
        assert_eq!(of("PROXY UNKNOWN\r\n"), ProxyHeader::Complete(15, None));
        assert_eq!(of("PROXY UNKNOWN ff:: x\r\nGET"), ProxyHeader::Complete(22, None));
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187];
        assert_eq!(
            parse_proxy_header(&v2(0x11, 1, &four)),
            ProxyHeader::Complete(28, ends("192.0.2.1:80", "192.0.2.2:443"))
        );
        assert_eq!(parse_proxy_header(&v2(0x11, 0, &four)), ProxyHeader::Complete(28, None), "LOCAL");
        assert_eq!(parse_proxy_header(&v2(0x31, 1, &[0; 216])), ProxyHeader::Complete(232, None), "a Unix socket");
        let mut six = [0; 36];
        six[15] = 1;
        six[31] = 2;
        six[33] = 7;
        six[35] = 9;
        assert_eq!(parse_proxy_header(&v2(0x21, 1, &six)), ProxyHeader::Complete(52, ends("[::1]:7", "[::2]:9")));
        assert_eq!(parse_proxy_header(&v2(0x11, 1, &four[..11])), ProxyHeader::Invalid);
        for invalid in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 1.2.3.4\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 00\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4\t1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP6 ::1%lo ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY  UNKNOWN\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        ] {
            assert_eq!(of(invalid), ProxyHeader::Invalid, "{invalid}");
        }
        assert_eq!(of(&format!("PROXY {}", "x".repeat(200))), ProxyHeader::Invalid);
        assert_eq!(
            of("PROXY TCP4 1.2.3.4 1.2.3.4 0 65535\r\n"),
            ProxyHeader::Complete(36, ends("1.2.3.4:0", "1.2.3.4:65535"))
        );
        let longest = |rest: usize| of(&format!("PROXY UNKNOWN {}\r\nGET", "x".repeat(rest)));
        assert_eq!((longest(91), longest(92)), (ProxyHeader::Complete(107, None), ProxyHeader::Invalid));
        assert_eq!(parse_proxy_header(b"PROXY UNKNOWN \xff\r\n"), ProxyHeader::Complete(17, None));
    }

    #[test]
    fn headers_of_version_2_are_checked_with_their_extensions() {
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187];
        let peer = Some(ends("192.0.2.1:80", "192.0.2.2:443"));
        let with_extensions = |bytes: usize| parse_proxy_header(&v2(0x11, 1, &[&four[..], &vec![7; bytes]].concat()));
        for bytes in [3, 1500, 4096] {
            assert_eq!(with_extensions(bytes), ProxyHeader::Complete(28 + bytes, peer));
        }
        assert_eq!(with_extensions(60_000), ProxyHeader::Invalid);
        assert_eq!(parse_proxy_header(&v2(0x31, 1, &[1; 216 + 4096])), ProxyHeader::Complete(ProxyHeader::MAX, None));
        for (family, block) in [(0x00, 0), (0x00, 40), (0x12, 12), (0x22, 36), (0x32, 216), (0x10, 0)] {
            let header = v2(family, 1, &vec![1; block]);
            assert_eq!(parse_proxy_header(&header), ProxyHeader::Complete(header.len(), None), "{family:x}");
        }
        for (family, block) in [
            (0x11, 0),
            (0x21, 35),
            (0x31, 215),
            (0x12, 11),
            (0x22, 35),
            (0x32, 0),
            (0x41, 300),
            (0xf1, 300),
            (0x13, 300),
        ] {
            assert_eq!(parse_proxy_header(&v2(family, 1, &vec![1; block])), ProxyHeader::Invalid, "{family:x}");
        }
        assert_eq!(parse_proxy_header(&v2(0xff, 0, &[])), ProxyHeader::Complete(16, None), "LOCAL");
        for command in [0x12, 0x1f] {
            assert_eq!(parse_proxy_header(&v2(0x11, command, &four)), ProxyHeader::Invalid, "the command {command:x}");
        }
        let mut version_1 = v2(0x11, 1, &four);
        version_1[12] = 0x11;
        assert_eq!(parse_proxy_header(&version_1), ProxyHeader::Invalid);
    }

    #[test]
    fn extension_says_whether_the_client_used_tls() {
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187];
        let is_https = |extensions: &[u8]| match parse_proxy_header(&v2(0x11, 1, &[&four, extensions].concat())) {
            ProxyHeader::Complete(_, Some(ends)) => ends.is_https,
            other => panic!("{other:?}"),
        };
        let ssl = [0x20, 0, 5, 1, 0, 0, 0, 0];
        assert!(is_https(&ssl) && is_https(&[&[0x02, 0, 1, 7][..], &ssl].concat()));
        for other in [&[][..], &[0x20], &[0x20, 0, 0], &[0x20, 0, 5, 0, 0, 0, 0, 0], &[0x20, 0, 9, 1], &[0x02, 0, 1, 1]]
        {
            assert!(!is_https(other), "{other:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_header_is_incomplete() {
        let whole = [&b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"[..], &v2(0x11, 1, &[1; 12])].map(<[u8]>::to_vec);
        for bytes in whole {
            for end in 0..bytes.len() {
                assert_eq!(parse_proxy_header(&bytes[..end]), ProxyHeader::Incomplete, "{end} of {bytes:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_header_never_exceeds_its_input(bytes in prop::collection::vec(any::<u8>(), 0..300), v2 in any::<bool>()) {
            let bytes = if v2 { [&V2[..], &bytes].concat() } else { [&b"PROXY "[..], &bytes].concat() };
            if let ProxyHeader::Complete(length, _) = parse_proxy_header(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
