//! Records and their reader: a pipe in the place of stderr cannot be given to a process alone, so the process tests in
//! `tests/blocked_peers.rs` cover stderr itself.

use std::io::Read;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

#[test]
fn writes_wait_for_the_reader_of_a_descriptor_that_another_process_made_non_blocking() {
    let (mut reader, writer) = io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let record = vec![b'x'; 1 << 20];
    let length = record.len();
    let written = std::thread::spawn(move || write_all(&writer, &record));
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    written.join().unwrap().unwrap();
    assert_eq!(received.len(), length);
}

#[test]
fn write_without_a_reader_fails() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    assert!(write_all(&writer, b"x").is_err());
}
