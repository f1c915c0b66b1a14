//! What the log says of a process before it is killed.

mod support;

use nix::sys::signal::Signal;
use support::*;

/// The record of the kill of this part: the verdict, and the lines that follow it.
fn record(set: &TestSet, part: &str) -> String {
    let verdict = format!("{part} is frozen (");
    set.wait_for_log(&[&verdict]);
    wait_for_value("the whole record", || {
        let log = set.log();
        let mut lines = log.lines().skip_while(|line| !line.contains(&verdict));
        let first = lines.next()?.split_once("error: ")?.1.to_owned();
        let more: Vec<_> = lines.map_while(|line| line.strip_prefix("    ")).collect();
        more.iter().any(|line| line.starts_with("machine: ")).then(|| format!("{first}\n{}", more.join("\n")))
    })
}

/// The first line that begins so.
fn line<'a>(record: &'a str, begin: &str) -> &'a str {
    let found = record.lines().find(|line| line.trim_start().starts_with(begin));
    found.unwrap_or_else(|| panic!("no line '{begin}' in:\n{record}"))
}

#[test]
fn a_frozen_worker_is_described_with_what_it_held_and_had_started() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "", ""));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let victim = std::thread::spawn(move || get(address, "/.victim?password=hunter2"));
    wait_until("the request starts", || set.test_dir().join("started.victim").exists());
    let (old, lease) = (set.worker_pid("default/1"), set.worker("default/1")["lease"].as_str().unwrap().to_owned());
    let handler = children_of(old)[0];
    signal_to(old, Signal::SIGSTOP);
    assert!(victim.join().unwrap().map_or(true, |answer| answer.status >= 502));
    let said = record(&set, "worker default/1");
    eprintln!("{said}");
    assert!(said.lines().next().unwrap().contains("frozen"), "{said}");
    assert!(line(&said, "process ").starts_with(&format!("process {old}, ")), "{said}");
    assert!(line(&said, "control: ").contains("stopped in "), "{said}");
    let child = line(&said, &handler.to_string());
    assert!(child.contains(" old: /bin/sh -c case ") && child.ends_with(" [cut]"), "{child}");
    let held = line(&said, "held: ");
    assert!(held.starts_with(&format!("held: lease {lease}, nothing answered yet, claimed ")), "{held}");
    assert!(held.ends_with(" ago: GET /.victim"), "{held}");
    assert!(!set.log().contains("hunter2"));
    // Stopped as it was, it takes SIGABRT, and so leaves a core where cores are kept.
    set.wait_for_log(&["worker default/1 has ended: killed by SIGABRT"]);
    let machine = line(&said, "machine: ");
    assert!(machine.contains("load ") && machine.contains("memory available; the watchdog was "), "{machine}");
    set.stop();
}

#[test]
fn a_frozen_dispatcher_is_described_with_who_waits_for_it() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    let address = set.address(0);
    let waiting = std::thread::spawn(move || get(address, "/two"));
    set.wait_for("a client waits", |status| status["dispatcher"]["queue"] == 1);
    // The watchdog asks every 250 ms, and tells nobody what it hears.
    std::thread::sleep(std::time::Duration::from_millis(600));
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGSTOP);
    let said = record(&set, "dispatcher");
    eprintln!("{said}");
    assert!(line(&said, "process ").starts_with(&format!("process {old}, ")), "{said}");
    let held = line(&said, "held: ");
    assert!(held.starts_with("held: 1 client waiting for ") && held.ends_with(" ago; 1 lease out"), "{held}");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    drop(waiting.join());
    set.stop();
}
