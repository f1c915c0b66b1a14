//! What a client calls us: the host of a request.

use std::net::IpAddr;

use http::uri::Authority;
use http::{Method, Request, header::HOST};

use super::SocketStream;

/// The host of a request without its port; IPv6 in brackets. `Ok(None)` if it names none.
///
/// A target in absolute form counts, and not the Host header beside it (RFC 9112, section 3.2.2).
///
/// # Errors
/// More than one Host header, or a host that is none (RFC 9112, section 3.2: 400).
pub fn host<B>(request: &Request<B>) -> Result<Option<String>, &'static str> {
    let mut all = request.headers().get_all(HOST).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err("the request has more than one Host header");
    }
    let header = first.map(|value| value.to_str().map_err(|_| "the Host header is not text")).transpose()?;
    let header = header.filter(|text| !text.is_empty()).map(bare).transpose()?;
    match request.uri().authority() {
        Some(authority) if request.method() != Method::CONNECT => bare(authority.as_str()).map(Some),
        _ => Ok(header),
    }
}

fn bare(text: &str) -> Result<String, &'static str> {
    let wrong = "the Host header is not a host";
    let authority: Authority = text.parse().map_err(|_| wrong)?;
    let host = authority.host();
    let port = text.strip_prefix(host).ok_or(wrong)?;
    let is_port = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 5;
    if host.is_empty() || !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
        return Err(wrong);
    }
    Ok(host.to_owned())
}

/// What to call us towards a client that has given no name: it can only have used the address.
pub fn own_name(stream: &SocketStream) -> String {
    match stream.local_address().map(|address| address.ip().to_canonical()) {
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(IpAddr::V4(ip)) => ip.to_string(),
        None => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        host(&request.body(()).unwrap())
    }

    #[test]
    fn hosts_are_read_without_their_port_or_refused() {
        assert_eq!(of("/", &[]), Ok(None));
        assert_eq!(of("/", &[""]), Ok(None));
        assert_eq!(of("/", &["localhost:7286"]), Ok(Some("localhost".into())));
        assert_eq!(of("/", &["localhost:"]), Ok(Some("localhost".into())));
        assert_eq!(of("/", &["[::1]:80"]), Ok(Some("[::1]".into())));
        for bad in [&["a", "b"][..], &["a b"], &["user@host"], &["http://x/"], &["a/b"], &["a:b"], &["a:123456"]] {
            assert!(of("/", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        assert_eq!(of("http://a.example:1/", &["b.example"]), Ok(Some("a.example".into())));
        assert!(of("http://user@a.example/", &["a.example"]).is_err());
        assert!(of("http://a.example/", &["b.example", "c.example"]).is_err());
    }
}
