//! Notices that files of the set are removed, moved or replaced (inotify(7)).
//!
//! An event only means that the files are worth a look: what became of them is read from the file system. Some losses
//! raise no event (a file system that is unmounted while its files are in use), so the files are also looked at from
//! time to time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::{log, sys};

/// The watch; without one, events never come.
pub(super) struct FileWatch {
    watch: Option<(Inotify, AsyncFd<OwnedFd>)>,
    failing: bool,
}

impl FileWatch {
    /// Watches nothing yet.
    pub(super) fn new() -> Self {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let opened = Inotify::init(flags).map_err(io::Error::from).and_then(|inotify| {
            let ready = inotify.as_fd().try_clone_to_owned().and_then(sys::when_readable)?;
            Ok((inotify, ready))
        });
        let mut watch = Self { watch: None, failing: false };
        match opened {
            Ok(opened) => watch.watch = Some(opened),
            Err(error) => watch.log_failure(&error),
        }
        watch
    }

    /// Watches a directory and the names in it.
    pub(super) fn watch_directory(&mut self, path: &Path) {
        let names = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        self.add(path, names | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF);
    }

    /// Watches a file. While a process holds it, only the change of its link count shows that a name was removed.
    pub(super) fn watch_file(&mut self, path: &Path) {
        let own = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        self.add(path, own);
    }

    fn add(&mut self, path: &Path, flags: AddWatchFlags) {
        let Some((inotify, _)) = &self.watch else { return };
        match inotify.add_watch(path, flags | AddWatchFlags::IN_DONT_FOLLOW) {
            // A missing file is a problem of its own.
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(error) => self.log_failure(&error.into()),
        }
    }

    /// Logged once: the usual cause is a limit of the machine, which concerns every file.
    fn log_failure(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(event = %log::Event::FilesLost,
                "cannot watch the files of the set with inotify: {error}; they are checked periodically instead (see \
                 /proc/sys/fs/inotify)");
        }
    }

    /// Waits for an event. Cancel-safe.
    pub(super) async fn changed(&self) {
        let Some((inotify, ready)) = &self.watch else { return std::future::pending().await };
        while let Ok(mut readable) = ready.readable().await {
            match inotify.read_events() {
                Ok(events) => {
                    // The set replaces its own state files by renaming a new one.
                    let is_own = |name: &std::ffi::OsString| name.as_encoded_bytes().ends_with(b".new");
                    let is_removed_watch = |mask: AddWatchFlags| mask == AddWatchFlags::IN_IGNORED;
                    if !events.iter().all(|e| e.name.as_ref().is_some_and(is_own) || is_removed_watch(e.mask)) {
                        return;
                    }
                }
                Err(_) => readable.clear_ready(),
            }
        }
        std::future::pending().await
    }
}
