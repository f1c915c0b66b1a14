//! Text from untrusted sources, made safe for a log and a terminal.

#![forbid(unsafe_code)]

use std::fmt::Write;

/// Escapes control characters (cursor, colour, line breaks) and characters that change the writing direction. Tabs
/// stay.
pub(crate) fn escape_control_chars(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "\\x{:02x}", c as u32); // a String never fails
            }
            _ if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out
}
