//! What remains of a set: processes, segments, sockets and directories.

use std::fs;
use std::path::Path;

use crate::config::{Config, ListenAddress};

/// Everything that a stopped set must not leave behind (P6), in words.
pub(super) fn find(config: &Config) -> Vec<String> {
    let dir = &config.set.runtime_dir;
    let mut left: Vec<_> = processes(dir).iter().map(|pid| format!("process {pid} is left")).collect();
    let mark = format!(".{}.", config.set.name);
    let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let segments = names.filter(|name| name.starts_with("patou.") && name.contains(&mark));
    left.extend(segments.map(|name| format!("segment /dev/shm/{name} is left")));
    let listeners = config.listeners.iter().map(|listener| listener.address.clone());
    let workers = config.workers().filter_map(|id| Some(config.pool(&id.pool)?.worker_address(id.number)));
    let paths = listeners.chain(workers).filter_map(|address| match address {
        ListenAddress::Unix(path) => Some(path),
        ListenAddress::Tcp(_) => None,
    });
    let paths = paths.chain([dir.to_owned()]);
    left.extend(paths.filter(|path| path.exists()).map(|path| format!("{} is left", path.display())));
    left
}

/// The processes that name the set with this runtime directory in their environment or command line.
pub(super) fn processes(dir: &Path) -> Vec<u32> {
    let marks = [dir.join("applied.toml"), dir.with_file_name("patou.toml")];
    let marks = marks.map(|path| path.into_os_string().into_encoded_bytes());
    let belongs = |pid: u32| {
        let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let contains = |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
        let (environment, command) = (read("environ"), read("cmdline"));
        marks.iter().any(|mark| contains(&environment, mark) || contains(&command, mark))
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id() && belongs(*pid)).collect()
}
