//! The variables of a request to an application: those of CGI, and where it has scripts those that name the script.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::BytesMut;
use http::{StatusCode, request};

use super::super::cgi;
use super::super::context::RequestContext;
use super::super::failure::RequestFailure;
use super::script::Located;
use crate::net::fastcgi::encode_pair;

/// The variables as name-value pairs. `length` is that of the body, `None` without one.
///
/// # Errors
/// 400 for a path that cannot be decoded.
pub(super) fn encode(
    parts: &request::Parts,
    context: &RequestContext,
    length: Option<u64>,
    located: Option<&Located>,
) -> Result<BytesMut, RequestFailure> {
    let variables = cgi::meta_variables(parts, context, length)
        .map_err(|error| RequestFailure::new(StatusCode::BAD_REQUEST, error.to_string()).not_started())?;
    let script = match located {
        Some(Located::Script(script)) => Some(script),
        _ => None,
    };
    let mut pairs = BytesMut::with_capacity(2048);
    for (name, value) in variables {
        let value = match (name.as_str(), script) {
            ("SCRIPT_NAME", Some(script)) => script.name.clone(),
            ("PATH_INFO", Some(script)) => script.path_info.clone(),
            _ => value.into_vec(),
        };
        encode_pair(name.as_bytes(), &value, &mut pairs);
    }
    if let Some(script) = script {
        encode_pair(b"SCRIPT_FILENAME", &script.file_name(), &mut pairs);
        encode_pair(b"DOCUMENT_ROOT", script.root.as_os_str().as_bytes(), &mut pairs);
        if let Some(translated) = script.path_translated() {
            encode_pair(b"PATH_TRANSLATED", &translated, &mut pairs);
        }
        // A PHP that was built with --enable-force-cgi-redirect wants it.
        encode_pair(b"REDIRECT_STATUS", b"200", &mut pairs);
    }
    Ok(pairs)
}
