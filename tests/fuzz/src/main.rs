//! The libFuzzer entry point: one program for all targets. PATOU_FUZZ_TARGET names the target.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use patou::fuzz_targets::{ALL, Target};

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("PATOU_FUZZ_TARGET").expect("PATOU_FUZZ_TARGET names a target");
        ALL.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no target {name}")).1
    })
}

fuzz_target!(|data: &[u8]| chosen()(data));
