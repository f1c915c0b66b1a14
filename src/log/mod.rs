//! The log: one line per event that an operator needs.
//!
//! Started by systemd, it goes to the journal with its fields (`src/log/journal.rs`); otherwise to stderr, in lines for
//! people (`src/log/lines.rs`). The calls are the same: `tracing`, with short names of fields.
//!
//! ```text
//! 12:04:01.137  watchdog      worker is ready                     worker=default/1 pid=4711
//! ```
//!
//! A message of several lines says everything itself: on stderr its other lines follow, indented, and no fields.
//!
//! Two fields are for the journal alone: `event`, an [`Event`], and `part`, the part that the watchdog speaks of.
//!
//! `PATOU_LOG` chooses what is logged, in the syntax of tracing's `EnvFilter`: `debug`, `warn`,
//! `patou::dispatcher=trace`. Without it: `info`.

mod escape;
mod events;
mod journal;
mod lines;

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use escape::escape_control_chars;
pub use events::Event;
use journal::Journal;
use lines::Lines;

/// Who is speaking: every record of this process carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogContext {
    /// The part, as it stands in every line: `watchdog`, `dispatcher`, `worker web/1`.
    pub part: String,
    /// The name of the set; empty while it is not known.
    pub set: String,
    /// The worker, if it is one, as `pool/number`.
    pub worker: Option<String>,
}

impl LogContext {
    /// A part that is no worker.
    pub fn part(part: &str, set: &str) -> Self {
        Self { part: part.to_owned(), set: set.to_owned(), worker: None }
    }

    /// The worker `id`.
    pub fn worker(id: impl ToString, set: &str) -> Self {
        let id = id.to_string();
        Self { part: format!("worker {id}"), set: set.to_owned(), worker: Some(id) }
    }
}

/// The incarnation of this process; 0 while it has none.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Starts logging for this process. Does nothing if the program has its own subscriber already.
pub fn init(speaker: LogContext) {
    let filter =
        EnvFilter::builder().with_env_var("PATOU_LOG").with_default_directive(Level::INFO.into()).from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_the_journal()
        && let Ok(journal) = Journal::open(speaker.clone())
    {
        let _ = registry.with(journal).try_init();
        return;
    }
    let layer = tracing_subscriber::fmt::layer()
        .event_format(Lines { part: speaker.part })
        // A log that nobody reads any more (a closed pipe or terminal) must not end a daemon.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let _ = registry.with(layer).try_init();
}

/// From now on every record of this process says which incarnation it is.
pub fn set_epoch(epoch: u32) {
    EPOCH.store(epoch, Ordering::Relaxed);
}

/// Makes a panic anywhere the end of the process: a daemon that has lost one of its tasks looks alive and is
/// not, while one that has died is replaced.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(event = %Event::InternalError, "a bug in patou, please report it: {panic}");
        std::process::abort();
    }));
}

/// Why a part cannot start or go on, as records of the journal, one for each line. `false` if stderr does not go
/// there: then it is for the caller to say it.
pub fn log_fatal(part: &str, event: Event, text: &str) -> bool {
    if !stderr_is_the_journal() {
        return false;
    }
    let Ok(journal) = Journal::open(LogContext::part(part, "")) else { return false };
    // The part may have its subscriber already, which knows more of it.
    let _ = tracing_subscriber::registry().with(journal).try_init();
    for line in text.lines() {
        tracing::error!(%event, "{line}");
    }
    true
}

/// Whether systemd connected stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
pub fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", status.dev(), status.ino())
}
