//! The host names that a listener serves. This keeps a web page from reaching a loopback listener through its own name
//! that resolves to 127.0.0.1 (DNS rebinding).

#![forbid(unsafe_code)]

use std::net::IpAddr;

/// Whether a listener serves `host`. If `allowed` is empty, a listener on loopback serves loopback names only, and any
/// other listener serves all names.
pub(crate) fn is_host_allowed(host: &str, allowed: &[String], listens_on: Option<IpAddr>) -> bool {
    let bare = host.strip_suffix('.').unwrap_or(host);
    if !allowed.is_empty() {
        return allowed.iter().any(|name| name.eq_ignore_ascii_case(bare) || name.eq_ignore_ascii_case(host));
    }
    if !listens_on.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let name = bare.to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_listener_serves_loopback_names() {
        let loopback: Option<IpAddr> = Some("127.0.0.1".parse().unwrap());
        for good in ["localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_host_allowed(good, &[], loopback), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]", "xlocalhost"] {
            assert!(!is_host_allowed(bad, &[], loopback), "{bad}");
            assert!(is_host_allowed(bad, &[], Some("0.0.0.0".parse().unwrap())), "{bad}");
            assert!(is_host_allowed(bad, &[], None), "{bad}");
        }
        let named = ["api.example".to_owned()];
        assert!(is_host_allowed("API.example", &named, loopback) && !is_host_allowed("localhost", &named, loopback));
    }
}
