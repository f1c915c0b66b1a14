//! What a parent may leave to a process across execve(2): blocked and ignored signals, timers, descriptors, a umask, limits.
//! Each command starts by undoing it, so that it behaves the same however it was started.
//!
//! The standard library opens `/dev/null` for standard descriptors that are closed. The programs that patou starts need
//! nothing of their own: handlers that patou has installed become default actions when a program is executed.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

use crate::sys;

/// The first descriptor behind the standard ones; those of `LISTEN_FDS` begin here (sd_listen_fds(3)).
const FIRST_FD: i32 = 3;

/// Undoes what concerns every command. No signal is blocked afterwards.
pub(crate) fn reset() {
    sys::stop_interval_timers();
    sys::stop_ignoring_signals();
    let _ = SigSet::empty().thread_set_mask(); // fails for no valid set
}

/// The same for a part of a set. SIGHUP is blocked until the part handles it; stray signals such as SIGUSR1 or SIGALRM,
/// which would end the part, do nothing.
pub(crate) fn reset_for_part() {
    sys::stop_interval_timers();
    sys::stop_ignoring_signals();
    sys::catch_stray_signals();
    sys::ignore_terminal_output_stop();
    let _ = SigSet::from(Signal::SIGHUP).thread_set_mask(); // fails for no valid set
    // A umask that denies the owner makes every new file useless. The rest is for the files of the handlers: patou sets
    // the mode of each of its own files that other users can reach.
    let inherited = umask(Mode::empty());
    umask(inherited.difference(Mode::S_IRWXU));
    sys::close_on_exec_from(FIRST_FD + passed_fds());
}

/// How many descriptors were passed to this process on purpose. A `program` worker passes them on.
fn passed_fds() -> i32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| is_ours).and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// Inherited limits that will end parts or make their writes fail, with the remedy.
pub(crate) fn limit_warnings() -> impl Iterator<Item = String> {
    let limits = [
        (Resource::RLIMIT_CPU, "RLIMIT_CPU", "seconds of processor time ends each process of the set", "ulimit -t"),
        (Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", "bytes makes larger files fail, the log included", "ulimit -f"),
    ];
    limits.into_iter().filter_map(|(resource, name, effect, command)| {
        let (soft, _) = getrlimit(resource).ok()?;
        (soft != RLIM_INFINITY)
            .then(|| format!("an inherited limit of {soft} {effect} ({name}): raise it with {command} unlimited"))
    })
}
