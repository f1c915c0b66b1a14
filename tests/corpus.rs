//! The kept corpus of the fuzz targets, in an ordinary test: what was found once stays found. See `tests/fuzz/run`.

#[path = "fuzz/src/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

#[test]
fn every_input_of_the_corpus_is_answered() {
    let mut failed = Vec::new();
    for (name, target) in targets::ALL {
        let mut count = 0;
        for file in fs::read_dir(corpus().join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let file = file.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                failed.push(file);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_corpus_has_its_target() {
    for folder in fs::read_dir(corpus()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(targets::ALL.iter().any(|(known, _)| *known == name), "{name}");
    }
}
