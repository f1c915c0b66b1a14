//! The dispatcher: sockets and bells become events, the pool decides, its actions become writes and answers.
//!
//! Everything runs on one thread, and nothing in it waits for a worker or a client: whoever is waited for has
//! a timer. It may be killed at any moment: listening sockets and waiting connections are the supervisor's,
//! leases are in the slots.

mod accept;
mod driver;
mod fdstore;
mod handoff;
mod listeners;
mod pool_slots;
mod probe;
mod readiness;
mod redirect;
pub mod request;
pub mod slot;
mod token_source;

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};

use crate::config::{Config, LoadError};
use crate::ids::PoolName;
use crate::ipc::IpcError;
use crate::net::SocketListener;
use crate::pool::PoolEvent;
use crate::signals::{ParentWatch, STOP_DEBOUNCE, Signal};
use crate::{log, sys};
use driver::Driver;
pub use driver::before_sleep;

/// Why the dispatcher cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// A segment or bell.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// Another dispatcher has the set.
    #[error("a dispatcher is running already, as process {0}")]
    Taken(u32),
    /// A socket that it needs was not passed to it.
    #[error("the socket for {0} was not passed (LISTEN_FDS): start the dispatcher with patou run or through systemd")]
    NoSocket(String),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Runs the dispatcher until it is told to stop. `path` is where a reload reads the configuration. The runtime is one of a
/// single thread, and calls [`before_sleep`] before that is parked.
///
/// # Errors
/// See [`DispatcherError`].
pub async fn run(config: Config, path: Option<PathBuf>) -> Result<(), DispatcherError> {
    log::init(log::LogContext::part("dispatcher", &config.set.name));
    log::abort_on_panic();
    tokio::task::LocalSet::new().run_until(serve(config, path)).await
}

async fn serve(mut config: Config, path: Option<PathBuf>) -> Result<(), DispatcherError> {
    let system = |call| move |error| DispatcherError::System(call, error);
    let mut listeners: Vec<Option<SocketListener>> = config.listeners.iter().map(|_| None).collect();
    let (mut probe, mut stored, mut handed) = (None, Vec::new(), Vec::new());
    for (fd, name) in sys::listen_fds().map_err(system("LISTEN_FDS"))? {
        if name == "probe" {
            let socket = std::os::unix::net::UnixListener::from(fd);
            socket.set_nonblocking(true).map_err(system("probe.sock"))?;
            probe = Some(UnixListener::from_std(socket).map_err(system("probe.sock"))?);
        } else if let Some(index) = name.strip_prefix("listener-").and_then(|index| index.parse::<usize>().ok()) {
            let listener = SocketListener::from_fd(fd).map_err(system("a listening socket"))?;
            if let Some(place) = listeners.get_mut(index) {
                *place = Some(listener);
            }
        } else if name.starts_with(fdstore::HANDED) {
            handed.push((fd, fdstore::StoredFd(name)));
        } else if name.starts_with(fdstore::PREFIX) {
            stored.push((fd, fdstore::StoredFd(name)));
        }
    }
    let probe = probe.ok_or_else(|| DispatcherError::NoSocket("probe.sock".into()))?;
    for (listener, wanted) in listeners.iter().zip(&config.listeners) {
        listener.as_ref().ok_or_else(|| DispatcherError::NoSocket(wanted.address.to_string()))?;
    }
    let listeners: Vec<Rc<SocketListener>> = listeners.into_iter().flatten().map(Rc::new).collect();
    let ports: Vec<Option<u16>> = listeners.iter().map(|socket| Some(socket.tcp_address()?.port())).collect();

    let desk = Driver::open(&config, &|pool| return_port(&config, &ports, pool))?;
    log::set_epoch(desk.epoch().get());
    fdstore::give_back(stored, config.front.linger_timeout);
    let mut stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
    let mut reload = Signal::reload().and_then(Signal::into_async).map_err(system("signals"))?;
    let mut parent = ParentWatch::now();

    tokio::task::spawn_local(probe::serve(probe, desk.clone()));
    let timers = desk.clone();
    tokio::task::spawn_local(async move { timers.run_timers().await });
    let news = desk.clone();
    tokio::task::spawn_local(async move { news.run_news().await });
    let front = accept::Acceptor::open(&config, listeners, desk.clone()).map_err(system("epoll"))?;
    front.take_back(handed);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&desk.status())]);
    tracing::debug!(epoch = %desk.epoch(), "ready");

    let mut beat = beat();
    let (mut stops, mut reloads) = ([0; 64], [0; 64]);
    loop {
        tokio::select! {
            _ = stop.read(&mut stops) => break,
            _ = reload.read(&mut reloads) => {
                let _ = NotifyState::monotonic_usec_now().and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
                match Config::load(path.as_deref()) {
                    Ok(loaded) => {
                        config = loaded.config;
                        desk.reconfigure(&config, &|pool| return_port(&config, &ports, pool))?;
                        front.reconfigure(&config);
                        tracing::debug!("configuration applied");
                    }
                    Err(error) => tracing::error!(event = %log::Event::ReloadRefused,
                        "reload refused, the configuration in force stays: {error}"),
                }
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            () = desk.hold.notified() => front.close(),
            () = beat.wait() => { let _ = sd_notify::notify(&[NotifyState::Watchdog]); }
        }
    }

    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    front.close();
    desk.leave();
    let mut is_orphan = || {
        let news = parent.has_just_died();
        if news {
            // Nobody is left who would start another dispatcher.
            tracing::warn!("the watchdog has died: finishing what is in hand, then leaving");
            desk.tell_all(PoolEvent::Quiesce);
        }
        news
    };
    is_orphan();
    let first = Instant::now();
    // When the set stops, who waited has been refused. Otherwise another dispatcher comes at once and finds in
    // the supervisor's store who has waited for longer than store_after.
    let mut stored = pin!(sleep(config.front.store_after * 2));
    let mut give_up = pin!(sleep(config.front.linger_timeout));
    while front.connections() > if stored.is_elapsed() { desk.waiting() } else { 0 } {
        tokio::select! {
            () = front.one_less() => {}
            () = &mut stored, if !stored.is_elapsed() => {}
            () = &mut give_up => break,
            _ = stop.read(&mut stops) => if !is_orphan() && first.elapsed() >= STOP_DEBOUNCE { break },
        }
    }
    tracing::debug!(waiting = desk.waiting(), "left");
    // Not through the destructors: they would take out of the store who waits in it.
    std::process::exit(0)
}

/// The port of the first listener of a pool; `ports` are those of the configuration's listeners.
fn return_port(config: &Config, ports: &[Option<u16>], pool: &PoolName) -> Option<u16> {
    let of_pool = config.listeners.iter().zip(ports).filter(|(listener, _)| listener.pool == *pool);
    of_pool.filter_map(|(_, port)| *port).next()
}

/// `WATCHDOG=1` where systemd asks for it (sd_watchdog_enabled(3)), from the serving loop.
struct Beat(Option<tokio::time::Interval>);

fn beat() -> Beat {
    Beat(sd_notify::watchdog_enabled().map(|every| tokio::time::interval((every / 2).max(Duration::from_millis(1)))))
}

impl Beat {
    async fn wait(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }
}
