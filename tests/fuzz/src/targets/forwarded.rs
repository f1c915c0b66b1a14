//! The headers of a request that a trusted proxy passed on. The first byte selects the family, each line is a header of
//! the client, and the proxy appends its own element.

use std::net::IpAddr;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Request};

use crate::config::{ForwardedHeaders, ProxyTrust, TrustedProxies};
use crate::net::request_origin;

const CLIENT: &str = "192.0.2.7";

pub(crate) fn run(bytes: &[u8]) {
    let Some((first, lines)) = bytes.split_first() else { return };
    let (forwarded, list, own) = match first % 2 {
        0 => (ForwardedHeaders::XForwarded, "x-forwarded-for", CLIENT.to_owned()),
        _ => (ForwardedHeaders::Rfc7239, "forwarded", format!("for={CLIENT};proto=http")),
    };
    let mut request = Request::new(());
    let headers = request.headers_mut();
    for line in lines.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            let _full = headers.try_append(name, value);
        }
    }
    // As nginx and Apache do: to the last line of the header.
    let mut lists: Vec<HeaderValue> = headers.get_all(list).iter().cloned().collect();
    let extended = match lists.pop() {
        Some(last) => [last.as_bytes(), b", ", own.as_bytes()].concat(),
        None => own.into_bytes(),
    };
    headers.remove(list);
    for value in lists.into_iter().chain([HeaderValue::from_bytes(&extended).unwrap()]) {
        headers.append(list, value);
    }

    let trusted = TrustedProxies { unix: true, networks: vec!["10.0.0.0/8".parse().unwrap()] };
    let trust = ProxyTrust { trusted, forwarded, user_header: Some(HeaderName::from_static("x-user")) };
    let untrusted = Some("192.0.2.9:9".parse().unwrap());
    let mut direct = request.clone();
    let origin = request_origin(&mut direct, untrusted, &trust).expect("a peer that is not trusted says nothing");
    assert_eq!((origin.client, origin.is_https, origin.port, origin.user), (untrusted, None, None, None));
    let is_forwarding = |name: &str| name.starts_with("x-forwarded") || ["forwarded", "x-user"].contains(&name);
    assert!(direct.headers().keys().all(|name| !is_forwarding(&name.as_str().replace('_', "-"))));

    let Ok(origin) = request_origin(&mut request, None, &trust) else { return };
    assert_eq!(origin.client.map(|client| client.ip()), CLIENT.parse::<IpAddr>().ok());
    if forwarded == ForwardedHeaders::Rfc7239 {
        assert!(
            origin.is_https != Some(true)
                && request.headers().keys().all(|name| !name.as_str().starts_with("x-forwarded"))
        );
    } else {
        assert!(!request.headers().contains_key("forwarded"));
    }
    assert!(request.headers().get_all(HOST).iter().count() <= 1 || !request.headers().contains_key("x-forwarded-host"));
    // What is left says the same again.
    let left = request.headers().clone();
    assert_eq!(request_origin(&mut request, None, &trust).ok(), Some(origin));
    assert_eq!(request.headers(), &left);
}
