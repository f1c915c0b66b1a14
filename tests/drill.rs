//! `patou drill` on private and on running sets: every promise holds, a set that breaks one is detected, and nothing
//! is left.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::*;

fn drill_command(args: &[&str]) -> Command {
    let mut command = Command::new(PATOU);
    command.arg("drill").args(args).stdin(Stdio::null()).env_remove("PATOU_CONFIG");
    command
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

/// Two drills at once would take each other the processor time that their bounds allow for.
fn lock_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of the private set of a drill: every name contains the pid of the drill.
fn leftovers(pid: u32) -> Vec<String> {
    let name = format!("drill{pid}");
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let mut left: Vec<_> = names("/dev/shm").into_iter().filter(|entry| entry.contains(&format!(".{name}."))).collect();
    let pids = names("/proc").into_iter().filter(|entry| entry.parse::<u32>().is_ok());
    left.extend(pids.filter(|pid| {
        let read = |file| text(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
        read("environ").contains(&format!("patou-{name}/")) || read("cmdline").contains(&format!("patou-{name}/"))
    }));
    let top = std::env::temp_dir().join(format!("patou-{name}"));
    left.extend(top.exists().then(|| top.display().to_string()));
    left
}

/// Kinds that have drills of their own below.
const OWN_TESTS: &str = "use-up-descriptors,limit-descriptors,remove-directory,remove-all,remove-listener-sockets,\
                         remove-state,remove-lock";

#[test]
fn short_drill_finds_no_violation_and_leaves_nothing() {
    for seed in ["11", "12", "13"] {
        let mut command = drill_command(&["--seed", seed, "--faults", "20", "--json", "--except", OWN_TESTS]);
        let _machine = lock_machine();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let report = report(&output);
        assert!(output.status.success(), "{report:#}\n{}", text(&output.stderr));
        assert_eq!((report["violations"].as_array().unwrap().len(), report["faults"].as_u64()), (0, Some(20)));
        assert_eq!(report["skipped"], Value::Array(Vec::new()), "every fault could be injected");
        let listeners = report["by_listener"].as_array().unwrap();
        assert_eq!(listeners.len(), 22);
        assert!(listeners.iter().all(|row| row["served"].as_u64() > Some(0)), "{report:#}");
        assert!(report["starts_on_record"].as_u64() > Some(10), "{report:#}");
        assert!(report["sessions"].as_u64() > Some(3), "{report:#}");
        assert!(text(&output.stderr).starts_with(&format!("drill: seed {seed}, ")), "the seed is printed first");
        assert_eq!(leftovers(pid), Vec::<String>::new());
    }
}

/// Runs a drill of these kinds on a private set. No promise is broken, and nothing is left.
fn assert_promises_hold(kinds: &str, faults: &str) -> Value {
    let mut command = drill_command(&["--seed", "21", "--faults", faults, "--only", kinds, "--json"]);
    let _machine = lock_machine();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let report = report(&output);
    assert!(output.status.success(), "{report:#}\n{}", text(&output.stderr));
    assert_eq!((report["violations"].as_array().unwrap().len(), report["false_kills"].as_u64()), (0, Some(0)));
    let may_lack_permissions = !nix::unistd::geteuid().is_root() && std::env::var("CI").as_deref() != Ok("true");
    for skipped in report["skipped"].as_array().unwrap() {
        let skipped = skipped.as_str().unwrap();
        assert!(may_lack_permissions && skipped.contains("not permitted"), "{skipped}");
        eprintln!("SKIPPED: {skipped}");
    }
    assert_eq!(leftovers(pid), Vec::<String>::new());
    report
}

/// How many faults of this kind were injected.
fn count_of(report: &Value, kind: &str) -> u64 {
    let rows = report["by_kind"].as_array().unwrap().iter().filter(|row| row["kind"] == kind);
    rows.map(|row| row["count"].as_u64().unwrap()).sum()
}

#[test]
fn only_selected_kinds_are_injected_and_the_repeated_command_selects_them() {
    let report = assert_promises_hold("kill,pause", "12");
    assert_eq!(count_of(&report, "SIGKILL") + count_of(&report, "SIGSTOP, SIGCONT"), 12, "{report:#}");
    assert_eq!(report["repeat"], "patou drill --seed 21 --faults 12 --only kill,pause");
    assert!(report["longest_wait_ms"].as_f64() > Some(0.0), "{report:#}");
    let row = report["by_kind"].as_array().unwrap().iter().find(|row| row["kind"] == "SIGKILL").unwrap();
    assert!(row["replaced"].as_u64() > Some(0) && row["survived"] == 0, "{row:#}");

    let output = drill_command(&["--seed", "1", "--only", "restart"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(text(&output.stderr).contains("no fault of the kinds selected"), "{}", text(&output.stderr));
    let output = drill_command(&["--seed", "1", "--except", "sleep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", text(&output.stderr));
    let message = text(&output.stderr);
    let kinds = message.split("[possible values: ").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/man/patou.1")).unwrap();
    for kind in kinds.split(", ") {
        let is_listed = page.lines().any(|line| line.starts_with(&format!(".Cm {kind}")));
        assert!(is_listed, "patou(1) does not list the kind {kind}");
    }
}

#[test]
fn parts_that_are_held_or_lack_descriptors_are_not_killed() {
    let report = assert_promises_hold("debugger,freeze-group,use-up-descriptors,limit-descriptors", "24");
    for kind in ["debugger attached", "control group frozen", "descriptors used up", "descriptors limited"] {
        assert!(count_of(&report, kind) > 0, "{report:#}");
    }
    let rows = report["by_kind"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["replaced"] == 0), "{report:#}");
}

#[test]
fn several_parts_that_end_at_once_are_replaced() {
    let report = assert_promises_hold("kill-several,freeze-several", "12");
    assert!(count_of(&report, "several killed") > 2 && count_of(&report, "several frozen") > 2, "{report:#}");
}

#[test]
fn workers_that_freeze_while_they_drain_are_replaced() {
    let report = assert_promises_hold("freeze-drained,freeze-removed", "14");
    assert!(count_of(&report, "drain, SIGSTOP") > 0, "{report:#}");
    assert!(count_of(&report, "removed, SIGSTOP") > 0, "{report:#}");
}

#[test]
fn peers_that_block_stop_neither_the_watchdog_nor_the_dispatcher() {
    let report = assert_promises_hold("block-log,change-socket-flags", "16");
    assert!(count_of(&report, "log blocked, SIGKILL") > 0, "{report:#}");
    assert!(count_of(&report, "socket made blocking") > 0, "{report:#}");
}

const LOST_FILES: &str = "remove-segment,remove-doorbells,remove-handoff-socket,remove-probe-socket,remove-admin-socket,\
                          remove-listener-sockets,remove-state,remove-lock,remove-directory,remove-all";

#[test]
fn lost_files_are_repaired_and_parts_that_end_meanwhile_are_replaced() {
    let kinds = format!("{LOST_FILES},kill,freeze,terminate,reload");
    let report = assert_promises_hold(&kinds, "60");
    assert!(count_of(&report, "all files removed") > 0 && count_of(&report, "SIGKILL") > 5, "{report:#}");
}

#[test]
fn interrupted_drill_reports_and_leaves_nothing() {
    let mut child = drill_command(&["--seed", "1", "--faults", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let records = std::env::temp_dir().join(format!("patou-drill{pid}/records"));
    wait_until("requests are served", || fs::metadata(&records).is_ok_and(|file| file.len() > 100));
    std::thread::sleep(Duration::from_secs(1)); // for faults of several kinds
    signal_to(pid, Signal::SIGINT);
    let status = wait_for_value("the drill ends", || child.try_wait().unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("violations: 0"), "the report is printed");
    assert_eq!(leftovers(pid), Vec::<String>::new());
}

#[test]
fn running_set_is_damaged_only_with_yes() {
    let set = TestSet::start(&format!(
        "{ECHO}\n[watchdog]\nrestarts = {{ max = 1000, within = \"1s\", delay = \"10ms\", delay_max = \"50ms\" }}\n"
    ));
    let before = set.status();
    let output = set.patou(&["drill", "--seed", "1", "--faults", "10"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let message = text(&output.stderr);
    assert!(["--yes", set.name(), "2 workers", "kill"].iter().all(|fragment| message.contains(fragment)), "{message}");
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
fn clients_send_proxy_headers_where_expected_and_nothing_to_unknown_protocols() {
    let set = TestSet::start_with(|_| {
        let listener = |pool: &str, more: &str| {
            format!("[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"{pool}\"\ndelivery = \"handoff\"\n{more}\n")
        };
        let pool = |name: &str, handler: &str| {
            format!("[[pool]]\nname = \"{name}\"\nworkers = 2\nhandler = {handler}\naddress = \"127.0.0.1:0\"\n\n")
        };
        let listeners = listener("echo", "proxy_protocol = true\n") + &listener("unknown", "");
        listeners + &pool("echo", "\"echo\"") + &pool("unknown", "{ inetd = [\"cat\"] }")
    });
    let output = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s", "--json"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}\n{}", text(&output.stderr));
    let proxied = &report["by_listener"][0];
    assert!(proxied["served"].as_u64() > Some(0), "{report:#}");
    assert_eq!(proxied["served"], proxied["attempts"], "{report:#}");
    assert_eq!(report["by_listener"][1]["attempts"].as_u64(), Some(0));
    assert!(report["remarks"][0].as_str().unwrap().contains("the protocol of its program is unknown"), "{report:#}");
    set.stop();
}

#[test]
fn handler_that_starts_requests_twice_is_detected() {
    let set = TestSet::start_with(|top| {
        let (program, record) = (top.join("handler"), top.join("records"));
        let script = format!("#!/bin/sh\n{PATOU} record \"$2\" </dev/null >/dev/null\nexec {PATOU} record \"$2\"\n");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let command = toml_array(&[program.to_str().unwrap(), "record", record.to_str().unwrap()]);
        one_pool(2, &format!("{{ exec = {command} }}"), "")
    });
    let output = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    // Starts recorded before this drill are ignored.
    let once = format!("#!/bin/sh\nexec {PATOU} record \"$2\"\n");
    fs::write(set.test_dir().join("handler"), once).unwrap();
    let again = set.patou(&["drill", "--yes", "--seed", "1", "--faults", "0", "--duration", "1s"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stdout));
    let report = text(&output.stdout);
    assert!(report.contains("P1: request ") && report.contains(" was started 2 times"), "{report}");
    set.stop();
}
