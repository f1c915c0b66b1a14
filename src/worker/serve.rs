//! The serving task: accepts connections, and executes the control loop's commands.

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::error::{ServeError, system};
use super::handler::{BuiltinHandler, HandlerStartError, WarmEvent};
use super::handoff_receiver::{EXHAUSTED_GRACE, HandoffReceiver, WorkerListeners};
use super::lifecycle_state::TaskCommand;
use super::recycle::reexec;
use super::service::HandlerService;
use super::state::WorkerState;
use super::{handoff, redirect};
use crate::config::{Replacing, worker_connections_within};
use crate::descriptors;
use crate::log::{Event, LogThrottle};
use crate::net::{ACCEPT_RETRY_DELAY, SharedStream, SocketListener};

/// Serves until the control loop sends [`TaskCommand::Exit`].
pub(super) async fn serve<S: HandlerService>(
    state: Arc<WorkerState>,
    service: S,
    listeners: WorkerListeners,
    mut commands: mpsc::UnboundedReceiver<TaskCommand>,
    control: thread::JoinHandle<()>,
) -> Result<(), ServeError> {
    let service = Arc::new(Mutex::new(service));
    let places = worker_connections_within(state.front.connections, descriptors::limit());
    let connection_limit = Arc::new(Semaphore::new(places));
    let (mut failures, mut exhausted_since) = (LogThrottle::default(), None);
    let mut connections = JoinSet::new();
    let WorkerListeners { redirect: listener, handoff: receiver } = listeners;
    let handoff_socket = receiver.as_ref().map(HandoffReceiver::socket);
    let mut handoff_task = tokio::spawn(handoff::run(state.clone(), service.clone(), receiver));

    let mut keeper = tokio::spawn(keep_handler(state.clone()));
    state.finish_start();

    loop {
        tokio::select! {
            accepted = accept(&listener, &connection_limit) => match accepted {
                Ok((stream, permit)) => {
                    exhausted_since = None;
                    let (state, service) = (state.clone(), service.clone());
                    connections.spawn(async move {
                        redirect::serve(state, service, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    if let Some(count) = failures.count() {
                        tracing::warn!(worker = %state.id, %error, count, event = %Event::AcceptFailed,
                            "cannot accept a connection: retrying");
                    }
                    if !descriptors::is_exhausted() {
                        exhausted_since = None;
                    } else if exhausted_since.get_or_insert(Instant::now()).elapsed() >= EXHAUSTED_GRACE
                        && state.overdue_since().is_none()
                    {
                        return Err(ServeError::Exhausted(descriptors::limit()));
                    }
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            ended = &mut handoff_task => {
                if ended.is_ok_and(|end| end.is_some()) {
                    return Err(ServeError::Exhausted(descriptors::limit()));
                }
                return Err(system("the handoff task")(std::io::Error::other("it has ended")));
            }
            command = commands.recv() => {
                state.ping.suspend();
                let sockets = [Some(listener.as_fd()), handoff_socket.as_ref().map(|socket| socket.as_fd())];
                let sockets: Vec<_> = sockets.into_iter().flatten().collect();
                match command {
                    Some(TaskCommand::Replace) => state.builtin.iter().for_each(BuiltinHandler::request_replacement),
                    Some(TaskCommand::Recycle) if recycle(&state, &mut keeper, &sockets, &mut commands).await => {}
                    Some(TaskCommand::Recycle | TaskCommand::Exit) | None => break,
                }
                state.ack_ping();
            }
            () = state.ping.pinged() => state.ack_ping(),
            Some(_) = connections.join_next() => {}
            ended = &mut keeper => {
                stop_handler(&state, &mut keeper).await;
                return Err(match ended {
                    Ok(error) => error.into(),
                    Err(panicked) => system("the task of the handler")(std::io::Error::other(panicked)),
                });
            }
        }
        if control.is_finished() {
            // Without its control loop the worker answers no questions: it would be killed as frozen.
            return Err(system("the control loop")(std::io::Error::other("it has ended")));
        }
    }
    handoff_task.abort();
    // A stop waits no longer for clients that make progress.
    let delivered = async {
        while connections.join_next().await.is_some() {}
        let _ = state.pending_responses.write().await;
    };
    let _ = tokio::time::timeout(state.front.linger_timeout, delivered).await;
    stop_handler(&state, &mut keeper).await;
    tracing::debug!(worker = %state.id, "stopped serving");
    Ok(())
}

/// Keeps the warm process of a handler. Returns only if a process has not become ready.
async fn keep_handler(state: Arc<WorkerState>) -> HandlerStartError {
    let Some(builtin) = &state.builtin else { return std::future::pending().await };
    let on_event = |event| match event {
        WarmEvent::Changed => state.update_handler(),
        WarmEvent::Replaced(result) => finish_replacement(&state, result),
    };
    builtin.keep(&on_event).await
}

/// A planned replacement of the warm process is over.
fn finish_replacement(state: &WorkerState, result: Result<(), HandlerStartError>) {
    match &result {
        Ok(()) => {
            tracing::info!(worker = %state.id, epoch = %state.slot.epoch(),
                event = %Event::WorkerRecycled, "warm process recycled");
        }
        Err(error) => {
            let rest = match state.builtin.as_ref().and_then(BuiltinHandler::replacing) {
                Some(Replacing::After) => ", and the old one has ended",
                Some(Replacing::Before) | None => ": the worker keeps the old one",
            };
            tracing::error!(worker = %state.id, %error, event = %Event::RecycleFailed,
                "the next process of the handler cannot start{rest}");
        }
    }
    state.finish_recycle(result.as_ref().err().map(|error| error as &dyn Display));
}

/// Ends the handler, and first the task that keeps its process.
async fn stop_handler(state: &WorkerState, keeper: &mut JoinHandle<HandlerStartError>) {
    if !keeper.is_finished() {
        keeper.abort();
        let _ = keeper.await;
    }
    if let Some(builtin) = &state.builtin {
        builtin.stop().await;
    }
}

async fn accept(
    listener: &SocketListener,
    limit: &Arc<Semaphore>,
) -> std::io::Result<(SharedStream, OwnedSemaphorePermit)> {
    let permit = limit.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((SharedStream(Arc::new(listener.accept().await?)), permit))
}

/// Replaces this process image. Returns whether the worker continues to serve: not after [`TaskCommand::Exit`].
/// `sockets`: the listeners, which the next image inherits.
async fn recycle(
    state: &Arc<WorkerState>,
    keeper: &mut JoinHandle<HandlerStartError>,
    sockets: &[BorrowedFd<'_>],
    commands: &mut mpsc::UnboundedReceiver<TaskCommand>,
) -> bool {
    // The next image does not inherit connections: pending responses are delivered first. Each of them is bounded by
    // linger_timeout if its client makes no progress.
    let bound = state.front.body_timeout.max(state.front.linger_timeout);
    tokio::select! {
        _ = tokio::time::timeout(bound, state.pending_responses.write()) => {}
        _ = commands.recv() => return false, // during a recycle only Exit is sent
    }
    stop_handler(state, keeper).await;
    tracing::debug!(worker = %state.id, epoch = %state.slot.epoch(), event = %Event::WorkerRecycled, "recycling");
    state.prepare_image();
    let error = reexec(sockets, &state.id.instance(), &state.stop_signal);
    if let Some(error) = &error {
        tracing::error!(worker = %state.id, %error, event = %Event::RecycleFailed,
            "the next incarnation cannot be executed: this one continues");
    }
    *keeper = tokio::spawn(keep_handler(state.clone()));
    state.finish_recycle(error.as_ref().map(|error| error as &dyn Display));
    true
}
