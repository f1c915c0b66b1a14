//! Records as a journal would get them.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Seek};
use std::sync::atomic::AtomicU32;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, recvmsg};
use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// A socket that takes the journal's place.
struct Fake {
    dir: PathBuf,
    socket: UnixDatagram,
}

type Seen = BTreeMap<String, String>;

impl Fake {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("patou-journal-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { dir, socket }
    }

    fn journal(&self, speaker: LogContext) -> Journal {
        Journal::at(&self.dir.join("socket"), speaker).unwrap()
    }

    /// The records that `speak` makes.
    fn hear(&self, speaker: LogContext, speak: impl FnOnce()) -> Vec<Seen> {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(self.journal(speaker)), speak);
        std::iter::from_fn(|| self.next()).collect()
    }

    fn next(&self) -> Option<Seen> {
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

impl Drop for Fake {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// As journald reads it; a field that comes twice is a fault.
fn decode(mut bytes: &[u8]) -> Seen {
    let mut seen = Seen::new();
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
        assert_eq!(seen.insert(name.clone(), value), None, "{name} comes twice");
    }
    seen
}

fn has(seen: &Seen, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        assert_eq!(seen.get(*name).map(String::as_str), Some(*value), "{name} in {seen:?}");
    }
}

#[test]
fn a_record_has_the_fields_of_its_call_and_of_its_process() {
    let fake = Fake::new();
    let records = fake.hear(LogContext::worker("web/2", "shop"), || {
        tracing::warn!(worker = "web/2", lease = "3.7", status = 502, event = %Event::RequestFailed,
            "request failed: {}", "x");
        tracing::info!("plain");
    });
    let [failed, plain] = &records[..] else { panic!("{records:?}") };
    has(
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
    has(
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
fn who_speaks_of_a_worker_names_it_and_not_the_own_epoch() {
    let fake = Fake::new();
    super::super::set_epoch(7);
    let records = fake.hear(LogContext::part("dispatcher", "shop"), || {
        tracing::error!(worker = "a_b/12", "of a worker");
        tracing::error!(worker = "a_b/12", epoch = 3, part = "worker a_b/12", "of its epoch");
        tracing::error!(worker = None::<&str>, "of itself");
    });
    super::super::set_epoch(0);
    let [worker, its_epoch, own] = &records[..] else { panic!("{records:?}") };
    has(worker, &[("PATOU_WORKER", "a_b/12"), ("PATOU_POOL", "a_b"), ("PATOU_PART", "dispatcher"), ("PRIORITY", "3")]);
    assert!(!worker.contains_key("PATOU_EPOCH"), "{worker:?}");
    has(its_epoch, &[("PATOU_EPOCH", "3"), ("PATOU_PART", "worker a_b/12")]);
    has(own, &[("PATOU_EPOCH", "7")]);
    assert!(!own.contains_key("PATOU_WORKER") && !own.contains_key("PATOU_POOL"), "{own:?}");
}

#[test]
fn values_of_any_shape_arrive_as_they_are() {
    let fake = Fake::new();
    let odd = ["", "=", "a=b", "two\nlines", "\n", "MESSAGE=forged\nPRIORITY=0\n", "caf\u{e9} \u{1f415}"];
    for value in odd {
        let records = fake.hear(LogContext::part("watchdog", "s"), || tracing::info!(value, "{value}"));
        let [seen] = &records[..] else { panic!("{records:?}") };
        has(seen, &[("MESSAGE", value), ("PATOU_VALUE", value), ("PRIORITY", "6")]);
    }
    assert_eq!(journal_name("user.id"), "PATOU_USER_ID");
    assert_eq!(journal_name("\u{e9}=x"), "PATOU___X");
    assert_eq!(journal_name(&"x".repeat(100)).len(), NAME_MAX);
}

#[test]
fn what_is_too_large_for_a_message_comes_as_a_sealed_file() {
    let fake = Fake::new();
    let large = "0123456789abcdef".repeat(1 << 17);
    let records = fake.hear(LogContext::part("watchdog", "s"), || tracing::info!("{large}"));
    let [seen] = &records[..] else { panic!("{} records", records.len()) };
    assert!(seen["MESSAGE"] == large && seen["PATOU_SET"] == "s");
}

#[test]
fn fields_of_spans_are_in_the_records_within_them() {
    let fake = Fake::new();
    let records = fake.hear(LogContext::worker("web/1", "s"), || {
        let outer = tracing::info_span!("outer", lease = "1.1", user = "a", late = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("late", 5);
        let _inner = tracing::info_span!("inner", user = "b").entered();
        tracing::info!("within");
    });
    has(&records[0], &[("PATOU_LEASE", "1.1"), ("PATOU_USER", "b"), ("PATOU_LATE", "5"), ("MESSAGE", "within")]);
}

#[test]
fn a_journal_that_does_not_read_is_not_waited_for_and_learns_what_it_missed() {
    let fake = Fake::new();
    let journal = fake.journal(LogContext::part("watchdog", "s"));
    let mut sent = 0;
    while journal.lost.load(Ordering::Relaxed) < 5 {
        journal.send(Level::INFO, b"MESSAGE=x\n");
        sent += 1;
    }
    // An error waits for it, but not for ever.
    journal.send(Level::ERROR, b"MESSAGE=x\n");
    sent += 1;
    let lost = journal.lost.load(Ordering::Relaxed);
    assert_eq!(lost, 6);
    let heard = std::iter::from_fn(|| fake.next()).count();
    assert_eq!(heard as u64 + lost, sent);
    journal.send(Level::INFO, b"MESSAGE=again\n");
    let after: Vec<_> = std::iter::from_fn(|| fake.next()).collect();
    let [missing, again] = &after[..] else { panic!("{after:?}") };
    has(missing, &[("PATOU_EVENT", "records-lost"), ("PATOU_LOST", "6"), ("PATOU_SET", "s"), ("PRIORITY", "4")]);
    has(again, &[("MESSAGE", "again")]);
    assert_eq!(journal.lost.load(Ordering::Relaxed), 0);
}

#[test]
fn without_a_journal_nothing_is_opened_and_nothing_waits() {
    let fake = Fake::new();
    let nowhere = Journal::at(&fake.dir.join("nowhere"), LogContext::default()).unwrap();
    assert!(nowhere.pass(&[], MsgFlags::empty()).is_err());
    nowhere.send(Level::ERROR, b"MESSAGE=x\n");
    assert_eq!(nowhere.lost.load(Ordering::Relaxed), 1);
}
