//! The log: one line for each event that an operator needs.
//!
//! Under systemd the log goes to the journal with its fields (`src/log/journal.rs`), otherwise to stderr as text
//! (`src/log/stderr_format.rs`). The calls are the same: `tracing`, with short field names.
//!
//! ```text
//! 12:04:01.137  watchdog      worker is ready                     worker=default/1 pid=4711
//! ```
//!
//! A thread writes the records (`src/log/writer.rs`), so that no caller waits for a reader.
//!
//! A message of several lines is complete in itself: on stderr its other lines follow, indented, without fields.
//!
//! Two fields are written to the journal only: `event`, an [`Event`], and `part`, the part that the watchdog's message
//! is about.
//!
//! `PATOU_LOG` selects what is logged: `debug`, `warn`, `patou::dispatcher=trace` (`src/log/filter.rs`). The default is
//! `info`.

mod context;
mod escape;
mod events;
mod filter;
mod journal;
mod stderr_format;
mod subscriber;
mod throttle;
mod writer;

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

pub(crate) use context::{LogContext, set_epoch};
pub(crate) use escape::escape_control_chars;
pub(crate) use events::Event;
use filter::LogFilter;
use journal::Journal;
use stderr_format::StderrFormat;
use subscriber::LogSubscriber;
pub(crate) use throttle::LogThrottle;
use writer::{LogOutput, LogWriter};

/// The log of this process.
static WRITER: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Starts logging for this process. Does nothing if the program has installed a subscriber already.
pub(crate) fn init(context: LogContext) {
    let list = std::env::var("PATOU_LOG").unwrap_or_default();
    let (filter, invalid) = LogFilter::parse(&list);
    let journal = if stderr_is_the_journal() { Journal::open(context.clone()).ok() } else { None };
    let output = journal.map_or_else(|| stderr_output(context.part), LogOutput::Journal);
    if install(filter, output) {
        for member in invalid {
            tracing::warn!(
                "PATOU_LOG: ignoring `{member}`: expected LEVEL or TARGET=LEVEL, such as patou::worker=debug"
            );
        }
    }
}

fn stderr_output(part: String) -> LogOutput {
    LogOutput::Stderr(StderrFormat { part, colours: io::stderr().is_terminal() })
}

/// Whether this process had no subscriber yet.
fn install(filter: LogFilter, output: LogOutput) -> bool {
    let writer = LogWriter::new(output);
    let installed = tracing::subscriber::set_global_default(LogSubscriber::new(filter, writer.clone())).is_ok();
    installed && WRITER.set(writer).is_ok()
}

/// Waits until the records so far are written, but only shortly for a reader that does not read. For the moments before
/// this process ends or executes another program.
pub(crate) fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush();
    }
}

/// Ends this process with its last records written: see [`flush`].
pub(crate) fn exit(code: i32) -> ! {
    flush();
    std::process::exit(code)
}

/// Prints why a part ends on stderr, which is not the journal, after its last records. Waits as [`flush`] does.
pub(crate) fn print_fatal(text: &str) {
    let writer = WRITER.get().filter(|writer| matches!(writer.output(), LogOutput::Stderr(_))).cloned();
    let writer = writer.unwrap_or_else(|| LogWriter::new(stderr_output(String::new())));
    writer.push(format!("{text}\n").into_bytes());
    writer.flush();
}

/// Aborts the process on a panic in any task: a daemon without one of its tasks looks alive, while a dead one is
/// replaced.
pub(crate) fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(event = %Event::InternalError, "internal error in patou, please report it: {panic}");
        flush();
        std::process::abort();
    }));
}

/// Logs why a part cannot start or continue, one record for each line of `text`. Returns false if stderr is not the
/// journal: the caller prints the text then.
pub(crate) fn log_fatal(part: &str, event: Event, text: &str) -> bool {
    if !stderr_is_the_journal() {
        return false;
    }
    let Ok(journal) = Journal::open(LogContext::part(part, "")) else { return false };
    // A part that has called `init` keeps its subscriber, which knows the set and the epoch.
    install(LogFilter::default(), LogOutput::Journal(journal));
    for line in text.lines() {
        tracing::error!(%event, "{line}");
    }
    true
}

/// Whether systemd has connected stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
pub(crate) fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", status.dev(), status.ino())
}
