//! How the main process of a unit ended, in words.

use nix::sys::signal::Signal;

use crate::units::GIVEN_UP;

/// `result` is that of the service (`Result`, org.freedesktop.systemd1(5); `SERVICE_RESULT`, systemd.exec(5)); `status` the
/// exit status, or the number or the name of a signal without `SIG`.
pub(crate) fn describe_end(result: &str, status: &str) -> String {
    match result {
        "exit-code" if status == GIVEN_UP.to_string() => "given up".to_owned(),
        "exit-code" => format!("exit code {status}"),
        "signal" | "core-dump" => match status.parse::<i32>().map(Signal::try_from) {
            Ok(Ok(signal)) => format!("killed by {signal}"),
            Ok(Err(_)) => format!("killed by signal {status}"),
            Err(_) => format!("killed by SIG{status}"),
        },
        "watchdog" => "no sign of life within its WatchdogSec=".to_owned(),
        "start-limit-hit" => "systemd's start limit was hit".to_owned(),
        result => result.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_names_whether_the_status_is_a_number_or_a_name() {
        for (result, status, text) in [
            ("exit-code", "3", "exit code 3"),
            ("exit-code", "79", "given up"),
            ("signal", "9", "killed by SIGKILL"),
            ("signal", "KILL", "killed by SIGKILL"),
            ("signal", "64", "killed by signal 64"),
            ("core-dump", "6", "killed by SIGABRT"),
            ("core-dump", "SEGV", "killed by SIGSEGV"),
            ("watchdog", "ABRT", "no sign of life within its WatchdogSec="),
            ("start-limit-hit", "0", "systemd's start limit was hit"),
            ("timeout", "15", "timeout"),
        ] {
            assert_eq!(describe_end(result, status), text);
        }
    }
}
