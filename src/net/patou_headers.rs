//! Headers that patou alone sets. Pure code.

#![forbid(unsafe_code)]

use http::{HeaderMap, HeaderName};

/// Removes every `Patou-*` header from what a client or a handler sent, so that `Patou-Outcome` proves what patou knows
/// of a request. Spellings with underscores are removed, too: CGI programs and many proxies treat both as the same.
pub(crate) fn remove_patou_headers(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_reserved(name)).cloned() {
        headers.remove(name);
    }
}

fn is_reserved(name: &HeaderName) -> bool {
    // Names are in lower case.
    name.as_str().strip_prefix("patou").is_some_and(|rest| rest.starts_with(['-', '_']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn every_spelling_and_every_value_is_removed() {
        let mut headers = HeaderMap::new();
        for name in ["Patou-Outcome", "PATOU-OUTCOME", "patou_outcome", "Patou-Lease", "patou-", "Patou_Worker-Id"] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(&name, HeaderValue::from_static("1"));
            headers.append(&name, HeaderValue::from_static("2"));
        }
        for name in ["patou", "patoux-a", "x-patou-outcome", "content-type"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        remove_patou_headers(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "patou", "patoux-a", "x-patou-outcome"]);
    }
}
