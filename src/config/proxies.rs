//! The proxies in front of a listener: which peers they are, and what of a request's head they alone may set.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::HeaderName;
use serde::{Serialize, Serializer};

use super::read::Section;

/// How a trusted proxy is written in the configuration.
const EXPECTED: &str = "an IP address, a network such as \"10.0.0.0/8\" whose host bits are 0, or \"unix\"";

/// Which peers of a listener are proxies, and which of their headers count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyTrust {
    /// The peers that are proxies.
    pub trusted: TrustedProxies,
    /// The headers in which they name the client.
    pub forwarded: ForwardedHeaders,
    /// The header in which they name the user; in lower case.
    pub user_header: Option<HeaderName>,
}

impl ProxyTrust {
    /// The longest name of a user header.
    pub const HEADER_MAX: usize = 64;
}

/// The peers that are proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Whether every peer on a Unix socket is one.
    pub unix: bool,
    /// Their networks, at most [`TrustedProxies::NETWORKS_MAX`].
    pub networks: Vec<IpNetwork>,
}

impl TrustedProxies {
    /// The longest list: every one travels with each connection that goes to a worker.
    pub const NETWORKS_MAX: usize = 256;

    /// Whether no peer is a proxy.
    pub fn is_empty(&self) -> bool {
        !self.unix && self.networks.is_empty()
    }

    /// Whether the peer at this address is a proxy; `None` is a peer on a Unix socket.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |ip| self.networks.iter().any(|network| network.contains(ip)))
    }
}

/// A list of strings.
impl Serialize for TrustedProxies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let networks = self.networks.iter().map(IpNetwork::to_string);
        serializer.collect_seq(self.unix.then(|| "unix".to_owned()).into_iter().chain(networks))
    }
}

/// An IPv4 or IPv6 network, or a single address. Written `192.0.2.1`, `10.0.0.0/8` or `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    prefix: u8,
}

impl IpNetwork {
    /// The network of `prefix` bits; `None` if the address has fewer bits, or others that are not 0.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = Self { address, prefix };
        (prefix <= network.width() && network.masked(address) == Some(address)).then_some(network)
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses have in common.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `ip`, or the IPv4 address that is mapped to it, belongs to the network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.masked(ip) == Some(self.address) || self.masked(ip.to_canonical()) == Some(self.address)
    }

    fn width(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// `ip` without its host bits; `None` if it belongs to the other family.
    fn masked(&self, ip: IpAddr) -> Option<IpAddr> {
        let host_bits = u32::from(self.width().checked_sub(self.prefix)?);
        match (self.address, ip) {
            (IpAddr::V4(_), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                Some(Ipv4Addr::from(u32::from(ip) & mask).into())
            }
            (IpAddr::V6(_), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Some(Ipv6Addr::from(u128::from(ip) & mask).into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == self.width() { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

impl FromStr for IpNetwork {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = match text.split_once('/') {
            None => text.parse().ok().and_then(|ip: IpAddr| Self::new(ip, if ip.is_ipv4() { 32 } else { 128 })),
            Some((ip, prefix)) => {
                let is_number = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                let prefix = prefix.parse().ok().filter(|_| is_number);
                ip.parse().ok().zip(prefix).and_then(|(ip, prefix)| Self::new(ip, prefix))
            }
        };
        network.ok_or(EXPECTED)
    }
}

/// The headers in which a proxy names the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
}

/// Reads `allowed_clients` of a listener.
pub(super) fn allowed_clients(s: &mut Section<'_, '_>) -> Vec<IpNetwork> {
    let expected = "an IP address, or a network such as \"10.0.0.0/8\" whose host bits are 0";
    let listed = s.strings("allowed_clients", expected, |text| text.parse::<IpNetwork>().is_ok()).unwrap_or_default();
    listed.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Reads the keys of a listener.
pub(super) fn proxy_trust(s: &mut Section<'_, '_>) -> ProxyTrust {
    let is_proxy = |text: &str| text == "unix" || text.parse::<IpNetwork>().is_ok();
    let listed = s.strings("trusted_proxies", EXPECTED, is_proxy).unwrap_or_default();
    let trusted = TrustedProxies {
        unix: listed.iter().any(|text| text == "unix"),
        networks: listed.iter().filter_map(|text| text.parse().ok()).collect(),
    };
    let forwarded = s.text("forwarded", "\"x-forwarded\" or \"rfc7239\"", |text| match text {
        "x-forwarded" => Some(ForwardedHeaders::XForwarded),
        "rfc7239" => Some(ForwardedHeaders::Rfc7239),
        _ => None,
    });
    let expected = "the name of a header that only the proxy sets, such as \"X-Remote-User\", or \"\" for none";
    let user_header = s.text("remote_user_header", expected, |text| match text {
        "" => Some(None),
        name if name.len() > ProxyTrust::HEADER_MAX => None,
        name => HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_of_http(name)).map(Some),
    });
    ProxyTrust { trusted, forwarded: forwarded.unwrap_or_default(), user_header: user_header.flatten() }
}

/// Whether HTTP itself gives the header a meaning, so that removing it would change the request.
fn is_of_http(name: &HeaderName) -> bool {
    use http::header::*;
    [HOST, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, CONNECTION, EXPECT, TE, TRAILER, UPGRADE, FORWARDED]
        .contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_displayed_as_they_are_parsed() {
        for text in ["192.0.2.1", "10.0.0.0/8", "0.0.0.0/0", "::1", "2001:db8::/32", "::/0", "192.0.2.128/25"] {
            assert_eq!(network(text).to_string(), text);
        }
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::1/64", "::/129", "a", "1.2.3.4:5"] {
            assert_eq!(bad.parse::<IpNetwork>(), Err(EXPECTED), "{bad}");
        }
    }

    #[test]
    fn a_network_contains_its_addresses_and_those_mapped_to_them() {
        let contains = |text: &str, ip: &str| network(text).contains(ip.parse().unwrap());
        for ip in ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"] {
            assert!(contains("10.0.0.0/8", ip), "{ip}");
        }
        for ip in ["9.255.255.255", "11.0.0.0", "::1", "::10.1.2.3"] {
            assert!(!contains("10.0.0.0/8", ip), "{ip}");
        }
        assert!(contains("0.0.0.0/0", "255.1.2.3") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(contains("::1", "::1") && !contains("::1", "::2"));
    }

    #[test]
    fn unix_and_networks_are_trusted_apart_from_each_other() {
        let unix = TrustedProxies { unix: true, networks: vec![] };
        let any = TrustedProxies { unix: false, networks: vec![network("0.0.0.0/0")] };
        let ip = Some("192.0.2.1".parse().unwrap());
        assert!(unix.contains(None) && !unix.contains(ip));
        assert!(!any.contains(None) && any.contains(ip));
        assert!(TrustedProxies::default().is_empty() && !unix.is_empty() && !any.is_empty());
    }
}
