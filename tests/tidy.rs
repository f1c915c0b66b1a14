//! The rules of the house, held by a test: who may use whom, where `unsafe` and the clock may be, and that
//! the project speaks of itself alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use of the crate. Top to bottom is the order of dependence: nobody uses what comes later.
const MAY_USE: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("stats", &[]),
    ("config", &["ids"]),
    ("exchange", &["stats", "ids"]),
    ("pool", &["stats", "ids"]),
    ("liveness", &["ids"]),
    ("clock", &["ids"]),
    ("log", &[]),
    ("signals", &[]),
    ("sys", &[]),
    ("doorbell", &[]),
    ("process_tree", &["log", "sys"]),
    ("net", &["sys"]),
    ("handoff", &["ids", "sys"]),
    ("probe", &["stats", "ids"]),
    ("executable", &["config"]),
    ("shm", &["exchange"]),
    ("ipc", &["doorbell", "config", "exchange", "ids", "shm"]),
    ("units", &["config", "ids"]),
    ("status", &["config", "exchange", "stats", "ids", "ipc", "probe", "process_tree", "units"]),
    ("backoff", &["clock", "config", "exchange", "liveness", "log"]),
    ("client", &["ids"]),
    (
        "dispatcher",
        &[
            "doorbell",
            "clock",
            "config",
            "exchange",
            "handoff",
            "ids",
            "ipc",
            "log",
            "net",
            "pool",
            "probe",
            "backoff",
            "shm",
            "signals",
            "sys",
            "process_tree",
        ],
    ),
    (
        "worker",
        &[
            "doorbell",
            "clock",
            "config",
            "exchange",
            "handoff",
            "ids",
            "ipc",
            "log",
            "net",
            "executable",
            "backoff",
            "shm",
            "signals",
            "sys",
            "process_tree",
        ],
    ),
    (
        "watchdog",
        &[
            "doorbell",
            "clock",
            "config",
            "exchange",
            "stats",
            "handoff",
            "ids",
            "ipc",
            "liveness",
            "log",
            "net",
            "probe",
            "executable",
            "backoff",
            "signals",
            "status",
            "sys",
            "process_tree",
            "units",
        ],
    ),
    (
        "cli",
        &[
            "doorbell",
            "client",
            "clock",
            "config",
            "dispatcher",
            "exchange",
            "ids",
            "ipc",
            "log",
            "probe",
            "executable",
            "shm",
            "signals",
            "status",
            "sys",
            "process_tree",
            "units",
            "watchdog",
            "worker",
        ],
    ),
];

/// The only files with `unsafe`.
const UNSAFE: &[&str] = &["src/shm/segment.rs", "src/sys.rs"];

/// Decisions: these take `now` and never ask for it, and do no I/O.
const PURE: &[&str] = &[
    "src/ids",
    "src/exchange",
    "src/pool",
    "src/liveness",
    "src/stats.rs",
    "src/watchdog/restart_stats.rs",
    "src/watchdog/plan",
    "src/watchdog/evidence/format.rs",
    "src/units",
    "src/cli/drill/random.rs",
    "src/cli/drill/fault.rs",
    "src/cli/drill/generator.rs",
    "src/cli/drill/fault_tracker.rs",
    "src/cli/drill/history.rs",
    "src/cli/drill/checker",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file below `dir` with its path from the root and its text.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut next = vec![root().join(dir)];
    while let Some(path) = next.pop() {
        if path.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The part of a file before its tests, without comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("test_process.rs")
}

/// The module of the crate that a file belongs to; `None` for the crate's own two files.
fn module(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("src/")?;
    let top = rest.split('/').next()?;
    let top = top.strip_suffix(".rs").unwrap_or(top);
    (top != "lib" && top != "main").then_some(top)
}

#[test]
fn modules_use_only_what_the_floor_plan_allows() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, text) in sources("src") {
        let Some(module) = module(&name).filter(|_| !is_test_file(&name)) else { continue };
        let Some(may) = allowed.get(module) else {
            wrong.push(format!("{name}: module {module} is not in the plan"));
            continue;
        };
        let code = code(&text);
        let mut used = BTreeSet::new();
        for part in code.split("crate::").skip(1) {
            // `use crate::{a, b::c}` names several.
            let list = part.strip_prefix('{').map_or(part, |list| list.split('}').next().unwrap_or_default());
            let many = part.starts_with('{');
            for item in list.split(',').take(if many { usize::MAX } else { 1 }) {
                let word: String = item.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                used.insert(word);
            }
        }
        used.remove("");
        used.remove(module);
        for used in used.iter().filter(|used| !may.contains(&used.as_str())) {
            wrong.push(format!("{name}: {module} uses {used}"));
        }
    }
    assert!(wrong.is_empty(), "against the floor plan:\n{}", wrong.join("\n"));
}

#[test]
fn the_plan_has_no_circles() {
    let order: BTreeMap<&str, usize> = MAY_USE.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
    for (name, uses) in MAY_USE {
        for used in *uses {
            assert!(order[used] < order[name], "{name} uses {used}, which comes later");
        }
    }
}

#[test]
fn unsafe_code_is_in_two_files_and_explains_itself() {
    for (name, text) in sources("src") {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
        let uses = code.iter().filter(|line| line.contains("unsafe {") || line.contains("unsafe fn")).count();
        if UNSAFE.contains(&name.as_str()) {
            let explained = text.matches("// SAFETY:").count();
            assert!(explained >= uses, "{name}: {uses} unsafe blocks, {explained} explanations");
        } else {
            assert_eq!(uses, 0, "{name} has unsafe code");
        }
    }
}

#[test]
fn pure_code_asks_nobody_for_the_time_and_touches_nothing() {
    let forbidden = [
        "Instant::now",
        "SystemTime",
        "clock::",
        "std::fs",
        "std::net::Tcp",
        "std::process",
        "tokio",
        "getrandom",
        "nix::",
    ];
    for (name, text) in sources("src") {
        if PURE.iter().any(|pure| name.starts_with(pure)) && !is_test_file(&name) {
            let code = code(&text);
            for word in forbidden {
                assert!(!code.contains(word), "{name} uses {word}");
            }
        }
    }
}

#[test]
fn files_are_named_for_their_subject_and_fit_in_the_head() {
    for (name, text) in sources("src") {
        let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(!["utils", "util", "types", "traits", "common", "helpers", "misc"].contains(&stem.as_str()), "{name}");
        assert!(text.starts_with("//!") || is_test_file(&name), "{name} does not open with its idea");
        let lines = code(&text).lines().count();
        assert!(lines <= 450, "{name} has {lines} lines of code: split it by subject");
    }
}
