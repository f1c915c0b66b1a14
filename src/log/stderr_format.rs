//! Log lines on stderr, for people.

use std::fmt;

use nix::time::{ClockId, clock_gettime};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// `TIME  PART  MESSAGE  FIELDS`, in colour on a terminal.
pub(super) struct StderrFormat {
    /// The part that logs.
    pub part: String,
    /// Whether stderr is a terminal.
    pub colours: bool,
}

impl StderrFormat {
    /// The lines of an event, with their line ends.
    pub(super) fn format(&self, event: &Event<'_>) -> String {
        let mut text = LineText::default();
        event.record(&mut text);
        self.lines(*event.metadata().level(), &text)
    }

    /// The line that reports how many lines were dropped.
    pub(super) fn lost_records_notice(&self, lost: u64) -> String {
        let message = format!("standard error was not read in time: {lost} log lines of this process were dropped");
        self.lines(Level::WARN, &LineText { message, fields: String::new() })
    }

    fn lines(&self, level: Level, text: &LineText) -> String {
        let (colour, reset) = match (self.colours, level) {
            (true, Level::ERROR) => ("\x1b[1;31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::DEBUG | Level::TRACE) => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        let level = match level {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let (first, more) = text.message.split_once('\n').map_or((&*text.message, None), |(f, m)| (f, Some(m)));
        let message = format!("{level}{first}");
        // A message of several lines is complete without the fields.
        let fields = if more.is_none() { text.fields.as_str() } else { "" };
        let width = if fields.is_empty() { 0 } else { 44 };
        let mut lines = format!("{}  {:<16} {colour}{message:<width$}{reset}{fields}\n", time_of_day(), self.part);
        more.into_iter().flat_map(str::lines).for_each(|line| lines.extend(["    ", line, "\n"]));
        lines
    }
}

/// UTC, to the millisecond.
fn time_of_day() -> String {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    let (s, ms) = (now.0.rem_euclid(86_400), now.1 / 1_000_000);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

/// The message of an event, and its fields as ` name=value`.
#[derive(Default)]
struct LineText {
    message: String,
    fields: String,
}

impl Visit for LineText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // For the journal only: the message contains both.
            "event" | "part" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // A value must not break the line.
        let quoted = value.chars().any(|c| c.is_control() || c == ' ' || c == '"');
        match (field.name(), quoted) {
            ("message", _) => self.message.push_str(&value.replace(['\n', '\r'], " ")),
            ("event" | "part", _) => {}
            (name, true) => self.fields.push_str(&format!(" {name}={value:?}")),
            (name, false) => self.fields.push_str(&format!(" {name}={value}")),
        }
    }
}
