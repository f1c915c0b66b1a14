//! Replays the kept corpus of the fuzz targets: an input that once found a fault stays a test. See `tests/fuzz/run`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use crate::fuzz_targets::ALL;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

#[test]
fn every_input_of_the_corpus_passes() {
    let mut failed = Vec::new();
    for (name, target) in ALL {
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
fn every_corpus_belongs_to_a_target() {
    for directory in fs::read_dir(corpus()).unwrap() {
        let name = directory.unwrap().file_name().into_string().unwrap();
        assert!(ALL.iter().any(|(known, _)| *known == name), "{name}");
    }
}
