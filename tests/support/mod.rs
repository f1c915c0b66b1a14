//! Support for the process tests: a set that runs the real binary in a private runtime directory on ports that the
//! kernel chooses, and a plain HTTP client. Knows only the binary, its configuration and the public protocols.

#![allow(dead_code, unused_imports)] // each test file uses a part of it

use std::time::{Duration, Instant};

mod http;
mod load;
mod migration;
mod pools;
mod process;
mod programs;
mod set;

pub(crate) use http::*;
pub(crate) use load::*;
pub(crate) use migration::*;
pub(crate) use pools::*;
pub(crate) use process::*;
pub(crate) use programs::*;
pub(crate) use set::*;

/// How long a test waits for an event before it fails.
pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(event: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for: {event}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `poll` returns a value.
pub(crate) fn wait_for_value<T>(event: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {event}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
