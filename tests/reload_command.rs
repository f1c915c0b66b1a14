//! `patou reload`: the result of a reload of `patou run`.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use support::*;

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n";

fn workers(count: u32) -> String {
    format!("{LISTENER}[[pool]]\nname = \"default\"\nworkers = {count}\naddress = \"127.0.0.1:0\"\n")
}

/// Exit code, standard output and standard error.
fn reload(set: &TestSet, more: &[&str]) -> (Option<i32>, String, String) {
    let output = set.patou(&[&["reload"], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn reload_command_waits_for_the_new_configuration() {
    let set = TestSet::start(&workers(1));
    for (count, more) in [(2, &["--wait", "10s"] as &[_]), (3, &["--wait", "10s"]), (1, &[])] {
        set.configure(&workers(count));
        let applied = format!("set {}: configuration applied\n", set.name());
        assert_eq!(reload(&set, more), (Some(0), applied, String::new()), "{}", set.log());
        // Not later: the command has waited.
        let status = set.status();
        let workers = status["pools"][0]["workers"].as_array().unwrap();
        assert_eq!(workers.len(), count as usize);
        assert!(more.is_empty() || workers.iter().all(|worker| worker["state"] == "idle"), "{status}");
    }
    set.stop();
}

#[test]
fn reload_command_fails_with_the_reason() {
    let mut set = TestSet::start(&workers(1));
    // Not valid: the set is not asked.
    set.configure(&workers(0));
    let (code, _, error) = reload(&set, &[]);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains(":9: pool[1].workers: found 0; expected"), "{error}");
    // Valid, and refused by the set.
    set.configure(&workers(1).replace("[[pool]]", "[[pool]]\nhandler = { exec = [\"/nonexistent/program\"] }"));
    let (code, output, error) = reload(&set, &[]);
    assert_eq!((code, output.as_str()), (Some(1), ""), "{error}");
    assert!(error.starts_with("patou: reload refused, nothing has changed: "), "{error}");
    assert!(error.contains("/nonexistent/program"), "{error}");
    // The result of an earlier reload is not that of this one.
    set.configure(&workers(1));
    assert_eq!(reload(&set, &[]).0, Some(0));
    // A part that does not become ready.
    let never = "handler = { coprocess = [\"sleep\", \"100\"] }\nping = \"1s\"\n";
    set.configure(&(workers(1) + never));
    let (code, _, error) = reload(&set, &["--wait", "500ms"]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("patou: not every part is up: worker default/1 is "), "{error}");
    // Nothing applies it.
    set.signal(Signal::SIGSTOP);
    let (code, _, error) = reload(&set, &["--wait", "300ms"]);
    set.signal(Signal::SIGCONT);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("patou: the watchdog has not applied the configuration in time"), "{error}");
    set.signal(Signal::SIGTERM);
    set.wait_for_exit();
    let (code, _, error) = reload(&set, &[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no set is running in"), "{error}");
    set.assert_nothing_left();
}

#[test]
fn pools_of_included_files_come_and_go_with_a_reload() {
    let mut set = TestSet::prepare("");
    let included = set.test_dir().join("more.d");
    fs::create_dir(&included).unwrap();
    set.configure("include = [\"more.d/*.toml\"]\n");
    fs::write(included.join("1.toml"), workers(1)).unwrap();
    set.run();
    set.wait_until_up();
    assert_eq!(get(set.address(0), "/hello").unwrap().status, 200);
    let more = workers(2).replace("\"default\"", "\"more\"");
    fs::write(included.join("2.toml"), &more).unwrap();
    assert_eq!(reload(&set, &["--wait", "10s"]).0, Some(0), "{}", set.log());
    assert_eq!(get(set.address(1), "/hello").unwrap().status, 200);
    fs::write(included.join("2.toml"), more + "quue = 1\n").unwrap();
    let (code, _, error) = reload(&set, &[]);
    assert_eq!(code, Some(78));
    assert!(error.contains("more.d/2.toml:8: pool[2].quue: found an unknown key; expected `queue`"), "{error}");
    // A new worker, and a new dispatcher, read what is in force.
    set.wait_for("the second pool", |status| status["pools"].as_array().unwrap().len() == 2);
    let dispatcher = set.dispatcher_pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dispatcher as i32), Signal::SIGKILL).unwrap();
    set.wait_for("a new dispatcher", |status| {
        status["dispatcher"]["state"] == "up" && status["dispatcher"]["pid"] != dispatcher
    });
    assert_eq!(get(set.address(1), "/hello").unwrap().status, 200);
    fs::remove_file(included.join("2.toml")).unwrap();
    assert_eq!(reload(&set, &["--wait", "10s"]).0, Some(0), "{}", set.log());
    assert_eq!(set.status()["pools"].as_array().unwrap().len(), 1);
    set.stop();
}
