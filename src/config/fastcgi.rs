//! The handler `fastcgi` in the configuration: its command, and where its scripts are.

#![forbid(unsafe_code)]

use super::diagnostics::Diagnostics;
use super::fault::quote;
use super::read::Section;
use super::{FastcgiHandler, HandlerConfig, PoolConfig};

const ROOT: &str = "the absolute path of the directory of the scripts";
const INDEX: &str = "the name of a script, such as \"index.php\"";
const EXTENSION: &str = "an extension with its dot, such as \".php\"";

/// The keys besides the command.
pub(super) fn handler(s: &mut Section<'_, '_>, command: Vec<String>) -> FastcgiHandler {
    let is_root = |text: &str| (text.starts_with('/') && !text.contains('\0')).then(|| text.to_owned());
    let root = s.text("root", ROOT, is_root).unwrap_or_default();
    let is_index = |text: &str| {
        let is_name = !text.is_empty() && !text.starts_with('.') && !text.contains(['/', '\0']);
        is_name.then(|| text.to_owned())
    };
    let index = s.text("index", INDEX, is_index).unwrap_or_default();
    let is_extension = |text: &str| text.len() > 1 && text.starts_with('.') && !text.contains(['/', '\0']);
    let count = s.count("extensions");
    let extensions = s.strings("extensions", EXTENSION, is_extension);
    if !index.is_empty() || extensions.is_some() {
        s.report_missing("root", &format!("{ROOT}, to which index and extensions belong"));
    }
    let default = if root.is_empty() { Vec::new() } else { vec![".php".to_owned()] };
    // Wrong ones are reported, and are not checked against the index.
    let extensions = extensions.filter(|list| !list.is_empty() || count == 0).unwrap_or(default);
    FastcgiHandler { fastcgi: command, root, index, extensions }
}

/// Checks the keys together.
pub(super) fn check(section: &str, pool: &PoolConfig, diagnostics: &mut Diagnostics) {
    let HandlerConfig::Fastcgi(handler) = &pool.handler else { return };
    let (index, extensions) = (format!("{section}.handler.index"), format!("{section}.handler.extensions"));
    if handler.root.is_empty() {
        return; // reported
    }
    if handler.extensions.is_empty() {
        diagnostics.contradiction(&extensions, &[], "an empty list".to_owned(), format!("at least {EXTENSION}"));
    } else if !handler.index.is_empty() && !handler.extensions.iter().any(|end| handler.index.ends_with(end)) {
        let expected = format!("a name with one of the extensions: {}", handler.extensions.join(", "));
        diagnostics.contradiction(&index, &[&extensions], quote(&handler.index), expected);
    }
}
