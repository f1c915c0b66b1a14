//! Records as journald receives them.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Seek};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, recvmsg};

use super::super::filter::LogFilter;
use super::super::subscriber::LogSubscriber;
use super::super::writer::{LogOutput, LogWriter};
use super::*;

/// A socket in place of journald's.
struct FakeJournal {
    dir: PathBuf,
    socket: UnixDatagram,
}

/// The fields of a record by name.
type Received = BTreeMap<String, String>;

impl FakeJournal {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("patou-journal-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { dir, socket }
    }

    fn journal(&self, context: LogContext) -> Journal {
        Journal::at(&self.dir.join("socket"), context).unwrap()
    }

    /// The records that `log` sends.
    fn receive(&self, context: LogContext, log: impl FnOnce()) -> Vec<Received> {
        let (filter, _) = LogFilter::parse("trace");
        let writer = LogWriter::new(LogOutput::Journal(self.journal(context)));
        tracing::subscriber::with_default(LogSubscriber::new(filter, writer.clone()), log);
        writer.flush();
        std::iter::from_fn(|| self.next()).collect()
    }

    fn next(&self) -> Option<Received> {
        let mut bytes = vec![0; 1 << 20];
        let mut control = cmsg_space!([i32; 1]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, fd) = {
            let got = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
            let fd = got.cmsgs().unwrap().find_map(|message| match message {
                ControlMessageOwned::ScmRights(fds) => crate::sys::own_fds(fds).next(),
                _ => None,
            });
            (got.bytes, fd)
        };
        bytes.truncate(length);
        if let Some(fd) = fd {
            let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap());
            assert!(seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL));
            let mut file = File::from(fd);
            file.rewind().unwrap();
            bytes.clear();
            file.read_to_end(&mut bytes).unwrap();
        }
        Some(decode(&bytes))
    }
}

impl Drop for FakeJournal {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Decodes a record as journald does. Fails on a duplicate field.
fn decode(mut bytes: &[u8]) -> Received {
    let mut fields = Received::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|&b| b == b'\n').unwrap();
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let (name, value);
        if let Some(equals) = line.iter().position(|&b| b == b'=') {
            (name, value, bytes) = (&line[..equals], &line[equals + 1..], rest);
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(rest[length], b'\n');
            (name, value, bytes) = (line, &rest[..length], &rest[length + 1..]);
        }
        let [name, value] = [name, value].map(|text| String::from_utf8(text.to_vec()).unwrap());
        assert!(
            name.len() <= NAME_MAX && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        );
        assert_eq!(fields.insert(name.clone(), value), None, "{name} is a duplicate");
    }
    fields
}

fn assert_fields(record: &Received, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        assert_eq!(record.get(*name).map(String::as_str), Some(*value), "{name} in {record:?}");
    }
}

#[test]
fn record_has_the_fields_of_its_call_and_of_its_process() {
    let fake = FakeJournal::new();
    let records = fake.receive(LogContext::worker("web/2", "shop"), || {
        tracing::warn!(worker = "web/2", lease = "3.7", status = 502, event = %Event::RequestFailed,
            "request failed: {}", "x");
        tracing::info!("plain");
    });
    let [failed, plain] = &records[..] else { panic!("{records:?}") };
    assert_fields(
        failed,
        &[
            ("MESSAGE", "request failed: x"),
            ("MESSAGE_ID", &format!("{:032x}", Event::RequestFailed.id())),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "patou"),
            ("PATOU_EVENT", "request-failed"),
            ("PATOU_SET", "shop"),
            ("PATOU_PART", "worker web/2"),
            ("PATOU_POOL", "web"),
            ("PATOU_WORKER", "web/2"),
            ("PATOU_LEASE", "3.7"),
            ("PATOU_STATUS", "502"),
            ("CODE_FILE", file!()),
        ],
    );
    assert_fields(
        plain,
        &[
            ("MESSAGE", "plain"),
            ("PRIORITY", "6"),
            ("PATOU_SET", "shop"),
            ("PATOU_WORKER", "web/2"),
            ("PATOU_POOL", "web"),
        ],
    );
    assert!(!plain.contains_key("MESSAGE_ID") && !plain.contains_key("PATOU_EVENT"), "{plain:?}");
}

#[test]
fn record_about_another_worker_does_not_carry_the_epoch_of_the_process() {
    let fake = FakeJournal::new();
    super::super::set_epoch(7);
    let records = fake.receive(LogContext::part("dispatcher", "shop"), || {
        tracing::error!(worker = "a_b/12", "about a worker");
        tracing::error!(worker = "a_b/12", epoch = 3, part = "worker a_b/12", "about an epoch of the worker");
        tracing::error!(worker = None::<&str>, "about itself");
    });
    super::super::set_epoch(0);
    let [worker, with_epoch, own] = &records[..] else { panic!("{records:?}") };
    assert_fields(
        worker,
        &[("PATOU_WORKER", "a_b/12"), ("PATOU_POOL", "a_b"), ("PATOU_PART", "dispatcher"), ("PRIORITY", "3")],
    );
    assert!(!worker.contains_key("PATOU_EPOCH"), "{worker:?}");
    assert_fields(with_epoch, &[("PATOU_EPOCH", "3"), ("PATOU_PART", "worker a_b/12")]);
    assert_fields(own, &[("PATOU_EPOCH", "7")]);
    assert!(!own.contains_key("PATOU_WORKER") && !own.contains_key("PATOU_POOL"), "{own:?}");
}

#[test]
fn values_arrive_unchanged() {
    let fake = FakeJournal::new();
    let values = ["", "=", "a=b", "two\nlines", "\n", "MESSAGE=forged\nPRIORITY=0\n", "caf\u{e9} \u{1f415}"];
    for value in values {
        let records = fake.receive(LogContext::part("watchdog", "s"), || tracing::info!(value, "{value}"));
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_fields(record, &[("MESSAGE", value), ("PATOU_VALUE", value), ("PRIORITY", "6")]);
    }
    assert_eq!(journal_name("user.id"), "PATOU_USER_ID");
    assert_eq!(journal_name("\u{e9}=x"), "PATOU___X");
    assert_eq!(journal_name(&"x".repeat(100)).len(), NAME_MAX);
}

#[test]
fn large_record_is_sent_as_a_sealed_file() {
    let fake = FakeJournal::new();
    let large = "0123456789abcdef".repeat(1 << 17);
    let records = fake.receive(LogContext::part("watchdog", "s"), || tracing::info!("{large}"));
    let [record] = &records[..] else { panic!("{} records", records.len()) };
    assert!(record["MESSAGE"] == large && record["PATOU_SET"] == "s");
}

#[test]
fn records_carry_the_fields_of_their_spans() {
    let fake = FakeJournal::new();
    let records = fake.receive(LogContext::worker("web/1", "s"), || {
        let outer = tracing::info_span!("outer", lease = "1.1", user = "a", late = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("late", 5);
        let _inner = tracing::info_span!("inner", user = "b").entered();
        tracing::info!("within");
        assert_eq!(tracing::Span::current().metadata().map(|span| span.name()), Some("inner"));
    });
    assert_fields(
        &records[0],
        &[("PATOU_LEASE", "1.1"), ("PATOU_USER", "b"), ("PATOU_LATE", "5"), ("MESSAGE", "within")],
    );
}

#[test]
fn unresponsive_journal_delays_no_caller_and_later_receives_the_number_of_lost_records() {
    let fake = FakeJournal::new();
    let writer = LogWriter::new(LogOutput::Journal(fake.journal(LogContext::part("watchdog", "s"))));
    let record = [b"MESSAGE=", "x".repeat(1 << 10).as_bytes(), b"\n"].concat();
    // More than the socket and the queue hold together.
    let sent = 2000;
    (0..sent).for_each(|_| writer.push(record.clone()));
    fake.socket.set_nonblocking(false).unwrap();
    fake.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut received = 0;
    let notice = loop {
        let record = fake.next().expect("a notice follows the records that were kept");
        if record.contains_key("PATOU_LOST") {
            break record;
        }
        received += 1;
    };
    assert_fields(&notice, &[("PATOU_EVENT", "records-lost"), ("PATOU_SET", "s"), ("PRIORITY", "4")]);
    assert_eq!(received + notice["PATOU_LOST"].parse::<u64>().unwrap(), sent);
    writer.push(b"MESSAGE=again\n".to_vec());
    assert_fields(&fake.next().unwrap(), &[("MESSAGE", "again")]);
}

#[test]
fn without_a_journal_open_fails_and_the_next_journal_receives_the_number_of_lost_records() {
    let fake = FakeJournal::new();
    let path = fake.dir.join("later");
    let journal = Journal::at(&path, LogContext::default()).unwrap();
    assert!(journal.transmit(&[]).is_err());
    let writer = LogWriter::new(LogOutput::Journal(journal));
    (0..3).for_each(|_| writer.push(b"MESSAGE=x\n".to_vec()));
    writer.flush();
    let later = FakeJournal { dir: fake.dir.join("unused"), socket: UnixDatagram::bind(path).unwrap() };
    std::fs::create_dir(&later.dir).unwrap();
    writer.push(b"MESSAGE=again\n".to_vec());
    assert_fields(&later.next().unwrap(), &[("PATOU_LOST", "3")]);
    assert_fields(&later.next().unwrap(), &[("MESSAGE", "again")]);
}
