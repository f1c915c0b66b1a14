//! `patou systemd`: what the units and the package run. An operator uses systemctl.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Subcommand;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Failure, failed};
use crate::config::{Config, LoadError, Loaded, Origin};
use crate::ids::{WorkerId, WorkerNumber};
use crate::probe::{self, ProbeCommand};
use crate::units::{self, ADMIN, APPLIED, DISPATCHER, IPC, RUNTIME_DIR, WATCHDOG, worker_service};
use crate::{executable, ipc, sys};

#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Write the drop-ins of the units (a systemd generator)
    Generate {
        /// Where to (systemd.generator(7))
        normal: PathBuf,
        /// Not used
        early: Option<PathBuf>,
        /// Not used
        late: Option<PathBuf>,
    },
    /// Publish the configuration and start the units
    Start,
    /// Publish a changed configuration and bring the units in line with it
    Reload,
    /// Stop the units, and withdraw the configuration
    Stop,
    /// Tell the main process of the calling unit to leave, and wait until it has
    Drain,
    /// After the end of the calling unit: if it was to stop, its sockets stop too
    PostStop {
        /// Its name
        unit: String,
    },
    /// After an upgrade of the package: restart what runs, one part after the other
    Upgrade,
}

/// How long the dispatcher may take to hear that the set is stopping.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether anybody still waits.
const LOOK: Duration = Duration::from_millis(10);

pub fn run(path: Option<&Path>, action: &Action) -> Result<(), Failure> {
    match action {
        Action::Generate { normal, .. } => generate(path, normal),
        Action::Start => start(path),
        Action::Reload => reload(path),
        Action::Stop => stop(),
        Action::Drain => drain(),
        Action::PostStop { unit } => post_stop(unit),
        Action::Upgrade => upgrade(),
    }
}

/// From what is published. Before anything is, at boot for instance, from what would be.
fn generate(path: Option<&Path>, dir: &Path) -> Result<(), Failure> {
    let published = Path::new(APPLIED);
    let loaded = match published.exists() {
        true => Config::load(Some(published))?,
        false => Config::load(path)?,
    };
    for (file, text) in units::render(&loaded.config, group) {
        let file = dir.join(file);
        let parent = file.parent().unwrap_or(dir);
        fs::create_dir_all(parent).and_then(|()| fs::write(&file, text)).map_err(|error| at(&file, error))?;
    }
    pool_drop_ins(&loaded.config, dir)
}

/// Gives every worker of a pool the drop-ins that an operator has for the pool. systemd itself knows drop-ins for one
/// instance and for all instances of a unit, and takes no directory for those in between.
fn pool_drop_ins(config: &Config, dir: &Path) -> Result<(), Failure> {
    for pool in &config.pools {
        let theirs = units::pool_drop_ins(&pool.name);
        let Ok(entries) = fs::read_dir(&theirs) else { continue };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        // As for systemd, what has another ending is none, and a file of the same name would take the place of ours.
        let wanted = |name: &std::ffi::OsString| Path::new(name).extension().is_some_and(|end| end == "conf");
        for name in names.filter(wanted).filter(|name| name != units::DROP_IN) {
            for number in WorkerNumber::up_to(pool.workers) {
                let worker = worker_service(&WorkerId { pool: pool.name.clone(), number });
                let link = dir.join(format!("{worker}.d")).join(&name);
                symlink(theirs.join(&name), &link).map_err(|error| at(&link, error))?;
            }
        }
    }
    Ok(())
}

/// The group of a user, which the segments of its pool belong to. Root's is not for the watchdog to have.
fn group(user: &str) -> Option<u32> {
    super::ipc::account(user).ok().map(|user| user.gid.as_raw()).filter(|gid| *gid != 0)
}

fn at(path: &Path, error: io::Error) -> Failure {
    failed(format!("{}: {error}", path.display()))
}

/// The configuration, if systemd can run it.
fn load(path: Option<&Path>) -> Result<Loaded, Failure> {
    let loaded = Config::load(path)?;
    if matches!(loaded.origin, Origin::BuiltIn) {
        // Who has lost the file does not want another set.
        return Err(Failure::Config("there is no configuration in /etc/patou/patou.toml".to_owned()));
    }
    let is_comment = |line: &str| line.trim_start().starts_with('#') || line.trim().is_empty();
    if loaded.text.lines().all(is_comment) {
        // Every key has a default, but half of a file is no wish for the defaults.
        return Err(Failure::Config("the configuration is empty: it names no pool".to_owned()));
    }
    loaded.check(executable::missing_program).map_err(LoadError::from)?;
    for pool in &loaded.config.pools {
        super::ipc::account(&pool.user)?;
    }
    let faults = units::check(&loaded.config);
    if faults.is_empty() { Ok(loaded) } else { Err(Failure::Config(faults.join("\n"))) }
}

/// Writes a configuration beside the published one.
fn stage(config: &Config) -> io::Result<PathBuf> {
    let path = Path::new(APPLIED);
    let new = path.with_extension("toml.new");
    // Every key with its value: what a default depends on, such as who asks, must not matter any more.
    let written = fs::create_dir_all(path.parent().unwrap_or(path))
        .and_then(|()| fs::write(&new, config.to_toml()))
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o644)));
    if written.is_err() {
        let _ = fs::remove_file(&new); // half of it
    }
    written.map(|()| new)
}

/// Puts a configuration, or none, in the place that the generator and the parts read.
fn publish(config: Option<&Config>) -> Result<(), Failure> {
    let path = Path::new(APPLIED);
    let published = match config {
        Some(config) => stage(config).and_then(|new| fs::rename(new, path)),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    };
    published.map_err(|error| at(path, error))
}

/// Runs systemctl, whose words go where ours go.
fn systemctl(words: &[&str], units: &[String]) -> Result<(), Failure> {
    if units.is_empty() && words != ["daemon-reload"] {
        return Ok(());
    }
    let status = Command::new("systemctl").args(words).args(units).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(failed(format!("systemctl {} {} has failed", words.join(" "), units.join(" ")))),
        Err(error) => Err(failed(format!("systemctl: {error}"))),
    }
}

/// Has systemd read what the generator makes of the published configuration, unless it has done so.
fn render(config: &Config) -> Result<(), Failure> {
    let wanted = units::render(config, group);
    let dir = Path::new("/run/systemd/generator");
    let there = |(file, text): (&String, &String)| fs::read_to_string(dir.join(file)).is_ok_and(|found| found == *text);
    match wanted.iter().all(there) {
        true => Ok(()),
        false => systemctl(&["daemon-reload"], &[]),
    }
}

fn start(path: Option<&Path>) -> Result<(), Failure> {
    let loaded = load(path)?;
    publish(Some(&loaded.config))?;
    render(&loaded.config)?;
    let services = units::services(&loaded.config);
    // Who has failed before gets a new chance.
    systemctl(&["reset-failed"], &["patou-*".to_owned()])?;
    let core = &services[..3];
    systemctl(&["start"], core)?;
    let workers = &services[3..];
    if systemctl(&["start"], workers).is_err() {
        // The others serve; which one has failed, systemctl has said.
        let serves = |unit: &String| systemctl(&["--quiet", "is-active"], std::slice::from_ref(unit)).is_ok();
        if !workers.iter().any(serves) {
            return Err(failed("no worker could be started"));
        }
    }
    Ok(())
}

fn stop() -> Result<(), Failure> {
    // Whoever waits is told so, and not left to a dispatcher that has no workers any more. One that cannot hear
    // it is stopped all the same; one that does not run would be started by the question.
    if systemctl(&["--quiet", "is-active"], &[DISPATCHER.to_owned()]).is_ok() {
        let _ = probe::ask(&Path::new(RUNTIME_DIR).join("probe.sock"), Some(ProbeCommand::Quiesce), PATIENCE);
    }
    let all = ["patou-worker@*", "patou-listener@*", "patou-probe.socket", DISPATCHER, ADMIN, WATCHDOG, IPC];
    let stopped = systemctl(&["stop"], &all.map(str::to_owned));
    publish(None)?;
    stopped
}

fn reload(path: Option<&Path>) -> Result<(), Failure> {
    let refused = |failure| match failure {
        Failure::Config(text) => Failure::Config(format!("{text}\nreload refused, nothing has changed")),
        Failure::Failed(text) => failed(format!("reload refused, nothing has changed: {text}")),
    };
    let new = load(path).map_err(refused)?;
    let old = Config::load(Some(Path::new(APPLIED)))?;
    if old.config.set != new.config.set {
        return Err(refused(failed("set.name cannot change while the set runs: stop it and start it again")));
    }
    let steps = units::steps(&old.config, &new.config);
    bindable(&old.config, &new.config).map_err(refused)?;
    stage(&new.config).map_err(|error| refused(at(Path::new(APPLIED), error)))?;
    apply(&new, &steps).map_err(|failure| {
        // Back to what was.
        let back = units::steps(&new.config, &old.config);
        match apply(&old, &back) {
            Ok(()) => refused(failure),
            Err(second) => failed(format!("{}; and going back: {}", text(&failure), text(&second))),
        }
    })?;
    revive(&new.config)
}

/// A new configuration, even the same, is a new chance for whoever was given up. Whether it is used is not waited for.
fn revive(config: &Config) -> Result<(), Failure> {
    let list = answer(&["list-units", "--failed", "--full", "--plain", "--no-legend", "patou-*"])?;
    let failed: BTreeSet<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let is_failed = |unit: &String| failed.contains(unit.as_str());
    let services = config.workers().map(|id| worker_service(&id)).chain([DISPATCHER.to_owned()]);
    let services: Vec<String> = services.filter(is_failed).collect();
    // A socket fails with its service, and comes back with it.
    let sockets = config.workers().map(|id| units::worker_socket(&id)).filter(is_failed);
    let all: Vec<String> = services.iter().cloned().chain(sockets).collect();
    systemctl(&["reset-failed"], &all)?;
    systemctl(&["start", "--no-block"], &services)
}

fn text(failure: &Failure) -> &str {
    match failure {
        Failure::Config(text) | Failure::Failed(text) => text,
    }
}

fn apply(new: &Loaded, steps: &units::Steps) -> Result<(), Failure> {
    systemctl(&["stop"], &steps.stop)?;
    publish(Some(&new.config))?;
    render(&new.config)?;
    systemctl(&["reload"], &[IPC.to_owned()])?;
    systemctl(&["start"], &steps.start)?;
    for unit in &steps.restart {
        restart(unit)?;
    }
    // Who is not running, because an operator has stopped it, reads it when it is started.
    systemctl(&["try-reload-or-restart"], &steps.reload)
}

/// Restarts a unit that is running; one that is not stays as it is.
fn restart(unit: &str) -> Result<(), Failure> {
    systemctl(&["try-restart"], &[unit.to_owned()])
}

/// Tries the addresses that are new, before anything is touched.
fn bindable(old: &Config, new: &Config) -> Result<(), Failure> {
    let of = |config: &Config| {
        let listeners: Vec<_> = config.listeners.iter().map(|l| l.address.clone()).collect();
        let workers = config.workers().filter_map(|id| Some(config.pool(&id.pool)?.worker_address(id.number)));
        let admin = config.admin.address.clone();
        listeners
            .into_iter()
            .chain(workers)
            .chain(admin)
            .map(|address| (address.to_string(), address))
            .collect::<BTreeMap<_, _>>()
    };
    let known = of(old);
    for (name, address) in of(new).into_iter().filter(|(name, _)| !known.contains_key(name)) {
        if let crate::config::ListenAddress::Tcp(address) = address {
            std::net::TcpListener::bind(address).map_err(|error| failed(format!("{name}: {error}")))?;
        }
    }
    Ok(())
}

/// `ExecStop=` of a part: SIGTERM to `$MAINPID`, then its end. What else the unit has running, systemd kills then.
fn drain() -> Result<(), Failure> {
    let Some(pid) = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) else {
        return Ok(()); // it has left
    };
    let Ok(process) = sys::pidfd_open(Pid::from_raw(pid)) else { return Ok(()) };
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        if let Err(error) = sys::pidfd_send_signal(process.as_fd(), signal) {
            return if error.raw_os_error() == Some(nix::libc::ESRCH) { Ok(()) } else { Err(failed(error)) };
        }
    }
    // Bounded by TimeoutStopSec= of the unit.
    let _ = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    Ok(())
}

/// `ExecStopPost=` of a part. Its sockets outlive it, whether it died or is restarted, but not when it is stopped: the
/// next client would start it again. `StopPropagatedFrom=` in the sockets would stop them whenever the unit is on its
/// way down without a job, as after `WatchdogSec=`; and with its socket a worker is stopped for good.
fn post_stop(unit: &str) -> Result<(), Failure> {
    if std::env::var("SERVICE_RESULT").is_ok_and(|result| result != "success") {
        return Ok(()); // it died
    }
    let jobs = answer(&["list-jobs", "--plain", "--no-legend", unit])?;
    if !jobs.lines().any(|job| job.split_whitespace().nth(2) == Some("stop")) {
        return Ok(()); // it is restarted, or has ended by itself
    }
    let sockets = answer(&["show", "--value", "--property=TriggeredBy", unit])?;
    let sockets: Vec<String> = sockets.split_whitespace().map(str::to_owned).collect();
    // Their turn comes after this unit's.
    systemctl(&["stop", "--no-block"], &sockets)
}

/// What systemctl prints.
fn answer(words: &[&str]) -> Result<String, Failure> {
    let output = Command::new("systemctl").args(words).output();
    let output = output.map_err(|error| failed(format!("systemctl: {error}")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            Err(failed(format!("systemctl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
        }
    }
}

/// One part after the other, so that there is always somebody who serves. Segments of another layout have to be made
/// anew, and for that everybody leaves, while new clients wait in the backlog of the listening sockets.
fn upgrade() -> Result<(), Failure> {
    let Ok(applied) = Config::load(Some(Path::new(APPLIED))) else {
        return Ok(()); // not running
    };
    if !ipc::is_current(Path::new(RUNTIME_DIR)) {
        println!("the segments have another layout: all workers finish what they do and start anew");
        empty_queues(&applied.config);
        return systemctl(&["try-restart"], &[IPC.to_owned()]);
    }
    for id in applied.config.workers() {
        restart(&worker_service(&id))?;
    }
    restart(DISPATCHER)?;
    restart(WATCHDOG)
}

/// Has the dispatcher accept nobody any more and waits until nobody waits for a worker: who comes now waits in the
/// kernel's backlog, for the next dispatcher. One that does not know the order, or does not answer, is restarted as it
/// is, and who waits in its queue is sent back.
fn empty_queues(config: &Config) {
    let socket = Path::new(RUNTIME_DIR).join("probe.sock");
    let patience = config.pools.iter().map(|pool| pool.queue_timeout).max().unwrap_or_default();
    let give_up = Instant::now() + patience;
    let mut order = Some(ProbeCommand::Hold);
    while let Ok(report) = probe::ask(&socket, order.take(), PATIENCE) {
        if report.pools.iter().all(|pool| pool.queue == 0) || Instant::now() >= give_up {
            return;
        }
        std::thread::sleep(LOOK);
    }
}
