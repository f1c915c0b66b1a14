//! The serving task: accepts connections and obeys the control loop's orders.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::handler::BuiltinHandler;
use super::handoff;
use super::handoff_receiver::HandoffReceiver;
use super::recycle::reexec;
use super::redirect::{self, Handler};
use super::state::{Order, Sockets, WorkerState};
use super::{ServeError, system};
use crate::log;
use crate::net::{self, SocketListener};

/// Pause after a failed accept: out of descriptors, most likely, which only time mends.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until ordered to leave.
pub async fn serve<S: Handler>(
    shared: Arc<WorkerState>,
    service: S,
    (listener, inbox): Sockets,
    mut orders: mpsc::UnboundedReceiver<Order>,
    control: JoinHandle<()>,
) -> Result<(), ServeError> {
    let service = Arc::new(Mutex::new(service));
    let places = Arc::new(Semaphore::new(shared.front.connections));
    let mut connections = JoinSet::new();
    let passed = inbox.as_ref().map(HandoffReceiver::socket);
    let mut handing = tokio::spawn(handoff::run(shared.clone(), service.clone(), inbox));

    // Said before it is true for the dispatcher, so that the log has the lives of a pool in their order.
    tracing::debug!(worker = %shared.id, epoch = %shared.respondent.epoch(), "ready");
    shared.settle();
    let status = format!("serving as {}, incarnation {}", shared.id, shared.respondent.epoch());
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);

    loop {
        tokio::select! {
            accepted = accept(&listener, &places) => match accepted {
                Ok((stream, place)) => {
                    let (shared, service) = (shared.clone(), service.clone());
                    connections.spawn(async move {
                        redirect::serve(shared, service, stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(worker = %shared.id, %error, event = %log::Event::AcceptFailed, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = &mut handing => {
                return Err(system("taking connections")(std::io::Error::other("it has ended")));
            }
            order = orders.recv() => {
                shared.attention.leave();
                let sockets = (&listener, passed.as_deref());
                if order != Some(Order::Recycle) || !recycle(&shared, sockets, &mut orders).await {
                    break;
                }
                shared.here();
            }
            () = shared.attention.called() => shared.here(),
            Some(_) = connections.join_next() => {}
            () = shared.idle() => {}
        }
        if control.is_finished() {
            // Without its control loop a worker looks frozen, and is.
            return Err(system("the control loop")(std::io::Error::other("it has ended")));
        }
    }
    handing.abort();
    // Answers that are still on their way, each bounded by linger_timeout.
    let parting = async {
        while connections.join_next().await.is_some() {}
        let _ = shared.parting.write().await;
    };
    let _ = tokio::time::timeout(shared.front.linger_timeout, parting).await;
    if let Some(builtin) = &shared.builtin {
        builtin.stop().await;
    }
    tracing::debug!(worker = %shared.id, "left");
    Ok(())
}

async fn accept(
    listener: &SocketListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(net::SharedStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((net::SharedStream(Arc::new(listener.accept().await?)), place))
}

/// Makes place for what comes next: a fresh co-process, or a fresh process image. Whether the worker goes on; not
/// if it has been ordered to leave meanwhile.
async fn recycle(
    shared: &WorkerState,
    (listener, passed): (&SocketListener, Option<&OwnedFd>),
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> bool {
    let _floor = shared.floor().await;
    loop {
        match &shared.builtin {
            Some(coprocess @ BuiltinHandler::Coprocess(_)) if !shared.take_reload() => {
                match coprocess.recycle().await {
                    Ok(()) => {
                        tracing::info!(worker = %shared.id, epoch = %shared.respondent.epoch(),
                        event = %log::Event::WorkerRecycled, "co-process recycled");
                    }
                    Err(error) => {
                        tracing::error!(worker = %shared.id, %error, event = %log::Event::RecycleFailed,
                        "the successor of the co-process cannot start: the old one stays");
                    }
                }
            }
            builtin => {
                // The new image has none of our connections: answers on their way come first.
                tokio::select! {
                    _ = tokio::time::timeout(shared.front.linger_timeout, shared.parting.write()) => {}
                    _ = orders.recv() => return false, // while it recycles, none but Exit
                }
                if let Some(builtin) = builtin {
                    builtin.stop().await;
                }
                tracing::debug!(worker = %shared.id, epoch = %shared.respondent.epoch(),
                    event = %log::Event::WorkerRecycled, "recycling");
                shared.take_reload(); // the next image reads the configuration in any case
                let sockets: Vec<_> =
                    [Some(listener.as_fd()), passed.map(OwnedFd::as_fd)].into_iter().flatten().collect();
                if let Some(error) = reexec(&sockets, &shared.id.instance(), &shared.told_to_stop) {
                    tracing::error!(worker = %shared.id, %error, event = %log::Event::RecycleFailed,
                        "cannot execute the next incarnation: this one stays");
                }
            }
        }
        if shared.recycled() {
            return true;
        }
    }
}
