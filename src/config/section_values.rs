//! Values that several sections have.

use super::ListenAddress;
use super::read::Section;

pub(super) const NAME: &str = "a name of 1 to 32 characters of a-z, 0-9 and _";
pub(super) const ACCOUNT: &str = "the name or ID of a user or group";

/// A user or group that systemd and useradd(8) accept: no space, no `/`, no leading `-`.
pub(super) fn account(text: &str) -> Option<String> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let is_valid = (1..=32).contains(&text.len()) && text.bytes().all(is_allowed) && !text.starts_with(['-', '.']);
    is_valid.then(|| text.to_owned())
}

pub(super) fn address(s: &mut Section<'_, '_>) -> Option<ListenAddress> {
    s.value("address", |value| match value.as_str() {
        Some(text) => text.parse().map_err(|bad: super::BadListenAddress| bad.expected.to_owned()),
        None => Err("an address such as \"127.0.0.1:7286\" or \"unix:/path\"".to_owned()),
    })
}
