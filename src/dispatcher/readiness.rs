//! Which connections have something to read, without reading it, and without hearing of those that a worker has.
//!
//! An epoll instance of its own: a connection is in it for one event only (`EPOLLONESHOT`, epoll_ctl(2)), and asked
//! for again when its worker has let go of it. While it is with a worker, its traffic wakes nobody here.

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

/// Events taken out at once.
const BATCH: usize = 256;

/// The instance; [`Readiness::run`] has to be running.
pub struct Readiness {
    epoll: Epoll,
    ready: AsyncFd<OwnedFd>,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, State>>,
}

/// One that is waited for.
enum State {
    Waiting(Option<Waker>),
    Come(EpollFlags),
}

/// One connection in it.
pub struct Watched {
    fd: Arc<OwnedFd>,
    key: u64,
    readiness: Rc<Readiness>,
    is_in: Cell<bool>,
}

impl Readiness {
    pub fn new() -> io::Result<Rc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let ready = sys::when_readable(epoll.0.try_clone()?)?;
        Ok(Rc::new(Self { epoll, ready, next: Cell::new(1), waiting: RefCell::default() }))
    }

    /// Wakes whoever waits, and calls `each` for each lot of them; never returns.
    pub async fn run(&self, each: impl Fn()) {
        let mut events = [EpollEvent::empty(); BATCH];
        while let Ok(mut ready) = self.ready.readable().await {
            ready.clear_ready();
            each();
            while let Ok(count) = self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                for event in &events[..count] {
                    let mut waiting = self.waiting.borrow_mut();
                    let Some(state) = waiting.get_mut(&event.data()) else { continue };
                    if let State::Waiting(Some(waker)) = std::mem::replace(state, State::Come(event.events())) {
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

impl Watched {
    pub fn new(fd: OwnedFd, readiness: &Rc<Readiness>) -> Self {
        let key = readiness.next.replace(readiness.next.get() + 1);
        Self { fd: Arc::new(fd), key, readiness: readiness.clone(), is_in: Cell::new(false) }
    }

    /// The connection itself.
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Waits until there is something to read, or the end; whether there is certainly something.
    pub async fn readable(&self) -> io::Result<bool> {
        Ok(self.until(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP).await? == EpollFlags::EPOLLIN)
    }

    /// Waits until both directions have ended.
    pub async fn hung_up(&self) -> io::Result<()> {
        self.until(EpollFlags::empty()).await.map(drop)
    }

    /// One at a time.
    async fn until(&self, events: EpollFlags) -> io::Result<EpollFlags> {
        let waiting = &self.readiness.waiting;
        waiting.borrow_mut().insert(self.key, State::Waiting(None));
        let _forgotten = Forgotten(self);
        let mut event = EpollEvent::new(events | EpollFlags::EPOLLONESHOT, self.key);
        match self.is_in.replace(true) {
            true => self.readiness.epoll.modify(&self.fd, &mut event)?,
            false => self.readiness.epoll.add(&self.fd, event)?,
        }
        let come = poll_fn(|task| match waiting.borrow_mut().get_mut(&self.key) {
            Some(State::Come(events)) => Poll::Ready(*events),
            Some(State::Waiting(waker)) => {
                *waker = Some(task.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending, // only if somebody else waited, too
        });
        Ok(come.await)
    }
}

/// Nobody waits any more.
struct Forgotten<'a>(&'a Watched);

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.0.readiness.waiting.borrow_mut().remove(&self.0.key);
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.is_in.get() {
            // By hand: a worker may hold the same connection, and then a close alone takes nothing out.
            let _ = self.readiness.epoll.delete(&self.fd);
        }
    }
}
