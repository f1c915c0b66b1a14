//! How many requests an application serves before it ends, as far as that is known. Pure.
//!
//! An application that ends after a request closes its connection some time after the end of the response. A request that
//! is sent on this connection meanwhile is lost, and may have been read. So a connection is kept only for PHP: it counts
//! requests itself, and its limit is known.

#![forbid(unsafe_code)]

use std::path::Path;

/// The limit of PHP without a variable (main program of `sapi/cgi`).
const PHP_DEFAULT: u64 = 500;

/// The variables of PHP: its limit, and how many processes it starts. With several processes each has a count of its own.
pub(super) const MAX_REQUESTS: &str = "PHP_FCGI_MAX_REQUESTS";
pub(super) const CHILDREN: &str = "PHP_FCGI_CHILDREN";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestLimit {
    Unlimited,
    After(u64),
    Unknown,
}

impl RequestLimit {
    /// The limit of a program with these values of the variables in its environment.
    pub(super) fn of(program: &str, max_requests: Option<&str>, children: Option<&str>) -> Self {
        let is_php = Path::new(program).file_name().is_some_and(|name| name.to_string_lossy().starts_with("php"));
        match (max_requests.map(str::parse), children.unwrap_or("0")) {
            (Some(Ok(0)), "0") => Self::Unlimited,
            (Some(Ok(max)), "0") => Self::After(max),
            (None, "0") if is_php => Self::After(PHP_DEFAULT),
            _ => Self::Unknown,
        }
    }

    /// Whether the application certainly serves another request after this many.
    pub(super) fn allows_another(self, served: u64) -> bool {
        match self {
            Self::Unlimited => true,
            Self::After(max) => served < max,
            Self::Unknown => false,
        }
    }

    /// Whether the application certainly ends after this many.
    pub(super) fn is_reached(self, served: u64) -> bool {
        matches!(self, Self::After(max) if served >= max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_that_of_php() {
        assert_eq!(RequestLimit::of("/usr/bin/php-cgi8.2", None, None), RequestLimit::After(500));
        assert_eq!(RequestLimit::of("php-cgi", Some("0"), Some("0")), RequestLimit::Unlimited);
        assert_eq!(RequestLimit::of("/srv/run-php.sh", Some("7"), None), RequestLimit::After(7));
        for (program, max, children) in [
            ("mapserv", None, None),
            ("php-cgi", None, Some("4")),
            ("php-cgi", Some("x"), None),
            ("php-cgi", Some("-1"), None),
        ] {
            assert_eq!(
                RequestLimit::of(program, max, children),
                RequestLimit::Unknown,
                "{program} {max:?} {children:?}"
            );
        }
    }

    #[test]
    fn last_request_is_known_before_it_is_sent() {
        let limit = RequestLimit::After(3);
        assert!(limit.allows_another(2) && !limit.is_reached(2));
        assert!(!limit.allows_another(3) && limit.is_reached(3));
        assert!(RequestLimit::Unlimited.allows_another(u64::MAX) && !RequestLimit::Unlimited.is_reached(u64::MAX));
        assert!(!RequestLimit::Unknown.allows_another(1) && !RequestLimit::Unknown.is_reached(1));
    }
}
