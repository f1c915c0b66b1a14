//! Reading one section of a TOML file, key by key, without stopping at the first fault.
//!
//! A [`Section`] hands out each key once. A value that is wrong is reported and its default takes its place, so
//! that reading goes on; what nobody asked for when the section ends is unknown.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::Record;
use super::fault::{cut, nearest};
use super::quantity::{self, LONGEST};
use super::write::quote;

/// One table of the file, and the keys that were asked of it.
pub(super) struct Section<'r, 'i> {
    record: &'r mut Record,
    /// With the dot that the keys follow; empty for the file itself.
    prefix: String,
    line: usize,
    table: DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'r, 'i> Section<'r, 'i> {
    /// Reads the whole file by `read`.
    pub(super) fn whole_file<T>(record: &'r mut Record, table: DeTable<'i>, read: impl FnOnce(&mut Self) -> T) -> T {
        Self { record, prefix: String::new(), line: 1, table, known: Vec::new() }.run(read)
    }

    fn run<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let value = read(&mut self);
        self.refuse_unknown();
        value
    }

    /// Reports what nobody asked for. Not after a syntax error: a section whose head could not be read
    /// leaves its keys in the section before it.
    fn refuse_unknown(self) {
        for key in self.table.keys() {
            let line = self.record.line_at(key.span());
            if self.record.is_after_syntax_error(line) {
                continue;
            }
            let expected = match nearest(key.get_ref(), self.known.iter().copied()) {
                Some(known) => format!("`{known}`"),
                None => format!("one of {}", self.known.join(", ")),
            };
            self.record.unknown(line, format!("{}{}", self.prefix, plain(key.get_ref())), expected);
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(String, usize, DeValue<'i>)> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let path = format!("{}{key}", self.prefix);
        let line = self.record.line_at(value.span());
        self.record.stands(&path, line);
        Some((path, line, value.into_inner()))
    }

    /// The value of `key` made by `accept`, which answers a wrong one with what would be right. `None` if the
    /// key is absent or wrong.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        accept: impl FnOnce(&DeValue<'i>) -> Result<T, String>,
    ) -> Option<T> {
        let (path, line, value) = self.take(key)?;
        accept(&value).map_err(|expected| self.record.value(line, path, show(&value), expected)).ok()
    }

    /// Reports that `key`, which has no default here, is absent.
    pub(super) fn missing(&mut self, key: &'static str, expected: &str) {
        let path = format!("{}{key}", self.prefix);
        if !self.record.is_there(&path) {
            self.record.missing(self.line, path, expected);
        }
    }

    /// A string made into something by `accept`; `expected` tells what that is.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, |value| value.as_str().and_then(accept).ok_or_else(|| expected.to_owned()))
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.value(key, |value| value.as_bool().ok_or_else(|| "true or false".to_owned())).unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn whole(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let expected = match (*range.start(), *range.end()) {
            (0, u64::MAX) => "a whole number, 0 or more".to_owned(),
            (least, most) => format!("a whole number from {least} to {most}"),
        };
        self.value(key, |value| whole(value).filter(|n| range.contains(n)).ok_or(expected)).unwrap_or(default)
    }

    /// A duration longer than zero, at most a year.
    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let positive = |time: Duration| match time.is_zero() {
            true => Err("a duration longer than 0s, such as \"50ms\"".to_owned()),
            false => Ok(time),
        };
        self.value(key, |value| duration(value).and_then(positive)).unwrap_or(default)
    }

    /// A duration of at most a year that may be zero.
    pub(super) fn duration_or_zero(&mut self, key: &'static str, default: Duration) -> Duration {
        self.value(key, duration).unwrap_or(default)
    }

    /// A size in bytes, as a string with K, M, G or T or as a plain number.
    pub(super) fn bytes(&mut self, key: &'static str, default: u64) -> u64 {
        let size = |value: &DeValue<'_>| whole(value).or_else(|| quantity::bytes(value.as_str()?));
        let expected = "a size in bytes such as \"512M\" or \"1G\", or \"0\"";
        self.value(key, |value| size(value).ok_or_else(|| expected.to_owned())).unwrap_or(default)
    }

    /// A list of strings that `accept` likes; a wrong one is reported by its number and left out.
    pub(super) fn list(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let (path, line, value) = self.take(key)?;
        let DeValue::Array(items) = value else {
            self.record.value(line, path, show(&value), format!("a list [..]: each {expected}"));
            return None;
        };
        let mut texts = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match item.get_ref().as_str().filter(|text| accept(text)) {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let line = self.record.line_at(item.span());
                    self.record.value(line, format!("{path}[{}]", i + 1), show(item.get_ref()), expected.to_owned());
                }
            }
        }
        Some(texts)
    }

    /// A table of the file's own keys and string values: `accept` answers a wrong pair with what would be right.
    pub(super) fn map(
        &mut self,
        key: &'static str,
        accept: impl Fn(&str, &DeValue<'_>) -> Result<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        let (path, line, value) = self.take(key)?;
        let DeValue::Table(table) = value else {
            self.record.value(line, path, show(&value), "a table { NAME = \"value\" }".into());
            return None;
        };
        let mut map = BTreeMap::new();
        for (name, value) in &table {
            match accept(name.get_ref(), value.get_ref()) {
                Ok(text) => drop(map.insert(name.get_ref().to_string(), text)),
                Err(expected) => {
                    let line = self.record.line_at(name.span());
                    self.record.value(
                        line,
                        format!("{path}.{}", plain(name.get_ref())),
                        show(value.get_ref()),
                        expected,
                    );
                }
            }
        }
        Some(map)
    }

    /// Reports a table of alternatives, of which `expected` names the choice, that has none or several of the keys
    /// asked of it so far.
    pub(super) fn exactly_one(&mut self, expected: &str) {
        let path = self.prefix.trim_end_matches('.').to_owned();
        let there = |key: &&str| self.record.is_there(&format!("{}{key}", self.prefix));
        let chosen: Vec<_> = self.known.iter().copied().filter(there).collect();
        // A table that has only unknown keys is reported for those.
        match chosen.len() {
            0 if self.table.is_empty() => self.record.value(self.line, path, "an empty table".into(), expected.into()),
            0 | 1 => {}
            _ => self.record.value(self.line, path, chosen.join(" and "), expected.into()),
        }
    }

    /// Whether `key` is there and is a table, to tell two spellings of one key apart.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_table())
    }

    /// How many members the list `key` has; 0 if there is none.
    pub(super) fn count(&self, key: &str) -> usize {
        self.table.get(key).and_then(|value| value.get_ref().as_array()).map_or(0, |array| array.len())
    }

    /// The table `key`, read by `read`.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'i>) -> T) -> Option<T> {
        let (path, line, value) = self.take(key)?;
        match value {
            DeValue::Table(table) => Some(self.inner(&path, line, table, read)),
            other => {
                self.record.value(line, path, show(&other), format!("a table: [{key}] or {key} = {{ .. }}"));
                None
            }
        }
    }

    /// The list of tables `key`, at least one, each read by `read`.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 'i>) -> T,
    ) -> Option<Vec<T>> {
        let (path, line, value) = self.take(key)?;
        let expected = format!("at least one section [[{key}]], in double brackets");
        let DeValue::Array(items) = value else {
            self.record.value(line, path, show(&value), expected);
            return None;
        };
        if items.is_empty() {
            self.record.value(line, path.clone(), "an empty list".into(), expected.clone());
        }
        let mut all = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{}]", i + 1);
            let line = self.record.line_at(item.span());
            self.record.stands(&path, line);
            match item.into_inner() {
                DeValue::Table(table) => all.push(self.inner(&path, line, table, &mut read)),
                other => {
                    self.record.value(line, path, show(&other), expected.clone());
                    self.record.lose_count();
                }
            }
        }
        Some(all)
    }

    fn inner<T>(
        &mut self,
        path: &str,
        line: usize,
        table: DeTable<'i>,
        read: impl FnOnce(&mut Section<'_, 'i>) -> T,
    ) -> T {
        Section { record: self.record, prefix: format!("{path}."), line, table, known: Vec::new() }.run(read)
    }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match value.as_str().and_then(quantity::duration) {
        Some(time) if time <= LONGEST => Ok(time),
        Some(_) => Err("a duration of at most 1year".to_owned()),
        None => Err("a duration such as \"50ms\" or \"5s\"".to_owned()),
    }
}

/// A value as it may stand in one line of a message.
fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(&cut(text)),
        DeValue::Integer(number) => cut(&number.to_string()),
        DeValue::Float(number) => cut(number.as_str()),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) if items.is_empty() => "an empty list".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// A key as TOML writes it: bare where it can be.
fn plain(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { cut(key) } else { quote(&cut(key)) }
}
