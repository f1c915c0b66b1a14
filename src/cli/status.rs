//! `patou status`: how the set is, for people and for programs.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Failure, duration, failed, load_applied, no_set, written};
use crate::config::Config;
use crate::probe;
use crate::status::{self, PATIENCE, SavedState, StatusView, Told};

#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait for so long until every part is up; exit code 1 if it is not by then
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(10);

pub fn run(path: Option<&Path>, status: &Status) -> Result<(), Failure> {
    let give_up = status.wait.map(|wait| Instant::now() + wait);
    loop {
        let config = load_applied(path)?;
        let view = look(&config);
        let up = view.as_ref().is_ok_and(StatusView::is_up);
        let late = give_up.is_none_or(|at| Instant::now() >= at);
        if up || late {
            let view = view?;
            written(print(&view, status.json))?;
            return match give_up {
                _ if view.watchdog.state == "gone" => Err(failed(
                    "the watchdog is gone: what still runs finishes and leaves, and nobody replaces it; start the set again",
                )),
                Some(_) if !up => Err(failed("not every part is up")),
                _ => Ok(()),
            };
        }
        std::thread::sleep(LOOK);
    }
}

fn look(config: &Config) -> Result<StatusView, Failure> {
    let dir = &config.set.runtime_dir;
    let state = SavedState::read(dir).map_err(|_| no_set(dir))?;
    let report = probe::ask(&dir.join("probe.sock"), None, PATIENCE);
    // Who may not ask learns nothing about the dispatcher, least of all that it is frozen.
    let answers = !matches!(&report, Err(error) if error.kind() != io::ErrorKind::PermissionDenied);
    Ok(status::collect(config, &state, Told { report: report.as_ref().ok(), answers }))
}

fn print(view: &StatusView, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(view)?);
    }
    let pid = |pid: Option<u32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
    writeln!(out, "set {}  at {}", view.set, view.listeners.join(", "))?;
    writeln!(out)?;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}", "PART", "STATE", "PID", "RESTARTS")?;
    let watchdog = &view.watchdog;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}", "watchdog", watchdog.state, pid(watchdog.pid), watchdog.restarts)?;
    let d = &view.dispatcher;
    writeln!(out, "{:<18} {:<9} {:>8} {:>9}  {} waiting", "dispatcher", d.state, pid(d.pid), d.restarts, d.queue)?;
    for pool in &view.pools {
        writeln!(out)?;
        writeln!(
            out,
            "{:<18} {:<9} {:>8} {:>9} {:>9} {:>7} {:>6}  {:<16} LEASE",
            "WORKER", "STATE", "PID", "RESTARTS", "SERVED", "FAILED", "EPOCH", "ADDRESS"
        )?;
        for w in &pool.workers {
            let line = format!(
                "{:<18} {:<9} {:>8} {:>9} {:>9} {:>7} {:>6}  {:<16} {:<10} {}",
                w.id.to_string(),
                w.state,
                pid(w.pid),
                w.restarts,
                w.served,
                w.failed,
                w.epoch,
                w.address,
                w.lease.as_deref().unwrap_or("-"),
                w.cause.as_ref().map_or(String::new(), |cause| format!("(last end: {cause})")),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out, "{} waiting in pool {}", pool.queue, pool.name)?;
    }
    Ok(())
}
