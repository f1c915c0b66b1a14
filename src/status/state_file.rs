//! `watchdog.json`: the watchdog's state for `patou status`, readable while the watchdog is frozen.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::{Deserialize, Serialize};

use crate::ids::{ProcessId, WorkerId};
use crate::ipc;
use crate::procfs::{self, ProcessStat};
use crate::shm::SlotSnapshot;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedState {
    /// Name of the set.
    pub set: String,
    /// The watchdog's process.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot.
    pub started: u64,
    /// The pid namespace in which every pid of this file has its meaning. Absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<String>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether the set is stopping.
    pub stopping: bool,
    /// Addresses of the listeners, with the ports that the kernel chose.
    pub listeners: Vec<String>,
    /// What is missing outside the parts, for operators.
    #[serde(default)]
    pub problems: Vec<String>,
    /// The reloads of `patou run`. Absent in files of older versions.
    #[serde(default)]
    pub reloads: SavedReloads,
    /// The last unplanned restart of a part. Absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_restart: Option<LastRestart>,
    /// The dispatcher.
    pub dispatcher: SavedPart,
    /// The workers by name.
    pub workers: BTreeMap<String, SavedPart>,
}

/// The reloads since the watchdog has started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedReloads {
    /// How many have a result.
    pub completed: u64,
    /// Whether the configuration is being read.
    pub is_reading: bool,
    /// Why the last one was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// An unplanned restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastRestart {
    /// Which part, in words.
    pub part: String,
    /// The cause of its end.
    pub cause: String,
    /// When it ended, in seconds since the boot of the machine.
    pub at: u64,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPart {
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// `starting`, `up`, `starved`, `suspended`, `frozen`, `gone`, `draining`, `failed` or `stopped`.
    pub state: String,
    /// Unplanned restarts.
    pub restarts: u32,
    /// Cause of its last unplanned end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// A worker's last status (sd_notify(3)), where systemd does not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// A worker's segment without a name: the watchdog's descriptor of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_fd: Option<i32>,
}

impl SavedReloads {
    /// A reload has a result.
    pub(crate) fn complete(&mut self, refused: Option<String>) {
        *self = Self { completed: self.completed + 1, is_reading: false, refused };
    }
}

impl fmt::Display for LastRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.part, self.cause)
    }
}

const FILE: &str = "watchdog.json";

impl SavedState {
    /// Reads the file of the set with this runtime directory. Under systemd the watchdog writes to another directory.
    pub(crate) fn read(runtime_dir: &Path) -> io::Result<Self> {
        let dir = if ipc::is_run_by_systemd(runtime_dir) { Path::new(ipc::WATCHDOG_DIR) } else { runtime_dir };
        Self::read_in(dir)
    }

    /// Reads the file in `dir`.
    pub(crate) fn read_in(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?)
    }

    /// Whether the pids of this file are those of this process's pid namespace.
    pub(crate) fn has_local_pids(&self) -> bool {
        self.pid_namespace.is_none() || self.pid_namespace == procfs::pid_namespace()
    }

    /// The watchdog's process, if it still runs in this pid namespace.
    pub(crate) fn watchdog(&self) -> Option<ProcessStat> {
        if !self.has_local_pids() {
            return None;
        }
        ProcessStat::of_id(ProcessId { pid: self.pid, start_time: self.started }).filter(|process| !process.is_zombie())
    }

    /// The file in `dir`.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// The current content of one worker's slot, also if its segment has no name any more.
    pub(crate) fn slot(&self, runtime_dir: &Path, id: &WorkerId) -> Option<SlotSnapshot> {
        let fd = self.workers.get(&id.to_string()).and_then(|part| part.segment_fd);
        let held = fd.and_then(|fd| ipc::snapshot_at(format!("/proc/{}/fd/{fd}", self.pid).as_ref(), id).ok());
        held.or_else(|| ipc::snapshot(runtime_dir, id).ok())
    }

    /// Replaces the file in `dir` by rename(2), so that a reader never sees half of it.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("watchdog.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(FILE))
    }
}
