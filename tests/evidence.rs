//! The evidence that the watchdog logs before it kills a process.

mod support;

use nix::sys::signal::Signal;
use support::*;

/// Waits for the evidence against this part: the line with the verdict and the indented lines below it.
fn wait_for_evidence(set: &TestSet, part: &str) -> String {
    let verdict = format!("{part} is frozen (");
    set.wait_for_log(&[&verdict]);
    wait_for_value("the complete evidence", || {
        let log = set.log();
        let mut lines = log.lines().skip_while(|line| !line.contains(&verdict));
        let first = lines.next()?.split_once("error: ")?.1.to_owned();
        let more: Vec<_> = lines.map_while(|line| line.strip_prefix("    ")).collect();
        more.iter().any(|line| line.starts_with("machine: ")).then(|| format!("{first}\n{}", more.join("\n")))
    })
}

/// The first line with this prefix, apart from its indentation.
fn line_starting_with<'a>(evidence: &'a str, prefix: &str) -> &'a str {
    let found = evidence.lines().find(|line| line.trim_start().starts_with(prefix));
    found.unwrap_or_else(|| panic!("no line '{prefix}' in:\n{evidence}"))
}

#[test]
fn evidence_of_a_frozen_worker_shows_its_lease_and_child_processes() {
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
    assert!(victim.join().unwrap().map_or(true, |response| response.status >= 502));
    let evidence = wait_for_evidence(&set, "worker default/1");
    eprintln!("{evidence}");
    assert!(evidence.lines().next().unwrap().contains("frozen"), "{evidence}");
    assert!(line_starting_with(&evidence, "process ").starts_with(&format!("process {old}, ")), "{evidence}");
    assert!(line_starting_with(&evidence, "control: ").contains("stopped in "), "{evidence}");
    let child = line_starting_with(&evidence, &handler.to_string());
    assert!(child.contains(" old: /bin/sh -c case ") && child.ends_with(" [cut]"), "{child}");
    let held = line_starting_with(&evidence, "held: ");
    assert!(held.starts_with(&format!("held: lease {lease}, no response yet, claimed ")), "{held}");
    assert!(held.ends_with(" ago: GET /.victim"), "{held}");
    assert!(!set.log().contains("hunter2"));
    // A stopped process receives SIGABRT, which leaves a core dump where core dumps are enabled.
    set.wait_for_log(&["worker default/1 has ended: killed by SIGABRT"]);
    let machine = line_starting_with(&evidence, "machine: ");
    assert!(machine.contains("load ") && machine.contains("memory available; the watchdog was "), "{machine}");
    set.stop();
}

#[test]
fn evidence_of_a_frozen_dispatcher_shows_queued_clients_and_leases() {
    let mut set = TestSet::prepare("");
    set.configure(&gated_pool(&set, 1, "", ""));
    set.run();
    set.wait_until_up();
    let running = start_gated_request(&set, "one");
    let address = set.address(0);
    let waiting = std::thread::spawn(move || get(address, "/two"));
    set.wait_for("a client waits", |status| status["dispatcher"]["queue"] == 1);
    // Longer than probe_interval (250 ms): the watchdog logs nothing when a probe has reported the queue.
    std::thread::sleep(std::time::Duration::from_millis(600));
    let old = set.dispatcher_pid();
    signal_to(old, Signal::SIGSTOP);
    let evidence = wait_for_evidence(&set, "dispatcher");
    eprintln!("{evidence}");
    assert!(line_starting_with(&evidence, "process ").starts_with(&format!("process {old}, ")), "{evidence}");
    let held = line_starting_with(&evidence, "held: ");
    assert!(held.starts_with("held: 1 client waiting for ") && held.ends_with(" ago); 1 active lease"), "{held}");
    open_gate(&set);
    assert_eq!(running.join().unwrap().unwrap().status, 200);
    drop(waiting.join());
    set.stop();
}
