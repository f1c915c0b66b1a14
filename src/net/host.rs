//! The host of a request.

use std::net::IpAddr;

use http::uri::Authority;
use http::{Method, Request, header::HOST};

use super::SocketStream;

/// The host of a request without its port; IPv6 in brackets. `Ok(None)` if the request names no host.
///
/// A target in absolute form overrides the Host header (RFC 9112, section 3.2.2).
///
/// # Errors
/// More than one Host header, or an invalid host (RFC 9112, section 3.2: 400).
pub(crate) fn host<B>(request: &Request<B>) -> Result<Option<String>, &'static str> {
    let mut all = request.headers().get_all(HOST).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err("the request has more than one Host header");
    }
    let header = first.map(|value| value.to_str().map_err(|_| "the Host header is not text")).transpose()?;
    let header = header.filter(|text| !text.is_empty()).map(without_port).transpose()?;
    match request.uri().authority() {
        Some(authority) if request.method() != Method::CONNECT => without_port(authority.as_str()).map(Some),
        _ => Ok(header),
    }
}

fn without_port(text: &str) -> Result<String, &'static str> {
    let invalid = "the Host header is not a host";
    let authority: Authority = text.parse().map_err(|_| invalid)?;
    let host = authority.host();
    let port = text.strip_prefix(host).ok_or(invalid)?;
    let is_port = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 5;
    if host.is_empty() || !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
        return Err(invalid);
    }
    Ok(host.to_owned())
}

/// The host for a client that has named none: the address to which it has connected.
pub(crate) fn fallback_host(stream: &SocketStream) -> String {
    match stream.local_address().map(|address| address.ip().to_canonical()) {
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(IpAddr::V4(ip)) => ip.to_string(),
        None => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_of(target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        host(&request.body(()).unwrap())
    }

    #[test]
    fn a_host_is_parsed_without_its_port_or_rejected() {
        assert_eq!(host_of("/", &[]), Ok(None));
        assert_eq!(host_of("/", &[""]), Ok(None));
        assert_eq!(host_of("/", &["localhost:7286"]), Ok(Some("localhost".into())));
        assert_eq!(host_of("/", &["localhost:"]), Ok(Some("localhost".into())));
        assert_eq!(host_of("/", &["[::1]:80"]), Ok(Some("[::1]".into())));
        for bad in [&["a", "b"][..], &["a b"], &["user@host"], &["http://x/"], &["a/b"], &["a:b"], &["a:123456"]] {
            assert!(host_of("/", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_absolute_target_overrides_the_host_header() {
        assert_eq!(host_of("http://a.example:1/", &["b.example"]), Ok(Some("a.example".into())));
        assert!(host_of("http://user@a.example/", &["a.example"]).is_err());
        assert!(host_of("http://a.example/", &["b.example", "c.example"]).is_err());
    }
}
