//! The two supervisors: one starts the parts as child processes, one watches systemd units.

pub(super) mod cgroup;
mod child_processes;
pub(super) mod children;
mod config_change;
mod repair;
mod set_files;
mod socket_moves;
mod spawn;
pub(super) mod systemd;
mod systemctl;
mod unit_files;
mod unit_processes;

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::config_reader::ConfigRead;
use super::error::WatchdogError;
use super::evidence::ProcessScope;
use super::plan::{KillSignal, Part, PlanEvent, PlanKind};
use super::set_signals::StopSignal;
use super::watched_set::WatchedSet;
use crate::config::Config;
use crate::ids::{Monotonic, WorkerId};
use crate::ipc::ObservedWorker;
use crate::status::SavedState;

/// What happens in the sets of a supervisor only.
pub(super) type EventOf<S> = <<S as Supervisor>::Set as PlanKind>::Event;
/// What a supervisor alone has to do.
pub(super) type ActionOf<S> = <<S as Supervisor>::Set as PlanKind>::Action;

/// What differs between the supervisors. The loop is in `run.rs`.
pub(super) trait Supervisor: Sized {
    /// The kind of its sets.
    type Set: PlanKind;
    /// What it waits for.
    type Notice;

    /// The pid and pidfd of a part.
    fn process(&self, part: &Part) -> Option<(u32, BorrowedFd<'_>)>;

    /// Where the processes that a part has started can be found.
    fn scope(&self, part: &Part) -> ProcessScope;

    /// Ends a part, if it has a process.
    fn kill(&self, part: &Part, signal: KillSignal);

    /// Performs an action of this kind of set, and returns the event that follows from it.
    fn perform(&mut self, set: &mut WatchedSet<Self::Set>, action: ActionOf<Self>) -> Option<EventOf<Self>>;

    /// Waits for the end of a process, a message, and whatever else it needs to notice. Cancel-safe.
    async fn next_notice(&mut self) -> Self::Notice;

    /// What a notice means for the plan.
    fn on_notice(&mut self, set: &mut WatchedSet<Self::Set>, notice: Self::Notice) -> Vec<PlanEvent<EventOf<Self>>>;

    /// The dispatcher has reported.
    fn on_report(&mut self, set: &mut WatchedSet<Self::Set>) -> Vec<PlanEvent<EventOf<Self>>>;

    /// When the next inspection is due, if it should not wait for the next probe.
    fn inspection_due_at(&self) -> Option<Monotonic> {
        None
    }

    /// Looks for what raises no event: with each probe, and when it is due.
    fn inspect(&mut self, now: Monotonic, set: &mut WatchedSet<Self::Set>) -> Vec<PlanEvent<EventOf<Self>>>;

    /// What the slot of a worker shows now.
    fn observe(&self, config: &Config, id: &WorkerId) -> Option<ObservedWorker>;

    /// Reads a changed configuration; not in the thread that decides.
    fn read_config(file: &Path, in_force: &Config) -> ConfigRead;

    /// Puts a new configuration in force. Returns what changes for the parts, also in words.
    ///
    /// # Errors
    /// Then nothing has changed.
    fn apply(&mut self, set: &mut WatchedSet<Self::Set>, new: Config)
    -> Result<(EventOf<Self>, String), WatchdogError>;

    /// Adds to the state of the set what the supervisor alone knows. Returns the directory of `watchdog.json`, if there
    /// is one now.
    fn complete_state(&self, config: &Config, state: &mut SavedState) -> Option<&Path>;

    /// SIGTERM, SIGINT or SIGQUIT.
    fn on_stop(&mut self, now: Monotonic, set: &mut WatchedSet<Self::Set>, signal: StopSignal)
    -> Option<EventOf<Self>>;
}
