//! Queries systemd (`systemctl show`): why a unit has no process, and how often systemd has restarted it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc;

use super::unit_processes::unit_of;
use crate::ids::Monotonic;
use crate::published::{PublishedSet, describe_end};
use crate::watchdog::plan::{Absence, Part};
use crate::{clock, units};

/// Shortest time between two queries.
const QUERY_INTERVAL: Duration = Duration::from_millis(500);

/// The state of a unit, as systemd reports it.
pub(crate) struct UnitReport {
    pub part: Part,
    /// Why it has no process, if it has none.
    pub absence: Absence,
    pub is_active: bool,
    pub restarts: u32,
    /// How a failed unit ended, or else its previous process, if that was not planned.
    pub cause: Option<String>,
    /// The last status of its process (sd_notify(3)).
    pub status: String,
}

/// Queries in the background, one at a time.
pub(super) struct UnitQueries {
    /// Parts that the next query includes.
    requested: BTreeSet<Part>,
    is_running: bool,
    next_at: Monotonic,
    result_sender: mpsc::UnboundedSender<Vec<UnitReport>>,
    results: mpsc::UnboundedReceiver<Vec<UnitReport>>,
}

impl UnitQueries {
    /// No query has been sent yet.
    pub(super) fn new() -> Self {
        let (result_sender, results) = mpsc::unbounded_channel();
        Self { requested: BTreeSet::new(), is_running: false, next_at: clock::now(), result_sender, results }
    }

    /// Includes a part in the next query.
    pub(super) fn request(&mut self, part: Part) {
        self.requested.insert(part);
    }

    /// Whether a part waits for the next query: a result of the current one may be outdated.
    pub(super) fn is_requested(&self, part: &Part) -> bool {
        self.requested.contains(part)
    }

    /// The next query need not wait for the interval.
    pub(super) fn expedite(&mut self) {
        self.next_at = clock::now();
    }

    /// Queries the requested parts and `others`, unless a query is running or the last one was too recent.
    pub(super) fn start(&mut self, now: Monotonic, others: Vec<Part>) {
        let parts: Vec<Part> = others.into_iter().chain(self.requested.iter().cloned()).collect();
        if parts.is_empty() || self.is_running || self.next_at > now {
            return;
        }
        self.is_running = true;
        self.next_at = now + QUERY_INTERVAL;
        self.requested.clear();
        let results = self.result_sender.clone();
        tokio::task::spawn_local(async move { drop(results.send(query(parts).await)) });
    }

    /// Waits for the result of the running query.
    pub(super) async fn result(&mut self) -> Option<Vec<UnitReport>> {
        let result = self.results.recv().await;
        self.is_running = false;
        result
    }
}

/// Runs `systemctl show`, which any user may. Empty if it fails: the query is repeated.
async fn query(parts: Vec<Part>) -> Vec<UnitReport> {
    let units: Vec<_> = parts.iter().map(unit_of).collect();
    let show = ["show", "--property=Id,ActiveState,NRestarts,Result,ExecMainStatus,StatusText"];
    let output = Command::new("systemctl").args(show).args(&units).kill_on_drop(true).output().await;
    let Ok(output) = output else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks = text.split("\n\n").filter_map(|block| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let part = parts.iter().zip(&units).find(|(_, unit)| Some(unit.as_str()) == value("Id"))?.0.clone();
        let active = value("ActiveState")?;
        let absence = match active {
            "inactive" => Absence::Stopped,
            "failed" => Absence::Failed,
            _ => Absence::Gone,
        };
        let restarts = value("NRestarts").and_then(|n| n.parse().ok()).unwrap_or(0);
        let cause = match absence {
            Absence::Failed => Some(describe_failure(value)),
            // That of its previous process, if there was one.
            Absence::Gone | Absence::Stopped => PublishedSet::of_machine().last_end(value("Id")?),
        };
        let status = value("StatusText").unwrap_or_default().to_owned();
        Some(UnitReport { part, absence, is_active: active == "active", restarts, cause, status })
    });
    blocks.collect()
}

/// How a failed unit ended, from its properties (org.freedesktop.systemd1(5)): the last status of its process, if that
/// has given a reason, or the result.
fn describe_failure<'v>(value: impl Fn(&str) -> Option<&'v str>) -> String {
    let text = |key| value(key).unwrap_or_default();
    let end = describe_end(text("Result"), text("ExecMainStatus"));
    match text("StatusText").strip_prefix(units::FAILURE_STATUS) {
        Some(reason) => format!("{end}: {reason}"),
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_a_failed_unit_is_described_with_its_reason() {
        let end = |result, status, text: &str| {
            let all = [("Result", result), ("ExecMainStatus", status), ("StatusText", text)];
            describe_failure(|key| all.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
        };
        assert_eq!(end("exit-code", "1", "failed: cannot execute x"), "exit code 1: cannot execute x");
        assert_eq!(end("exit-code", "3", "serving as default/1, incarnation 1"), "exit code 3");
        assert_eq!(end("exit-code", "79", "failed: it failed 6 times"), "given up: it failed 6 times");
        assert_eq!(end("signal", "9", ""), "killed by SIGKILL");
    }
}
