//! What the plan knows about one part.

use std::time::Duration;

use serde::Serialize;

use super::messages::Absence;
use crate::ids::Monotonic;
use crate::liveness::{LivenessVerdict, RestartHistory, SilenceTimer};

#[derive(Clone, Debug)]
pub(super) enum PartState {
    /// Waits for the dispatcher's first READY.
    AwaitingDispatcher,
    /// Is started at this time.
    StartDue(Monotonic),
    Running(SilenceTimer),
    /// Was signalled to end.
    Stopping {
        /// When it is killed.
        kill_at: Monotonic,
        reason: StopReason,
        /// Its silence; `None` once it has been declared frozen.
        timer: Option<SilenceTimer>,
    },
    Failed,
    Stopped,
    /// Has no process, and systemd is responsible for it.
    Absent(Absence),
}

/// Why a part ends, and so what follows: also for a part that freezes while it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// Restarted as after any other failure.
    Frozen,
    /// Restarted without delay; does not count as a failure.
    PlannedRestart,
    /// Not started again.
    Final,
}

/// The cause of the end of a part that the watchdog has killed.
pub(super) const FROZEN: &str = "frozen";

#[derive(Clone, Debug)]
pub(super) struct PartRecord {
    pub state: PartState,
    pub pid: Option<u32>,
    pub drain_timeout: Duration,
    pub restart_history: RestartHistory,
    /// Unplanned restarts.
    pub restarts: u32,
    /// How it ended last.
    pub cause: Option<String>,
    /// It ended, and systemd has not reported yet whether the end was planned.
    pub end_unexplained: bool,
    /// When it was last killed by a signal that may leave a core dump.
    pub aborted_at: Option<Monotonic>,
    /// Why its silence is not attributed to it: starved or suspended.
    pub hold_reason: Option<LivenessVerdict>,
    /// Whether a sample of its process was requested and has not arrived.
    pub sample_requested: bool,
    /// Since when its process is ready.
    pub ready_at: Option<Monotonic>,
}

impl PartRecord {
    pub(super) fn new(state: PartState, drain_timeout: Duration) -> Self {
        Self {
            state,
            pid: None,
            drain_timeout,
            restart_history: RestartHistory::default(),
            restarts: 0,
            cause: None,
            end_unexplained: false,
            aborted_at: None,
            hold_reason: None,
            sample_requested: false,
            ready_at: None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(&self.state, PartState::Running(timer) if timer.is_ready())
    }

    /// The silence of its process, until that is declared frozen: while it runs, and also while it ends.
    pub(super) fn timer(&self) -> Option<&SilenceTimer> {
        match &self.state {
            PartState::Running(timer) => Some(timer),
            PartState::Stopping { timer, .. } => timer.as_ref(),
            _ => None,
        }
    }

    pub(super) fn timer_mut(&mut self) -> Option<&mut SilenceTimer> {
        match &mut self.state {
            PartState::Running(timer) => Some(timer),
            PartState::Stopping { timer, .. } => timer.as_mut(),
            _ => None,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, PartState::Stopped | PartState::Failed)
    }

    pub(super) fn status(&self) -> PartStatus {
        let state = match &self.state {
            PartState::AwaitingDispatcher => "starting",
            PartState::StartDue(_) => "gone",
            PartState::Running(_) if self.hold_reason == Some(LivenessVerdict::Starved) => "starved",
            PartState::Running(_) if self.hold_reason.is_some() => "suspended",
            PartState::Running(timer) if timer.is_ready() => "up",
            PartState::Running(_) => "starting",
            PartState::Stopping { timer: None, .. } => "frozen",
            PartState::Stopping { .. } => "draining",
            PartState::Failed => "failed",
            PartState::Stopped => "stopped",
            PartState::Absent(absence) => absence.as_str(),
        };
        PartStatus { pid: self.pid, state, restarts: self.restarts, cause: self.cause.clone() }
    }
}

/// A part as `patou status` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartStatus {
    /// Its process, if it has one.
    pub pid: Option<u32>,
    /// `starting`, `up`, `starved`, `suspended`, `frozen`, `gone`, `draining`, `failed`, `stopped`.
    pub state: &'static str,
    /// Unplanned restarts.
    pub restarts: u32,
    /// How it ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}
