//! Lines for people.

use std::fmt;

use nix::time::{ClockId, clock_gettime};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How a line looks.
pub struct Lines {
    /// Who speaks.
    pub part: String,
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
        let (first, more) = parts.message.split_once('\n').map_or((&*parts.message, None), |(f, m)| (f, Some(m)));
        let text = format!("{level}{first}");
        // Several lines say all there is to say: then the fields are for the journal alone.
        let fields = if more.is_none() { parts.fields.as_str() } else { "" };
        let gap = if fields.is_empty() { 0 } else { 44 };
        writeln!(out, "{}  {:<16} {mark}{text:<gap$}{reset}{fields}", time_of_day(), self.part)?;
        more.into_iter().flat_map(str::lines).try_for_each(|line| writeln!(out, "    {line}"))
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
            // For the journal alone: here the sentence says it.
            "event" | "part" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // One event is one line, whatever is in it.
        let quoted = value.chars().any(|c| c.is_control() || c == ' ' || c == '"');
        match (field.name(), quoted) {
            ("message", _) => self.message.push_str(&value.replace(['\n', '\r'], " ")),
            ("event" | "part", _) => {}
            (name, true) => self.fields.push_str(&format!(" {name}={value:?}")),
            (name, false) => self.fields.push_str(&format!(" {name}={value}")),
        }
    }
}
