//! Why the previous incarnation of a worker ended, as the watchdog has seen it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::ids::WorkerId;
use crate::ipc::{RUNTIME_DIR, WATCHDOG_DIR};

/// What a worker reads of the watchdog's state file.
#[derive(Deserialize)]
struct KnownEnds {
    workers: BTreeMap<String, KnownEnd>,
}

#[derive(Deserialize)]
struct KnownEnd {
    cause: Option<String>,
}

/// The cause of the last unplanned end of `worker`, if there was one. `None` under `patou run`, where the status of a
/// worker is not shown.
pub(super) fn last_end(worker: &WorkerId) -> Option<String> {
    if std::env::var_os(RUNTIME_DIR).is_some() {
        return None;
    }
    parse(&fs::read(Path::new(WATCHDOG_DIR).join("watchdog.json")).ok()?, worker)
}

fn parse(json: &[u8], worker: &WorkerId) -> Option<String> {
    let mut known: KnownEnds = serde_json::from_slice(json).ok()?;
    Some(known.workers.remove(&worker.to_string())?.cause?.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_of_the_last_end_is_that_of_the_worker() {
        let json = br#"{"set":"s","workers":{"a/1":{"pid":1,"cause":"killed by\nSIGSEGV"},"a/2":{"pid":2}}}"#;
        let end = |worker: &str| parse(json, &worker.parse().unwrap());
        assert_eq!(end("a-1").as_deref(), Some("killed by SIGSEGV"));
        assert_eq!((end("a-2"), end("a-3"), parse(b"x", &"a-1".parse().unwrap())), (None, None, None));
    }
}
