//! What a request says of the client in front of a proxy. Pure code.
//!
//! A peer that the listener trusts names its own client in the last element of one header, that client, if it is a
//! trusted proxy as well, names its client in the element before, and so on: the first address that is not trusted is the
//! client's, and whatever stands before it was written by the client. Everything that is not believed is removed, so that
//! no handler can mistake it.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};

use super::ProblemResponse;
use super::patou_headers::remove_headers;
use crate::config::{ForwardedHeaders, ProxyTrust, TrustedProxies};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Where a request comes from, as far as it is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestOrigin {
    /// The client's address, with port 0 if a proxy has named none; `None` for a client on a Unix socket.
    pub client: Option<SocketAddr>,
    /// Whether the client used HTTPS to the first trusted proxy; `None` if no proxy has said so.
    pub is_https: Option<bool>,
    /// The port that the client used there; `None` if no proxy has said so.
    pub port: Option<u16>,
    /// The user as a trusted proxy has authenticated it.
    pub user: Option<String>,
}

/// Finds out where a request of the connection from `peer` comes from, and removes from it what is not believed. Its
/// Host becomes the one that the client used.
///
/// # Errors
/// The response to a request whose trusted proxy sent a malformed `Forwarded`.
pub(crate) fn request_origin<B>(
    request: &mut Request<B>,
    peer: Option<SocketAddr>,
    trust: &ProxyTrust,
) -> Result<RequestOrigin, ProblemResponse> {
    let headers = request.headers_mut();
    let ProxyTrust { trusted, forwarded, user_header } = trust;
    let is_user = |name: &str| user_header.as_ref().is_some_and(|header| are_alike(name, header.as_str()));
    if !trusted.contains(peer.map(|peer| peer.ip())) {
        remove_headers(headers, |name| is_forwarding(name) || is_user(name));
        return Ok(RequestOrigin { client: peer, ..RequestOrigin::default() });
    }
    let is_user_header = |name: &str| user_header.as_ref().is_some_and(|header| name == header.as_str());
    remove_headers(headers, |name| {
        let is_believed = match forwarded {
            ForwardedHeaders::XForwarded => name != FORWARDED.as_str() && !name.contains('_'),
            ForwardedHeaders::Rfc7239 => name == FORWARDED.as_str(),
        };
        !is_user_header(name) && (is_user(name) || is_forwarding(name) && !is_believed)
    });
    let user = user_header.as_ref().and_then(|name| take_user(headers, name));
    let (mut origin, host) = match forwarded {
        ForwardedHeaders::XForwarded => x_forwarded(headers, peer, trusted),
        ForwardedHeaders::Rfc7239 => rfc_7239(headers, peer, trusted).ok_or_else(|| {
            let detail = "the Forwarded header is malformed (RFC 7239, section 4)";
            ProblemResponse::not_started(StatusCode::BAD_REQUEST, detail)
        })?,
    };
    origin.user = user;
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
        // A target in absolute form would override it.
        if request.uri().authority().is_some()
            && let Some(target) = request.uri().path_and_query().cloned()
        {
            *request.uri_mut() = Uri::from(target);
        }
    }
    Ok(origin)
}

/// Whether both names become the same variable of a CGI program: `-` and `_` are alike there. Names are in lower case.
fn are_alike(one: &str, other: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.len() == other.len() && one.bytes().map(plain).eq(other.bytes().map(plain))
}

/// Whether the header belongs to one of the families with which proxies describe their clients.
fn is_forwarding(name: &str) -> bool {
    let prefix = "x-forwarded";
    name == FORWARDED.as_str()
        || are_alike(name, REAL_IP.as_str())
        || name.get(..prefix.len()).is_some_and(|start| are_alike(start, prefix))
}

/// The user, if there is exactly one: a second value may be the client's own.
fn take_user(headers: &mut HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let user = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().filter(|user| !user.is_empty()).map(str::to_owned),
        _ => None,
    };
    if user.is_none() {
        headers.remove(name);
    }
    user
}

/// Walks the X-Forwarded headers, and leaves what is believed of them. Returns the Host, too.
fn x_forwarded(
    headers: &mut HeaderMap,
    peer: Option<SocketAddr>,
    trusted: &TrustedProxies,
) -> (RequestOrigin, Option<HeaderValue>) {
    let hops: Vec<String> = items(headers, &FOR).map(Cow::into_owned).collect();
    let (client, believed) = walk(peer, trusted, hops.iter().rev().map(|hop| node(hop)));
    let host = last(headers, &FORWARDED_HOST);
    let proto = last(headers, &PROTO).and_then(|proto| is_https(proto.to_str().ok()?));
    let named_port = last(headers, &PORT).and_then(|port| port.to_str().ok()?.parse().ok());
    let client_ip = client.map(|client| client.ip().to_canonical().to_string());
    let chain = Some(hops[hops.len() - believed..].join(", ")).filter(|chain| !chain.is_empty());
    set(headers, &FOR, chain);
    set(headers, &PROTO, proto.map(|https| if https { "https" } else { "http" }.to_owned()));
    set(headers, &PORT, named_port.map(|port: u16| port.to_string()));
    match &host {
        Some(host) => drop(headers.insert(FORWARDED_HOST, host.clone())),
        None => drop(headers.remove(FORWARDED_HOST)),
    }
    if headers.contains_key(REAL_IP) {
        set(headers, &REAL_IP, client_ip);
    }
    let port = named_port.or_else(|| client_port(host.as_ref().or(headers.get(HOST)), proto));
    (RequestOrigin { client, is_https: proto, port, user: None }, host)
}

/// As [`x_forwarded`] for `Forwarded`; `None` if it is malformed.
fn rfc_7239(
    headers: &mut HeaderMap,
    peer: Option<SocketAddr>,
    trusted: &TrustedProxies,
) -> Option<(RequestOrigin, Option<HeaderValue>)> {
    let mut elements = Vec::new();
    for line in headers.get_all(FORWARDED) {
        elements.extend(ForwardedElement::parse_list(line.to_str().ok()?)?);
    }
    let (client, believed) = walk(peer, trusted, elements.iter().rev().map(|element| node(element.node.as_deref()?)));
    // An element without an address is the last one, and still tells what its proxy saw.
    let believed = elements.len().min(believed.max(1));
    let elements = &elements[elements.len() - believed..];
    let first = elements.first();
    let host = first.and_then(|element| HeaderValue::from_str(element.host.as_deref()?).ok());
    let proto = first.and_then(|element| is_https(element.proto.as_deref()?));
    let chain: Vec<&str> = elements.iter().map(|element| element.text.as_str()).collect();
    let chain = Some(chain.join(", ")).filter(|chain| !chain.is_empty());
    set(headers, &FORWARDED, chain);
    let port = client_port(host.as_ref().or(headers.get(HOST)), proto);
    Some((RequestOrigin { client, is_https: proto, port, user: None }, host))
}

/// The client, and how many of `hops`, from the nearest on, are believed. The walk ends at the first address that is not
/// trusted, and before one that is none (`unknown`, an obfuscated name): then the client is the last known proxy.
fn walk(
    peer: Option<SocketAddr>,
    trusted: &TrustedProxies,
    hops: impl Iterator<Item = Option<SocketAddr>>,
) -> (Option<SocketAddr>, usize) {
    let (mut client, mut believed) = (peer, 0);
    for hop in hops.map_while(|hop| hop) {
        (client, believed) = (Some(hop), believed + 1);
        if !trusted.contains(Some(hop.ip())) {
            break;
        }
    }
    (client, believed)
}

/// An address with or without a port, as `X-Forwarded-For` and the nodes of RFC 7239 (section 6) have it.
fn node(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let without_port = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0));
    text.parse().ok().or_else(without_port)
}

fn is_https(proto: &str) -> Option<bool> {
    let is = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(proto));
    if is(&["https", "wss"]) { Some(true) } else { is(&["http", "ws"]).then_some(false) }
}

/// The port in `host`, or the default of the scheme; `None` if the scheme is unknown.
fn client_port(host: Option<&HeaderValue>, https: Option<bool>) -> Option<u16> {
    let https = https?;
    let authority = host.and_then(|host| host.to_str().ok()?.parse::<http::uri::Authority>().ok());
    authority.and_then(|authority| authority.port_u16()).or(Some(if https { 443 } else { 80 }))
}

/// The items of a list header, all its lines together, without empty ones.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Cow<'a, str>> {
    let lines = headers.get_all(name).into_iter();
    let items = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    items.map(|item| String::from_utf8_lossy(item.trim_ascii())).filter(|item| !item.is_empty())
}

/// The last item: the nearest proxy has written it, or has let it pass.
fn last(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    items(headers, name).last().and_then(|item| HeaderValue::from_str(&item).ok())
}

fn set(headers: &mut HeaderMap, name: &HeaderName, value: Option<String>) {
    match value.and_then(|value| HeaderValue::from_str(&value).ok()) {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    }
}

/// One element of `Forwarded`: what one proxy says of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ForwardedElement {
    /// As it was written.
    text: String,
    node: Option<String>,
    proto: Option<String>,
    host: Option<String>,
}

impl ForwardedElement {
    /// Parses one header line (RFC 7239, section 4). `None` if any part of it is malformed: a client could otherwise hide
    /// the element of the proxy behind it in a quoted string that does not end.
    fn parse_list(line: &str) -> Option<Vec<Self>> {
        let (mut elements, mut rest) = (Vec::new(), line.trim());
        while !rest.is_empty() {
            let (element, after) = Self::parse(rest)?;
            if !element.text.is_empty() {
                elements.push(element);
            }
            rest = match after.strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if after.is_empty() => after,
                None => return None,
            };
        }
        Some(elements)
    }

    /// Parses the element at the start of `text`, and returns what follows it: nothing, or a comma.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (mut element, mut rest) = (Self::default(), text);
        loop {
            if !rest.is_empty() && !rest.starts_with([',', ';']) {
                let (name, after) = rest.split_once('=')?;
                let (value, after) = value(after)?;
                let mut other = None;
                let field = match name.to_ascii_lowercase().as_str() {
                    "for" => &mut element.node,
                    "proto" => &mut element.proto,
                    "host" => &mut element.host,
                    name if is_token(name) => &mut other,
                    _ => return None,
                };
                if field.replace(value).is_some() {
                    return None; // once per element
                }
                rest = after.trim_start();
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after.trim_start(),
                None => break,
            }
        }
        element.text = text[..text.len() - rest.len()].trim_end().to_owned();
        Some((element, rest))
    }
}

/// A token or a quoted string at the start of `text`, and what follows it (RFC 9110, section 5.6).
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token_char(c)).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_token_char)
}

/// RFC 9110, section 5.6.2; and `:`, `[` and `]`, with which some proxies write addresses without quotes.
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:[]".contains(c)
}

#[cfg(test)]
mod tests;
