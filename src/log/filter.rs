//! What `PATOU_LOG` selects.

#![forbid(unsafe_code)]

use tracing::Level;
use tracing::level_filters::LevelFilter;

/// Levels by target. A list of `LEVEL`, `TARGET=LEVEL` or `TARGET` (all levels), separated by commas; the longest target
/// that a record's target starts with decides, and `LEVEL` decides for all others. The last of two contradicting members
/// holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogFilter {
    default: LevelFilter,
    /// The longest first.
    targets: Vec<(String, LevelFilter)>,
}

impl Default for LogFilter {
    fn default() -> Self {
        Self { default: LevelFilter::INFO, targets: Vec::new() }
    }
}

impl LogFilter {
    /// Reads a list; also returns its members that have no valid level, which are left out.
    pub(super) fn parse(list: &str) -> (Self, Vec<&str>) {
        let mut filter = Self::default();
        let mut invalid = Vec::new();
        for member in list.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            match (member.split_once('='), member.parse()) {
                (None, Ok(level)) => filter.default = level,
                (None, Err(_)) => filter.targets.push((member.to_owned(), LevelFilter::TRACE)),
                (Some((target, level)), _) => match level.parse() {
                    Ok(level) => {
                        filter.targets.retain(|(known, _)| known != target);
                        filter.targets.push((target.to_owned(), level));
                    }
                    Err(_) => invalid.push(member),
                },
            }
        }
        filter.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        (filter, invalid)
    }

    pub(super) fn selects(&self, target: &str, level: &Level) -> bool {
        let named = self.targets.iter().find(|(start, _)| target.starts_with(start.as_str()));
        *level <= named.map_or(self.default, |(_, level)| *level)
    }

    /// The most verbose level that any target has.
    pub(super) fn max_level(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.default, LevelFilter::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(list: &str, target: &str, level: Level) -> bool {
        LogFilter::parse(list).0.selects(target, &level)
    }

    #[test]
    fn level_applies_to_every_target() {
        assert!(selects("", "patou::pool", Level::INFO) && !selects("", "patou::pool", Level::DEBUG));
        assert!(selects("debug", "hyper", Level::DEBUG) && !selects("warn", "hyper", Level::INFO));
        assert!(!selects("off", "patou", Level::ERROR));
    }

    #[test]
    fn longest_target_decides() {
        let list = "warn, patou::dispatcher=trace,patou=debug";
        assert!(selects(list, "patou::dispatcher::driver", Level::TRACE));
        assert!(selects(list, "patou::worker", Level::DEBUG) && !selects(list, "patou::worker", Level::TRACE));
        assert!(!selects(list, "hyper", Level::INFO));
        assert!(
            selects("patou::net", "patou::net::proxy", Level::TRACE) && !selects("patou::net", "patou", Level::DEBUG)
        );
        assert_eq!(LogFilter::parse(list).0.max_level(), LevelFilter::TRACE);
        assert!(selects("patou=trace,patou=warn,debug,info", "patou", Level::WARN));
        assert!(!selects("patou=trace,patou=warn", "patou", Level::INFO) && !selects("debug,info", "x", Level::DEBUG));
    }

    #[test]
    fn member_without_a_valid_level_is_reported_and_left_out() {
        let (filter, invalid) = LogFilter::parse("debug,patou=loud");
        assert_eq!(invalid, ["patou=loud"]);
        assert_eq!(filter, LogFilter { default: LevelFilter::DEBUG, targets: Vec::new() });
    }
}
