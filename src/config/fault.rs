//! What is wrong with a configuration file: where, what was found, and what would be right.

use std::fmt;

/// One thing that is wrong in a configuration file.
///
/// Written `patou.toml:12: pool[1].offer_timeout: found "5 minuts"; expected a duration such as "50ms" or "5s"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The file as it was named to the reader.
    pub file: String,
    /// Line, from 1; of the section if the key itself is missing, 1 if the section is missing too.
    pub line: usize,
    /// The key with its section: `front.head_bytes`, `watchdog.restarts.max`. Members of lists carry their
    /// number in the file, from 1: `pool[2].offer_timeout`. Empty where the text is no TOML at all.
    pub key: String,
    /// What stands there.
    pub found: String,
    /// What would be right.
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

/// Everything that is wrong in one file, at least one fault, in the order of the lines. Displayed one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

/// The known word nearest to `word`, if any is near enough to be what was meant.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let near = word.chars().count().div_ceil(3);
    known.into_iter().map(|known| (distance(known), known)).min().filter(|(d, _)| *d <= near).map(|(_, known)| known)
}

/// Enough of a long text to recognise it.
pub(super) fn cut(text: &str) -> String {
    const ENOUGH: usize = 60;
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_the_likely_word_or_none() {
        let known = ["offer_timeout", "claim_timeout", "queue"];
        assert_eq!(nearest("offer_timout", known), Some("offer_timeout"));
        assert_eq!(nearest("queu", known), Some("queue"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn faults_are_lines() {
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
