//! Which host names a request may ask for: what keeps a web page from reaching a loopback listener through a
//! name of its own that resolves to 127.0.0.1 (DNS rebinding).

use std::net::IpAddr;

/// Whether a listener serves `host`. `allowed` empty: loopback names only if the listener is on loopback,
/// otherwise any.
pub fn is_allowed(host: &str, allowed: &[String], listens_on: Option<IpAddr>) -> bool {
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
        let here: Option<IpAddr> = Some("127.0.0.1".parse().unwrap());
        for good in ["localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_allowed(good, &[], here), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]", "xlocalhost"] {
            assert!(!is_allowed(bad, &[], here), "{bad}");
            assert!(is_allowed(bad, &[], Some("0.0.0.0".parse().unwrap())), "{bad}");
            assert!(is_allowed(bad, &[], None), "{bad}");
        }
        let named = ["api.example".to_owned()];
        assert!(is_allowed("API.example", &named, here) && !is_allowed("localhost", &named, here));
    }
}
