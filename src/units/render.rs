//! Drop-ins from a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use super::{ADMIN, DISPATCHER, DROP_IN, OWNER, WATCHDOG, WORKER_USER, listener_socket, worker_service, worker_socket};
use crate::config::{AdminConfig, Config, DESCRIPTORS, Delivery, ListenAddress, ListenerConfig, PoolConfig};
use crate::ids::{WorkerId, WorkerNumber};

/// Systemd's own watch over a part is the slow second net: this many times what the watchdog of the set allows.
const SECOND_NET: u32 = 10;
/// How long a part that has been told to go may take when nothing is left to do, besides what the configuration says.
const PARTING: Duration = Duration::from_secs(1);
/// The room in the descriptor store for connections that are with workers grows by so many.
const STORED_STEP: usize = 256;

/// The drop-ins: path below the directory of the generator, and content. `group` knows the group of a user.
pub fn render(config: &Config, group: impl Fn(&str) -> Option<u32>) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut add = |unit: &str, text: String| {
        let head = "# From the configuration of the set, by patou systemd generate.\n";
        files.insert(format!("{unit}.d/{DROP_IN}"), format!("{head}{text}"));
    };
    for (index, listener) in config.listeners.iter().enumerate() {
        add(&listener_socket(index), listening(&listener.address, Some(listener)));
    }
    add(ADMIN, admin(&config.admin));
    add(DISPATCHER, dispatcher(config));
    add(WATCHDOG, watchdog(config, group));
    for pool in &config.pools {
        let like = leads_to(config, pool);
        for number in WorkerNumber::up_to(pool.workers) {
            let id = WorkerId { pool: pool.name.clone(), number };
            let address = pool.worker_address(number);
            add(&worker_socket(&id), reached(listening(&address, like), &address, &id, config));
            add(&worker_service(&id), worker(config, pool));
        }
    }
    files
}

/// The listener whose clients may also talk to the workers of a pool, because they are told where one is.
pub(super) fn leads_to<'c>(config: &'c Config, pool: &PoolConfig) -> Option<&'c ListenerConfig> {
    let told = |l: &&ListenerConfig| l.pool == pool.name && l.address.is_unix() && l.delivery == Delivery::Redirect;
    config.listeners.iter().find(told)
}

fn listening(address: &ListenAddress, like: Option<&ListenerConfig>) -> String {
    let mut text = String::from("[Socket]\n");
    match address {
        ListenAddress::Tcp(address) => line(&mut text, "ListenStream", &address.to_string()),
        ListenAddress::Unix(path) => {
            line(&mut text, "ListenStream", &path.display().to_string());
            let owner = like.and_then(|l| l.owner.as_deref()).unwrap_or(OWNER);
            let group = like.and_then(|l| l.group.as_deref()).unwrap_or(OWNER);
            let mode = like.map_or(ListenerConfig::MODE, |l| l.mode);
            line(&mut text, "SocketUser", owner);
            line(&mut text, "SocketGroup", group);
            line(&mut text, "SocketMode", &format!("{mode:04o}"));
        }
    }
    text
}

/// The socket of a worker with the one on which connections are handed over. It has the permissions of the other one
/// if that is a file too; its directory keeps clients out. patou-ipc makes that, and has to come first: systemd would
/// make one that belongs to root.
fn reached(socket: String, address: &ListenAddress, id: &WorkerId, config: &Config) -> String {
    let dir = config.set.runtime_dir.join(id.pool.as_str());
    let mut text = String::from("[Unit]\n");
    line(&mut text, "AssertPathIsDirectory", &dir.display().to_string());
    text.push('\n');
    text.push_str(&socket);
    let path = dir.join(format!("{}.sock", id.number));
    line(&mut text, "ListenSequentialPacket", &path.display().to_string());
    if !address.is_unix() {
        line(&mut text, "SocketUser", OWNER);
        line(&mut text, "SocketMode", "0600");
    }
    text
}

/// Its socket in the runtime directory stands in the unit file.
fn admin(admin: &AdminConfig) -> String {
    let mut text = String::from("[Socket]\n");
    admin.address.iter().for_each(|address| line(&mut text, "ListenStream", &address.to_string()));
    line(&mut text, "SocketUser", admin.owner.as_deref().unwrap_or("root"));
    line(&mut text, "SocketGroup", admin.group.as_deref().unwrap_or("root"));
    line(&mut text, "SocketMode", &format!("{:04o}", admin.mode));
    text
}

fn dispatcher(config: &Config) -> String {
    let (front, watchdog) = (&config.front, &config.watchdog);
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    for index in 0..config.listeners.len() {
        line(&mut text, "Sockets", &listener_socket(index));
    }
    // Who waits in a queue, and beside that who is offered to a worker or has just been served and is still to be taken
    // out. For these in large steps: another number is another dispatcher.
    let queued: usize = config.pools.iter().map(|pool| pool.queue).sum();
    let stored = queued + (2 * config.workers().count()).next_multiple_of(STORED_STEP);
    line(&mut text, "FileDescriptorStoreMax", &stored.min(front.connections).to_string());
    line(&mut text, "LimitNOFILE", &config.dispatcher_descriptors().to_string());
    time(&mut text, "TimeoutStartSec", starting(config));
    time(&mut text, "TimeoutStopSec", front.store_after * 2 + front.linger_timeout + PARTING);
    time(&mut text, "TimeoutAbortSec", watchdog.abort_grace);
    time(&mut text, "WatchdogSec", watchdog.dispatcher_timeout * SECOND_NET);
    text
}

/// It reads what the workers hold, which belongs to their groups.
fn watchdog(config: &Config, group: impl Fn(&str) -> Option<u32>) -> String {
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    for group in users(config).into_iter().filter_map(group).collect::<BTreeSet<_>>() {
        let _ = writeln!(text, "SupplementaryGroups={group}");
    }
    // Before it is ready nothing else bounds it: its WatchdogSec= runs from then on.
    time(&mut text, "TimeoutStartSec", config.watchdog.start_timeout);
    text
}

/// The users of all workers, each once.
pub(super) fn users(config: &Config) -> BTreeSet<&str> {
    config.pools.iter().map(|pool| if pool.user.is_empty() { WORKER_USER } else { pool.user.as_str() }).collect()
}

fn worker(config: &Config, pool: &PoolConfig) -> String {
    let (front, watchdog) = (&config.front, &config.watchdog);
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    if !pool.user.is_empty() {
        line(&mut text, "User", &pool.user);
    }
    for (name, value) in &pool.environment {
        let _ = writeln!(text, "Environment=\"{}\"", quoted(&format!("{name}={value}")));
    }
    let limits = &pool.limits;
    let open_files = limits.open_files.clone().unwrap_or_else(|| (front.connections + DESCRIPTORS).to_string());
    line(&mut text, "LimitNOFILE", &open_files);
    let controlled =
        [("MemoryMax", &limits.memory_max), ("CPUQuota", &limits.cpu_quota), ("TasksMax", &limits.tasks_max)];
    for (key, value) in controlled {
        if let Some(value) = value {
            // Without specifiers: a percent sign is one.
            let _ = writeln!(text, "{key}={value}");
        }
    }
    time(&mut text, "TimeoutStartSec", starting(config));
    time(&mut text, "TimeoutStopSec", pool.drain_timeout + front.linger_timeout + PARTING);
    time(&mut text, "TimeoutAbortSec", watchdog.abort_grace);
    time(&mut text, "WatchdogSec", watchdog.worker_timeout * SECOND_NET);
    text
}

fn start_limit(config: &Config) -> String {
    let restarts = &config.watchdog.restarts;
    let mut text = String::from("[Unit]\n");
    time(&mut text, "StartLimitIntervalSec", restarts.within);
    // The first start counts too.
    line(&mut text, "StartLimitBurst", &(u64::from(restarts.max) + 1).to_string());
    text
}

/// A part that died again and again waits before it is ready.
fn starting(config: &Config) -> Duration {
    config.watchdog.start_timeout + config.watchdog.restarts.delay_max
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key}={}", value.replace('%', "%%"));
}

/// At least a millisecond: zero means "for ever" to systemd.
fn time(text: &mut String, key: &str, value: Duration) {
    let _ = writeln!(text, "{key}={}us", value.max(Duration::from_millis(1)).as_micros());
}

/// A value between double quotes (systemd.syntax(7)).
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted
}
