//! Errors in a configuration file, and the text of their messages.

#![forbid(unsafe_code)]

use std::fmt;
use std::fmt::Write;

/// One error in a configuration file.
///
/// Displayed as `patou.toml:12: pool[1].offer_timeout: found "5 minuts"; expected a duration such as "50ms" or "5s"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The file as named by the caller.
    pub file: String,
    /// Line, from 1; of the section if the key is missing, 1 if the section is missing too.
    pub line: usize,
    /// The key with its section: `front.head_bytes`, `watchdog.restarts.max`. Sections that may be repeated carry their
    /// number in the file, from 1: `pool[2].offer_timeout`. Empty if the line is not TOML.
    pub key: String,
    /// The value found.
    pub found: String,
    /// A description of a valid value.
    pub expected: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}; expected {}", self.found, self.expected)
    }
}

/// A file or directory that a pool names and that its workers cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableFile {
    /// The key within the section of the pool: `handler.exec`, `working_dir`.
    pub key: String,
    /// The value found.
    pub found: String,
    /// A description of a valid value, and why the present one is not valid.
    pub expected: String,
}

/// All errors in one file, at least one, in the order of their lines. Displayed one per line, the first
/// [`ConfigFaults::SHOWN`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl ConfigFaults {
    /// How many errors are displayed.
    pub const SHOWN: usize = 20;
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().take(Self::SHOWN).enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        match self.0.len().saturating_sub(Self::SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more faults", self.0[0].file),
        }
    }
}

impl std::error::Error for ConfigFaults {}

/// The known word nearest to `word`, if it is near enough to be the one that was meant.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // The comparison takes memory and time by the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let near = word.chars().count().div_ceil(3);
    known.into_iter().map(|known| (distance(known), known)).min().filter(|(d, _)| *d <= near).map(|(_, known)| known)
}

/// `text`, truncated if it is long.
pub(super) fn truncate(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    truncate_to(text, CHARS_MAX)
}

/// A part of a message: at most `chars_max` characters, and none that a terminal would execute.
pub(super) fn displayable(text: &str, chars_max: usize) -> String {
    truncate_to(text, chars_max).chars().fold(String::new(), |mut out, c| {
        if is_control(c) {
            write!(out, "\\u{:04X}", c as u32).expect("writing to a String cannot fail");
        } else {
            out.push(c);
        }
        out
    })
}

/// Control characters, and those that break a line or change the writing direction.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn truncate_to(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A TOML basic string (TOML v1.0.0, String): quoted, in one line, control characters escaped.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_control(c) => write!(out, "\\u{:04X}", c as u32).expect("writing to a String cannot fail"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_word_is_nearest() {
        let known = ["offer_timeout", "claim_timeout", "queue"];
        assert_eq!(nearest("offer_timout", known), Some("offer_timeout"));
        assert_eq!(nearest("queu", known), Some("queue"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn each_fault_is_displayed_on_one_line() {
        let fault = |line, key: &str| ConfigFault {
            file: "f".into(),
            line,
            key: key.into(),
            found: "1".into(),
            expected: "2".into(),
        };
        let faults = ConfigFaults(vec![fault(1, "set.name"), fault(2, "")]);
        assert_eq!(faults.to_string(), "f:1: set.name: found 1; expected 2\nf:2: found 1; expected 2");
    }
}
