//! Support for tests that start and kill processes. Each of them runs in a separate process: a handler treats every
//! child of its process as its own, and must not see the children of another test.

use std::future::Future;
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};

const IN_OWN_PROCESS: &str = "PATOU_TEST_IN_OWN_PROCESS";

/// Runs `test` in a new process of the test binary, as a child subreaper, on a current-thread runtime.
pub(crate) fn in_own_process(test: impl Future<Output = ()>) {
    if std::env::var_os(IN_OWN_PROCESS).is_some() {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        return tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }
    let name = std::thread::current().name().expect("the test harness names its threads").to_owned();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(IN_OWN_PROCESS, "1")
        // Variables that a worker has and its programs must not inherit.
        .envs(["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "PATOU_CONFIG"].map(|name| (name, "1")))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    if let Some((_, skipped)) = text.split_once("SKIPPED") {
        // Not by a macro: the harness would capture its output.
        let _ = writeln!(std::io::stderr(), "{name}: SKIPPED{}", skipped.lines().next().unwrap_or(""));
    }
}

/// Whether Python is installed; prints a visible notice if not.
pub(crate) fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: no python3 on this machine");
    }
    found
}

/// What this thread logs while the guard exists.
pub(crate) fn capture_log() -> (CapturedLog, tracing::subscriber::DefaultGuard) {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// See [`capture_log`].
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    /// The text so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
