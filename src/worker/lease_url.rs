//! The URLs of the redirect delivery: the target that carries a token, and the Location back to the dispatcher. Pure.

#![forbid(unsafe_code)]

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri};

use crate::ids::Token;

/// Splits `/.patou/<token>/<rest>` into the token, if it is valid, and `/<rest>`; `None` for any other target.
pub(crate) fn split(method: &Method, uri: &Uri) -> Option<(Option<Token>, PathAndQuery)> {
    let target = uri.path_and_query()?.as_str();
    let (token, rest) = target.strip_prefix("/.patou/")?.split_at_checked(32)?;
    // Without a path: the root with a query, or `OPTIONS *` (RFC 9112, section 3.2.4).
    let rest = match rest.as_bytes().first() {
        Some(b'/') => rest.to_owned(),
        None if method == Method::OPTIONS => "*".to_owned(),
        Some(b'?') | None => format!("/{rest}"),
        Some(_) => return None,
    };
    Some((Token::parse(token), rest.parse().ok()?))
}

/// The `Location` that sends a client back to the dispatcher, with its original target. `None` if it is not a valid
/// header value.
pub(crate) fn return_location(host: &str, port: u16, target: Option<&PathAndQuery>) -> Option<HeaderValue> {
    let target = target.map_or("/", PathAndQuery::as_str);
    let target = if target == "*" { "" } else { target };
    HeaderValue::from_bytes(format!("http://{host}:{port}{target}").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    /// Whether the token is valid, and the rest of the target.
    fn split(method: &Method, target: &str) -> Option<(bool, String)> {
        super::split(method, &target.parse().unwrap()).map(|(token, rest)| (token.is_some(), rest.to_string()))
    }

    #[test]
    fn target_is_split_into_token_and_rest() {
        for (after, rest) in [("/a/b?c=/d", "/a/b?c=/d"), ("/", "/"), ("", "/"), ("?x", "/?x"), ("//evil", "//evil")] {
            assert_eq!(split(&Method::GET, &format!("/.patou/{TOKEN}{after}")), Some((true, rest.into())), "{after}");
        }
        let upper_case = format!("/.patou/{}/a", TOKEN.to_uppercase());
        assert_eq!(split(&Method::GET, &upper_case), Some((false, "/a".into())));
    }

    #[test]
    fn options_without_a_path_is_for_the_whole_server() {
        assert_eq!(split(&Method::OPTIONS, &format!("/.patou/{TOKEN}")), Some((true, "*".into())));
        assert_eq!(split(&Method::OPTIONS, &format!("/.patou/{TOKEN}/")), Some((true, "/".into())));
    }

    #[test]
    fn target_without_a_token_is_not_split() {
        for other in ["/", "/.patou/", "/.patou/short/a", &format!("/.patou/{TOKEN}x/a"), "http://h/.patou"] {
            assert_eq!(split(&Method::GET, other), None, "{other}");
        }
    }
}
