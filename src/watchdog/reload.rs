//! SIGHUP: applies a new configuration. On any error nothing changes, and the error is logged.

use sd_notify::NotifyState;

use super::config_reader::ConfigRead;
use super::run::Watchdog;
use super::supervisor::{EventOf, Supervisor};
use crate::config::{Config, Origin};
use crate::log;
use crate::sd_notification::{notify, notify_reloading};

impl<S: Supervisor> Watchdog<S> {
    /// Starts to read the configuration file again.
    pub(super) fn reload(&mut self) {
        let Origin::File(path) = &self.set.origin else {
            let reason = "nothing to reload: the set uses the built-in configuration; start it with --config FILE";
            tracing::warn!(event = %log::Event::ReloadRefused, "{reason}");
            return self.set.reloads.complete(Some(reason.to_owned()));
        };
        if self.set.plan.is_stopping() {
            return;
        }
        if self.set.is_ready {
            notify_reloading();
        }
        self.set.reloads.is_reading = true;
        self.config_reader.start(path.clone(), self.set.config.clone(), S::read_config);
    }

    /// Applies the configuration that was read. Returns what changes for the parts.
    pub(super) fn on_config_read(&mut self, (read, again): (ConfigRead, bool)) -> Option<EventOf<S>> {
        if again {
            self.reload();
            return None;
        }
        let event = self.apply(read);
        if self.set.is_ready {
            notify(&[NotifyState::Ready]);
        }
        event
    }

    fn apply(&mut self, read: ConfigRead) -> Option<EventOf<S>> {
        let Origin::File(path) = &self.set.origin else { return None };
        if self.set.plan.is_stopping() {
            return None;
        }
        let file = path.display().to_string();
        let apply = |new: Box<Config>| self.supervisor.apply(&mut self.set, *new).map_err(|error| error.to_string());
        match read.and_then(apply) {
            Ok((event, effect)) => {
                let config = &self.set.config;
                let (workers, pools) = (config.workers().count(), config.pools.len());
                tracing::info!(file, set = %config.set.name, workers, pools, event = %log::Event::ReloadApplied,
                    "configuration applied: {effect}");
                self.set.reloads.complete(None);
                Some(event)
            }
            Err(error) => {
                log_refused(&file, &error);
                self.set.reloads.complete(Some(error));
                None
            }
        }
    }
}

/// Logs why a reload was refused; several faults of a file are logged in several records.
fn log_refused(file: &str, error: &str) {
    let lines: Vec<_> = error.lines().collect();
    if let [line] = lines[..] {
        tracing::error!(file, event = %log::Event::ReloadRefused, "reload refused, nothing has changed: {line}");
        return;
    }
    tracing::error!(file, event = %log::Event::ReloadRefused,
        "reload refused, nothing has changed: {} faults follow", lines.len());
    for line in lines {
        tracing::error!(event = %log::Event::ReloadRefused, "{line}");
    }
}
