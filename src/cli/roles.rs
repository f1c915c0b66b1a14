//! The commands that run a part of a set: `run`, `watchdog`, `dispatcher`, `worker`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::prctl;
use sd_notify::NotifyState;

use super::config_source::{load, load_as_part, load_to_run};
use super::error::{CommandError, failed};
use super::init;
use crate::config::{HandlerConfig, Origin, placeholder};
use crate::dispatcher::DispatcherError;
use crate::ids::WorkerId;
use crate::sd_notification::notify_before_exit;
use crate::watchdog::WatchdogError;
use crate::worker::ServeError;
use crate::worker::handler::HandlerStartError;
use crate::{dispatcher, executable, ipc, requirements, sys, units, watchdog, worker};

/// How much of a reason is passed to the watchdog: a notification has 4096 bytes at most.
const FAILURE_CHARS: usize = 1000;

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

/// The error of a part that has ended.
fn ended(text: String, is_given_up: bool) -> CommandError {
    if is_given_up { CommandError::GivenUp(text) } else { CommandError::Failed(text) }
}

/// `patou run`
pub(super) fn run(path: Option<&Path>) -> Result<(), CommandError> {
    requirements::check().map_err(failed)?;
    if init::is_needed() {
        return init::run(path);
    }
    runtime()?.block_on(watchdog::run(load_to_run(path)?)).map_err(failed)
}

/// `patou watchdog`
pub(super) fn watchdog(path: Option<&Path>) -> Result<(), CommandError> {
    requirements::check().map_err(|error| failed(format!("watchdog: {error}")))?;
    runtime()?.block_on(watchdog::watch(load(path)?)).map_err(|error| {
        let is_given_up = matches!(error, WatchdogError::GivenUp(_));
        ended(format!("watchdog: {error}"), is_given_up)
    })
}

/// `patou dispatcher`
pub(super) fn dispatcher(path: Option<&Path>) -> Result<(), CommandError> {
    run_dispatcher(path).map_err(|error| report_to_watchdog(error, "dispatcher"))
}

/// `patou worker`
pub(super) fn worker(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    run_worker(path, id).map_err(|error| report_to_watchdog(error, &format!("worker {id}")))
}

/// Under `patou run`, the watchdog logs why a part has exited, together with the restart: one line for both. systemd shows
/// the reason as the status of the unit.
fn report_to_watchdog(error: CommandError, part: &str) -> CommandError {
    let has_watchdog = std::env::var_os(ipc::RUNTIME_DIR).is_some();
    let reason = error.text().trim_start_matches(&format!("{part}: ")).replace('\n', "; ");
    let reason = reason.chars().take(FAILURE_CHARS).collect::<String>();
    if !has_watchdog {
        // Without a supervisor there is no place for it.
        let _ = notify_before_exit(&[NotifyState::Status(&format!("{}{reason}", units::FAILURE_STATUS))]);
    }
    let message = format!("X_PATOU_FAILURE={reason}");
    if has_watchdog && notify_before_exit(&[NotifyState::Custom(&message)]).is_ok() {
        CommandError::Failed(String::new())
    } else {
        error
    }
}

fn run_dispatcher(path: Option<&Path>) -> Result<(), CommandError> {
    requirements::check().map_err(|error| failed(format!("dispatcher: {error}")))?;
    let loaded = load_as_part(path)?;
    let path = match loaded.origin {
        Origin::File(path) => Some(path),
        Origin::BuiltIn => None,
    };
    runtime()?.block_on(dispatcher::run(loaded.config, path)).map_err(|error| {
        let is_given_up = matches!(error, DispatcherError::GivenUp(_));
        ended(format!("dispatcher: {error}"), is_given_up)
    })
}

/// `patou stand-in`
pub(super) fn stand_in(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    let config = load_as_part(path)?.config;
    let served = runtime()?.block_on(worker::run_stand_in(&config, id));
    served.map_err(|error| report_to_watchdog(failed(error), "stand-in"))
}

fn run_worker(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    requirements::check().map_err(|error| failed(format!("worker {id}: {error}")))?;
    // Also for the processes that a program starts before it serves: they must not become the watchdog's.
    prctl::set_child_subreaper(true).map_err(failed)?;
    let config = load_as_part(path)?.config;
    // Before a program of the user's is executed, which may end before it is ready.
    runtime()?.block_on(worker::hold_back(&config, id)).map_err(|error| {
        let is_given_up = matches!(error, ServeError::GivenUp(_));
        ended(format!("worker {id}: {error}"), is_given_up)
    })?;
    if let Some(pool) = config.pool(&id.pool)
        && let HandlerConfig::Program(command) = &pool.handler
    {
        let number = id.number.to_string();
        let numbered = |text: &String| placeholder::with_number(text, &number);
        let mut argv = command.iter().map(numbered);
        let program = argv.next().ok_or_else(|| failed("the pool's program has no name"))?;
        let patou = own_path().map_err(failed)?;
        let mut command = Command::new(&program);
        command.args(argv).envs(pool.environment.iter().map(|(name, value)| (name, numbered(value))));
        command.env("PATOU_WORKER", id.instance()).env("PATOU_BIN", patou);
        if let Some(path) = path {
            command.env("PATOU_CONFIG", std::path::absolute(path).map_err(failed)?);
        }
        if !pool.working_dir.is_empty() {
            let dir = numbered(&pool.working_dir);
            if !executable::may_enter(Path::new(&dir)) {
                return Err(failed(format!("worker {id}: {}", HandlerStartError::BadWorkingDir(dir))));
            }
            command.current_dir(dir);
        }
        sys::restore_terminal_output_stop();
        sys::restore_umask();
        return Err(failed(format!("worker {id}: cannot execute {program}: {}", command.exec())));
    }
    runtime()?.block_on(worker::run(&config, id)).map_err(|error| failed(format!("worker {id}: {error}")))
}

/// The path of this program, or of the file that an upgrade has put in its place (proc(5), `/proc/pid/exe`).
fn own_path() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let upgraded = path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(upgraded.filter(|path| path.exists()).unwrap_or(path))
}
