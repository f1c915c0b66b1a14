//! Programs that tests run: the binary under test, examples of this crate, tools of the machine.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The binary under test.
pub(crate) const PATOU: &str = env!("CARGO_BIN_EXE_patou");

/// Whether a program is installed. Prints to stderr if it is not, and fails in CI, where nothing may be missing.
pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "{program} is not installed");
    if !found {
        // Not with `eprintln!`: the test harness captures its output.
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "{test}: SKIPPED, {program} is not installed");
    }
    found
}

/// Builds an example of this crate, which `cargo test --test NAME` does not, and returns its path.
pub(crate) fn build_example(name: &str) -> String {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let build_dir = Path::new(PATOU).parent().unwrap();
    let profile = match build_dir.file_name().and_then(|name| name.to_str()).unwrap() {
        "debug" => "dev",
        other => other,
    };
    let args = ["build", "--quiet", "--example", name, "--profile", profile, "--target-dir"];
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    let status = cargo.args(args).arg(build_dir.parent().unwrap()).arg("--manifest-path").arg(manifest).status();
    assert!(status.unwrap().success(), "the example {name} cannot be built");
    build_dir.join("examples").join(name).into_os_string().into_string().unwrap()
}
