//! The log as the journal wants it: its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! `message` becomes `MESSAGE`, every other field `PATOU_` and its name in capitals; a field `event` also brings
//! its `MESSAGE_ID`, and a field `worker` its `PATOU_POOL`. What a call does not say, the process does: set, part,
//! worker, epoch.
//!
//! Not through tracing-journald, for three reasons: its prefix holds for all fields or for none, so that either
//! `MESSAGE_ID` or the short names would be lost; it cannot be shown another socket, for a test; and it waits for
//! the journal for ever, as nobody may who guards others.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{EPOCH, Event, LogContext};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How long a record may wait for a journal that is behind. One that does not read at all is waited for once;
/// from then on only by errors, until it takes something again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Longest name of a field (systemd.journal-fields(7)).
const NAME_MAX: usize = 64;

/// The journal as a layer of `tracing`.
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    speaker: LogContext,
    /// It did not take the last record.
    deaf: AtomicBool,
    /// Records that it did not take, and that have not been told of.
    lost: AtomicU64,
}

impl Journal {
    /// The journal of this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(speaker: LogContext) -> io::Result<Self> {
        let journal = Self::at(Path::new(SOCKET), speaker)?;
        // An empty message is thrown away by a journal, and refused where there is none.
        journal.pass(&[], MsgFlags::empty())?;
        Ok(journal)
    }

    fn at(path: &Path, speaker: LogContext) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let (deaf, lost) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { socket, path: path.to_owned(), speaker, deaf, lost })
    }

    /// Sends a record of this level, and before it how many are missing.
    fn send(&self, level: Level, record: &[u8]) {
        let deaf = self.deaf.load(Ordering::Relaxed);
        let flags = if deaf && level != Level::ERROR { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        let missing = self.lost.swap(0, Ordering::Relaxed);
        let sent = match missing {
            0 => Ok(()),
            _ => self.pass(&self.confession(missing), flags),
        };
        let unsaid = if sent.is_ok() { 0 } else { missing };
        let sent = sent.and_then(|()| self.pass(record, flags));
        self.deaf.store(sent.is_err(), Ordering::Relaxed);
        // Nowhere left to say so but in the next record.
        self.lost.fetch_add(unsaid + u64::from(sent.is_err()), Ordering::Relaxed);
    }

    fn confession(&self, missing: u64) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.set("MESSAGE", format!("the journal did not take {missing} records of this process"));
        fields.set("PATOU_LOST", missing.to_string());
        fields.set_event(Event::RecordsLost);
        self.complete(&mut fields, Level::WARN);
        fields.encode()
    }

    /// Adds what every record of this process has.
    fn complete(&self, fields: &mut Fields, level: Level) {
        let LogContext { part, set, worker } = &self.speaker;
        let own = fields.get("PATOU_WORKER").is_none_or(|named| Some(named) == worker.as_deref());
        let epoch = EPOCH.load(Ordering::Relaxed);
        if own && epoch > 0 {
            fields.fallback("PATOU_EPOCH", || epoch.to_string());
        }
        if let Some(worker) = worker {
            fields.fallback("PATOU_WORKER", || worker.clone());
        }
        if let Some((pool, _)) = fields.get("PATOU_WORKER").and_then(|worker| worker.rsplit_once('/')) {
            let pool = pool.to_owned();
            fields.fallback("PATOU_POOL", || pool);
        }
        if !set.is_empty() {
            fields.fallback("PATOU_SET", || set.clone());
        }
        fields.fallback("PATOU_PART", || part.clone());
        fields.set("PRIORITY", priority(level).to_string());
        fields.set("SYSLOG_IDENTIFIER", "patou".to_owned());
    }

    /// Hands one message over; what is too large for one goes as a sealed file.
    fn pass(&self, message: &[u8], flags: MsgFlags) -> io::Result<()> {
        match self.pass_bytes(message, &[], flags) {
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let mut file =
                    File::from(memfd_create("patou-record", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?);
                file.write_all(message)?;
                // Journald maps it, and so takes it only if nobody can change it any more.
                let seals =
                    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
                fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
                self.pass_bytes(&[], &[file.as_raw_fd()], flags).map_err(io::Error::from)
            }
            result => result.map_err(io::Error::from),
        }
    }

    fn pass_bytes(&self, bytes: &[u8], fds: &[i32], flags: MsgFlags) -> nix::Result<()> {
        let address = UnixAddr::new(&self.path)?;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, Some(&address)) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Values<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        // Patou has no spans; a worker that is somebody's own program may. The inner one prevails.
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(outer) = span.extensions().get::<Fields>() {
                outer.0.iter().for_each(|(name, value)| fields.set(name.clone(), value.clone()));
            }
        }
        event.record(&mut fields);
        fields.set_place(event.metadata());
        let level = *event.metadata().level();
        self.complete(&mut fields, level);
        self.send(level, &fields.encode());
    }
}

/// syslog(3)'s number for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The fields of one record, each once.
#[derive(Debug, Default)]
struct Fields(Vec<(Cow<'static, str>, String)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: impl Into<Cow<'static, str>>, value: String) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Sets what is not set.
    fn fallback(&mut self, name: &'static str, value: impl FnOnce() -> String) {
        if self.get(name).is_none() {
            self.set(name, value());
        }
    }

    fn set_event(&mut self, event: Event) {
        self.set("MESSAGE_ID", format!("{:032x}", event.id()));
        self.set("PATOU_EVENT", event.name().to_owned());
    }

    /// Where in the source the record was made.
    fn set_place(&mut self, metadata: &Metadata<'_>) {
        self.set("TARGET", metadata.target().to_owned());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            self.set("CODE_FILE", file.to_owned());
            self.set("CODE_LINE", line.to_string());
        }
    }

    /// In the journal's format: `NAME=value`, or with the length where a value has several lines.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        for (name, value) in &self.0 {
            out.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                out.push(b'\n');
                out.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                out.push(b'=');
            }
            out.extend_from_slice(value.as_bytes());
            out.push(b'\n');
        }
        out
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event"
            && let Some(event) = Event::named(value)
        {
            return self.set_event(event);
        }
        // As access logs write what there is not.
        if matches!(field.name(), "worker" | "lease") && value == "-" {
            return;
        }
        self.set(journal_name(field.name()), value.to_owned());
    }
}

/// The name of a field in the journal.
fn journal_name(name: &str) -> Cow<'static, str> {
    match name {
        "message" => "MESSAGE".into(),
        "set" => "PATOU_SET".into(),
        "worker" => "PATOU_WORKER".into(),
        "lease" => "PATOU_LEASE".into(),
        "epoch" => "PATOU_EPOCH".into(),
        _ => {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            "PATOU_".chars().chain(name.chars().map(plain)).take(NAME_MAX).collect::<String>().into()
        }
    }
}

#[cfg(test)]
mod tests;
