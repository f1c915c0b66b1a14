//! The task that keeps a warm process: brings it up, notices its end, pings it, and replaces it.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::child::HandlerStartError;
use super::handler::WarmHandler;
use super::process::WarmProcess;
use super::stage::{KeeperStep, PingVerdict, ping_verdict};
use super::state::CurrentProcess;
use crate::config::Replacing;
use crate::procfs::{self, ProcessStatus};

/// What has happened to the process.
#[derive(Debug)]
pub(crate) enum WarmEvent {
    /// Its readiness may have changed.
    Changed,
    /// A replacement is over. After an error the old process continues.
    Replaced(Result<(), HandlerStartError>),
}

impl<P: WarmProcess> WarmHandler<P> {
    /// Whether the process continues until its successor is ready.
    pub(in super::super) fn replacing(&self) -> Replacing {
        self.settings.replace
    }

    /// Has a successor take the place of the process.
    pub(in super::super) fn request_replacement(&self) {
        self.lock().replacement_wanted = true;
        self.changed.notify_waiters();
    }

    /// Keeps the process. Returns only if it has not become ready.
    pub(in super::super) async fn keep(
        self: &Arc<Self>,
        notify: &(dyn Fn(WarmEvent) + Send + Sync),
    ) -> HandlerStartError {
        loop {
            notify(WarmEvent::Changed);
            let changed = self.changed.notified();
            if std::mem::take(&mut self.lock().is_replaced) {
                notify(WarmEvent::Replaced(Ok(())));
            }
            if let Some(reason) = self.lock().not_ready.clone() {
                return HandlerStartError::NotReady(self.program.name().to_owned(), reason);
            }
            match self.situation().next_step(Instant::now().into_std()) {
                KeeperStep::EndRetired => self.end_retired().await,
                KeeperStep::BringUp => {
                    if let Err(error @ HandlerStartError::Spawn(..)) = self.bring_up().await {
                        self.log_unavailable(&error);
                    }
                }
                KeeperStep::Replace(Replacing::Before) => self.start_successor(notify).await,
                KeeperStep::Replace(Replacing::After) => self.end_before_successor(notify).await,
                KeeperStep::Ping => self.ping(notify).await,
                KeeperStep::Wait(until) => {
                    let until = async {
                        match until {
                            Some(until) => sleep_until(until.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = changed => {}
                        () = self.ended_while_idle() => self.fail_if_idle(),
                        () = until => {}
                    }
                }
            }
        }
    }

    /// Reaps the orphans that the process leaves, until it ends without a request.
    async fn ended_while_idle(&self) {
        let ended = match &mut self.lock().process {
            CurrentProcess::Idle(running) => Some(running.process.child().ended()),
            _ => None,
        };
        let Some(ended) = ended else { return std::future::pending().await };
        let mut ended = pin!(ended);
        while tokio::select! { () = &mut ended => false, _ = self.child_ended.readable() => true } {
            while self.child_ended.try_read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
            self.reap_orphans();
        }
    }

    fn fail_if_idle(self: &Arc<Self>) {
        if let Some(mut idle) = self.take_idle(CurrentProcess::InCheck, CurrentProcess::Idle) {
            match idle.check_idle() {
                Ok(()) => idle.put_idle(),
                Err(reason) => self.fail(idle, &reason),
            }
        }
    }

    /// Starts a successor, which replaces the process as soon as that is idle.
    async fn start_successor(self: &Arc<Self>, notify: &(dyn Fn(WarmEvent) + Send + Sync)) {
        let mut successor = match self.spawn() {
            Ok(successor) => successor,
            Err(error) => {
                self.lock().replacement_wanted = false;
                return notify(WarmEvent::Replaced(Err(error)));
            }
        };
        match self.until_ready(&mut successor.process, successor.started).await {
            Ok(()) => {
                let mut state = self.lock();
                state.successor = Some(successor);
                let current = std::mem::replace(&mut state.process, CurrentProcess::InCheck);
                state.set(current);
            }
            Err(reason) => {
                let reason = self.describe_not_ready(&reason);
                let (pid, generation, is_lost) = (successor.pid, successor.generation, successor.process.is_lost());
                drop(successor);
                self.kill_generation(pid, generation).await;
                if is_lost {
                    return; // the next step starts another one
                }
                self.lock().replacement_wanted = false;
                let error = HandlerStartError::NotReady(self.program.name().to_owned(), reason);
                notify(WarmEvent::Replaced(Err(error)));
            }
        }
    }

    /// Lets the processes exit that a successor has replaced.
    async fn end_retired(&self) {
        let retired = std::mem::take(&mut self.lock().retired);
        for old in retired {
            let (pid, generation) = (old.pid, old.generation);
            old.process.exit().await;
            self.kill_generation(pid, generation).await;
        }
    }

    /// Lets the process exit, and leaves the start of its successor to the next step.
    async fn end_before_successor(self: &Arc<Self>, notify: &(dyn Fn(WarmEvent) + Send + Sync)) {
        let idle = {
            let mut state = self.lock();
            state.replacement_wanted = false;
            let process = std::mem::replace(&mut state.process, CurrentProcess::Lost);
            match process {
                CurrentProcess::Idle(idle) => idle,
                other => return state.process = other,
            }
        };
        self.changed.notify_waiters();
        notify(WarmEvent::Changed);
        idle.process.exit().await;
        // What is left of it is killed first.
        notify(WarmEvent::Replaced(self.bring_up().await));
    }

    async fn ping(self: &Arc<Self>, notify: &(dyn Fn(WarmEvent) + Send + Sync)) {
        let Some(limit) = self.settings.ping else { return };
        let Some(mut pinged) = self.take_idle(CurrentProcess::Pinged, CurrentProcess::Idle) else { return };
        notify(WarmEvent::Changed);
        loop {
            let due = Instant::now() + limit;
            let settings = &self.settings;
            match timeout_at(due, pinged.ping(settings)).await {
                Ok(Ok(())) => return pinged.put_idle(),
                Ok(Err(reason)) => return self.fail(pinged, &reason),
                Err(_) => {}
            }
            let status = ProcessStatus::read(&procfs::process_dir(pinged.running().pid.as_raw() as u32));
            if ping_verdict(due.into_std(), Instant::now().into_std(), limit, status.is_traced) == PingVerdict::Frozen {
                let limit = humantime::format_duration(limit);
                return self.fail(pinged, &format!("it has not responded to a ping for {limit}"));
            }
        }
    }
}
