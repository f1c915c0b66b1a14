//! Renders the drop-ins of all units from a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use super::names::{
    ADMIN, DISPATCHER, DROP_IN, ListenerSockets, OWNER, SET, WATCHDOG, WORKER_USER, core_services, listen_value,
    worker_service, worker_services, worker_socket,
};
use crate::config::{AdminConfig, Config, DESCRIPTORS, Delivery, ListenAddress, ListenerConfig, PoolConfig};
use crate::ids::{WorkerId, WorkerNumber};

/// `WatchdogSec=` of a part, as a multiple of its timeout in the set's watchdog: systemd is the slower, second failure
/// detector.
const WATCHDOG_FACTOR: u32 = 10;
/// `StartLimitIntervalSec=` of a part, and how many starts `StartLimitBurst=` permits within it beyond `restarts.max`.
const START_LIMIT_INTERVAL: Duration = Duration::from_secs(10);
const START_LIMIT_EXTRA: u64 = 50;
/// Time for the exit itself, in addition to the configured times of a stop.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// Descriptors in the store at most. systemd passes their names in one variable of the environment (`LISTEN_FDNAMES`);
/// with more than 128 KiB of names the dispatcher could never start again (execve(2)). A name has 110 bytes at most.
const FDSTORE_MAX: usize = 1024;
/// Granularity of the descriptor store's size.
const FDSTORE_STEP: usize = 256;

/// The drop-ins: path below the generator's directory, and content. `group_of` returns the group of a user.
pub(crate) fn render(
    config: &Config,
    sockets: &ListenerSockets,
    group_of: impl Fn(&str) -> Option<u32>,
) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut add = |unit: &str, text: String| {
        let head = "# Rendered from the configuration of the set by systemctl start patou or systemctl reload patou.\n";
        files.insert(format!("{unit}.d/{DROP_IN}"), format!("{head}{text}"));
    };
    for listener in &config.listeners {
        let mut text = String::from("[Unit]\n");
        setting(&mut text, "Description", &format!("patou listener {}", listener.address));
        let socket = listen_stream(&listener.address, Some(listener));
        add(&sockets.unit(&listener.address), format!("{text}\n{socket}"));
    }
    add(SET, set(config));
    add(ADMIN, admin_socket(&config.admin));
    add(DISPATCHER, dispatcher(config, sockets));
    add(WATCHDOG, watchdog(config, group_of));
    for pool in &config.pools {
        let listener = redirect_listener(config, pool);
        for number in WorkerNumber::up_to(pool.workers) {
            let id = WorkerId { pool: pool.name.clone(), number };
            let address = pool.worker_address(number);
            add(&worker_socket(&id), worker_sockets(listen_stream(&address, listener), &address, &id, config));
            add(&worker_service(&id), worker(config, pool));
        }
    }
    files
}

/// While the set runs, its parts are dependencies: a start starts those that are missing.
fn set(config: &Config) -> String {
    let mut text = String::from("[Unit]\n");
    for part in core_services().into_iter().chain(worker_services(config)) {
        setting(&mut text, "Wants", &part);
    }
    text
}

/// The Unix listener that redirects to the workers of a pool: its clients need access to the workers' sockets too.
pub(super) fn redirect_listener<'c>(config: &'c Config, pool: &PoolConfig) -> Option<&'c ListenerConfig> {
    let redirects =
        |l: &&ListenerConfig| l.pool == pool.name && l.address.is_unix() && l.delivery == Delivery::Redirect;
    config.listeners.iter().find(redirects)
}

/// The socket for an address; a Unix socket has the permissions of `listener`.
fn listen_stream(address: &ListenAddress, listener: Option<&ListenerConfig>) -> String {
    let mut text = format!("[Socket]\nListenStream={}\n", listen_value(address));
    if address.is_unix() {
        let owner = listener.and_then(|l| l.owner.as_deref()).unwrap_or(OWNER);
        let group = listener.and_then(|l| l.group.as_deref()).unwrap_or(OWNER);
        let mode = listener.map_or(ListenerConfig::MODE, |l| l.mode);
        setting(&mut text, "SocketUser", owner);
        setting(&mut text, "SocketGroup", group);
        setting(&mut text, "SocketMode", &format!("{mode:04o}"));
    }
    text
}

/// The listening socket of a worker together with its handoff socket. Both have the same permissions if both are files;
/// the directory of the handoff socket keeps clients out. patou-ipc creates the directory and must run before: systemd
/// would create one that belongs to root.
fn worker_sockets(socket: String, address: &ListenAddress, id: &WorkerId, config: &Config) -> String {
    let dir = config.set.runtime_dir.join(id.pool.as_str());
    let mut text = String::from("[Unit]\n");
    setting(&mut text, "AssertPathIsDirectory", &dir.display().to_string());
    text.push('\n');
    text.push_str(&socket);
    let path = dir.join(format!("{}.sock", id.number));
    setting(&mut text, "ListenSequentialPacket", &path.display().to_string());
    if !address.is_unix() {
        setting(&mut text, "SocketUser", OWNER);
        setting(&mut text, "SocketMode", "0600");
    }
    text
}

/// The unit file itself has the socket in the runtime directory.
fn admin_socket(admin: &AdminConfig) -> String {
    let mut text = String::from("[Socket]\n");
    admin.address.iter().for_each(|address| setting(&mut text, "ListenStream", &address.to_string()));
    setting(&mut text, "SocketUser", admin.owner.as_deref().unwrap_or("root"));
    setting(&mut text, "SocketGroup", admin.group.as_deref().unwrap_or("root"));
    setting(&mut text, "SocketMode", &format!("{:04o}", admin.mode));
    text
}

fn dispatcher(config: &Config, sockets: &ListenerSockets) -> String {
    let (front, watchdog) = (&config.front, &config.watchdog);
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    // Sorted: another order in the file changes nothing.
    for socket in config.listeners.iter().map(|l| sockets.unit(&l.address)).collect::<BTreeSet<_>>() {
        setting(&mut text, "Sockets", &socket);
    }
    // Queued connections, and for each worker one that is offered or served and one that is not yet removed. In large
    // steps: another number restarts the dispatcher.
    let queued: usize = config.pools.iter().map(|pool| pool.queue).sum();
    // And the segment and both doorbells of a worker, should their names be removed.
    let stored = queued + (5 * config.workers().count()).next_multiple_of(FDSTORE_STEP);
    let stored = stored.min(front.connections + 3 * config.workers().count()).min(FDSTORE_MAX);
    setting(&mut text, "FileDescriptorStoreMax", &stored.to_string());
    setting(&mut text, "LimitNOFILE", &config.dispatcher_descriptors().to_string());
    time_setting(&mut text, "TimeoutStartSec", start_timeout(config));
    time_setting(&mut text, "TimeoutStopSec", dispatcher_stop_timeout(config));
    time_setting(&mut text, "TimeoutAbortSec", watchdog.abort_grace);
    time_setting(&mut text, "WatchdogSec", watchdog.dispatcher_timeout * WATCHDOG_FACTOR);
    text
}

/// The watchdog reads the segments of the workers, which belong to the groups of their users.
fn watchdog(config: &Config, group_of: impl Fn(&str) -> Option<u32>) -> String {
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    for group in worker_users(config).into_iter().filter_map(group_of).collect::<BTreeSet<_>>() {
        let _ = writeln!(text, "SupplementaryGroups={group}");
    }
    // The only bound until it is ready: WatchdogSec= applies afterwards.
    time_setting(&mut text, "TimeoutStartSec", start_timeout(config));
    text
}

/// The users of all workers, without duplicates.
pub(super) fn worker_users(config: &Config) -> BTreeSet<&str> {
    config.pools.iter().map(|pool| if pool.user.is_empty() { WORKER_USER } else { pool.user.as_str() }).collect()
}

fn worker(config: &Config, pool: &PoolConfig) -> String {
    let (front, watchdog) = (&config.front, &config.watchdog);
    let mut text = start_limit(config);
    text.push_str("\n[Service]\n");
    if !pool.user.is_empty() {
        setting(&mut text, "User", &pool.user);
    }
    for (name, value) in &pool.environment {
        let _ = writeln!(text, "Environment=\"{}\"", escape_quoted(&format!("{name}={value}")));
    }
    let limits = &pool.limits;
    let open_files = limits.open_files.clone().unwrap_or_else(|| (front.connections + DESCRIPTORS).to_string());
    setting(&mut text, "LimitNOFILE", &open_files);
    let cgroup_limits =
        [("MemoryMax", &limits.memory_max), ("CPUQuota", &limits.cpu_quota), ("TasksMax", &limits.tasks_max)];
    for (key, value) in cgroup_limits {
        if let Some(value) = value {
            // These settings have no specifiers: a percent sign stays single.
            let _ = writeln!(text, "{key}={value}");
        }
    }
    time_setting(&mut text, "TimeoutStartSec", start_timeout(config));
    time_setting(&mut text, "TimeoutStopSec", worker_stop_timeout(config, pool));
    time_setting(&mut text, "TimeoutAbortSec", watchdog.abort_grace);
    time_setting(&mut text, "WatchdogSec", watchdog.worker_timeout * WATCHDOG_FACTOR);
    text
}

/// A part counts its failures itself, see `src/backoff.rs`. systemd's limit, which counts planned restarts too, is for
/// one that does not come so far, and is out of reach of `watchdog.restarts`.
fn start_limit(config: &Config) -> String {
    let mut text = String::from("[Unit]\n");
    time_setting(&mut text, "StartLimitIntervalSec", START_LIMIT_INTERVAL);
    setting(&mut text, "StartLimitBurst", &(u64::from(config.watchdog.restarts.max) + START_LIMIT_EXTRA).to_string());
    text
}

pub(super) fn dispatcher_stop_timeout(config: &Config) -> Duration {
    config.front.store_after * 2 + config.front.linger_timeout + EXIT_GRACE
}

pub(super) fn worker_stop_timeout(config: &Config, pool: &PoolConfig) -> Duration {
    pool.drain_timeout + config.front.linger_timeout + EXIT_GRACE
}

/// Includes the delay of a part that keeps failing.
pub(super) fn start_timeout(config: &Config) -> Duration {
    config.watchdog.start_timeout + config.watchdog.restarts.delay_max.mul_f64(1.25)
}

fn setting(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key}={}", value.replace('%', "%%"));
}

/// At least a millisecond: systemd takes zero for infinity.
fn time_setting(text: &mut String, key: &str, value: Duration) {
    let _ = writeln!(text, "{key}={}us", value.max(Duration::from_millis(1)).as_micros());
}

/// Escapes a value for double quotes (systemd.syntax(7)).
fn escape_quoted(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            '%' => escaped.push_str("%%"),
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}
