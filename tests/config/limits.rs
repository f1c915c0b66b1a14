//! Sizes and numbers that a start could not carry out, and messages that stay short whatever the file contains.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use patou::config::{ConfigFaults, LISTENERS_MAX, POOLS_MAX, WORKERS_MAX};

use super::*;

const LISTENER: &str = "[[pool]]\nname = \"web\"\n[[listener]]\naddress = \"127.0.0.1:80\"\n";

/// A file that is removed at the end.
struct TestFile(PathBuf);

impl TestFile {
    fn path(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("patou-config-{}-{name}", std::process::id())))
    }

    fn write(name: &str, text: &[u8]) -> Self {
        let file = Self::path(name);
        std::fs::write(&file.0, text).unwrap();
        file
    }

    fn error(&self) -> String {
        Config::load(Some(&self.0)).unwrap_err().to_string()
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn only_a_regular_file_is_read() {
    let fifo = TestFile::path("fifo");
    nix::unistd::mkfifo(&fifo.0, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fifo.error().contains("a FIFO"), "{}", fifo.error());
    for (path, kind) in [("/dev/zero", "a device"), ("/dev/null", "a device"), ("/", "a directory")] {
        let error = Config::load(Some(path.as_ref())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot read the configuration {path}: it is {kind}")), "{error}");
    }
    let socket = TestFile::path("socket");
    let _listener = UnixListener::bind(&socket.0).unwrap();
    assert!(socket.error().contains("cannot read the configuration"), "{}", socket.error());
}

#[test]
fn size_of_the_file_is_bounded() {
    let largest = format!("{LISTENER}#{}\n", "x".repeat(Config::BYTES_MAX - LISTENER.len() - 2));
    assert_eq!(largest.len(), Config::BYTES_MAX);
    let file = TestFile::write("large", largest.as_bytes());
    assert!(Config::load(Some(&file.0)).is_ok());
    std::fs::write(&file.0, largest + "\n").unwrap();
    assert!(file.error().contains("more than 4 MiB"), "{}", file.error());
}

#[test]
fn file_without_pools_is_refused() {
    for text in ["", "# nothing yet\n\n", "\u{feff}", "[set]\nname = \"shop\"\n[front]\nconnections = 5\n"] {
        let file = TestFile::write("empty", text.as_bytes());
        let expected = format!("{}:1: pool: found nothing; expected at least one [[pool]]", file.0.display());
        assert!(file.error().starts_with(&expected), "{}", file.error());
    }
    let file = TestFile::write("pool", b"[[pool]]\nname = \"default\"\n");
    assert!(Config::load(Some(&file.0)).is_ok(), "the built-in listeners lead to it");
}

#[test]
fn messages_about_one_file_are_bounded() {
    let unknown: String = (0..5000).map(|n| format!("key{n} = \"{}\"\n", "x".repeat(500))).collect();
    let lists: String = (0..300).map(|n| format!("[[pool]]\nname = \"p{n}\"\nhandler = {{ exec = [] }}\n")).collect();
    let long_key = format!("{} = 1\n", "k".repeat(1 << 20));
    let addresses = format!("[[listener]]\naddress = \"unix:/{}\"\n", "x".repeat(1 << 20));
    let broken = "= \u{1b}[2J\n".repeat(100_000);
    let nested = "x = ".to_owned() + &"[".repeat(1 << 20);
    for text in [unknown, lists, long_key, addresses, broken, nested] {
        let since = Instant::now();
        let message = Config::parse(&text, "f").unwrap_err().to_string();
        assert!(message.len() < 20_000, "{} bytes: {:.1000}", message.len(), message);
        assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "{message:?}");
        assert!(since.elapsed() < Duration::from_secs(20), "{:?} for {:.20}", since.elapsed(), text);
    }
    let many = "[front]\n".to_owned() + &(0..100).map(|n| format!("k{n} = 1\n")).collect::<String>();
    let message = Config::parse(&many, "f").unwrap_err().to_string();
    assert_eq!(message.lines().count(), ConfigFaults::SHOWN + 1);
    assert!(message.ends_with("\nf: and 80 more faults"), "{message}");
}

#[test]
fn text_of_a_fault_has_no_control_characters() {
    for value in ["\"\\u001b[2J\"", "\"unix:/\\u001b[2J{n}\"", "\"\\u202Etxt\""] {
        for fault in faults(&format!("[[pool]]\nname = \"a\"\n[[listener]]\naddress = {value}\n")) {
            assert!(!fault.to_string().contains(['\u{1b}', '\u{202e}']), "{fault:?}");
        }
    }
}

/// As [`LISTENER`], with `count` names of ten bytes.
fn with_hosts(count: usize, delivery: &str) -> String {
    let hosts: Vec<String> = (0..count).map(|n| format!("\"h{n:05}.net\"")).collect();
    format!("{LISTENER}delivery = \"{delivery}\"\nallowed_hosts = [{}]", hosts.join(", "))
}

#[test]
fn allowed_hosts_fit_into_the_message_to_a_worker() {
    let most = ListenerConfig::HOSTS_MAX / 12;
    valid(&with_hosts(most, "handoff"));
    valid(&with_hosts(10 * most, "redirect"));
    let found = format!("{} names of {} bytes", most + 1, (most + 1) * 12);
    let all = faults(&with_hosts(most + 1, "handoff"));
    assert_eq!((all.len(), all[0].line, all[0].key.as_str()), (1, 6, "listener[1].allowed_hosts"));
    assert_eq!(all[0].found, found);
    let one = format!("{LISTENER}delivery = \"handoff\"\nallowed_hosts = [\"{}\"]", "h".repeat(70_000));
    assert_eq!(faults(&one)[0].key, "listener[1].allowed_hosts");
}

#[test]
fn numbers_of_workers_pools_and_listeners_are_bounded() {
    let pool = |name: &str, workers: usize| {
        format!("[[pool]]\nname = \"{name}\"\nworkers = {workers}\naddress = \"unix:/x/{name}{{n}}\"\n")
    };
    let listener = |n: usize| format!("[[listener]]\naddress = \"unix:/l/{n}\"\npool = \"a\"\n");
    let listeners = |count: usize| (0..count).map(listener).collect::<String>();
    let workers = |last: usize| pool("a", 10_000) + &pool("b", WORKERS_MAX - 10_001) + &pool("c", last);
    valid(&(workers(1) + &listeners(LISTENERS_MAX)));
    let all = faults(&(workers(2) + &listeners(LISTENERS_MAX + 1)));
    let texts: Vec<_> = all.iter().map(|fault| (fault.key.as_str(), fault.found.as_str())).collect();
    assert_eq!(texts, [("pool", "20001 workers"), ("listener", "1001 listeners")]);
    let pools = |count: usize| pool("a", 1) + &(1..count).map(|n| pool(&format!("p{n}"), 1)).collect::<String>();
    valid(&(pools(POOLS_MAX) + &listener(0)));
    assert_eq!(faults(&(pools(POOLS_MAX + 1) + &listener(0)))[0].found, "1001 pools");
}

#[test]
fn command_and_environment_fit_into_execve() {
    let text =
        |bytes: usize| format!("[[pool]]\nname = \"default\"\nenvironment = {{ A = \"{}\" }}", "x".repeat(bytes));
    valid(&text((128 << 10) - 4));
    assert_eq!(faults(&text((128 << 10) - 3))[0].key, "pool[1].environment");
    let many: Vec<String> = (0..600).map(|n| format!("A{n} = \"{}\"", "x".repeat(1000))).collect();
    let all = faults(&format!("[[pool]]\nname = \"default\"\nenvironment = {{ {} }}", many.join(", ")));
    assert_eq!(all[0].expected, "at most 524288 bytes in the command and the environment together");
    let argument = |bytes: usize| {
        format!("[[pool]]\nname = \"default\"\nhandler = {{ exec = [\"/x\", \"{}\"] }}", "x".repeat(bytes))
    };
    valid(&argument((128 << 10) - 2));
    assert_eq!(faults(&argument(128 << 10))[0].key, "pool[1].handler");
}

#[test]
fn runtime_dir_leaves_room_for_the_longest_of_its_sockets() {
    let text = |length: usize| {
        format!(
            "[set]\nruntime_dir = \"/{}\"\n[[pool]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:9\"",
            "r".repeat(length - 1)
        )
    };
    // notify.sock, with a slash.
    valid(&text(107 - 12));
    assert_eq!(faults(&text(107 - 11))[0].key, "set.runtime_dir");
}
