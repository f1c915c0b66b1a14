//! Tests that start and kill processes run each in a process of its own: a handler takes every child of its
//! process for its own, and the children of the test beside it are none of its business.

use std::future::Future;
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};

const INSIDE: &str = "PATOU_TEST_ALONE";

/// Runs `test` in a fresh copy of the test binary, as a child subreaper, on a current-thread runtime.
pub fn alone(test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        return tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }
    let name = std::thread::current().name().expect("the test harness names its threads").to_owned();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        // What a worker has and its programs must not see.
        .envs(["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "PATOU_CONFIG"].map(|name| (name, "1")))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    if let Some((_, skipped)) = text.split_once("SKIPPED") {
        // Not by a macro, which the harness would keep to itself.
        let _ = writeln!(std::io::stderr(), "{name}: SKIPPED{}", skipped.lines().next().unwrap_or(""));
    }
}

/// Whether Python is there; says so loudly when it is not.
pub fn python() -> bool {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIPPED: no python3 on this machine");
    }
    there
}

/// What is logged on this thread while the guard lives.
pub fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    struct Into(Arc<Mutex<Vec<u8>>>);
    impl Write for Into {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&text);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Into(Arc::clone(&writer))).finish();
    (text, tracing::subscriber::set_default(subscriber))
}
