//! The path of a request to a directory of scripts: which of its prefixes may name a program. Pure.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::super::cgi::{self, BadPath};

/// The path of a request below the URL of a script directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScriptPath {
    /// The decoded segments; only the last one may be empty.
    segments: Vec<OsString>,
}

impl ScriptPath {
    /// The part of a URL path, undecoded, after `prefix`. `None` if no program may have this path: another prefix, a
    /// segment `.` or `..`, an encoded `/` or NUL, an empty segment at the start.
    ///
    /// # Errors
    /// [`BadPath`] for an invalid percent-encoding.
    pub(super) fn parse(path: &str, prefix: &str) -> Result<Option<Self>, BadPath> {
        let Some(rest) = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')) else { return Ok(None) };
        let segments = rest.split('/').map(|segment| Ok(OsString::from_vec(cgi::decode(segment.as_bytes())?)));
        let segments = segments.collect::<Result<Vec<_>, BadPath>>()?;
        let is_refused = |segment: &OsString| {
            [".", ".."].map(OsStr::new).contains(&segment.as_os_str())
                || segment.as_bytes().iter().any(|b| b"/\0".contains(b))
        };
        Ok((!segments[0].is_empty() && !segments.iter().any(is_refused)).then_some(Self { segments }))
    }

    /// The prefixes of `count` segments, from 1 on, up to the first segment that no file may have: an empty or a hidden one.
    /// What follows the program may have any.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (usize, PathBuf)> {
        let is_name = |segment: &&OsString| !segment.is_empty() && !segment.as_bytes().starts_with(b".");
        let names = self.segments.iter().take_while(is_name);
        names.enumerate().scan(PathBuf::new(), |path, (at, name)| {
            path.push(name);
            Some((at + 1, path.clone()))
        })
    }

    /// `SCRIPT_NAME` and `PATH_INFO` (RFC 3875 sections 4.1.13 and 4.1.5) of a program with this many segments.
    pub(super) fn split(&self, prefix: &str, count: usize) -> (OsString, OsString) {
        let (script, info) = self.segments.split_at(count);
        let joined = |start: &str, segments: &[OsString]| {
            segments.iter().fold(OsString::from(start), |mut path, segment| {
                path.push("/");
                path.push(segment);
                path
            })
        };
        (joined(prefix, script), joined("", info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefixes(path: &str) -> Option<Vec<String>> {
        let path = ScriptPath::parse(path, "/cgi-bin").unwrap()?;
        Some(path.prefixes().map(|(_, path)| path.into_os_string().into_string().unwrap()).collect())
    }

    #[test]
    fn prefixes_end_before_a_segment_that_no_program_may_have() {
        for (path, expected) in [
            ("/cgi-bin/a", &["a"][..]),
            ("/cgi-bin/a/b/", &["a", "a/b"]),
            ("/cgi-bin/a%20b/c", &["a b", "a b/c"]),
            ("/cgi-bin/a//b", &["a"]),
            ("/cgi-bin/a/.git/b", &["a"]),
            ("/cgi-bin/.a", &[]),
        ] {
            assert_eq!(prefixes(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn path_outside_of_the_directory_names_no_program() {
        for path in [
            "/",
            "*",
            "/other/a",
            "/cgi-bin",
            "/cgi-bin/",
            "/cgi-binary/a",
            "/cgi-bin//a",
            "/cgi-bin/../a",
            "/cgi-bin/a/..",
            "/cgi-bin/a/%2e%2e/b",
            "/cgi-bin/%2e/a",
            "/cgi-bin/a%2fb",
            "/cgi-bin/a/b%2Fc",
            "/cgi-bin/a%00",
            "/cgi-bin/a/%00",
        ] {
            assert_eq!(prefixes(path), None, "{path}");
        }
        assert_eq!(ScriptPath::parse("/cgi-bin/%zz", "/cgi-bin"), Err(BadPath));
    }

    #[test]
    fn name_and_info_divide_the_path() {
        let path = ScriptPath::parse("/cgi-bin/sub/run%20me/x%20y//z/", "/cgi-bin").unwrap().unwrap();
        assert_eq!(path.split("/cgi-bin", 2), ("/cgi-bin/sub/run me".into(), "/x y//z/".into()));
        assert_eq!(ScriptPath::parse("/a", "").unwrap().unwrap().split("", 1), ("/a".into(), "".into()));
    }

    proptest! {
        /// No prefix leaves the directory, whatever the encoding.
        #[test]
        fn no_prefix_leaves_the_directory(path in "(/|%2f|%2e|\\.|%00|a|%61){0,12}") {
            if let Ok(Some(path)) = ScriptPath::parse(&format!("/{path}"), "") {
                for (_, prefix) in path.prefixes() {
                    let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
                    prop_assert!(prefix.components().all(is_plain), "{prefix:?}");
                }
            }
        }
    }
}
