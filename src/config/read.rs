//! Reads one section of a TOML file, key by key, without stopping at the first error.
//!
//! A [`Section`] returns each key once. It reports a wrong value and continues with the default. Keys that have not
//! been read at the end of the section are unknown.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::Diagnostics;
use super::fault::{nearest, quote, truncate};
use super::quantity::{self, DURATION_MAX};

/// One table of the file, and the keys read from it.
pub(super) struct Section<'r, 'i> {
    diagnostics: &'r mut Diagnostics,
    /// The key of the table and a dot; empty for the file itself.
    prefix: String,
    line: usize,
    table: DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'r, 'i> Section<'r, 'i> {
    /// Reads the whole file with `read`.
    pub(super) fn whole_file<T>(
        diagnostics: &'r mut Diagnostics,
        table: DeTable<'i>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        Self { diagnostics, prefix: String::new(), line: 1, table, known: Vec::new() }.run(read)
    }

    fn run<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let value = read(&mut self);
        self.report_unknown_keys();
        value
    }

    /// Reports the keys that have not been read. Not after a syntax error: if the header of a section is invalid, its
    /// keys are found in the section before it.
    fn report_unknown_keys(self) {
        for key in self.table.keys() {
            let line = self.diagnostics.line_at(key.span());
            if self.diagnostics.is_after_syntax_error(line) {
                continue;
            }
            let expected = match nearest(key.get_ref(), self.known.iter().copied()) {
                Some(known) => format!("`{known}`"),
                None => format!("one of {}", self.known.join(", ")),
            };
            self.diagnostics.unknown_key(line, format!("{}{}", self.prefix, key_text(key.get_ref())), expected);
        }
    }

    fn remove(&mut self, key: &'static str) -> Option<(String, usize, DeValue<'i>)> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let path = format!("{}{key}", self.prefix);
        let line = self.diagnostics.line_at(value.span());
        self.diagnostics.set_line(&path, line);
        Some((path, line, value.into_inner()))
    }

    /// The value of `key` as converted by `accept`, which returns a description of a valid value as its error. `None`
    /// if the key is missing or its value wrong.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        accept: impl FnOnce(&DeValue<'i>) -> Result<T, String>,
    ) -> Option<T> {
        let (path, line, value) = self.remove(key)?;
        accept(&value).map_err(|expected| self.diagnostics.wrong_value(line, path, value_text(&value), expected)).ok()
    }

    /// Reports a required `key` if it is missing.
    pub(super) fn report_missing(&mut self, key: &'static str, expected: &str) {
        let path = format!("{}{key}", self.prefix);
        if !self.diagnostics.is_present(&path) {
            self.diagnostics.missing_key(self.line, path, expected);
        }
    }

    /// A string as converted by `accept`; `expected` describes a valid one.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, |value| value.as_str().and_then(accept).ok_or_else(|| expected.to_owned()))
    }

    /// One of these two words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T); 2]) -> Option<T> {
        let expected = format!("{} or {}", quote(words[0].0), quote(words[1].0));
        self.text(key, &expected, |text| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.value(key, |value| value.as_bool().ok_or_else(|| "true or false".to_owned())).unwrap_or(default)
    }

    /// An integer within `range`.
    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let expected = match (*range.start(), *range.end()) {
            (0, u64::MAX) => "a whole number, 0 or more".to_owned(),
            (least, most) => format!("a whole number from {least} to {most}"),
        };
        self.value(key, |value| integer(value).filter(|n| range.contains(n)).ok_or(expected)).unwrap_or(default)
    }

    /// A duration longer than zero, at most a year.
    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let positive = |time: Duration| {
            if time.is_zero() { Err("a duration longer than 0s, such as \"50ms\"".to_owned()) } else { Ok(time) }
        };
        self.value(key, |value| duration(value).and_then(positive)).unwrap_or(default)
    }

    /// A duration of at most a year that may be zero.
    pub(super) fn duration_or_zero(&mut self, key: &'static str, default: Duration) -> Duration {
        self.value(key, duration).unwrap_or(default)
    }

    /// A size in bytes: a string with K, M, G or T, or an integer.
    pub(super) fn bytes(&mut self, key: &'static str, default: u64) -> u64 {
        let size = |value: &DeValue<'_>| integer(value).or_else(|| quantity::parse_bytes(value.as_str()?));
        let expected = "a size in bytes such as \"512M\" or \"1G\", or \"0\"";
        self.value(key, |value| size(value).ok_or_else(|| expected.to_owned())).unwrap_or(default)
    }

    /// A list of strings that `accept` accepts; each wrong one is reported with its number and left out.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let (path, line, value) = self.remove(key)?;
        let DeValue::Array(items) = value else {
            self.diagnostics.wrong_value(line, path, value_text(&value), format!("a list [..], each item {expected}"));
            return None;
        };
        let mut texts = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match item.get_ref().as_str().filter(|text| accept(text)) {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let line = self.diagnostics.line_at(item.span());
                    self.diagnostics.wrong_value(
                        line,
                        format!("{path}[{}]", i + 1),
                        value_text(item.get_ref()),
                        expected.to_owned(),
                    );
                }
            }
        }
        Some(texts)
    }

    /// A table of arbitrary keys and string values. `accept` returns a description of a valid pair as its error.
    pub(super) fn string_map(
        &mut self,
        key: &'static str,
        accept: impl Fn(&str, &DeValue<'_>) -> Result<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        let (path, line, value) = self.remove(key)?;
        let DeValue::Table(table) = value else {
            self.diagnostics.wrong_value(line, path, value_text(&value), "a table { NAME = \"value\" }".into());
            return None;
        };
        let mut map = BTreeMap::new();
        for (name, value) in &table {
            match accept(name.get_ref(), value.get_ref()) {
                Ok(text) => drop(map.insert(name.get_ref().to_string(), text)),
                Err(expected) => {
                    let line = self.diagnostics.line_at(name.span());
                    self.diagnostics.wrong_value(
                        line,
                        format!("{path}.{}", key_text(name.get_ref())),
                        value_text(value.get_ref()),
                        expected,
                    );
                }
            }
        }
        Some(map)
    }

    /// Reports a table that has none or several of the keys read so far; `expected` names them.
    pub(super) fn require_one(&mut self, expected: &str) {
        let path = self.prefix.trim_end_matches('.').to_owned();
        let is_present = |key: &&str| self.diagnostics.is_present(&format!("{}{key}", self.prefix));
        let chosen: Vec<_> = self.known.iter().copied().filter(is_present).collect();
        // If a table has only unknown keys, these are reported instead.
        match chosen.len() {
            0 if self.table.is_empty() => {
                self.diagnostics.wrong_value(self.line, path, "an empty table".into(), expected.into())
            }
            0 | 1 => {}
            _ => self.diagnostics.wrong_value(self.line, path, chosen.join(" and "), expected.into()),
        }
    }

    /// Whether `key` exists and is a table: some keys accept a table or a string.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_table())
    }

    /// The number of items in the list `key`; 0 without such a list.
    pub(super) fn count(&self, key: &str) -> usize {
        self.table.get(key).and_then(|value| value.get_ref().as_array()).map_or(0, |array| array.len())
    }

    /// The table `key`, read with `read`.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'i>) -> T) -> Option<T> {
        let (path, line, value) = self.remove(key)?;
        match value {
            DeValue::Table(table) => Some(self.nested(&path, line, table, read)),
            other => {
                self.diagnostics.wrong_value(
                    line,
                    path,
                    value_text(&other),
                    format!("a table: [{key}] or {key} = {{ .. }}"),
                );
                None
            }
        }
    }

    /// The list of tables `key`, at least one, each read with `read`.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 'i>) -> T,
    ) -> Option<Vec<T>> {
        let (path, line, value) = self.remove(key)?;
        let expected = format!("at least one section [[{key}]], in double brackets");
        let DeValue::Array(items) = value else {
            self.diagnostics.wrong_value(line, path, value_text(&value), expected);
            return None;
        };
        if items.is_empty() {
            self.diagnostics.wrong_value(line, path.clone(), "an empty list".into(), expected.clone());
        }
        let mut all = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{}]", i + 1);
            let line = self.diagnostics.line_at(item.span());
            self.diagnostics.set_line(&path, line);
            match item.into_inner() {
                DeValue::Table(table) => all.push(self.nested(&path, line, table, &mut read)),
                other => {
                    self.diagnostics.wrong_value(line, path, value_text(&other), expected.clone());
                    self.diagnostics.set_gaps();
                }
            }
        }
        Some(all)
    }

    fn nested<T>(
        &mut self,
        path: &str,
        line: usize,
        table: DeTable<'i>,
        read: impl FnOnce(&mut Section<'_, 'i>) -> T,
    ) -> T {
        Section { diagnostics: self.diagnostics, prefix: format!("{path}."), line, table, known: Vec::new() }.run(read)
    }
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match value.as_str().and_then(quantity::parse_duration) {
        Some(time) if time <= DURATION_MAX => Ok(time),
        Some(_) => Err("a duration of at most 1year".to_owned()),
        None => Err("a duration such as \"50ms\" or \"5s\"".to_owned()),
    }
}

/// A value in one line of a message.
fn value_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(&truncate(text)),
        DeValue::Integer(number) => truncate(&number.to_string()),
        DeValue::Float(number) => truncate(number.as_str()),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) if items.is_empty() => "an empty list".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// A key in TOML syntax, bare if possible.
fn key_text(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { truncate(key) } else { quote(&truncate(key)) }
}
