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
/// which would end the part, do nothing. The variable `objects` holds the numbers of descriptors that are passed beside
/// those of `LISTEN_FDS`, as in `1:2`.
pub(crate) fn reset_for_part(objects: &str) {
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
    sys::close_on_exec_from(first_unwanted(objects, |name| std::env::var(name).ok()));
}

/// The first descriptor above those that were passed to this process on purpose: sockets and a worker's objects. A
/// `program` worker passes them on, and so does a worker that executes itself again.
fn first_unwanted(objects: &str, variable: impl Fn(&str) -> Option<String>) -> i32 {
    let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return FIRST_FD;
    }
    let sockets = number("LISTEN_FDS").and_then(|count| i32::try_from(count).ok()).unwrap_or(0);
    let objects = variable(objects).unwrap_or_default();
    let behind_objects = objects.split(':').filter_map(|text| text.parse::<i32>().ok()?.checked_add(1)).max();
    FIRST_FD.saturating_add(sockets).max(behind_objects.unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_objects_that_were_passed_to_this_process_stay_open() {
        let first = |pid: u32, sockets: &str, objects: &str| {
            first_unwanted("OBJECTS", |name| match name {
                "LISTEN_PID" => Some(pid.to_string()),
                "LISTEN_FDS" => Some(sockets.to_owned()),
                _ => Some(objects.to_owned()),
            })
        };
        let own = std::process::id();
        assert_eq!(first(own, "2", ""), 5);
        assert_eq!(first(own, "2", "5:6:7"), 8);
        assert_eq!(first(own, "2", "7:x:2147483647"), 8);
        assert_eq!(first(own, "x", ""), 3);
        assert_eq!(first(own + 1, "2", "5:6:7"), 3);
    }
}
