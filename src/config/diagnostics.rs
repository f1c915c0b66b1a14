//! What the reading of a file leaves besides the values: where each key stands and what is wrong.
//!
//! The checks across keys need both: the lines for their faults, and which values are only stand-ins for wrong
//! ones, from which nothing may be concluded.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::fault::{ConfigFault, cut};
use super::write::quote;

/// What is known about a file besides its values: where each key stands, and what is wrong.
pub(super) struct Record {
    file: String,
    /// Offset of the first byte of each line.
    starts: Vec<usize>,
    /// Lines with a syntax error, in order.
    broken: Vec<usize>,
    lines: BTreeMap<String, usize>,
    wrong: BTreeSet<String>,
    faults: Vec<ConfigFault>,
    /// Members of a list are missing from what was read, so that their numbers no longer fit.
    miscounted: bool,
}

impl Record {
    /// A file of which nothing has been read.
    pub(super) fn new(text: &str, file: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self {
            file: file.to_owned(),
            starts,
            broken: Vec::new(),
            lines: BTreeMap::new(),
            wrong: BTreeSet::new(),
            faults: Vec::new(),
            miscounted: false,
        }
    }

    /// Reports a place where the text is no TOML.
    pub(super) fn syntax(&mut self, text: &str, error: &toml::de::Error) {
        let line = self.line_at(error.span().unwrap_or_default());
        if self.broken.contains(&line) {
            return; // One slip of the pen makes several errors; the first says it best.
        }
        self.broken.push(line);
        self.broken.sort_unstable();
        let found = quote(&cut(text.lines().nth(line - 1).unwrap_or_default().trim()));
        self.push(line, String::new(), found, format!("TOML ({})", error.message()));
    }

    /// Whether the text was TOML throughout.
    pub(super) fn is_whole(&self) -> bool {
        self.broken.is_empty()
    }

    /// Whether `line` comes after a syntax error or has one.
    pub(super) fn is_after_syntax_error(&self, line: usize) -> bool {
        self.broken.first().is_some_and(|broken| *broken <= line)
    }

    /// Remembers that `key` stands in `line`.
    pub(super) fn stands(&mut self, key: &str, line: usize) {
        self.lines.insert(key.to_owned(), line);
    }

    /// Says that a list was read with gaps.
    pub(super) fn lose_count(&mut self) {
        self.miscounted = true;
    }

    /// Whether the numbers in the keys are those of the members read.
    pub(super) fn is_counted(&self) -> bool {
        !self.miscounted
    }

    /// Whether any of these keys was wrong, so that its value is only a stand-in.
    fn is_wrong(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.wrong.contains(*key))
    }

    /// Whether `key` stands in the file.
    pub(super) fn is_there(&self, key: &str) -> bool {
        self.lines.contains_key(key)
    }

    /// The line of `key`, or of the innermost section around it that is in the file.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        let around = || key.rfind(['.', '[']).and_then(|at| self.line_of(&key[..at]));
        self.lines.get(key).copied().or_else(around)
    }

    /// Reports `key` for what it says together with `others`. Does nothing if one of them was wrong by itself:
    /// then it is not known what it should have said. If `key` is only a default, the line is that of the first
    /// of the others in the file: the one that somebody wrote.
    pub(super) fn contradiction(&mut self, key: &str, others: &[&str], mut found: String, expected: String) {
        if self.is_wrong(&[key]) || self.is_wrong(others) {
            return;
        }
        if !self.is_there(key) {
            found.push_str(" (the default)");
        }
        let written = std::iter::once(&key).chain(others).find_map(|key| self.lines.get(*key).copied());
        let line = written.or_else(|| self.line_of(key)).unwrap_or(1);
        self.push(line, key.to_owned(), found, expected);
    }

    /// Reports an unknown key.
    pub(super) fn unknown(&mut self, line: usize, key: String, expected: String) {
        self.push(line, key, "an unknown key".to_owned(), expected);
    }

    /// Reports the absence of `key` in the section of `line`, once. Not after a syntax error, which may have
    /// swallowed it.
    pub(super) fn missing(&mut self, line: usize, key: String, expected: &str) {
        if self.wrong.insert(key.clone()) && self.is_whole() {
            self.push(line, key, "nothing".to_owned(), expected.to_owned());
        }
    }

    /// Reports a value, unless the line was no TOML: what was made of it there means nothing.
    pub(super) fn value(&mut self, line: usize, key: String, found: String, expected: String) {
        self.wrong.insert(key.clone());
        if !self.broken.contains(&line) {
            self.push(line, key, found, expected);
        }
    }

    /// The line of the byte at which `span` begins, from 1.
    pub(super) fn line_at(&self, span: Range<usize>) -> usize {
        self.starts.partition_point(|start| *start <= span.start).max(1)
    }

    /// All faults in the order of their lines.
    pub(super) fn into_faults(mut self) -> Vec<ConfigFault> {
        self.faults.sort_by_key(|fault| fault.line);
        self.faults
    }

    fn push(&mut self, line: usize, key: String, found: String, expected: String) {
        self.faults.push(ConfigFault { file: self.file.clone(), line, key, found, expected });
    }
}
