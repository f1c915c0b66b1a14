//! Processes as `/proc` shows them.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

pub(crate) fn signal_to(pid: u32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// The children of a process, without zombies.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let parent = |child: u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    pids.filter(|child| parent(*child) == Some(pid) && is_alive(*child)).collect()
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// How many connections of a listener's clients a process holds: descriptors of the sockets that `/proc/net/tcp` lists
/// with the listener's port (proc(5)).
pub(crate) fn held_connections(pid: u32, listener: SocketAddr) -> usize {
    let port = format!(":{:04X}", listener.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_clients = fields.filter(|fields| fields[1].ends_with(&port) && fields[3] == "01");
    let sockets: BTreeSet<_> = of_clients.map(|fields| format!("socket:[{}]", fields[9])).collect();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = fds.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()));
    targets.filter(|target| sockets.contains(target)).count()
}
