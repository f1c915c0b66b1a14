//! What a refusal says about itself: a problem document (RFC 9457), as far as people read it.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use std::fmt;

/// Title and detail of an `application/problem+json` answer, safe to print on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The kind of problem (RFC 9457, 3.1.3).
    pub title: String,
    /// This occurrence of it (RFC 9457, 3.1.4).
    pub detail: String,
}

/// Longer texts are cut: they go into one line of an error message.
const LONGEST: usize = 500;

impl Problem {
    /// The problem in this answer; `None` if it is of another type or not readable.
    pub fn read(headers: &HeaderMap, body: &Bytes) -> Option<Self> {
        if !Self::announced(headers) {
            return None;
        }
        let Self { title, detail } = serde_json::from_slice(body).ok()?;
        Some(Self { title: printable(&title), detail: printable(&detail) })
    }

    /// The end of a message about it: `: ` and the text, or nothing where there is none.
    pub fn after_colon(&self) -> String {
        let text = self.to_string();
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// Whether the answer says that its body is a problem document.
    pub fn announced(headers: &HeaderMap) -> bool {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/problem+json")
    }
}

/// `detail`, or `title` where there is none; both may be empty.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.detail.is_empty() { &self.title } else { &self.detail })
    }
}

/// `text` of a peer without control characters (escape sequences, line breaks), cut to one line.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &'static str, body: &'static str) -> Option<Problem> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, http::HeaderValue::from_static(kind))]);
        Problem::read(&headers, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn problems_are_read_if_they_are_problems() {
        let body = r#"{"type":"about:blank","title":"Busy","detail":"no worker\u001b[2J is free","status":503}"#;
        let problem = read("Application/Problem+JSON; charset=utf-8", body).unwrap();
        assert_eq!((problem.title.as_str(), problem.detail.as_str()), ("Busy", "no worker [2J is free"));
        assert_eq!(problem.to_string(), "no worker [2J is free");
        assert_eq!(read("application/problem+json", r#"{"title":"Busy"}"#).unwrap().to_string(), "Busy");
        assert_eq!(read("application/json", body), None);
        assert_eq!(read("application/problem+json", "no json"), None);
    }
}
