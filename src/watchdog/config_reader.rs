//! Reads a changed configuration beside the thread that decides: its file may be on a file system that does not respond,
//! and the owners of its sockets may be known to a name service that does not respond.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::accounts;
use crate::config::{Config, PoolConfig, UnusableFile};
use crate::ids::Monotonic;
use crate::{clock, worker_files};

/// How long reading may take before the reload is refused.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A configuration, or why it cannot be used.
pub(super) type ConfigRead = Result<Box<Config>, String>;

/// Reads one file at a time.
#[derive(Default)]
pub(super) struct ConfigReader {
    reading: Option<Reading>,
}

struct Reading {
    result: oneshot::Receiver<ConfigRead>,
    until: Monotonic,
    /// The file may have changed since the read has started: read it once more.
    again: bool,
}

impl ConfigReader {
    /// Starts to read `file`. If a read is in progress, it is repeated when it ends. `read` gets the configuration in
    /// force, too.
    pub(super) fn start(&mut self, file: PathBuf, in_force: Arc<Config>, read: fn(&Path, &Config) -> ConfigRead) {
        if let Some(reading) = &mut self.reading {
            reading.again = true;
            return;
        }
        let (sender, result) = oneshot::channel();
        // A thread that never ends is lost. The runtime would wait for one of its own at the end.
        let read = move || drop(sender.send(read(&file, &in_force)));
        // If it cannot be started, the receiver reports that the sender is gone.
        let _ = std::thread::Builder::new().name("reload".to_owned()).spawn(read);
        self.reading = Some(Reading { result, until: clock::now() + READ_TIMEOUT, again: false });
    }

    /// Waits for the result of the read in progress, and whether the file must be read once more. Cancel-safe.
    pub(super) async fn next(&mut self) -> (ConfigRead, bool) {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let read = tokio::select! {
            read = &mut reading.result => read.unwrap_or_else(|_| Err("no thread can be started to read it".to_owned())),
            () = sleep(reading.until.since(clock::now())) => {
                let bound = READ_TIMEOUT.as_secs();
                Err(format!("reading it and looking up its users took longer than {bound} s; check its file system and \
                             the name service, then reload again"))
            }
        };
        let again = reading.again;
        self.reading = None;
        (read, again)
    }
}

/// Reads a configuration of child processes, and checks what they need. The programs of the handlers in force run, and
/// are not checked.
pub(super) fn read_checked(file: &Path, in_force: &Config) -> ConfigRead {
    let loaded = Config::load(Some(file)).map_err(|error| error.to_string())?;
    loaded.check(|pool| unusable_files(pool, in_force)).map_err(|faults| faults.to_string())?;
    let mut config = loaded.config;
    accounts::resolve(&mut config).map_err(|error| error.to_string())?;
    Ok(Box::new(config))
}

/// What the workers of a new or changed pool cannot use. An unchanged handler is not checked: it runs.
fn unusable_files(pool: &PoolConfig, in_force: &Config) -> Vec<UnusableFile> {
    let files = |pool: &PoolConfig| {
        let PoolConfig { handler, environment, working_dir, spool_dir, .. } = pool.clone();
        (handler, environment, working_dir, spool_dir)
    };
    let is_unchanged = in_force.pool(&pool.name).is_some_and(|now| files(now) == files(pool));
    if is_unchanged { Vec::new() } else { worker_files::unusable_files(pool) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn read_that_does_not_end_is_refused_and_the_next_one_starts() {
        let (_never, result) = oneshot::channel();
        let mut reader = ConfigReader { reading: Some(Reading { result, until: clock::now(), again: false }) };
        let file = std::env::temp_dir().join(format!("patou-config-reader-{}", std::process::id()));
        std::fs::write(&file, "[[pool]]\nname = \"default\"\n").unwrap();
        reader.start(file.clone(), Arc::default(), read_checked);
        let (read, again) = reader.next().await;
        assert!(read.unwrap_err().contains("took longer than 10 s") && again);
        reader.start(file.clone(), Arc::default(), read_checked);
        let (read, again) = reader.next().await;
        assert_eq!((read.unwrap().pools.len(), again), (1, false));
        std::fs::remove_file(file).unwrap();
    }
}
