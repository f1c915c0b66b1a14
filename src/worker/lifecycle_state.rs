//! The state that a worker publishes, and what determines it. Pure.

#![forbid(unsafe_code)]

use super::handler::HandlerReadiness;
use crate::config::Replacing;
use crate::ids::{Lifecycle, Replacements};

/// A command from the control loop to the serving task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskCommand {
    /// Replace the warm process.
    Replace,
    /// Replace this process image.
    Recycle,
    /// No obligation is left: return.
    Exit,
}

/// The published state, and what determines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LifecycleState {
    pub lifecycle: Lifecycle,
    pub wants_recycle: bool,
    pub replacements: Replacements,
    /// The configuration has changed: only a new process image applies it.
    pub reload: bool,
    /// This process image is about to be replaced: it serves no request any more.
    pub image_ends: bool,
    pub stopping: bool,
    /// The serving task does not acknowledge pings.
    pub serving_blocked: bool,
    /// The serving task has started.
    pub started: bool,
    /// Whether the handler can serve a request at once.
    pub handler: HandlerReadiness,
    /// Whether the supervisor knows that the worker is ready.
    pub announced: bool,
}

impl LifecycleState {
    /// Of a worker that starts. `replacements` are those of earlier incarnations.
    pub(super) fn starting(handler: HandlerReadiness, replacements: Replacements) -> Self {
        Self {
            lifecycle: Lifecycle::Starting,
            wants_recycle: false,
            replacements,
            reload: false,
            image_ends: false,
            stopping: false,
            serving_blocked: false,
            started: false,
            handler,
            announced: false,
        }
    }

    /// Drains for good.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.lifecycle = Lifecycle::Draining;
    }

    /// Starts to recycle a worker whose warm process, if any, is replaced as `replacing` says. Returns what the serving task
    /// has to do; `None` if the worker is stopping or recycles already.
    pub(super) fn start_recycle(&mut self, replacing: Option<Replacing>) -> Option<TaskCommand> {
        if self.stopping || self.lifecycle == Lifecycle::Recycling {
            return None;
        }
        self.image_ends = self.reload || replacing.is_none();
        if self.image_ends || replacing == Some(Replacing::After) {
            self.lifecycle = Lifecycle::Recycling;
        }
        Some(if self.image_ends { TaskCommand::Recycle } else { TaskCommand::Replace })
    }

    /// Ends a recycle after which this process continues. `drained`: an operator keeps the worker out of service.
    pub(super) fn finish_recycle(&mut self, replacements: Replacements, drained: bool) {
        self.replacements = replacements;
        if !self.image_ends {
            self.wants_recycle = self.reload;
            self.lifecycle = self.ready_or_draining(drained);
        }
    }

    /// Follows a change, unless the worker starts or recycles.
    pub(super) fn update_ready(&mut self, drained: bool) {
        if self.started && self.lifecycle != Lifecycle::Recycling {
            self.lifecycle = self.ready_or_draining(drained);
        }
    }

    fn ready_or_draining(&self, drained: bool) -> Lifecycle {
        match self.handler {
            _ if self.stopping || self.serving_blocked || drained => Lifecycle::Draining,
            HandlerReadiness::Ready => Lifecycle::Ready,
            HandlerReadiness::Pinged => Lifecycle::Draining,
            HandlerReadiness::Starting => Lifecycle::Starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> LifecycleState {
        let mut state = LifecycleState::starting(HandlerReadiness::Ready, Replacements::default());
        state.started = true;
        state.update_ready(false);
        assert_eq!(state.lifecycle, Lifecycle::Ready);
        state
    }

    #[test]
    fn worker_serves_while_a_successor_of_its_warm_process_starts_and_never_before_another_image() {
        for (replacing, reload, command, lifecycle) in [
            (Some(Replacing::Before), false, TaskCommand::Replace, Lifecycle::Ready),
            (Some(Replacing::After), false, TaskCommand::Replace, Lifecycle::Recycling),
            (None, false, TaskCommand::Recycle, Lifecycle::Recycling),
            (Some(Replacing::Before), true, TaskCommand::Recycle, Lifecycle::Recycling),
        ] {
            let mut state = LifecycleState { reload, ..ready() };
            assert_eq!(state.start_recycle(replacing), Some(command));
            assert_eq!(state.lifecycle, lifecycle, "{replacing:?} {reload}");
        }
        assert_eq!(LifecycleState { stopping: true, ..ready() }.start_recycle(None), None);
    }

    #[test]
    fn replacement_that_ends_while_the_image_does_makes_no_worker_ready() {
        let mut state = ready();
        assert_eq!(state.start_recycle(Some(Replacing::Before)), Some(TaskCommand::Replace));
        (state.reload, state.wants_recycle) = (true, true);
        assert_eq!(state.start_recycle(Some(Replacing::Before)), Some(TaskCommand::Recycle));
        assert_eq!(state.start_recycle(Some(Replacing::Before)), None);
        state.finish_recycle(state.replacements.with(false), false);
        assert_eq!((state.lifecycle, state.replacements.ended), (Lifecycle::Recycling, 1));
    }

    #[test]
    fn configuration_that_changes_meanwhile_is_applied_next() {
        let mut state = ready();
        state.start_recycle(Some(Replacing::After));
        (state.reload, state.wants_recycle) = (true, true);
        state.finish_recycle(state.replacements.with(true), true);
        assert_eq!((state.lifecycle, state.wants_recycle), (Lifecycle::Draining, true));
        assert!(state.replacements.last_failed);
    }
}
