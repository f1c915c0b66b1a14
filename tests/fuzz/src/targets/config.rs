//! The configuration: rejected as a whole with its faults, or unchanged after it is written and parsed again. No value
//! escapes from its line in a systemd unit.

use crate::config::Config;
use crate::units;

const SECTIONS: [&str; 3] = ["[Unit]", "[Service]", "[Socket]"];
const KEYS: [&str; 23] = [
    "Description",
    "Wants",
    "AssertPathIsDirectory",
    "ListenSequentialPacket",
    "ListenStream",
    "SocketUser",
    "SocketGroup",
    "SocketMode",
    "Sockets",
    "FileDescriptorStoreMax",
    "LimitNOFILE",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "TimeoutAbortSec",
    "WatchdogSec",
    "User",
    "Environment",
    "MemoryMax",
    "CPUQuota",
    "TasksMax",
    "StartLimitBurst",
    "StartLimitIntervalSec",
    "SupplementaryGroups",
];

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Config::runtime_dir_in(text);
    let config = match Config::parse(text, "patou.toml") {
        Ok(config) => config,
        Err(faults) => {
            let message = faults.to_string();
            assert!(message.contains("patou.toml"), "{message}");
            // The length of the file bounds the number of faults, and each message is short.
            assert!(message.len() < 4096 + 1024 * bytes.len(), "{} bytes of faults", message.len());
            return;
        }
    };
    let written = config.to_toml();
    let again = Config::parse(&written, "written.toml").unwrap_or_else(|faults| panic!("{faults}\n{written}"));
    assert_eq!(again.to_toml(), written);
    let workers = config.workers().count();
    if workers > 64 {
        return; // valid, but slow
    }
    for (unit, text) in units::render(&config, &units::ListenerSockets::default(), |_| Some(1000)) {
        for line in text.lines() {
            let key = line.split_once('=').map_or("", |(key, _)| key);
            let known = line.is_empty() || line.starts_with("# ") || SECTIONS.contains(&line);
            assert!(known || KEYS.contains(&key), "{unit}: {line:?}");
            // A backslash continues the value in the next line (systemd.syntax(7)).
            assert!(!line.ends_with('\\'), "{unit}: {line:?}");
            assert!(!line.contains(char::is_control), "{unit}: {line:?}");
        }
    }
}
