//! `patou bench`: measures, and leaves nothing behind when it finishes, stops or is killed.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::*;

/// A benchmark with a private temporary directory.
fn bench(set: &TestSet, args: &[&str]) -> Command {
    let mut command = set.command(&[&["bench"], args].concat());
    command.env("TMPDIR", set.test_dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The directories of benchmarks.
fn benchmark_dirs(set: &TestSet) -> Vec<String> {
    let names = fs::read_dir(set.test_dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("bench")).collect()
}

/// How many segments the set of the benchmark with this pid has.
fn segments_of(pid: u32) -> usize {
    let names = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(&format!(".bench{pid}."))).count()
}

#[test]
fn each_benchmark_measures_against_its_baseline_and_leaves_nothing() {
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
        assert_eq!((benchmark_dirs(&set), segments_of(pid), set.segments()), (vec![], 0, vec![]));
    }
}

#[test]
fn set_of_a_stopped_or_killed_benchmark_is_removed() {
    let set = TestSet::prepare(ECHO);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let child = bench(&set, &["request", "--seconds", "60"]).spawn().unwrap();
        let pid = child.id();
        wait_until("the set of the benchmark exists", || segments_of(pid) == 4);
        signal_to(pid, signal);
        let output = child.wait_with_output().unwrap();
        if signal == Signal::SIGTERM {
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), "patou: interrupted\n"));
            assert_eq!(benchmark_dirs(&set), Vec::<String>::new());
        }
        wait_until("the set of the benchmark is removed", || segments_of(pid) == 0);
    }
    // The next benchmark removes the directory of the killed one.
    assert_eq!(benchmark_dirs(&set).len(), 1);
    let output = bench(&set, &["upload", "--mib", "1", "--rounds", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(benchmark_dirs(&set), Vec::<String>::new());
}
