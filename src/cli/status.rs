//! `patou status`: the state of the set, as text or JSON.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;

use super::config_source::load_applied;
use super::duration_arg::duration;
use super::error::{CommandError, failed, ignore_broken_pipe, no_set};
use super::poll::POLL_INTERVAL;
use crate::config::Config;
use crate::ids::ProgramVersion;
use crate::ipc::SetLock;
use crate::status::{self, PROBE_TIMEOUT, ProbeResult, SavedState, StatusView};
use crate::{ipc, probe};

/// How long a running set may take to restore its state file.
const RESTORE_WAIT: Duration = Duration::from_millis(1500);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait at most this long until every part is up; exit code 1 if not
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

pub(super) fn run(path: Option<&Path>, args: &StatusArgs) -> Result<(), CommandError> {
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    loop {
        let config = load_applied(path)?;
        let view = view(&config);
        let up = view.as_ref().is_ok_and(StatusView::is_up);
        let expired = deadline.is_none_or(|at| Instant::now() >= at);
        if up || expired {
            let view = view?;
            let by_systemd = ipc::is_run_by_systemd(&config.set.runtime_dir);
            ignore_broken_pipe(print(&view, args.json, by_systemd))?;
            return match deadline {
                _ if view.watchdog.state == "gone" && ipc::is_run_by_systemd(&config.set.runtime_dir) => Err(failed(
                    "the watchdog is gone, and frozen parts are not replaced until systemd has restarted it: see \
                     systemctl status patou-watchdog",
                )),
                _ if view.watchdog.state == "gone" => Err(failed(
                    "the watchdog is gone: the other parts finish their requests and exit, and nothing replaces them; \
                     start the set again",
                )),
                Some(_) if !up => Err(failed(format!("not every part is up: {}", view.not_up().join(", ")))),
                _ => Ok(()),
            };
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

pub(super) fn view(config: &Config) -> Result<StatusView, CommandError> {
    let dir = &config.set.runtime_dir;
    let state = read_state(dir)?;
    let report = probe::query(&dir.join("probe.sock"), None, PROBE_TIMEOUT);
    // A user without permission learns nothing about the dispatcher, so it does not count as frozen.
    let responsive = !matches!(&report, Err(error) if error.kind() != io::ErrorKind::PermissionDenied);
    Ok(status::collect(config, &state, ProbeResult { report: report.as_ref().ok(), responsive }))
}

/// The watchdog's state. A set whose files were removed restores them within a second.
fn read_state(dir: &Path) -> Result<SavedState, CommandError> {
    let deadline = Instant::now() + RESTORE_WAIT;
    loop {
        let error = match SavedState::read(dir) {
            Ok(state) => return Ok(state),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Err(no_set(dir));
        }
        let Some(pid) = SetLock::holder(dir) else { return Err(no_set(dir)) };
        if Instant::now() >= deadline {
            let dir = dir.display();
            return Err(failed(format!(
                "a set is running in {dir} (pid {pid}), but its state cannot be read ({error}): it is starting or frozen, \
                 or its files were removed and it cannot create this directory again"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A sentence about parts that run another version of the program.
fn outdated(parts: &[(String, String)], by_systemd: bool) -> String {
    const SHOWN: usize = 3;
    let versions: BTreeSet<&str> = parts.iter().map(|(_, version)| version.as_str()).collect();
    let mut names: Vec<_> = parts.iter().take(SHOWN).map(|(part, _)| part.clone()).collect();
    if let more @ 1.. = parts.len().saturating_sub(SHOWN) {
        names.push(format!("{more} more"));
    }
    let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
    let remedy = if by_systemd { "patou systemd upgrade restarts them" } else { "restart the set" };
    format!("not version {}: {} run {versions}; {remedy}", ProgramVersion::own(), names.join(", "))
}

fn print(view: &StatusView, json: bool, by_systemd: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(view)?);
    }
    let pid = |pid: Option<u32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
    writeln!(out, "set {}  at {}", view.set, view.listeners.join(", "))?;
    for problem in &view.problems {
        writeln!(out, "problem: {problem}")?;
    }
    if !view.other_versions.is_empty() {
        writeln!(out, "{}", outdated(&view.other_versions, by_systemd))?;
    }
    if view.pools.iter().flat_map(|pool| &pool.workers).any(|worker| worker.state == "up") {
        writeln!(out, "this user sees only what the watchdog reports: leases and counts need root, or the set's user")?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_another_version_are_named_with_the_remedy() {
        let part = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let mut parts = vec![part("dispatcher", "0.0.9")];
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(outdated(&parts, false), format!("not version {own}: dispatcher run 0.0.9; restart the set"));
        parts.extend((1..=4).map(|n| part(&format!("web/{n}"), "9.9.9")));
        let all = "dispatcher, web/1, web/2, 2 more run 0.0.9, 9.9.9; patou systemd upgrade restarts them";
        assert_eq!(outdated(&parts, true), format!("not version {own}: {all}"));
    }
}
