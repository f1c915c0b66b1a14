//! The log as records of the journal, in its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! `message` becomes `MESSAGE`; any other field becomes `PATOU_` and its name in capitals. A field `event` also sets
//! `MESSAGE_ID`, a field `worker` also sets `PATOU_POOL`. The context of the process adds set, part, worker and epoch
//! where the call does not set them.
//!
//! tracing-journald does not fit: its prefix applies to all fields or to none, so that either `MESSAGE_ID` or the short
//! names would be lost; tests cannot give it another socket; and it blocks its caller while the journal does not read.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};

use super::context::{LogContext, epoch};
use super::events::Event;

/// journald's socket.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest name of a field (systemd.journal-fields(7)).
const NAME_MAX: usize = 64;

/// The journal as an output of the log.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    context: LogContext,
}

impl Journal {
    /// The journal of this machine.
    ///
    /// # Errors
    /// If no journal is running.
    pub(super) fn open(context: LogContext) -> io::Result<Self> {
        let journal = Self::at(Path::new(SOCKET), context)?;
        // journald discards an empty message; without journald the call fails.
        match journal.send_datagram(&[], &[], MsgFlags::MSG_DONTWAIT) {
            Ok(()) | Err(Errno::EAGAIN) => Ok(journal),
            Err(error) => Err(error.into()),
        }
    }

    fn at(path: &Path, context: LogContext) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::unbound()?, path: path.to_owned(), context })
    }

    /// A record that reports how many records were lost.
    pub(super) fn lost_records_notice(&self, lost: u64) -> Vec<u8> {
        let mut fields = JournalFields::default();
        fields.set("MESSAGE", format!("the journal did not accept {lost} records of this process: they are lost"));
        fields.set("PATOU_LOST", lost.to_string());
        fields.set_event(Event::RecordsLost);
        self.add_context(&mut fields, Level::WARN);
        fields.encode()
    }

    /// Adds the fields that every record of this process has.
    fn add_context(&self, fields: &mut JournalFields, level: Level) {
        let LogContext { part, set, worker } = &self.context;
        // The epoch of this process does not belong to a record about another worker.
        let is_own = fields.get("PATOU_WORKER").is_none_or(|named| Some(named) == worker.as_deref());
        if is_own && let Some(epoch) = epoch() {
            fields.set_default("PATOU_EPOCH", || epoch.to_string());
        }
        if let Some(worker) = worker {
            fields.set_default("PATOU_WORKER", || worker.clone());
        }
        if let Some((pool, _)) = fields.get("PATOU_WORKER").and_then(|worker| worker.rsplit_once('/')) {
            let pool = pool.to_owned();
            fields.set_default("PATOU_POOL", || pool);
        }
        if !set.is_empty() {
            fields.set_default("PATOU_SET", || set.clone());
        }
        fields.set_default("PATOU_PART", || part.clone());
        fields.set("PRIORITY", priority(level).to_string());
        fields.set("SYSLOG_IDENTIFIER", "patou".to_owned());
    }

    /// Sends one message, and waits for the journal to have room for it; a message that is too large for a datagram goes
    /// as a sealed file.
    pub(super) fn transmit(&self, message: &[u8]) -> io::Result<()> {
        match self.send_datagram(message, &[], MsgFlags::empty()) {
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let mut file =
                    File::from(memfd_create("patou-record", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?);
                file.write_all(message)?;
                // journald maps the file, and accepts it only if it can no longer change.
                let seals =
                    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
                fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
                self.send_datagram(&[], &[file.as_raw_fd()], MsgFlags::empty()).map_err(io::Error::from)
            }
            result => result.map_err(io::Error::from),
        }
    }

    fn send_datagram(&self, bytes: &[u8], fds: &[i32], flags: MsgFlags) -> nix::Result<()> {
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

impl Journal {
    /// The record of an event. `fields`: those of the spans around it. patou has no spans; a program worker may have some.
    pub(super) fn record(&self, event: &tracing::Event<'_>, mut fields: JournalFields) -> Vec<u8> {
        event.record(&mut fields);
        fields.set_source(event.metadata());
        self.add_context(&mut fields, *event.metadata().level());
        fields.encode()
    }
}

/// The syslog(3) priority of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The fields of one record, without duplicates.
#[derive(Debug, Default)]
pub(super) struct JournalFields(Vec<(Cow<'static, str>, String)>);

impl JournalFields {
    /// Adds all fields of `other`, which override those of the same name.
    pub(super) fn merge(&mut self, other: &JournalFields) {
        other.0.iter().for_each(|(name, value)| self.set(name.clone(), value.clone()));
    }

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

    /// Sets a field that is not set yet.
    fn set_default(&mut self, name: &'static str, value: impl FnOnce() -> String) {
        if self.get(name).is_none() {
            self.set(name, value());
        }
    }

    fn set_event(&mut self, event: Event) {
        self.set("MESSAGE_ID", format!("{:032x}", event.id()));
        self.set("PATOU_EVENT", event.name().to_owned());
    }

    /// The line in the source that made the record.
    fn set_source(&mut self, metadata: &Metadata<'_>) {
        self.set("TARGET", metadata.target().to_owned());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            self.set("CODE_FILE", file.to_owned());
            self.set("CODE_LINE", line.to_string());
        }
    }

    /// In the journal's format: `NAME=value`, or the length before a value of several lines.
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

impl Visit for JournalFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event"
            && let Some(event) = Event::named(value)
        {
            return self.set_event(event);
        }
        // Access logs write a missing value as `-`.
        if matches!(field.name(), "worker" | "lease") && value == "-" {
            return;
        }
        self.set(journal_name(field.name()), value.to_owned());
    }
}

/// The journal's name for a field of tracing.
fn journal_name(name: &str) -> Cow<'static, str> {
    match name {
        "message" => "MESSAGE".into(),
        "set" => "PATOU_SET".into(),
        "worker" => "PATOU_WORKER".into(),
        "lease" => "PATOU_LEASE".into(),
        "epoch" => "PATOU_EPOCH".into(),
        _ => {
            let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            "PATOU_".chars().chain(name.chars().map(allowed)).take(NAME_MAX).collect::<String>().into()
        }
    }
}

#[cfg(test)]
mod tests;
