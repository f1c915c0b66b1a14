//! Collects the errors of a file while it is read, and the line of each key.
//!
//! The rules between keys need both: lines for their own errors, and the keys whose value was wrong. A default stands
//! in for a wrong value, and no error may be derived from it.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::COPY_HEAD;
use super::config_text::ConfigText;
use super::fault::{ConfigFault, displayable, quote, truncate};

/// How long each part of a message may be.
const PART_CHARS: usize = 400;

/// Errors of a file, and the position of its keys.
pub(super) struct Diagnostics {
    source: ConfigText,
    /// Offset of the first byte of each line.
    line_starts: Vec<usize>,
    /// Lines with a syntax error.
    syntax_errors: BTreeSet<usize>,
    /// The line of each key in the file.
    lines: BTreeMap<String, usize>,
    /// Keys with a wrong value or without the value they need.
    wrong: BTreeSet<String>,
    /// With their lines in the whole text.
    faults: Vec<(usize, ConfigFault)>,
    /// An item of a list could not be read, so the numbers of the items after it do not match the file.
    has_gaps: bool,
    /// The file is a copy by patou, perhaps of another version.
    is_copy: bool,
}

impl Diagnostics {
    /// Diagnostics of a text that has not been read yet.
    pub(super) fn new(source: &ConfigText) -> Self {
        let newlines = source.as_str().match_indices('\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        Self {
            source: source.clone(),
            line_starts,
            syntax_errors: BTreeSet::new(),
            lines: BTreeMap::new(),
            wrong: BTreeSet::new(),
            faults: Vec::new(),
            has_gaps: false,
            is_copy: source.as_str().starts_with(COPY_HEAD),
        }
    }

    /// Reports a line that is not TOML.
    pub(super) fn syntax_error(&mut self, text: &str, error: &toml::de::Error) {
        let line = self.line_at(error.span().unwrap_or_default());
        if !self.syntax_errors.insert(line) {
            return; // One mistake causes several errors; the first one is the most precise.
        }
        let start = self.line_starts.get(line - 1).copied().unwrap_or(text.len());
        let found = quote(&truncate(text[start..].lines().next().unwrap_or_default().trim()));
        self.push(line, String::new(), found, format!("TOML ({})", error.message()));
    }

    /// Whether the whole text is TOML.
    pub(super) fn is_toml(&self) -> bool {
        self.syntax_errors.is_empty()
    }

    /// Whether `line` has a syntax error or follows one.
    pub(super) fn is_after_syntax_error(&self, line: usize) -> bool {
        self.syntax_errors.first().is_some_and(|first| *first <= line)
    }

    /// Records that `key` is in `line`.
    pub(super) fn set_line(&mut self, key: &str, line: usize) {
        self.lines.insert(key.to_owned(), line);
    }

    /// Records that an item of a list could not be read.
    pub(super) fn set_gaps(&mut self) {
        self.has_gaps = true;
    }

    /// Whether numbers in keys, such as `pool[2]`, may not match the file.
    pub(super) fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// Whether the value of any of these keys is a default in the place of a wrong one.
    fn is_wrong(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.wrong.contains(*key))
    }

    /// Whether `key` is in the file.
    pub(super) fn is_present(&self, key: &str) -> bool {
        self.lines.contains_key(key)
    }

    /// The line of `key`, or of the innermost section around it that is in the file.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        let section = || key.rfind(['.', '[']).and_then(|at| self.line_of(&key[..at]));
        self.lines.get(key).copied().or_else(section)
    }

    /// `key` with its line, for a message about another key.
    pub(super) fn place(&self, key: &str) -> String {
        match self.line_of(key) {
            Some(line) => format!("{key} ({})", self.line_name(line)),
            None => format!("{key} (default)"),
        }
    }

    /// A line for a message; with its file if there are several.
    fn line_name(&self, line: usize) -> String {
        let (file, line) = self.source.place(line);
        if self.source.files().count() > 1 { format!("{file}:{line}") } else { format!("line {line}") }
    }

    /// Reports that the value of `key` contradicts those of `others`. Does nothing if one of these values was wrong by
    /// itself: the right one is unknown. If the value of `key` is the default, the line is that of the first of
    /// `others` that is in the file: this is the line to change.
    pub(super) fn contradiction(&mut self, key: &str, others: &[&str], mut found: String, expected: String) {
        if self.is_wrong(&[key]) || self.is_wrong(others) {
            return;
        }
        if !self.is_present(key) {
            found.push_str(" (default)");
        }
        let written = std::iter::once(&key).chain(others).find_map(|key| self.lines.get(*key).copied());
        let line = written.or_else(|| self.line_of(key)).unwrap_or(1);
        self.push(line, key.to_owned(), found, expected);
    }

    /// Reports an unknown key; see [`super::Config::to_copy`] for those of a copy.
    pub(super) fn unknown_key(&mut self, line: usize, key: String, expected: String) {
        if self.is_copy {
            return;
        }
        self.push(line, key, "an unknown key".to_owned(), expected);
    }

    /// Reports once that `key` is missing in the section at `line`. Not after a syntax error, which may hide the key.
    pub(super) fn missing_key(&mut self, line: usize, key: String, expected: &str) {
        if self.wrong.insert(key.clone()) && self.is_toml() {
            self.push(line, key, "nothing".to_owned(), expected.to_owned());
        }
    }

    /// Reports a wrong value. Not in a line with a syntax error, where the parser's value is a guess.
    pub(super) fn wrong_value(&mut self, line: usize, key: String, found: String, expected: String) {
        self.wrong.insert(key.clone());
        if !self.syntax_errors.contains(&line) {
            self.push(line, key, found, expected);
        }
    }

    /// The line, from 1, of the first byte of `span`.
    pub(super) fn line_at(&self, span: Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start).max(1)
    }

    /// All errors in the order of their lines.
    pub(super) fn into_faults(mut self) -> Vec<ConfigFault> {
        self.faults.sort_by_key(|(line, _)| *line);
        self.faults.into_iter().map(|(_, fault)| fault).collect()
    }

    fn push(&mut self, line: usize, key: String, found: String, expected: String) {
        let [found, expected] = [found, expected].map(|text| displayable(&text, PART_CHARS));
        let (file, line_of_file) = self.source.place(line);
        self.faults.push((line, ConfigFault { file: file.to_owned(), line: line_of_file, key, found, expected }));
    }
}
