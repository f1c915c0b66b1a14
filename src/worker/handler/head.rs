//! The head of a message as CGI programs and co-processes write it: lines `Name: value`, then an empty line.
//! Pure.
//!
//! Lines end with LF or CRLF. Nothing is folded, guessed or repaired: a program that writes something else
//! is broken, and what it says after that cannot be trusted to be what it means.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The longest head read, in bytes, with its empty line.
pub const LIMIT: usize = 64 * 1024;

/// What is wrong with a head, in words for the log and the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Where the head at the start of `bytes` ends, its empty line included; `None` when that has not come yet.
///
/// `searched` remembers how far earlier calls looked, so that a head that comes byte by byte is not
/// searched anew each time. It starts at 0 and belongs to one head.
///
/// # Errors
/// When [`LIMIT`] bytes hold no end.
pub fn end(bytes: &[u8], searched: &mut usize) -> Result<Option<usize>, Malformed> {
    // `searched` is always the start of a line.
    while let Some(length) = bytes[*searched..].iter().take(LIMIT).position(|&b| b == b'\n') {
        let line = &bytes[*searched..*searched + length];
        *searched += length + 1;
        if *searched > LIMIT {
            break;
        }
        if line.is_empty() || line == b"\r" {
            return Ok(Some(*searched));
        }
    }
    if *searched > LIMIT || bytes.len() >= LIMIT {
        return Err(Malformed(format!("its head is longer than {LIMIT} bytes")));
    }
    Ok(None)
}

/// The fields of a complete head, in order, spaces around the values removed.
///
/// # Errors
/// A line without colon, a name that is no token or a value with control characters (RFC 9110 section 5).
pub fn fields(head: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut fields = HeaderMap::new();
    for line in head.split(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let wrong = || Malformed(format!("its head has a line that is no `Name: value`: {}", shown(line)));
        let colon = line.iter().position(|&b| b == b':').ok_or_else(wrong)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| wrong())?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| wrong())?;
        fields.try_append(name, value).map_err(|_| Malformed("its head has too many fields".to_owned()))?;
    }
    Ok(fields)
}

/// The beginning of what a program wrote, in quotes: for the log and the client.
pub(super) fn shown(bytes: &[u8]) -> String {
    let start: String = String::from_utf8_lossy(&bytes[..bytes.len().min(320)]).chars().take(80).collect();
    format!("{start:?}")
}

/// Takes a field that may come once out of `fields`.
///
/// # Errors
/// When it came more than once.
pub fn take_once(fields: &mut HeaderMap, name: impl Into<HeaderName>) -> Result<Option<HeaderValue>, Malformed> {
    let name = name.into();
    if fields.get_all(&name).iter().nth(1).is_some() {
        return Err(Malformed(format!("its head has more than one {name}")));
    }
    Ok(fields.remove(name))
}

/// Reads a length: digits and nothing else.
pub fn length(value: &HeaderValue) -> Result<u64, Malformed> {
    let digits = value.as_bytes();
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = if plain { value.to_str().ok().and_then(|text| text.parse().ok()) } else { None };
    number.ok_or_else(|| Malformed(format!("its Content-Length is no length: {}", shown(digits))))
}

/// Reads a status: three digits from 200 on, with or without words behind them.
///
/// # Errors
/// Anything else; also 1xx, which is no final answer.
pub fn status(value: &HeaderValue) -> Result<http::StatusCode, Malformed> {
    let bytes = value.as_bytes();
    let (code, rest) = bytes.split_at(bytes.len().min(3));
    http::StatusCode::from_bytes(code)
        .ok()
        .filter(|status| status.as_u16() >= 200 && (rest.is_empty() || rest[0] == b' '))
        .ok_or_else(|| Malformed(format!("its Status is no final HTTP status: {}", shown(bytes))))
}

/// Whether an answer with this status has no body, whatever is written (RFC 9110 section 6.4.1).
pub fn bodiless(status: http::StatusCode) -> bool {
    matches!(status.as_u16(), 204 | 304)
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1), also what `Connection` names.
pub fn drop_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = (fields.get_all(header::CONNECTION).iter())
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        fields.remove(name);
    }
    for name in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"] {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_line_ends_are_ends() {
        for (text, expected) in [("A: 1\r\n\r\nbody", 8), ("A: 1\n\nbody", 6), ("\nbody", 1), ("A:\r\nB:\n\r\n", 9)] {
            assert_eq!(end(text.as_bytes(), &mut 0), Ok(Some(expected)), "{text:?}");
        }
        for text in ["", "A: 1", "A: 1\r\n\r", "A: 1\n"] {
            assert_eq!(end(text.as_bytes(), &mut 0), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn the_limit_holds_for_one_line_and_for_many() {
        assert!(end(&[b'a'; LIMIT], &mut 0).is_err());
        assert!(end("A: 1\n".repeat(LIMIT).as_bytes(), &mut 0).is_err());
        let mut fits = format!("A: {}\n\n", "x".repeat(LIMIT - 5)).into_bytes();
        assert_eq!(end(&fits, &mut 0), Ok(Some(LIMIT)));
        fits.insert(3, b'x');
        assert!(end(&fits, &mut 0).is_err());
    }

    #[test]
    fn nothing_is_repaired() {
        for bad in ["no colon\n", "A b: 1\n", ": 1\n", "A: 1\n folded\n", "A: a\0b\n", "HTTP/1.1 200 OK\n", "A : 1\n"] {
            assert!(fields(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["", "-1", "+1", "1 ", "0x1", "1,1", "99999999999999999999"] {
            assert!(length(&HeaderValue::from_bytes(bad.as_bytes()).unwrap()).is_err(), "{bad:?}");
        }
        for bad in ["", "20", "2000", "abc", "100", "101 Switching", "200-OK", "20 0"] {
            assert!(status(&HeaderValue::from_bytes(bad.as_bytes()).unwrap()).is_err(), "{bad:?}");
        }
        assert_eq!(status(&HeaderValue::from_static("404 Not Found")).unwrap(), 404);
    }

    #[test]
    fn what_connection_names_goes_too() {
        let mut map = fields(b"Connection: close, X-Mine\nX-Mine: 1\nKeep-Alive: 5\nX-Yours: 2\n").unwrap();
        drop_hop_by_hop(&mut map);
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-yours"]);
    }

    proptest! {
        /// However a head is cut into pieces, its end is found at the same place.
        #[test]
        fn pieces_make_no_difference(text in "([A-Za-z-]{1,5}: ?[a-z ]{0,6}\r?\n){0,5}\r?\n[a-z\r\n]{0,9}", cuts in any::<u64>()) {
            let bytes = text.as_bytes();
            let whole = end(bytes, &mut 0).unwrap();
            let (mut searched, mut found) = (0, None);
            for upto in 0..=bytes.len() {
                if found.is_none() && (upto == bytes.len() || cuts >> (upto % 64) & 1 == 1) {
                    found = end(&bytes[..upto], &mut searched).unwrap();
                }
            }
            prop_assert_eq!(found, whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = end(&bytes, &mut 0);
            let _ = fields(&bytes);
        }
    }
}
