//! Headers that patou alone sets. Pure code.

#![forbid(unsafe_code)]

use http::HeaderMap;

/// Removes every `Patou-*` header from what a client or a handler sent, so that `Patou-Outcome` proves what patou knows
/// of a request. Spellings with underscores are removed, too: CGI programs and many proxies treat both as the same.
pub(crate) fn remove_patou_headers(headers: &mut HeaderMap) {
    remove_headers(headers, |name| name.strip_prefix("patou").is_some_and(|rest| rest.starts_with(['-', '_'])));
}

/// Removes every header whose name, in lower case, is one that `is_removed` finds.
pub(super) fn remove_headers(headers: &mut HeaderMap, is_removed: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_removed(name.as_str())).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

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
