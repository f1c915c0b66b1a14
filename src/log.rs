//! The log: one line per event that an operator needs.
//!
//! Started by systemd, it goes to the journal with its fields; otherwise to stderr, in lines for people:
//!
//! ```text
//! 12:04:01.137  watchdog      worker is ready                     worker=default/1 pid=4711
//! ```
//!
//! `PATOU_LOG` chooses what is logged, in the syntax of tracing's `EnvFilter`: `debug`, `warn`,
//! `patou::dispatcher=trace`. Without it: `info`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use nix::time::{ClockId, clock_gettime};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging for this process. `role` stands in every line: `watchdog`, `dispatcher`, `worker web/1`.
///
/// Does nothing if the program has its own subscriber already.
pub fn init(role: impl Into<String>) {
    let filter =
        EnvFilter::builder().with_env_var("PATOU_LOG").with_default_directive(Level::INFO.into()).from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        // No prefix: MESSAGE_ID and PATOU_* must come out under exactly these names.
        let _ = registry.with(journal.with_field_prefix(None)).try_init();
        return;
    }
    let lines = Lines { role: role.into() };
    let layer = tracing_subscriber::fmt::layer()
        .event_format(lines)
        // A log that nobody reads any more (a closed pipe or terminal) must not end a daemon.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let _ = registry.with(layer).try_init();
}

/// Makes a panic anywhere the end of the process: a daemon that has lost one of its tasks looks alive and is
/// not, while one that has died is replaced.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("a bug in patou, please report it: {panic}");
        std::process::abort();
    }));
}

/// Whether systemd connected stderr to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", status.dev(), status.ino())
}

/// Lines for people.
struct Lines {
    role: String,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        event.record(&mut parts);
        let (mark, reset) = match (out.has_ansi_escapes(), *event.metadata().level()) {
            (true, Level::ERROR) => ("\x1b[1;31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::DEBUG | Level::TRACE) => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let text = format!("{level}{}", parts.message);
        let gap = if parts.fields.is_empty() { 0 } else { 44 };
        writeln!(out, "{}  {:<16} {mark}{text:<gap$}{reset}{}", time_of_day(), self.role, parts.fields)
    }
}

/// UTC, to the millisecond.
fn time_of_day() -> String {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    let (s, ms) = (now.0.rem_euclid(86_400), now.1 / 1_000_000);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

#[derive(Default)]
struct Parts {
    message: String,
    fields: String,
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // One event is one line, whatever is in it.
        let quoted = value.chars().any(|c| c.is_control() || c == ' ' || c == '"');
        match (field.name(), quoted) {
            ("message", _) => self.message.push_str(&value.replace(['\n', '\r'], " ")),
            (name, true) => self.fields.push_str(&format!(" {name}={value:?}")),
            (name, false) => self.fields.push_str(&format!(" {name}={value}")),
        }
    }
}
