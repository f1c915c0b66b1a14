//! What the processes of a handler get from the configuration: `{n}` in arguments, environment and working directory,
//! and `HOME`.

mod support;

use std::fs;
use std::path::Path;

use support::*;

/// A script that responds with its argument, the variable `N`, its directory and `HOME`, one per line.
const CGI: &str = "printf 'Content-Type: text/plain\\n\\n%s\\n%s\\n%s\\n%s\\n' \"$1\" \"$N\" \"$PWD\" \"$HOME\"";

/// Two workers, each with a directory of its own; `handler` gets the command.
fn numbered(handler: &str, command: &[&str], dir: &Path, environment: &str) -> String {
    for n in [1, 2] {
        fs::create_dir_all(dir.join(format!("home-{n}"))).unwrap();
    }
    let (command, dir) = (toml_array(command), dir.display());
    one_pool(
        2,
        &format!("{{ {handler} = {command} }}"),
        &format!("working_dir = \"{dir}/home-{{n}}\"\nenvironment = {{ N = \"{{n}}.log\"{environment} }}"),
    )
}

#[test]
fn each_worker_has_its_number_in_arguments_environment_and_directory() {
    let set = TestSet::start_with(|dir| {
        fs::write(dir.join("cgi.sh"), CGI).unwrap();
        let script = dir.join("cgi.sh").display().to_string();
        numbered("exec", &["sh", &script, "worker-{n}"], dir, "")
    });
    let (home, dir) = (std::env::var("HOME").unwrap(), set.test_dir().display().to_string());
    for (n, other) in [(1, 2), (2, 1)] {
        assert!(set.patou(&["drain", &format!("default-{other}")]).status.success());
        let expected = format!("worker-{n}\n{n}.log\n{dir}/home-{n}\n{home}\n");
        assert_eq!(get(set.address(0), "/").unwrap().text(), expected);
        assert!(set.patou(&["resume", &format!("default-{other}")]).status.success());
    }
    set.stop();
}

#[test]
fn home_can_be_set_and_shells_and_scripts_keep_their_own_braces() {
    let set = TestSet::start_with(|dir| {
        let home = format!(", HOME = \"{}/home-{{n}}\"", dir.display());
        numbered("exec", &["sh", "-c", &format!("n=7; echo {{n}} ${{n}} >&2; {CGI}"), "sh", "${n}"], dir, &home)
    });
    assert!(set.patou(&["drain", "default-1"]).status.success());
    let dir = set.test_dir().display().to_string();
    let expected = format!("${{n}}\n2.log\n{dir}/home-2\n{dir}/home-2\n");
    assert_eq!(get(set.address(0), "/").unwrap().text(), expected);
    set.wait_for_log(&["{n} 7"]);
    set.stop();
}

#[test]
fn program_gets_its_number_too() {
    let program = build_example("axum_worker");
    let set = TestSet::start_with(|dir| numbered("program", &[&program, "worker-{n}"], dir, ""));
    for n in [1, 2] {
        let process = format!("/proc/{}", set.worker_pid(&format!("default/{n}")));
        let read = |file: &str| text(&fs::read(format!("{process}/{file}")).unwrap());
        assert!(read("cmdline").ends_with(&format!("\0worker-{n}\0")), "{:?}", read("cmdline"));
        assert!(read("environ").split('\0').any(|variable| variable == format!("N={n}.log")));
        assert_eq!(fs::read_link(format!("{process}/cwd")).unwrap(), set.test_dir().join(format!("home-{n}")));
    }
    // The next image finds its configuration from there as well.
    assert!(set.patou(&["recycle", "--all"]).status.success(), "{}", set.log());
    assert_eq!(request(set.address(0), "POST", "/echo", b"a").unwrap().status, 200);
    set.stop();
}

#[test]
fn directory_that_does_not_exist_is_named() {
    let program = build_example("axum_worker");
    for handler in [format!("{{ program = {} }}", toml_array(&[&program])), "{ exec = [\"sh\"] }".to_owned()] {
        let mut set = TestSet::prepare(&one_pool(1, &handler, "working_dir = \"/no/such/{n}\""));
        set.run();
        set.wait_for_log(&["default/1", "working_dir `/no/such/1` is not a directory"]);
    }
}
