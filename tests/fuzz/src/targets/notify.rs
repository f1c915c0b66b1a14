//! A sequence of messages to `NOTIFY_SOCKET`, and the resulting descriptor store.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use crate::watchdog::notify::{FdStore, NotifyFields};

const BOUND: usize = 3;

pub(crate) fn run(bytes: &[u8]) {
    static NULL: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").unwrap());
    let mut store = FdStore::default();
    for message in bytes.split(|&b| b == 0xff).take(64) {
        let fields = NotifyFields::parse(&String::from_utf8_lossy(message));
        // It becomes a log line, perhaps on a terminal.
        assert!(fields.failure.iter().all(|why| !why.contains(char::is_control)), "{fields:?}");
        let fds = if fields.store { vec![OwnedFd::from(NULL.try_clone().unwrap())] } else { Vec::new() };
        store.apply(&fields, fds, BOUND);
        let names: Vec<_> = store.iter().map(|(name, _)| name.to_owned()).collect();
        assert!(names.len() <= BOUND);
        // The next dispatcher parses them from LISTEN_FDNAMES.
        let passed = names.join(":");
        assert!(names.is_empty() || passed.split(':').eq(names.iter()), "{passed:?}");
        assert!(!passed.contains(char::is_control), "{passed:?}");
    }
}
