//! The response of a CGI program, in pieces of any size.

use crate::worker::handler::{cgi, head};
use http::HeaderMap;

use super::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let piece = usize::from(input.byte()) + 1;
    let text = input.0;
    let whole = head::find_end(text, &mut 0);
    let (mut searched, mut found) = (0, Ok(None));
    for end in (0..text.len()).step_by(piece).chain([text.len()]) {
        found = head::find_end(&text[..end], &mut searched);
        if found != Ok(None) {
            break;
        }
    }
    assert_eq!(found, whole, "pieces of {piece} bytes make a difference");
    let _ = head::parse_fields(text);
    let Ok(Some(end)) = whole else { return };
    assert!(end <= text.len() && end <= head::MAX_HEAD_BYTES);
    match cgi::parse_response(&text[..end]) {
        Ok(cgi::CgiResponse::Client(document)) => {
            assert!(document.status.as_u16() >= 200);
            check_headers(&document.headers);
            let announced = document.headers.get("content-length").map(|length| head::parse_length(length).unwrap());
            assert!(announced.is_none_or(|length| Some(length) == document.length));
            assert!(!head::status_forbids_body(document.status) || announced.is_none());
        }
        Ok(cgi::CgiResponse::LocalRedirect(redirect)) => {
            let target = redirect.target;
            assert!(target.path().starts_with('/') && target.authority().is_none(), "{target}");
            assert!(redirect.cookies.len() <= bytes.len());
            let mut parts = http::Request::post("/").header("Content-Length", "3").body(()).unwrap().into_parts().0;
            cgi::apply_local_redirect(&mut parts, target);
            assert!(parts.headers.is_empty());
        }
        Err(wrong) => assert!(wrong.0.len() < 1024, "{wrong}"),
    }
}

/// No header is specific to one connection, and none is repeated that must be unique.
pub(crate) fn check_headers(headers: &HeaderMap) {
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "te", "trailer"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert!(headers.get_all("content-length").iter().count() <= 1);
    assert!(!headers.contains_key("status"));
}
