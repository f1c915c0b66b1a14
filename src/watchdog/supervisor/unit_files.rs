//! Files of a set of units that were removed from outside, each with what creates it again.

use std::path::Path;
use std::time::Duration;

use crate::config::{Config, ListenAddress};
use crate::held_file::leads_nowhere;
use crate::ids::Monotonic;
use crate::published::PublishedSet;
use crate::watchdog::plan::Part;
use crate::{ipc, log, units};

/// How often the files are looked for.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The files that were removed, as of the last look.
pub(super) struct UnitFiles {
    missing: Vec<String>,
    checked: Monotonic,
}

impl UnitFiles {
    pub(super) fn new(now: Monotonic) -> Self {
        Self { missing: Vec::new(), checked: now }
    }

    /// What is missing, each with its remedy.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Looks for files that were removed, and logs them. Costs no wake-up: the watchdog is awake for a probe.
    pub(super) fn check(&mut self, now: Monotonic, config: &Config, runs: impl Fn(&Part) -> bool) {
        if now.since(self.checked) < CHECK_INTERVAL {
            return;
        }
        self.checked = now;
        let had = std::mem::replace(&mut self.missing, missing_files(config, runs));
        for problem in self.missing.iter().filter(|problem| !had.contains(problem)) {
            tracing::warn!(event = %log::Event::FilesLost, "{problem}");
        }
    }
}

/// What is missing, without the sockets of parts that do not run: systemd stops these too. A path that this process may
/// not look at is not missing.
fn missing_files(config: &Config, runs: impl Fn(&Part) -> bool) -> Vec<String> {
    let is_missing = |path: &Path| std::fs::symlink_metadata(path).is_err_and(|error| leads_nowhere(&error));
    let dir = &config.set.runtime_dir;
    if is_missing(dir) {
        return vec![format!(
            "{} was removed: requests continue, and the next start of a worker creates it again; its sockets return with \
             systemctl restart patou",
            dir.display()
        )];
    }
    let mut found = Vec::new();
    // The configuration is reached through a link.
    if std::fs::metadata(units::APPLIED).is_err_and(|error| leads_nowhere(&error)) {
        let (file, remedy) = (units::APPLIED, "parts that restart fail until systemctl restart patou creates it again");
        found.push(format!("{file} was removed: {remedy}"));
    }
    let mut note = |path: &Path, remedy: &dyn Fn() -> String| {
        if is_missing(path) {
            found.push(format!("{} was removed: {}", path.display(), remedy()));
        }
    };
    let restart = |socket: &str, service: &str| format!("systemctl restart {socket} {service} creates it again");
    note(&dir.join("admin.sock"), &|| restart(units::ADMIN, units::WATCHDOG));
    if runs(&Part::Dispatcher) {
        note(&dir.join("probe.sock"), &|| "the dispatcher binds it again".to_owned());
        let socket = |address: &ListenAddress| PublishedSet::of_machine().listener_sockets().unit(address);
        for address in config.listeners.iter().map(|listener| &listener.address) {
            if let ListenAddress::Unix(path) = address {
                note(path, &|| restart(&socket(address), units::DISPATCHER));
            }
        }
    }
    for id in config.workers().filter(|id| runs(&Part::Worker(id.clone()))) {
        let next_start = || "the worker continues without it, and its next start creates it again".to_owned();
        let socket = || restart(&units::worker_socket(&id), &units::worker_service(&id));
        note(&ipc::handoff_path(dir, &id), &socket);
        ipc::object_paths(dir, &id).iter().for_each(|path| note(path, &next_start));
    }
    found
}
