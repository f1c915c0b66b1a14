//! Waits until connections are readable, without reading them and without wake-ups for those that a worker holds.
//!
//! A separate epoll instance: a connection is armed for one event only (`EPOLLONESHOT`, epoll_ctl(2)) and re-armed when
//! its worker has released it. While a worker holds it, its traffic wakes no task of the dispatcher.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Events per epoll_wait(2).
const BATCH: usize = 256;

/// The epoll instance; [`Readiness::run`] must be running.
pub(super) struct Readiness {
    epoll: Epoll,
    ready: AsyncFd<OwnedFd>,
    next_key: Cell<u64>,
    waits: RefCell<HashMap<u64, WaitState>>,
}

/// One connection that a task waits for.
enum WaitState {
    Waiting(Option<Waker>),
    Ready(EpollFlags),
}

/// One connection in the epoll instance.
pub(super) struct WatchedSocket {
    fd: Arc<OwnedFd>,
    key: u64,
    readiness: Rc<Readiness>,
    is_added: Cell<bool>,
}

impl Readiness {
    pub(super) fn new() -> io::Result<Rc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let ready = sys::when_readable(epoll.0.try_clone()?)?;
        Ok(Rc::new(Self { epoll, ready, next_key: Cell::new(1), waits: RefCell::default() }))
    }

    /// Wakes the waiting tasks, and calls `before_batch` at each wake-up; never returns.
    pub(super) async fn run(&self, before_batch: impl Fn()) {
        let mut events = [EpollEvent::empty(); BATCH];
        while let Ok(mut ready) = self.ready.readable().await {
            ready.clear_ready();
            before_batch();
            while let Ok(count) = self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                for event in &events[..count] {
                    let mut waits = self.waits.borrow_mut();
                    let Some(state) = waits.get_mut(&event.data()) else { continue };
                    if let WaitState::Waiting(Some(waker)) = std::mem::replace(state, WaitState::Ready(event.events()))
                    {
                        waker.wake();
                    }
                }
                if count < BATCH {
                    break;
                }
            }
        }
    }
}

impl WatchedSocket {
    pub(super) fn new(fd: impl Into<Arc<OwnedFd>>, readiness: &Rc<Readiness>) -> Self {
        let key = readiness.next_key.replace(readiness.next_key.get() + 1);
        Self { fd: fd.into(), key, readiness: readiness.clone(), is_added: Cell::new(false) }
    }

    /// The connection itself.
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Waits for data or the end of the stream; whether there certainly is data.
    pub(super) async fn readable(&self) -> io::Result<bool> {
        Ok(self.wait(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP).await? == EpollFlags::EPOLLIN)
    }

    /// Waits until the peer has closed at least its sending direction.
    pub(super) async fn half_closed(&self) -> io::Result<()> {
        self.wait(EpollFlags::EPOLLRDHUP).await.map(drop)
    }

    /// Waits until both directions are closed.
    ///
    /// # Errors
    /// Also when the wait cannot show that, because a worker has left something in the error queue of the socket.
    pub(super) async fn hung_up(&self) -> io::Result<()> {
        let found = self.wait(EpollFlags::empty()).await?;
        found.contains(EpollFlags::EPOLLHUP).then_some(()).ok_or_else(|| io::Error::other("an error queue"))
    }

    /// Only one task may wait at a time.
    async fn wait(&self, events: EpollFlags) -> io::Result<EpollFlags> {
        let waits = &self.readiness.waits;
        waits.borrow_mut().insert(self.key, WaitState::Waiting(None));
        let _guard = WaitGuard(self);
        let mut event = EpollEvent::new(events | EpollFlags::EPOLLONESHOT, self.key);
        if self.is_added.replace(true) {
            self.readiness.epoll.modify(&self.fd, &mut event)?;
        } else {
            self.readiness.epoll.add(&self.fd, event)?;
        }
        let ready = poll_fn(|task| match waits.borrow_mut().get_mut(&self.key) {
            Some(WaitState::Ready(events)) => Poll::Ready(*events),
            Some(WaitState::Waiting(waker)) => {
                *waker = Some(task.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending, // only if a second task waited, too
        });
        Ok(ready.await)
    }
}

/// Removes the wait when its task gives it up.
struct WaitGuard<'a>(&'a WatchedSocket);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.readiness.waits.borrow_mut().remove(&self.0.key);
    }
}

impl AsFd for WatchedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for WatchedSocket {
    fn drop(&mut self) {
        if self.is_added.get() {
            // Explicitly: close(2) alone removes nothing while a worker holds a duplicate (epoll(7)).
            let _ = self.readiness.epoll.delete(&self.fd);
        }
    }
}
