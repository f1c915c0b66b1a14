//! The address of a listener or worker: TCP, or the path of a Unix socket.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A TCP address or the path of a Unix socket. Written `127.0.0.1:7286`, `[::1]:80` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenAddress {
    /// IP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// Absolute path without `..`.
    Unix(PathBuf),
}

/// The text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: write {expected}")]
pub struct BadListenAddress {
    /// The text.
    pub text: String,
    /// A description of a valid address.
    pub expected: &'static str,
}

impl ListenAddress {
    /// Longest path of a Unix socket in bytes: `sun_path` has 108 bytes including the final NUL (unix(7)).
    pub const UNIX_MAX: usize = 107;

    /// The address on TCP; `None` for a Unix socket.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        match self {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        }
    }

    /// Whether this is a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, ListenAddress::Unix(_))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for ListenAddress {
    type Err = BadListenAddress;

    /// Host names are not accepted: an address must not depend on a name service.
    fn from_str(text: &str) -> Result<Self, BadListenAddress> {
        let bad = |expected| BadListenAddress { text: text.to_owned(), expected };
        match text.strip_prefix("unix:") {
            Some(path) if is_valid_path(path) && !path.ends_with('/') => Ok(ListenAddress::Unix(path.into())),
            Some(_) => Err(bad("unix: and the absolute path of a socket without `..`, such as \"unix:/run/web.sock\"")),
            None => text.parse().map(ListenAddress::Tcp).map_err(|_| {
                bad("an IP address and a port, such as \"127.0.0.1:7286\" or \"[::1]:80\", or \"unix:/path\"")
            }),
        }
    }
}

/// Whether `text` is an absolute path below `/` without `..` and control characters. Only such paths can be compared by
/// their components, passed to the kernel unchanged, and written into one line of a unit or a log.
pub(super) fn is_valid_path(text: &str) -> bool {
    let path = Path::new(text);
    let is_parent = |part| matches!(part, Component::ParentDir);
    path.is_absolute()
        && path.file_name().is_some()
        && !text.contains(char::is_control)
        && !path.components().any(is_parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_displayed_as_they_are_parsed() {
        for text in ["127.0.0.1:7286", "[::1]:80", "0.0.0.0:0", "[fe80::1%2]:80", "unix:/run/a b.sock", "unix:/w{n}"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_addresses_are_rejected_with_the_rule() {
        for text in ["", "localhost:80", "127.0.0.1", ":80", "127.0.0.1:70000", "/run/x", "tcp:1.2.3.4:5"] {
            assert!(text.parse::<ListenAddress>().unwrap_err().expected.starts_with("an IP address"), "{text}");
        }
        for text in [
            "unix:",
            "unix:run/x",
            "unix:@x",
            "unix:/",
            "unix:/a/../b",
            "unix:/a/",
            "unix:/a\0b",
            "unix:/a\nb",
            "unix:/..",
        ] {
            assert!(text.parse::<ListenAddress>().unwrap_err().expected.starts_with("unix: and"), "{text}");
        }
    }
}
