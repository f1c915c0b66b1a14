//! The head of a message as CGI programs and co-processes write it: lines `Name: value`, then an empty line. Pure.
//!
//! Lines end with LF or CRLF. Nothing is unfolded, guessed or repaired: a program that writes anything else has a bug,
//! and the rest of its output cannot be trusted.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The largest head, in bytes, including its empty line.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What is wrong with a head, for the log and the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MalformedHead(pub String);

/// The length of the head at the start of `bytes`, including its empty line; `None` if the head is incomplete.
///
/// `searched` is the progress of earlier calls, so that a head that arrives byte by byte is searched only once. It
/// starts at 0 for each head.
///
/// # Errors
/// When the head is longer than [`MAX_HEAD_BYTES`].
pub(crate) fn find_end(bytes: &[u8], searched: &mut usize) -> Result<Option<usize>, MalformedHead> {
    // `searched` is always the start of a line.
    while let Some(length) = bytes[*searched..].iter().take(MAX_HEAD_BYTES).position(|&b| b == b'\n') {
        let line = &bytes[*searched..*searched + length];
        *searched += length + 1;
        if *searched > MAX_HEAD_BYTES {
            break;
        }
        if line.is_empty() || line == b"\r" {
            return Ok(Some(*searched));
        }
    }
    if *searched > MAX_HEAD_BYTES || bytes.len() >= MAX_HEAD_BYTES {
        return Err(MalformedHead(format!("its response head is longer than {MAX_HEAD_BYTES} bytes")));
    }
    Ok(None)
}

/// The fields of a complete head, in order, without the spaces around the values.
///
/// # Errors
/// A line without a colon, a name that is not a token, a value with control characters (RFC 9110 section 5).
pub(crate) fn parse_fields(head: &[u8]) -> Result<HeaderMap, MalformedHead> {
    let mut fields = HeaderMap::new();
    for line in head.split(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let malformed =
            || MalformedHead(format!("its response head has a line that is not `Name: value`: {}", excerpt(line)));
        let colon = line.iter().position(|&b| b == b':').ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| malformed())?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| malformed())?;
        let too_many = |_| MalformedHead("its response head has too many fields".to_owned());
        fields.try_append(name, value).map_err(too_many)?;
    }
    Ok(fields)
}

/// The start of what a program wrote, in quotes, for the log and the client.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let start: String = String::from_utf8_lossy(&bytes[..bytes.len().min(320)]).chars().take(80).collect();
    format!("{start:?}")
}

/// Removes a field that must not occur twice.
///
/// # Errors
/// When it occurs more than once.
pub(crate) fn remove_single(
    fields: &mut HeaderMap,
    name: impl Into<HeaderName>,
) -> Result<Option<HeaderValue>, MalformedHead> {
    let name = name.into();
    if fields.get_all(&name).iter().nth(1).is_some() {
        return Err(MalformedHead(format!("its response head has more than one {name}")));
    }
    Ok(fields.remove(name))
}

/// Parses a `Content-Length`: digits and nothing else.
pub(crate) fn parse_length(value: &HeaderValue) -> Result<u64, MalformedHead> {
    let digits = value.as_bytes();
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = if plain { value.to_str().ok().and_then(|text| text.parse().ok()) } else { None };
    number.ok_or_else(|| MalformedHead(format!("its Content-Length is not a number of bytes: {}", excerpt(digits))))
}

/// Parses a `Status`: three digits from 200 on, with or without a reason phrase.
///
/// # Errors
/// Anything else; also 1xx, which is not a final status.
pub(crate) fn parse_status(value: &HeaderValue) -> Result<StatusCode, MalformedHead> {
    let bytes = value.as_bytes();
    let (code, rest) = bytes.split_at(bytes.len().min(3));
    StatusCode::from_bytes(code)
        .ok()
        .filter(|status| status.as_u16() >= 200 && (rest.is_empty() || rest[0] == b' '))
        .ok_or_else(|| MalformedHead(format!("its Status is not a final HTTP status: {}", excerpt(bytes))))
}

/// Whether a response with this status never has a body (RFC 9110 section 6.4.1).
pub(crate) fn status_forbids_body(status: StatusCode) -> bool {
    matches!(status.as_u16(), 204 | 304)
}

/// The fields that concern a single connection (RFC 9110 section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

fn named_by_connection(fields: &HeaderMap) -> Vec<HeaderName> {
    (fields.get_all(header::CONNECTION).iter())
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

/// Removes the fields that concern a single connection, including those that `Connection` names.
pub(crate) fn remove_hop_by_hop(fields: &mut HeaderMap) {
    for name in named_by_connection(fields) {
        fields.remove(name);
    }
    for name in HOP_BY_HOP {
        fields.remove(name);
    }
}

/// The fields of a request that a program gets by their names, each name once, with its values joined: by semicolons for
/// cookies (RFC 9113 section 8.2.3), else by commas (RFC 9110 section 5.3).
///
/// Left out are fields that concern a single connection; those that describe the body, which have names of their own;
/// `Proxy`, since many HTTP clients read `HTTP_PROXY`; and names of other characters than letters, digits and `-`: most
/// programs take `X_A` and `X-A` for the same, and a proxy in front may not.
pub(crate) fn fields_for_programs(fields: &HeaderMap) -> impl Iterator<Item = (&HeaderName, Cow<'_, [u8]>)> {
    const OMITTED: [&str; 4] = ["content-type", "content-length", "proxy-authorization", "proxy"];
    let named = named_by_connection(fields);
    let is_passed = move |name: &&HeaderName| {
        let is_plain = name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_omitted = OMITTED.contains(&name.as_str()) || HOP_BY_HOP.contains(&name.as_str());
        is_plain && !is_omitted && !named.contains(name)
    };
    fields.keys().filter(is_passed).map(|name| {
        let separator: &[u8] = if name == header::COOKIE { b"; " } else { b", " };
        let mut values = fields.get_all(name).iter().map(HeaderValue::as_bytes);
        let first = Cow::Borrowed(values.next().unwrap_or_default());
        (name, values.fold(first, |joined, value| [&*joined, separator, value].concat().into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_line_endings_are_accepted() {
        for (text, expected) in [("A: 1\r\n\r\nbody", 8), ("A: 1\n\nbody", 6), ("\nbody", 1), ("A:\r\nB:\n\r\n", 9)] {
            assert_eq!(find_end(text.as_bytes(), &mut 0), Ok(Some(expected)), "{text:?}");
        }
        for text in ["", "A: 1", "A: 1\r\n\r", "A: 1\n"] {
            assert_eq!(find_end(text.as_bytes(), &mut 0), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn limit_applies_to_one_line_and_to_many() {
        assert!(find_end(&[b'a'; MAX_HEAD_BYTES], &mut 0).is_err());
        assert!(find_end("A: 1\n".repeat(MAX_HEAD_BYTES).as_bytes(), &mut 0).is_err());
        let mut fits = format!("A: {}\n\n", "x".repeat(MAX_HEAD_BYTES - 5)).into_bytes();
        assert_eq!(find_end(&fits, &mut 0), Ok(Some(MAX_HEAD_BYTES)));
        fits.insert(3, b'x');
        assert!(find_end(&fits, &mut 0).is_err());
    }

    #[test]
    fn malformed_heads_are_rejected() {
        for bad in ["no colon\n", "A b: 1\n", ": 1\n", "A: 1\n folded\n", "A: a\0b\n", "HTTP/1.1 200 OK\n", "A : 1\n"] {
            assert!(parse_fields(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["", "-1", "+1", "1 ", "0x1", "1,1", "99999999999999999999"] {
            assert!(parse_length(&HeaderValue::from_bytes(bad.as_bytes()).unwrap()).is_err(), "{bad:?}");
        }
        for bad in ["", "20", "2000", "abc", "100", "101 Switching", "200-OK", "20 0"] {
            assert!(parse_status(&HeaderValue::from_bytes(bad.as_bytes()).unwrap()).is_err(), "{bad:?}");
        }
        assert_eq!(parse_status(&HeaderValue::from_static("404 Not Found")).unwrap(), 404);
    }

    #[test]
    fn fields_named_by_connection_are_removed() {
        let mut map = parse_fields(b"Connection: close, X-Mine\nX-Mine: 1\nKeep-Alive: 5\nX-Yours: 2\n").unwrap();
        remove_hop_by_hop(&mut map);
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-yours"]);
    }

    proptest! {
        /// The end of a head is found at the same place however the head is split into pieces.
        #[test]
        fn split_into_pieces_does_not_matter(text in "([A-Za-z-]{1,5}: ?[a-z ]{0,6}\r?\n){0,5}\r?\n[a-z\r\n]{0,9}", cuts in any::<u64>()) {
            let bytes = text.as_bytes();
            let whole = find_end(bytes, &mut 0).unwrap();
            let (mut searched, mut found) = (0, None);
            for available in 0..=bytes.len() {
                if found.is_none() && (available == bytes.len() || cuts >> (available % 64) & 1 == 1) {
                    found = find_end(&bytes[..available], &mut searched).unwrap();
                }
            }
            prop_assert_eq!(found, whole);
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = find_end(&bytes, &mut 0);
            let _ = parse_fields(&bytes);
        }
    }
}
