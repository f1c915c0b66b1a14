//! What a parent may leave to a process across execve(2): blocked and ignored signals, timers, descriptors, a umask, limits.
//! Each command starts by undoing it, so that it behaves the same however it was started.
//!
//! The standard library opens `/dev/null` for standard descriptors that are closed. The programs that patou starts get a
//! clean state, too: handlers that patou has installed become default actions when a program is executed, and
//! `sys::map_fds` undoes the rest.

use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};

use crate::sys;

/// The first descriptor behind the standard ones; those of `LISTEN_FDS` begin here (sd_listen_fds(3)).
const FIRST_FD: i32 = 3;

/// What the kernel gives its first process, in nanoseconds (prctl(2), PR_SET_TIMERSLACK).
const DEFAULT_TIMER_SLACK: i32 = 50_000;

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
    sys::tighten_umask();
    // With more, every timer of this process would be late.
    if prctl::get_timerslack().is_ok_and(|slack| slack > DEFAULT_TIMER_SLACK) {
        let _ = prctl::set_timerslack(DEFAULT_TIMER_SLACK as u64); // any value is valid
    }
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
