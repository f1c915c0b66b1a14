//! Which host names a request may ask for: what keeps a web page from reaching a loopback listener through a
//! name of its own that resolves to 127.0.0.1 (DNS rebinding).

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, header::HOST};

/// The host of a request without its port; IPv6 in brackets. `Ok(None)` if there is no Host header.
///
/// # Errors
/// More than one, or one that is no host (RFC 9112, section 3.2: 400).
pub fn host(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut all = headers.get_all(HOST).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err("the request has more than one Host header");
    }
    let text = first.to_str().map_err(|_| "the Host header is not text")?;
    if text.is_empty() {
        return Ok(None);
    }
    let authority: Authority = text.parse().map_err(|_| "the Host header is not a host")?;
    if text.contains('@') || authority.host().is_empty() {
        return Err("the Host header is not a host");
    }
    Ok(Some(authority.host().to_owned()))
}

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

    #[test]
    fn hosts_are_read_without_their_port_or_refused() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HOST, value.parse().unwrap());
            }
            host(&headers)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[""]), Ok(None));
        assert_eq!(of(&["localhost:7286"]), Ok(Some("localhost".into())));
        assert_eq!(of(&["[::1]:80"]), Ok(Some("[::1]".into())));
        for bad in [&["a", "b"][..], &["a b"], &["user@host"], &["http://x/"], &["a/b"]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
