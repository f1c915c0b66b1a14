//! The set that is measured: one of the benchmark's own, in a directory of its own, on ports that the kernel chooses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::drill::patou_run::{POLL_INTERVAL, all_parts_up, launch};
use crate::cli::{Failure, failed};
use crate::config::{Config, Delivery};
use crate::process_tree;
use crate::status::SavedState;

/// How many workers it has.
pub const WORKERS: u16 = 4;

/// The listeners that it has, one each. `Delivery::Handoff` comes here as soon as the configuration takes it.
const DELIVERIES: &[Delivery] = &[Delivery::Redirect, Delivery::Handoff];

/// How long it may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// A set that runs, until it is stopped or this process dies.
pub struct Set {
    top: PathBuf,
    child: Child,
    doors: Vec<Door>,
}

/// One of its listeners.
pub struct Door {
    pub name: &'static str,
    pub redirects: bool,
    pub address: SocketAddr,
}

impl Set {
    /// Starts one whose workers have this handler, as it is written in the configuration.
    pub fn start(handler: &str) -> Result<Self, Failure> {
        clear_dead();
        let name = format!("bench{}", std::process::id());
        let top = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir(&top).map_err(|error| failed(format!("{}: {error}", top.display())))?;
        let made = || -> Result<(Config, Child), Failure> {
            let text = configuration(&name, &top.join("run"), handler);
            fs::write(top.join("patou.toml"), &text).map_err(failed)?;
            let config = Config::parse(&text, "the benchmark's own configuration");
            let config = config.map_err(|faults| Failure::Config(faults.to_string()))?;
            Ok((config, launch(&top)?))
        };
        let (config, child) = made().inspect_err(|_| drop(fs::remove_dir_all(&top)))?;
        let mut set = Self { top, child, doors: Vec::new() };
        set.doors = set.wait_until_up(&config)?;
        Ok(set)
    }

    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    fn wait_until_up(&mut self, config: &Config) -> Result<Vec<Door>, Failure> {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if let Ok(state) = SavedState::read(&config.set.runtime_dir)
                && state.watchdog().is_some()
                && all_parts_up(&state)
            {
                let door = |(address, delivery): (&String, &Delivery)| {
                    let address = address.parse().map_err(|_| failed(format!("{address} is no address")))?;
                    Ok(Door { name: delivery.as_str(), redirects: *delivery == Delivery::Redirect, address })
                };
                return state.listeners.iter().zip(DELIVERIES).map(door).collect();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let log = fs::read_to_string(self.top.join("log")).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it says nothing");
        Err(failed(format!("the benchmark's own set does not start: {last}")))
    }

    /// Stops it and removes what it had.
    pub fn stop(mut self) -> Result<(), Failure> {
        match self.end() {
            true => Ok(()),
            false => Err(failed("the benchmark's own set did not stop cleanly")),
        }
    }

    /// Whether it has ended as it should.
    fn end(&mut self) -> bool {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM); // gone: then there is nothing to wait for
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < give_up => std::thread::sleep(POLL_INTERVAL),
                _ => {
                    let _ = self.child.kill().and_then(|()| self.child.wait());
                    return false;
                }
            }
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // Only after a failure: one that was stopped has been waited for.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end();
        }
        let _ = fs::remove_dir_all(&self.top); // in the temporary directory, where others clear up too
    }
}

/// Removes the directories of benchmarks that were killed. What cannot be removed harms nobody.
fn clear_dead() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.strip_prefix("patou-bench")?.parse().ok());
        if pid.is_some_and(|pid| process_tree::read_process(pid).is_none()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn configuration(name: &str, dir: &Path, handler: &str) -> String {
    let dir = dir.display().to_string();
    let mut text = format!("[set]\nname = \"{name}\"\nruntime_dir = {dir:?}\n\n");
    for delivery in DELIVERIES {
        text += &format!("[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"{}\"\n\n", delivery.as_str());
    }
    text + &format!(
        "[[pool]]\nname = \"default\"\nworkers = {WORKERS}\nhandler = {handler}\naddress = \"127.0.0.1:0\"\n"
    )
}
