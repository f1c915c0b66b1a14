//! What a client with a lease asks for, and where one whose lease opens nothing is sent back to. Pure.

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri};

use crate::ids::Token;

/// Splits `/.patou/<token>/<rest>` into the token, if it is one, and `/<rest>`; `None` for any other target.
pub fn split(method: &Method, uri: &Uri) -> Option<(Option<Token>, PathAndQuery)> {
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

/// The dispatcher's address, with the target that the client first asked for. `None` if that is no value of a header.
pub fn back(host: &str, port: u16, target: Option<&PathAndQuery>) -> Option<HeaderValue> {
    let target = target.map_or("/", PathAndQuery::as_str);
    let target = if target == "*" { "" } else { target };
    HeaderValue::from_bytes(format!("http://{host}:{port}{target}").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_token_and_rest_or_nothing() {
        let token = "0123456789abcdef0123456789abcdef";
        let of = |method: &Method, target: &str| {
            super::split(method, &target.parse().unwrap()).map(|(t, rest)| (t.is_some(), rest.to_string()))
        };
        let split = |target: &str| of(&Method::GET, target);
        assert_eq!(of(&Method::OPTIONS, &format!("/.patou/{token}")), Some((true, "*".into())));
        assert_eq!(of(&Method::OPTIONS, &format!("/.patou/{token}/")), Some((true, "/".into())));
        assert_eq!(split(&format!("/.patou/{token}/a/b?c=/d")), Some((true, "/a/b?c=/d".into())));
        assert_eq!(split(&format!("/.patou/{token}/")), Some((true, "/".into())));
        assert_eq!(split(&format!("/.patou/{token}")), Some((true, "/".into())));
        assert_eq!(split(&format!("/.patou/{token}?x")), Some((true, "/?x".into())));
        assert_eq!(split(&format!("/.patou/{token}//evil")), Some((true, "//evil".into())));
        assert_eq!(split(&format!("/.patou/{}/a", token.to_uppercase())), Some((false, "/a".into())));
        for other in ["/", "/.patou/", "/.patou/short/a", &format!("/.patou/{token}x/a"), "http://h/.patou"] {
            assert_eq!(split(other), None, "{other}");
        }
    }
}
