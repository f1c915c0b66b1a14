//! `patou bench`: it measures, and leaves nothing behind however it ends.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::*;

/// With a temporary directory of its own.
fn bench(set: &TestSet, args: &[&str]) -> Command {
    let mut command = set.command(&[&["bench"], args].concat());
    command.env("TMPDIR", set.test_dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Directories of benchmarks.
fn left(set: &TestSet) -> Vec<String> {
    let names = fs::read_dir(set.test_dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("bench")).collect()
}

/// Segments of the set of the benchmark with this process id.
fn segments_of(pid: u32) -> usize {
    let names = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(&format!(".bench{pid}."))).count()
}

#[test]
fn each_measures_beside_its_baseline_and_leaves_nothing() {
    let set = TestSet::prepare(ECHO);
    for (args, rows) in [
        (
            &["exchange", "--count", "20", "--rounds", "1"][..],
            &["bare named pipes", "both ends asleep", "spinning"][..],
        ),
        (&["request", "--seconds", "0.1", "--rounds", "1"], &["bare hyper", "patou, redirect"]),
        (&["upload", "--mib", "1", "--rounds", "1"], &["a bare socket", "bare hyper", "patou, redirect"]),
    ] {
        let child = bench(&set, args).spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{args:?}");
        for row in rows {
            let line = out.lines().find(|line| line.contains(row)).unwrap_or_else(|| panic!("{row}: {out}"));
            let ratio: f64 = line.split_whitespace().last().unwrap().parse().unwrap();
            assert!(ratio > 0.0 && ratio.is_finite(), "{line}");
        }
        assert_eq!((left(&set), segments_of(pid), set.segments()), (vec![], 0, vec![]));
    }
}

#[test]
fn told_to_stop_it_stops_its_set_and_killed_it_takes_it_along() {
    let set = TestSet::prepare(ECHO);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let child = bench(&set, &["request", "--seconds", "60"]).spawn().unwrap();
        let pid = child.id();
        wait_until("its set is there", || segments_of(pid) == 4);
        signal_to(pid, signal);
        let output = child.wait_with_output().unwrap();
        if signal == Signal::SIGTERM {
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), "patou: interrupted\n"));
            assert_eq!(left(&set), Vec::<String>::new());
        }
        wait_until("its set is gone", || segments_of(pid) == 0);
    }
    // The directory of the one that was killed goes with the next.
    assert_eq!(left(&set).len(), 1);
    let output = bench(&set, &["upload", "--mib", "1", "--rounds", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(left(&set), Vec::<String>::new());
}
