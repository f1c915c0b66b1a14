//! `patou drill` on sets of its own and on running ones: every promise holds, a set that breaks one is found out, and
//! nothing is left.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

fn drill(args: &[&str]) -> Command {
    let mut command = Command::new(PATOU);
    command.arg("drill").args(args).stdin(Stdio::null()).env_remove("PATOU_CONFIG");
    command
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

/// What there is of a drill's own set: its pid is in every name.
fn left_of(pid: u32) -> Vec<String> {
    let mark = format!("drill{pid}");
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let mut left: Vec<_> = names("/dev/shm").into_iter().filter(|name| name.contains(&format!(".{mark}."))).collect();
    let pids = names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok());
    left.extend(pids.filter(|pid| {
        let read = |what| text(&fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default());
        read("environ").contains(&format!("patou-{mark}/")) || read("cmdline").contains(&format!("patou-{mark}/"))
    }));
    let top = std::env::temp_dir().join(format!("patou-{mark}"));
    left.extend(top.exists().then(|| top.display().to_string()));
    left
}

#[test]
fn a_short_drill_finds_nothing_and_leaves_nothing() {
    for seed in ["11", "12", "13"] {
        let mut command = drill(&["--seed", seed, "--faults", "40", "--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let report = report(&output);
        assert!(output.status.success(), "{report:#}\n{}", text(&output.stderr));
        assert_eq!((report["violations"].as_array().unwrap().len(), report["faults"].as_u64()), (0, Some(40)));
        assert_eq!(report["skipped"], Value::Array(Vec::new()), "every fault could be injected");
        let listeners = report["by_listener"].as_array().unwrap();
        assert_eq!(listeners.len(), 12);
        assert!(listeners.iter().all(|row| row["served"].as_u64() > Some(0)), "{report:#}");
        assert!(report["starts_on_record"].as_u64() > Some(10), "{report:#}");
        assert!(text(&output.stderr).starts_with(&format!("drill: seed {seed}, ")), "the seed is said first");
        assert_eq!(left_of(pid), Vec::<String>::new());
    }
}

#[test]
fn an_interrupted_drill_leaves_nothing() {
    let mut child =
        drill(&["--seed", "1", "--faults", "100000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let records = std::env::temp_dir().join(format!("patou-drill{pid}/records"));
    wait_until("requests are served", || fs::metadata(&records).is_ok_and(|file| file.len() > 100));
    std::thread::sleep(Duration::from_secs(1)); // for faults of whatever kind
    signal_to(pid, Signal::SIGINT);
    let ended = wait_some("the drill ends", || child.try_wait().unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(ended.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("violations: 0"), "what was done is told");
    assert_eq!(left_of(pid), Vec::<String>::new());
}

#[test]
fn a_set_that_somebody_else_started_is_injured_only_with_yes() {
    let set = Set::start(&format!(
        "{ECHO}\n[watchdog]\nrestarts = {{ max = 1000, within = \"1s\", delay = \"10ms\", delay_max = \"50ms\" }}\n"
    ));
    let before = set.status();
    let output = set.patou(&["drill", "--seed", "1", "--faults", "10"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let words = text(&output.stderr);
    assert!(["--yes", set.name(), "2 workers", "kill"].iter().all(|word| words.contains(word)), "{words}");
    assert_eq!(set.status()["dispatcher"]["pid"], before["dispatcher"]["pid"]);

    let output = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "15", "--json"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}\n{}\n{}", text(&output.stderr), set.log());
    assert!(report["by_listener"][0]["served"].as_u64() > Some(0), "{report:#}");
    assert!(report["remarks"][0].as_str().unwrap().contains("P1 was not checked"), "{report:#}");
    set.wait_until_up();
    set.stop();
}

#[test]
fn clients_speak_as_each_listener_wants_it_or_stay_away() {
    let set = Set::start_with(|_| {
        let listener = |pool: &str, more: &str| {
            format!("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{pool}\"\ndelivery = \"handoff\"\n{more}\n")
        };
        let pool = |name: &str, handler: &str| {
            format!("[[pool]]\nname = \"{name}\"\nworkers = 2\nhandler = {handler}\naddress = \"127.0.0.1:0\"\n\n")
        };
        let listeners = listener("echo", "proxy_protocol = true\n") + &listener("foreign", "");
        listeners + &pool("echo", "\"echo\"") + &pool("foreign", "{ inetd = [\"cat\"] }")
    });
    let output = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s", "--json"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}\n{}", text(&output.stderr));
    let behind_proxy = &report["by_listener"][0];
    assert!(behind_proxy["served"].as_u64() > Some(0), "{report:#}");
    assert_eq!(behind_proxy["served"], behind_proxy["attempts"], "{report:#}");
    assert_eq!(report["by_listener"][1]["attempts"].as_u64(), Some(0));
    assert!(report["remarks"][0].as_str().unwrap().contains("what its program speaks is not known"), "{report:#}");
    set.stop();
}

#[test]
fn a_handler_that_starts_requests_twice_is_found_out() {
    let set = Set::start_with(|top| {
        let (program, record) = (top.join("cheat"), top.join("records"));
        let script = format!("#!/bin/sh\n{PATOU} record \"$2\" </dev/null >/dev/null\nexec {PATOU} record \"$2\"\n");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let words = words(&[program.to_str().unwrap(), "record", record.to_str().unwrap()]);
        one_pool(2, &format!("{{ exec = {words} }}"), "")
    });
    let output = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    // What is on record from before is not held against anybody.
    let honest = format!("#!/bin/sh\nexec {PATOU} record \"$2\"\n");
    fs::write(set.top().join("cheat"), honest).unwrap();
    let again = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stdout));
    let told = text(&output.stdout);
    assert!(told.contains("P1: request ") && told.contains(" was started 2 times"), "{told}");
    set.stop();
}
