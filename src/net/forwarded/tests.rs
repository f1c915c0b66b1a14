use http::Version;
use proptest::prelude::*;

use super::*;

/// Trusts 10.0.0.0/8 and Unix sockets.
fn trust(forwarded: ForwardedHeaders) -> ProxyTrust {
    let networks = vec!["10.0.0.0/8".parse().unwrap()];
    let user_header = Some(HeaderName::from_static("x-remote-user"));
    ProxyTrust { trusted: TrustedProxies { unix: true, networks }, forwarded, user_header }
}

fn request(fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get("/a?b").version(Version::HTTP_11);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// What becomes of a request from `peer`: its origin, and its headers as text.
fn seen(
    family: ForwardedHeaders,
    peer: Option<&str>,
    fields: &[(&str, &str)],
) -> (Result<RequestOrigin, StatusCode>, Vec<String>) {
    let mut request = request(fields);
    let peer = peer.map(|peer| peer.parse().unwrap());
    let origin = request_origin(&mut request, peer, &trust(family)).map_err(|problem| problem.status);
    let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
    let mut lines: Vec<_> = request.headers().iter().map(line).collect();
    lines.sort_unstable();
    (origin, lines)
}

const X: ForwardedHeaders = ForwardedHeaders::XForwarded;
const RFC: ForwardedHeaders = ForwardedHeaders::Rfc7239;

fn client(peer: Option<&str>, chain: &str) -> String {
    let (origin, _) = seen(X, peer, &[("X-Forwarded-For", chain)]);
    origin.unwrap().client.map_or("unix".into(), |client| client.to_string())
}

#[test]
fn the_client_is_the_first_address_from_the_right_that_is_not_trusted() {
    let proxy = Some("10.0.0.1:999");
    assert_eq!(client(proxy, "192.0.2.7"), "192.0.2.7:0");
    assert_eq!(client(proxy, "6.6.6.6, 192.0.2.7"), "192.0.2.7:0");
    assert_eq!(client(proxy, "6.6.6.6,192.0.2.7 , 10.9.9.9,10.8.8.8"), "192.0.2.7:0");
    assert_eq!(client(proxy, "192.0.2.7:4711"), "192.0.2.7:4711");
    assert_eq!(client(proxy, "[2001:db8::7]:4711"), "[2001:db8::7]:4711");
    assert_eq!(client(proxy, "2001:db8::7"), "[2001:db8::7]:0");
    assert_eq!(client(None, "::ffff:10.1.1.1, 192.0.2.7, ::ffff:10.1.1.1"), "192.0.2.7:0");
    // All of them are trusted: the first one is the client.
    assert_eq!(client(proxy, "10.2.2.2, 10.3.3.3"), "10.2.2.2:0");
    // What is no address ends the walk at the last known proxy.
    for unknown in ["unknown", "", ", ,", "6.6.6.6, unknown", "_hidden", "256.1.1.1", "1.2.3.4.5", "192.0.2.7 10.0.0.1"]
    {
        assert_eq!(client(proxy, unknown), "10.0.0.1:999", "{unknown}");
    }
    assert_eq!(client(proxy, "6.6.6.6, unknown, 10.2.2.2"), "10.2.2.2:0");
    assert_eq!(client(None, "unknown"), "unix");
}

#[test]
fn several_header_lines_are_one_list() {
    let fields = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-For", "10.1.1.1")];
    let (origin, lines) = seen(X, Some("10.0.0.1:9"), &fields);
    assert_eq!(origin.unwrap().client, Some("192.0.2.7:0".parse().unwrap()));
    assert_eq!(lines, ["x-forwarded-for: 192.0.2.7, 10.1.1.1"]);
}

const EVERY_SPELLING: &[(&str, &str)] = &[
    ("Host", "a.example"),
    ("Accept", "*/*"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X_Forwarded_For", "6.6.6.6"),
    ("X-Forwarded_For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil.example"),
    ("X_FORWARDED_HOST", "evil.example"),
    ("X-Forwarded-Port", "1"),
    ("X-Forwarded-Ssl", "on"),
    ("X-Forwarded", "for=6.6.6.6"),
    ("X-Real-IP", "6.6.6.6"),
    ("X_Real_IP", "6.6.6.6"),
    ("Forwarded", "for=6.6.6.6;proto=https;host=evil.example"),
    ("X-Remote-User", "root"),
    ("X_Remote_User", "root"),
];

#[test]
fn nothing_is_believed_of_a_peer_that_is_not_trusted() {
    for family in [X, RFC] {
        let (origin, lines) = seen(family, Some("192.0.2.9:99"), EVERY_SPELLING);
        let client = Some("192.0.2.9:99".parse().unwrap());
        assert_eq!(origin.unwrap(), RequestOrigin { client, ..RequestOrigin::default() });
        assert_eq!(lines, ["accept: */*", "host: a.example"]);
    }
    // Without any trusted proxy, as by default, nothing is believed of a Unix socket either.
    let mut request = request(EVERY_SPELLING);
    let origin = request_origin(&mut request, None, &ProxyTrust::default());
    assert_eq!(origin.ok(), Some(RequestOrigin::default()));
    assert_eq!(request.headers().keys().map(HeaderName::as_str).filter(|name| is_forwarding(name)).count(), 0);
}

#[test]
fn one_family_of_a_trusted_peer_is_believed_and_the_other_removed() {
    let (origin, lines) = seen(X, Some("10.0.0.1:9"), EVERY_SPELLING);
    let origin = origin.unwrap();
    assert_eq!(
        (origin.client, origin.is_https, origin.port),
        (Some("6.6.6.6:0".parse().unwrap()), Some(true), Some(1))
    );
    assert_eq!(origin.user.as_deref(), Some("root"));
    let kept = [
        "accept: */*",
        "host: evil.example",
        "x-forwarded-for: 6.6.6.6",
        "x-forwarded-host: evil.example",
        "x-forwarded-port: 1",
        "x-forwarded-proto: https",
        "x-forwarded-ssl: on",
        "x-forwarded: for=6.6.6.6",
        "x-real-ip: 6.6.6.6",
        "x-remote-user: root",
    ];
    assert_eq!(lines, kept);
    let (origin, lines) = seen(RFC, None, EVERY_SPELLING);
    let origin = origin.unwrap();
    assert_eq!(
        (origin.client, origin.is_https, origin.port),
        (Some("6.6.6.6:0".parse().unwrap()), Some(true), Some(443))
    );
    let kept = [
        "accept: */*",
        "forwarded: for=6.6.6.6;proto=https;host=evil.example",
        "host: evil.example",
        "x-remote-user: root",
    ];
    assert_eq!(lines, kept);
}

#[test]
fn forged_values_in_front_of_those_of_the_proxy_do_not_count() {
    let fields = [
        ("Host", "inside"),
        ("X-Forwarded-For", "6.6.6.6, 192.0.2.7"),
        ("X-Forwarded-Proto", "https, http"),
        ("X-Forwarded-Host", "evil.example, a.example:8443"),
        ("X-Real-IP", "6.6.6.6"),
        ("X-Remote-User", "root"),
        ("X-Remote-User", "alice"),
    ];
    let (origin, lines) = seen(X, None, &fields);
    let client = Some("192.0.2.7:0".parse().unwrap());
    assert_eq!(origin.unwrap(), RequestOrigin { client, is_https: Some(false), port: Some(8443), user: None });
    let kept = [
        "host: a.example:8443",
        "x-forwarded-for: 192.0.2.7",
        "x-forwarded-host: a.example:8443",
        "x-forwarded-proto: http",
        "x-real-ip: 192.0.2.7",
    ];
    assert_eq!(lines, kept);
    let forged =
        "for=6.6.6.6;proto=https;host=evil.example, For=\"[2001:db8::7]:47\"; Proto=HTTP;by=_x;host=\"a.example\"";
    let (origin, lines) = seen(RFC, None, &[("Host", "inside"), ("Forwarded", forged), ("Forwarded", "for=10.1.1.1")]);
    let client = Some("[2001:db8::7]:47".parse().unwrap());
    assert_eq!(origin.unwrap(), RequestOrigin { client, is_https: Some(false), port: Some(80), user: None });
    let believed = "For=\"[2001:db8::7]:47\"; Proto=HTTP;by=_x;host=\"a.example\", for=10.1.1.1";
    assert_eq!(lines, [format!("forwarded: {believed}"), "host: a.example".to_owned()]);
}

#[test]
fn a_malformed_forwarded_header_is_rejected() {
    for bad in [
        "for",
        "for=",
        "for=\"1.2.3.4",
        "for=6.6.6.6;x=\", for=192.0.2.7;proto=http",
        "for=1.2.3.4;for=5.6.7.8",
        "for=1.2.3.4 proto=https",
        "for =1.2.3.4",
        "for=(x)",
        "for=\"a\"b",
        "=a",
    ] {
        assert_eq!(seen(RFC, None, &[("Forwarded", bad)]).0, Err(StatusCode::BAD_REQUEST), "{bad}");
        // It is the other family's: nothing is parsed.
        assert!(seen(X, None, &[("Forwarded", bad)]).0.is_ok(), "{bad}");
    }
    for unknown in ["for=unknown;proto=https", "for=_a;proto=https", "proto=https", ", ,proto=https;,"] {
        let origin = seen(RFC, Some("10.0.0.1:9"), &[("Forwarded", unknown)]).0.unwrap();
        assert_eq!((origin.client, origin.is_https), (Some("10.0.0.1:9".parse().unwrap()), Some(true)), "{unknown}");
    }
}

#[test]
fn the_host_of_a_proxy_overrides_an_absolute_target() {
    let mut request = request(&[("Host", "b.example"), ("X-Forwarded-Host", "c.example")]);
    *request.uri_mut() = "http://a.example/x?y".parse().unwrap();
    request_origin(&mut request, None, &trust(X)).unwrap();
    assert_eq!(super::super::host(&request), Ok(Some("c.example".into())));
    assert_eq!(request.uri(), "/x?y");
}

proptest! {
    /// Whatever a client writes into the headers, its address is the one that the proxy appended.
    #[test]
    fn no_forged_list_hides_the_client(forged in "[ -~]{0,60}", hops in 0..3_usize) {
        let chain = format!("{forged}, 192.0.2.7{}", ", 10.1.1.1".repeat(hops));
        let (origin, lines) = seen(X, None, &[("X-Forwarded-For", &chain)]);
        prop_assert_eq!(origin.unwrap().client, Some("192.0.2.7:0".parse().unwrap()));
        prop_assert_eq!(lines, [format!("x-forwarded-for: 192.0.2.7{}", ", 10.1.1.1".repeat(hops))]);
        for own in ["for=192.0.2.7;proto=http", "for=\"192.0.2.7:1\";host=\"a.example\";proto=http"] {
            let chain = format!("{forged}, {own}{}", ", for=10.1.1.1".repeat(hops));
            if let Ok(origin) = seen(RFC, None, &[("Forwarded", &chain)]).0 {
                prop_assert_eq!(origin.client.unwrap().ip().to_string(), "192.0.2.7", "{}", chain);
                prop_assert_ne!(origin.is_https, Some(true));
            }
        }
    }
}
