//! The cargo features: a program worker needs `worker` alone, which stays small.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{TestSet, get, one_pool, text};

fn cargo(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO"));
    command.args(args).arg("--locked").current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().unwrap()
}

/// Crates that a program worker may compile, patou included.
const CRATES_MAX: usize = 55;

#[test]
fn worker_feature_compiles_few_crates() {
    let tree = ["tree", "-e", "normal", "--prefix", "none", "--format", "{p}", "--no-default-features", "--features"];
    let output = cargo(&[&tree[..], &["worker"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tree = text(&output.stdout);
    let crates: std::collections::BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("tokio") && crates.len() <= CRATES_MAX, "{} crates: {crates:?}", crates.len());
    for heavy in ["clap", "serde_json", "tracing-subscriber"] {
        assert!(!crates.contains(heavy), "{heavy}");
    }
}

#[test]
fn program_worker_outside_the_project_serves_with_the_worker_feature_alone() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("program_worker");
    let manifest = "tests/program_worker/Cargo.toml";
    let output = cargo(&["build", "--quiet", "--manifest-path", manifest, "--target-dir", target.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "the build prints warnings");

    let program = target.join("debug/program-worker");
    let set = TestSet::start(&one_pool(1, &format!("{{ program = [{program:?}] }}"), ""));
    let response = get(set.address(0), "/hello").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "GET /hello on default/1"));
    set.stop();
}
