//! The log: one line for each event that an operator needs.
//!
//! Under systemd the log goes to the journal with its fields (`src/log/journal.rs`), otherwise to stderr as text
//! (`src/log/stderr_format.rs`). The calls are the same: `tracing`, with short field names.
//!
//! ```text
//! 12:04:01.137  watchdog      worker is ready                     worker=default/1 pid=4711
//! ```
//!
//! A message of several lines is complete in itself: on stderr its other lines follow, indented, without fields.
//!
//! Two fields are written to the journal only: `event`, an [`Event`], and `part`, the part that the watchdog's message
//! is about.
//!
//! `PATOU_LOG` selects what is logged, in the syntax of tracing's `EnvFilter`: `debug`, `warn`,
//! `patou::dispatcher=trace`. The default is `info`.

mod context;
mod escape;
mod events;
mod journal;
mod stderr_format;

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use context::{LogContext, set_epoch};
pub use escape::escape_control_chars;
pub use events::Event;
use journal::Journal;
use stderr_format::StderrFormat;

/// Starts logging for this process. Does nothing if the program has installed a subscriber already.
pub fn init(context: LogContext) {
    let filter =
        EnvFilter::builder().with_env_var("PATOU_LOG").with_default_directive(Level::INFO.into()).from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_the_journal()
        && let Ok(journal) = Journal::open(context.clone())
    {
        let _ = registry.with(journal).try_init();
        return;
    }
    let layer = tracing_subscriber::fmt::layer()
        .event_format(StderrFormat { part: context.part })
        // A closed pipe or terminal must not end a daemon.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let _ = registry.with(layer).try_init();
}

/// Aborts the process on a panic in any task: a daemon without one of its tasks looks alive, while a dead one is
/// replaced.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(event = %Event::InternalError, "internal error in patou, please report it: {panic}");
        std::process::abort();
    }));
}

/// Logs why a part cannot start or continue, one record for each line of `text`. Returns false if stderr is not the
/// journal: the caller prints the text then.
pub fn log_fatal(part: &str, event: Event, text: &str) -> bool {
    if !stderr_is_the_journal() {
        return false;
    }
    let Ok(journal) = Journal::open(LogContext::part(part, "")) else { return false };
    // A part that has called `init` keeps its subscriber, which knows the set and the epoch.
    let _ = tracing_subscriber::registry().with(journal).try_init();
    for line in text.lines() {
        tracing::error!(%event, "{line}");
    }
    true
}

/// Whether systemd has connected stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
pub fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", status.dev(), status.ino())
}
