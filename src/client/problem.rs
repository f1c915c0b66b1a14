//! Problem details (RFC 9457) of an error response: the texts for people.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use std::fmt;

/// Title and detail of an `application/problem+json` response, safe to print on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The kind of problem (RFC 9457, 3.1.3).
    pub title: String,
    /// This occurrence of the problem (RFC 9457, 3.1.4).
    pub detail: String,
}

/// Longer texts are truncated to this many characters: they become part of a one-line message.
const CHARS_MAX: usize = 500;

impl Problem {
    /// The problem in this response; `None` if it has another media type or is not valid.
    pub fn read(headers: &HeaderMap, body: &Bytes) -> Option<Self> {
        if !Self::is_announced(headers) {
            return None;
        }
        let Self { title, detail } = serde_json::from_slice(body).ok()?;
        Some(Self { title: printable(&title), detail: printable(&detail) })
    }

    /// The text for the end of a message: `: ` and the problem, or nothing if it is empty.
    pub fn after_colon(&self) -> String {
        let text = self.to_string();
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// Whether the media type of the response is that of a problem.
    pub fn is_announced(headers: &HeaderMap) -> bool {
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/problem+json")
    }
}

/// `detail`, or `title` if there is no detail; both may be empty.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.detail.is_empty() { &self.title } else { &self.detail })
    }
}

/// `text` without control characters (escape sequences, line breaks), truncated.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(media_type: &'static str, body: &'static str) -> Option<Problem> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, http::HeaderValue::from_static(media_type))]);
        Problem::read(&headers, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn problem_is_read_if_media_type_and_body_are_valid() {
        let body = r#"{"type":"about:blank","title":"Busy","detail":"no worker\u001b[2J is free","status":503}"#;
        let problem = read("Application/Problem+JSON; charset=utf-8", body).unwrap();
        assert_eq!((problem.title.as_str(), problem.detail.as_str()), ("Busy", "no worker [2J is free"));
        assert_eq!(problem.to_string(), "no worker [2J is free");
        assert_eq!(read("application/problem+json", r#"{"title":"Busy"}"#).unwrap().to_string(), "Busy");
        assert_eq!(read("application/json", body), None);
        assert_eq!(read("application/problem+json", "not JSON"), None);
    }
}
