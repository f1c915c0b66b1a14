//! The host names that a listener serves. This keeps a web page from reaching a loopback listener through its own name
//! that resolves to 127.0.0.1 (DNS rebinding).

#![forbid(unsafe_code)]

use std::net::IpAddr;

/// Whether a listener serves `host`. In `allowed`, `*` stands for every host and `*.example.com` for those below
/// `example.com`, not for itself. If `allowed` is empty, a listener on loopback serves loopback names only, and any
/// other listener serves all names.
pub(crate) fn is_host_allowed(host: &str, allowed: &[String], listens_on: Option<IpAddr>) -> bool {
    let bare = host.strip_suffix('.').unwrap_or(host);
    if !allowed.is_empty() {
        return allowed.iter().any(|name| matches(bare, name) || matches(host, name));
    }
    if !listens_on.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let name = bare.to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|ip| ip.is_loopback())
}

fn matches(host: &str, allowed: &str) -> bool {
    let Some(rest) = allowed.strip_prefix('*') else { return allowed.eq_ignore_ascii_case(host) };
    // `rest` is empty or starts with a dot.
    let below = host.len().checked_sub(rest.len()).and_then(|at| host.split_at_checked(at));
    below.is_some_and(|(name, domain)| domain.eq_ignore_ascii_case(rest) && (rest.is_empty() || !name.is_empty()))
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

    #[test]
    fn wildcards_stand_for_every_name_or_for_those_below_a_domain() {
        let is_allowed = |host: &str, name: &str| is_host_allowed(host, &[name.to_owned()], None);
        for good in ["a.example.com", "A.B.EXAMPLE.COM", "a.example.com."] {
            assert!(is_allowed(good, "*.example.com") && is_allowed(good, "*.Example.com"), "{good}");
        }
        for bad in ["example.com", ".example.com", "aexample.com", "a.example.com.evil.example", "com", "\u{e9}.com"] {
            assert!(!is_allowed(bad, "*.example.com"), "{bad}");
        }
        for any in ["a", "192.0.2.1", "[::1]", "evil.example"] {
            assert!(is_allowed(any, "*"), "{any}");
        }
    }
}
