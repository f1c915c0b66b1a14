//! The dispatcher: sockets and doorbells become events, the pools decide, their actions become writes and responses.
//!
//! Everything runs on one thread, which never blocks on a worker or a client: every wait has a timer. The process may
//! be killed at any moment: the supervisor keeps listening sockets and queued connections, and the slots keep the
//! leases.

mod accept;
mod connection;
mod driver;
mod error;
mod fdstore;
mod grant;
mod handoff;
mod keepalive;
mod listeners;
mod pending;
mod places;
mod pool_slots;
mod probe;
mod readiness;
pub(crate) mod redirect;
mod refusal;
pub(crate) mod slot;
mod token_source;
mod worker_slot;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::config::{Config, ListenAddress, ListenerConfig};
use crate::descriptors::SpareDescriptors;
use crate::ids::{PoolName, WorkerId};
use crate::ipc::PassedObjects;
use crate::net::{ACCEPT_RETRY_DELAY, SocketListener};
use crate::pool::PoolEvent;
use crate::sd_notification::{notify, notify_reloading};
use crate::sd_watchdog::WatchdogTicker;
use crate::signals::{ParentWatch, STOP_DEBOUNCE, Signal};
use crate::{backoff, clock, descriptors, log, sys};
use accept::Acceptor;
use driver::Driver;
pub(crate) use error::DispatcherError;
use fdstore::{DescriptorStore, StoredFd};
use places::ConnectionPlaces;
use probe::ProbeServer;

/// Descriptors in reserve for clients of `probe.sock`: the watchdog, and a few commands of operators at the same time.
const PROBE_SPARE: usize = 4;

/// Runs the dispatcher until it is stopped. A reload reads the configuration from `path`. The runtime must have a
/// single thread, and no task beside this one.
///
/// # Errors
/// See [`DispatcherError`].
pub(crate) async fn run(config: Config, path: Option<PathBuf>) -> Result<(), DispatcherError> {
    log::init(log::LogContext::part("dispatcher", &config.set.name));
    log::abort_on_panic();
    let (tasks, opened) = (tokio::task::LocalSet::new(), OnceCell::new());
    let mut serving = pin!(tasks.run_until(serve(config, path, &opened)));
    poll_fn(|task| {
        loop {
            let served = serving.as_mut().poll(task);
            // Every task waits. If a slot has changed, some may go on; otherwise the thread sleeps.
            if served.is_ready() || !opened.get().is_some_and(|driver| driver.poll_before_sleep()) {
                return served;
            }
        }
    })
    .await
}

/// Sets `opened` once the slots are open.
async fn serve(
    mut config: Config,
    path: Option<PathBuf>,
    opened: &OnceCell<Rc<Driver>>,
) -> Result<(), DispatcherError> {
    let (limit, needed) = (descriptors::raise_limit(), config.descriptor_needs().minimum());
    if limit < needed {
        return Err(DispatcherError::Descriptors { limit, needed });
    }
    let mut inherited = sys::listen_fds().map_err(system("LISTEN_FDS"))?;
    let spare = reserve_low_numbers(&mut inherited).map_err(system("LISTEN_FDS"))?;
    let store = DescriptorStore::open().map_err(system("NOTIFY_SOCKET"))?;
    let InheritedFds { listeners, retired, probe, channel, redirects, handoffs, passed } =
        inherited_fds(inherited, &config, &store)?;
    let ports: Vec<Option<u16>> = listeners.iter().map(|socket| Some(socket.tcp_address()?.port())).collect();

    let driver = Driver::open(&config, &|pool| return_port(&config, &ports, pool), passed, store)?;
    let driver = opened.get_or_init(|| driver);
    log::set_epoch(driver.epoch().get());
    let mut stop = Signal::stop().and_then(Signal::into_async).map_err(system("signals"))?;
    let mut reload = Signal::reload().and_then(Signal::into_async).map_err(system("signals"))?;
    let parent = ParentWatch::now();

    let places = Rc::new(ConnectionPlaces::new(&config));
    let acceptor = Acceptor::open(&config, listeners, driver.clone(), places.clone()).map_err(system("epoll"))?;
    retired.into_iter().for_each(|(index, socket)| acceptor.add(index, Rc::new(socket)));
    // Before another task runs: the read of a slot shows the end of a lease once, and its client must be known by then.
    acceptor.restore(handoffs, redirects);
    driver.read_slots();

    // The socket from systemd may be one whose file was removed.
    let is_lost = backoff::is_started_by_systemd() && probe::is_unreachable(&config).await;
    let probe = is_lost.then(|| probe::bind_again(&config)).flatten().unwrap_or(probe);
    let prober = ProbeServer::new(driver.clone(), places, spare);
    let mut probing = tokio::task::spawn_local(prober.clone().run(probe));
    let timers = driver.clone();
    tokio::task::spawn_local(async move { timers.run_timers().await });
    driver.note_ready();
    notify(&[NotifyState::Ready, NotifyState::Status(&driver.status())]);
    tracing::debug!(epoch = %driver.epoch(), "ready");

    let mut watchdog = WatchdogTicker::start();
    let (mut stops, mut reloads) = ([0; 64], [0; 64]);
    loop {
        tokio::select! {
            _ = stop.read(&mut stops) => break,
            _ = reload.read(&mut reloads) => {
                notify_reloading();
                match Config::load(path.as_deref()) {
                    Ok(loaded) => {
                        config = loaded.config;
                        release_removed(&acceptor, &config);
                        acceptor.reconfigure(&config);
                        tracing::debug!("configuration applied");
                    }
                    Err(error) => tracing::error!(event = %log::Event::ReloadRefused,
                        "reload refused, the configuration in force stays: {error}"),
                }
                // Workers may have new objects, whether or not the configuration has changed.
                driver.reconfigure(&config, &|pool| return_port(&config, &ports, pool))?;
                notify(&[NotifyState::Ready]);
            }
            (name, socket) = next_listener(channel.as_ref()) => match listener_index(&name, "listener-") {
                Some(index) => {
                    let socket = SocketListener::from_fd(socket).map_err(system("a listening socket"))?;
                    acceptor.add(index, Rc::new(socket));
                }
                None if name == "probe" => {
                    // The connections of the previous socket stay.
                    let next = tokio::task::spawn_local(prober.clone().run(probe_listener(socket)?));
                    std::mem::replace(&mut probing, next).abort();
                }
                None => driver.receive_object(&name, socket),
            },
            () = driver.probe_missing.notified() => {
                if let Some(socket) = probe::bind_again(&config) {
                    let next = tokio::task::spawn_local(prober.clone().run(socket));
                    std::mem::replace(&mut probing, next).abort();
                }
            }
            () = driver.stop_accepting.notified() => acceptor.close(),
            () = watchdog.due() => watchdog.tick(clock::now()),
        }
    }

    notify(&[NotifyState::Stopping]);
    // For a reload that has moved or removed listeners: the next dispatcher will not have their sockets.
    if let Ok(loaded) = Config::load(path.as_deref())
        && release_removed(&acceptor, &loaded.config) > 0
    {
        yield_now().await; // to the tasks of those clients, which the exit then waits for
    }
    acceptor.close();
    driver.clear_failures();
    finish_pending(&config, driver, &acceptor, stop, parent).await;
    tracing::debug!(waiting = driver.waiting(), "exiting");
    // Without running destructors, which would remove queued connections from the store.
    log::exit(0)
}

/// Ends the sockets of listeners that the configuration does not have any more. Under systemd another unit binds the
/// address if it has another use now; the watchdog of `patou run` keeps the socket for that. Returns how many clients
/// were in their queues.
fn release_removed(acceptor: &Acceptor, config: &Config) -> usize {
    let is_kept = !backoff::is_started_by_systemd();
    acceptor.release(|address| {
        let is_listener = config.listeners.iter().any(|listener| listener.address == *address);
        !(is_listener || is_kept && config.addresses().any(|other| other == *address))
    })
}

/// Waits until the pending connections have ended, at most `linger_timeout`.
async fn finish_pending(
    config: &Config,
    driver: &Driver,
    acceptor: &Acceptor,
    mut stop: tokio::net::UnixStream,
    mut parent: ParentWatch,
) {
    let mut is_orphan = || {
        let has_died = parent.has_just_died();
        if has_died {
            // No other dispatcher will be started.
            tracing::warn!("the watchdog has died: finishing pending requests, then exiting");
            driver.handle_in_all(PoolEvent::Quiesce);
        }
        has_died
    };
    is_orphan();
    let first = Instant::now();
    let mut stops = [0; 64];
    // When the set stops, queued clients have been refused. Otherwise the next dispatcher starts at once and finds in
    // the store the clients that have waited longer than store_after.
    let mut stored = pin!(sleep(config.front.store_after * 2));
    let mut deadline = pin!(sleep(config.front.linger_timeout));
    while acceptor.pending().count() > if stored.is_elapsed() { driver.waiting() } else { 0 } {
        tokio::select! {
            () = acceptor.pending().changed() => {}
            () = &mut stored, if !stored.is_elapsed() => {}
            () = &mut deadline => break,
            _ = stop.read(&mut stops) => if !is_orphan() && first.elapsed() >= STOP_DEBOUNCE { break },
        }
    }
}

/// The descriptors passed by the supervisor.
struct InheritedFds {
    /// One for each listener of the configuration.
    listeners: Vec<Rc<SocketListener>>,
    /// Sockets that were replaced, each with the index of its listener: clients may wait in their queues.
    retired: Vec<(usize, SocketListener)>,
    probe: UnixListener,
    /// Brings sockets and objects of workers in place of those whose files were removed.
    channel: Option<AsyncFd<OwnedFd>>,
    /// Objects of workers without names.
    passed: BTreeMap<WorkerId, PassedObjects>,
    /// Queued redirect connections.
    redirects: Vec<(OwnedFd, StoredFd)>,
    /// Queued handoff connections.
    handoffs: Vec<(OwnedFd, StoredFd)>,
}

/// Holds the numbers from 3 on (`SD_LISTEN_FDS_START`, sd_listen_fds(3)) in reserve: a limit that is lowered later leaves
/// them usable. What the supervisor has passed there is moved.
fn reserve_low_numbers(inherited: &mut [(OwnedFd, String)]) -> std::io::Result<SpareDescriptors> {
    let lowest = inherited.iter().take(PROBE_SPARE).map(|(fd, _)| fd.try_clone());
    let moved = lowest.collect::<Result<Vec<_>, _>>()?;
    inherited.iter_mut().zip(moved).for_each(|((fd, _), moved)| *fd = moved);
    Ok(SpareDescriptors::new(PROBE_SPARE))
}

fn inherited_fds(
    inherited: Vec<(OwnedFd, String)>,
    config: &Config,
    store: &DescriptorStore,
) -> Result<InheritedFds, DispatcherError> {
    let mut listeners: Vec<Option<SocketListener>> = config.listeners.iter().map(|_| None).collect();
    let (mut probe, mut redirects, mut handoffs) = (None, Vec::new(), Vec::new());
    let (mut retired, mut channel, mut passed) = (Vec::new(), None, BTreeMap::new());
    for (fd, name) in inherited {
        if name == "probe" {
            probe = Some(probe_listener(fd)?);
        } else if name == "channel" {
            channel = Some(sys::when_readable(fd).map_err(system("the channel of listening sockets"))?);
        } else if let Some(index) = listener_index(&name, "retired-") {
            retired.push((index, SocketListener::from_fd(fd).map_err(system("a listening socket"))?));
        } else if name == "listener" {
            // Of systemd, which knows the address of a socket and not the listener's place in the file.
            let socket = SocketListener::from_fd(fd).map_err(system("a listening socket"))?;
            if let Some(index) = config.listeners.iter().position(|l| socket.is_bound_to(&l.address)) {
                listeners[index] = Some(socket);
            }
        } else if let Some(index) = listener_index(&name, "listener-") {
            let socket = SocketListener::from_fd(fd).map_err(system("a listening socket"))?;
            if let Some(listener) = listeners.get_mut(index) {
                *listener = Some(socket);
            }
        } else if name.starts_with(fdstore::HANDOFF_PREFIX) {
            handoffs.push((fd, store.entry(name)));
        } else if name.starts_with(fdstore::REDIRECT_PREFIX) {
            redirects.push((fd, store.entry(name)));
        } else if PassedObjects::collect(&mut passed, &name, fd).is_some() {
            drop(store.entry(name)); // no later dispatcher would know it either
        }
    }
    let probe = probe.ok_or_else(|| DispatcherError::NoSocket("probe.sock".into()))?;
    let listeners = listeners.into_iter().zip(&config.listeners).map(|(socket, wanted)| {
        socket.map(Rc::new).ok_or_else(|| DispatcherError::NoSocket(wanted.address.to_string()))
    });
    let listeners = listeners.collect::<Result<_, _>>()?;
    Ok(InheritedFds { listeners, retired, probe, channel, redirects, handoffs, passed })
}

/// The index of a listener in the name of a descriptor.
fn listener_index(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.parse().ok()
}

fn probe_listener(fd: OwnedFd) -> Result<UnixListener, DispatcherError> {
    let socket = std::os::unix::net::UnixListener::from(fd);
    socket.set_nonblocking(true).map_err(system("probe.sock"))?;
    UnixListener::from_std(socket).map_err(system("probe.sock"))
}

/// The next listening socket, or object of a worker, from the watchdog, with its name. Waits for a free descriptor: without
/// one the kernel drops the descriptor in the message (MSG_CTRUNC, recvmsg(2)). Cancel-safe.
async fn next_listener(channel: Option<&AsyncFd<OwnedFd>>) -> (String, OwnedFd) {
    let Some(channel) = channel else { return std::future::pending().await };
    while let Ok(mut ready) = channel.readable().await {
        if descriptors::is_exhausted() {
            sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        }
        match ready.try_io(|channel| crate::handoff::receive_listener(channel.as_fd())) {
            Ok(Ok(Some(received))) => return received,
            Ok(Ok(None) | Err(_)) => break, // the watchdog has ended
            Err(_would_block) => {}
        }
    }
    std::future::pending().await
}

fn system(call: &'static str) -> impl Fn(std::io::Error) -> DispatcherError {
    move |error| DispatcherError::System(call, error)
}

/// The port of the first listener of a pool. `ports` are those that the listeners of the first configuration have; port
/// 0 in the configuration stays in its place as long as this process runs.
fn return_port(config: &Config, ports: &[Option<u16>], pool: &PoolName) -> Option<u16> {
    let of_pool = config.listeners.iter().enumerate().filter(|(_, listener)| listener.pool == *pool);
    let port = |(index, listener): (usize, &ListenerConfig)| match listener.address {
        ListenAddress::Tcp(address) if address.port() != 0 => Some(address.port()),
        ListenAddress::Tcp(_) => *ports.get(index)?,
        ListenAddress::Unix(_) => None,
    };
    of_pool.filter_map(port).next()
}
