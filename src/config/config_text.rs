//! The text of a configuration: that of its file, followed by those of the files that it includes. Pure.

#![forbid(unsafe_code)]

use toml::de::DeTable;

/// A text, and which of its lines are from which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigText {
    text: String,
    /// The first line of each file and its name.
    files: Vec<(usize, String)>,
}

impl ConfigText {
    /// The text of one file.
    pub(super) fn new(text: impl Into<String>, file: &str) -> Self {
        Self { text: text.into(), files: vec![(1, file.to_owned())] }
    }

    /// Appends the text of an included file.
    pub(super) fn include(&mut self, text: &str, file: &str) {
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.files.push((self.text.matches('\n').count() + 1, file.to_owned()));
        self.text.push_str(text);
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The files, the included ones after the one that includes them.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(_, file)| file.as_str())
    }

    /// The file of a line of the text, and the number of the line there, from 1.
    pub(super) fn place(&self, line: usize) -> (&str, usize) {
        let part = self.files.partition_point(|(first, _)| *first <= line).max(1) - 1;
        let (first, file) = &self.files[part];
        (file, line.saturating_sub(*first) + 1)
    }

    /// The value of `set.include`, as far as it is valid.
    pub(super) fn patterns(&self) -> Vec<String> {
        let (table, _) = DeTable::parse_recoverable(&self.text);
        let include = table.get_ref().get("set").and_then(|set| set.get_ref().get("include"));
        let items = include.and_then(|include| include.get_ref().as_array());
        items
            .into_iter()
            .flat_map(|items| items.iter())
            .filter_map(|item| item.get_ref().as_str())
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_file() {
        let mut text = ConfigText::new("[set]\nname = \"x\"", "a");
        text.include("[[pool]]\nname = \"y\"\n", "b");
        text.include("", "c");
        text.include("\n[[listener]]", "d");
        assert_eq!(text.as_str(), "[set]\nname = \"x\"\n[[pool]]\nname = \"y\"\n\n[[listener]]");
        let places: Vec<_> = (1..=6).map(|line| text.place(line)).collect();
        assert_eq!(places, [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("d", 1), ("d", 2)]);
        assert_eq!(text.files().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn patterns_of_an_invalid_file_are_read_as_far_as_they_can_be() {
        let patterns = |text: &str| ConfigText::new(text, "a").patterns();
        assert_eq!(patterns("[set]\ninclude = [\"/a/*.toml\", 7, \"b\"]\n[front"), ["/a/*.toml", "b"]);
        for none in ["", "[set]\ninclude = \"x\"", "include = [\"x\"]", "set = 3"] {
            assert!(patterns(none).is_empty());
        }
    }
}
