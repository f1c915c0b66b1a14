//! Durations as arguments: `500ms`, `10s`.

use std::time::Duration;

/// Parses a duration argument.
///
/// # Errors
/// The message that clap prints.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text} is not a duration such as 500ms or 10s"))
}
