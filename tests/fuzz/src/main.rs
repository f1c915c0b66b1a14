//! The door for libFuzzer: one program for all targets, which PATOU_FUZZ_TARGET names.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn chosen() -> targets::Target {
    static CHOSEN: OnceLock<targets::Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("PATOU_FUZZ_TARGET").expect("PATOU_FUZZ_TARGET names a target");
        targets::ALL.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no target {name}")).1
    })
}

fuzz_target!(|data: &[u8]| chosen()(data));
