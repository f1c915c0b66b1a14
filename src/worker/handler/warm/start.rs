//! The start of a warm process: now, or after a delay, and until it is ready.

use std::sync::{Arc, Weak};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::child::HandlerStartError;
use super::borrowed::Borrowed;
use super::handler::WarmHandler;
use super::process::{Launch, WarmProcess};
use super::stage::{Stage, ready_by};
use super::state::{CurrentProcess, Running};

impl<P: WarmProcess> WarmHandler<P> {
    /// Starts a process, or waits until one that starts is ready.
    pub(super) async fn bring_up(self: &Arc<Self>) -> Result<(), HandlerStartError> {
        let _only_one = self.bringing_up.lock().await;
        loop {
            let stage = self.lock().process.stage();
            match stage {
                Stage::Lost => self.clean().await,
                Stage::Absent => {
                    let not_before = self.lock().backoff.not_before();
                    if let Some(not_before) = not_before {
                        sleep_until(not_before.into()).await;
                    }
                    self.start_absent()?;
                }
                Stage::Starting => self.await_ready().await?,
                Stage::Idle | Stage::InUse | Stage::Pinged | Stage::InCheck => return Ok(()),
            }
        }
    }

    async fn await_ready(self: &Arc<Self>) -> Result<(), HandlerStartError> {
        let (mut starting, since) = {
            let mut state = self.lock();
            match std::mem::replace(&mut state.process, CurrentProcess::InCheck) {
                CurrentProcess::Starting(running) => {
                    let since = if running.was_ready { state.not_ready_since } else { running.started };
                    (Borrowed::new(self, running, CurrentProcess::Starting), since)
                }
                other => {
                    state.process = other;
                    return Ok(());
                }
            }
        };
        match self.until_ready(&mut *starting, since).await {
            Ok(()) => {
                starting.put_idle();
                Ok(())
            }
            // Another one may become ready.
            Err(reason) if starting.is_lost() || starting.running().was_ready => {
                self.fail(starting, &reason);
                Ok(())
            }
            Err(reason) => {
                starting.lose();
                self.clean().await;
                let reason = self.describe_not_ready(&reason);
                self.lock().not_ready = Some(reason.clone());
                self.changed.notify_waiters();
                Err(HandlerStartError::NotReady(self.program.name().to_owned(), reason))
            }
        }
    }

    /// Waits until `process` is ready, within `start_timeout` since then.
    pub(super) async fn until_ready(&self, process: &mut P, since: Instant) -> Result<(), String> {
        let limit = self.settings.start_timeout;
        match timeout_at(ready_by(since.into_std(), limit).into(), process.ready(&self.settings)).await {
            Ok(ready) => ready,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let why = process.why_not_ready().map(|why| format!(": {why}")).unwrap_or_default();
                Err(format!("it was not ready within {limit} (watchdog.start_timeout){why}"))
            }
        }
    }

    /// The reason, and the last lines that the process has printed.
    pub(super) fn describe_not_ready(&self, reason: &str) -> String {
        // What it has printed may still be in its pipes.
        let log_pipes = self.lock().log_pipes.clone();
        log_pipes.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.close());
        match self.log.last_lines() {
            lines if lines.is_empty() => format!("{reason}; it has printed nothing"),
            lines => format!("{reason}; its last lines: {}", lines.join(" | ")),
        }
    }

    /// Starts a process if there is none.
    pub(super) fn start_absent(&self) -> Result<(), HandlerStartError> {
        {
            let mut state = self.lock();
            if state.process.stage() != Stage::Absent {
                return Ok(());
            }
            if let Some(successor) = state.take_successor() {
                state.set(CurrentProcess::Idle(successor));
                return Ok(());
            }
            state.process = CurrentProcess::InCheck;
        }
        match self.spawn() {
            Ok(running) => {
                self.lock().pid = Some(running.pid);
                let must_load = P::must_load(&self.settings);
                self.put(if must_load { CurrentProcess::Starting(running) } else { CurrentProcess::Idle(running) });
            }
            Err(error) => {
                let now = Instant::now().into_std();
                self.lock().backoff.record_failure(now, now);
                self.put(CurrentProcess::Absent);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn spawn(&self) -> Result<Running<P>, HandlerStartError> {
        self.log.forget_lines();
        let (generation, lease) = {
            let mut state = self.lock();
            state.generation += 1;
            (state.generation, state.lease.clone())
        };
        let launch =
            Launch { program: &self.program, settings: &self.settings, generation, log: &self.log, lease: &lease };
        let (mut process, log_pipes) =
            P::start(&launch).map_err(|error| HandlerStartError::Spawn(self.program.name().to_owned(), error))?;
        let pid = process.child().pid();
        let mut state = self.lock();
        state.log_pipes.extend(log_pipes);
        state.living.push((pid, generation));
        drop(state);
        Ok(Running { process, pid, generation, started: Instant::now(), was_ready: false })
    }
}
