//! The set that a benchmark starts and measures: in its own directory, on ports that the kernel chooses.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::error::{CommandError, failed};
use crate::cli::patou_run::{POLL_INTERVAL, all_parts_up, launch};
use crate::config::{Config, Delivery};
use crate::procfs::ProcessStat;
use crate::status::SavedState;

/// How many workers it has.
pub(super) const WORKERS: u16 = 4;

/// It has one listener for each.
const DELIVERIES: &[Delivery] = &[Delivery::Redirect, Delivery::Handoff];

/// How long a start, and a stop, may take.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A running set. It ends when it is stopped or dropped, and when this process dies.
pub(super) struct PrivateSet {
    dir: PathBuf,
    child: Child,
    listeners: Vec<PrivateListener>,
}

/// One listener of the set.
pub(super) struct PrivateListener {
    pub delivery: &'static str,
    pub redirects: bool,
    pub address: SocketAddr,
}

impl PrivateSet {
    /// Starts a set whose workers have this handler, written as in the configuration.
    pub(super) fn start(handler: &str) -> Result<Self, CommandError> {
        remove_abandoned();
        let name = format!("bench{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir(&dir).map_err(|error| failed(format!("{}: {error}", dir.display())))?;
        let launched = || -> Result<(Config, Child), CommandError> {
            let text = configuration(&name, &dir.join("run"), handler);
            fs::write(dir.join("patou.toml"), &text).map_err(failed)?;
            let config = Config::parse(&text, "the benchmark's own configuration");
            let config = config.map_err(|faults| CommandError::Config(faults.to_string()))?;
            let log = File::options().create(true).append(true).open(dir.join("log")).map_err(failed)?;
            Ok((config, launch(&dir, log.into())?))
        };
        let (config, child) = launched().inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        let mut set = Self { dir, child, listeners: Vec::new() };
        set.listeners = set.wait_until_up(&config)?;
        Ok(set)
    }

    pub(super) fn listeners(&self) -> &[PrivateListener] {
        &self.listeners
    }

    fn wait_until_up(&mut self, config: &Config) -> Result<Vec<PrivateListener>, CommandError> {
        let deadline = Instant::now() + START_STOP_TIMEOUT;
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|exit| exit.is_none()) {
            if let Ok(state) = SavedState::read(&config.set.runtime_dir)
                && state.watchdog().is_some()
                && all_parts_up(&state)
            {
                let listener = |(address, delivery): (&String, &Delivery)| {
                    let address = address.parse().map_err(|_| failed(format!("{address} is not an address")))?;
                    let redirects = *delivery == Delivery::Redirect;
                    Ok(PrivateListener { delivery: delivery.as_str(), redirects, address })
                };
                return state.listeners.iter().zip(DELIVERIES).map(listener).collect();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let last = log.lines().last().unwrap_or("its log is empty");
        Err(failed(format!("the benchmark's own set does not start: {last}")))
    }

    /// Stops the set and removes its directory.
    pub(super) fn stop(mut self) -> Result<(), CommandError> {
        if self.terminate() { Ok(()) } else { Err(failed("the benchmark's own set did not stop cleanly")) }
    }

    /// Whether it exited with status 0 in time; otherwise it is killed.
    fn terminate(&mut self) -> bool {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM); // fails if it has exited
        let deadline = Instant::now() + START_STOP_TIMEOUT;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                _ => {
                    let _ = self.child.kill().and_then(|()| self.child.wait());
                    return false;
                }
            }
        }
    }
}

impl Drop for PrivateSet {
    fn drop(&mut self) {
        // Only after a failure is it still running.
        if self.child.try_wait().is_ok_and(|exit| exit.is_none()) {
            self.terminate();
        }
        let _ = fs::remove_dir_all(&self.dir); // in the temporary directory, which the system cleans up
    }
}

/// Removes the directories of killed benchmarks. Best effort.
fn remove_abandoned() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.strip_prefix("patou-bench")?.parse().ok());
        if pid.is_some_and(|pid| ProcessStat::of(pid).is_none()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn configuration(name: &str, runtime_dir: &Path, handler: &str) -> String {
    let runtime_dir = runtime_dir.display().to_string();
    let mut text = format!("[set]\nname = \"{name}\"\nruntime_dir = {runtime_dir:?}\n\n");
    for delivery in DELIVERIES {
        text += &format!("[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"{}\"\n\n", delivery.as_str());
    }
    text + &format!(
        "[[pool]]\nname = \"default\"\nworkers = {WORKERS}\nhandler = {handler}\naddress = \"127.0.0.1:0\"\n"
    )
}
