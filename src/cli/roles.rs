//! The commands that run a part of a set: `run`, `watchdog`, `dispatcher`, `worker`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sd_notify::NotifyState;

use super::config_source::{load, load_to_run};
use super::error::{CommandError, failed};
use crate::config::{HandlerConfig, Origin};
use crate::ids::WorkerId;
use crate::{dispatcher, watchdog, worker};

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

/// `patou run`
pub(super) fn run(path: Option<&Path>) -> Result<(), CommandError> {
    runtime()?.block_on(watchdog::run(load_to_run(path)?)).map_err(failed)
}

/// `patou watchdog`
pub(super) fn watchdog(path: Option<&Path>) -> Result<(), CommandError> {
    runtime()?.block_on(watchdog::watch(load(path)?)).map_err(|error| failed(format!("watchdog: {error}")))
}

/// `patou dispatcher`
pub(super) fn dispatcher(path: Option<&Path>) -> Result<(), CommandError> {
    run_dispatcher(path).map_err(|error| report_to_watchdog(error, "dispatcher"))
}

/// `patou worker`
pub(super) fn worker(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    run_worker(path, id).map_err(|error| report_to_watchdog(error, &format!("worker {id}")))
}

/// Under `patou run`, the watchdog logs why a part has exited, together with the restart: one line for both.
fn report_to_watchdog(error: CommandError, part: &str) -> CommandError {
    // systemd's socket has another name.
    let has_watchdog = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from).is_some_and(|socket| {
        // The second one leads to a socket whose file was removed.
        socket.ends_with("notify.sock") || socket.starts_with("/proc")
    });
    let reason = error.text().trim_start_matches(&format!("{part}: ")).replace('\n', "; ");
    let message = format!("X_PATOU_FAILURE={reason}");
    if has_watchdog && sd_notify::notify(&[NotifyState::Custom(&message)]).is_ok() {
        CommandError::Failed(String::new())
    } else {
        error
    }
}

fn run_dispatcher(path: Option<&Path>) -> Result<(), CommandError> {
    let loaded = load(path)?;
    let path = match loaded.origin {
        Origin::File(path) => Some(path),
        Origin::BuiltIn => None,
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(dispatcher::on_thread_park).build().map_err(failed)?;
    runtime.block_on(dispatcher::run(loaded.config, path)).map_err(|error| failed(format!("dispatcher: {error}")))
}

fn run_worker(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    let config = load(path)?.config;
    if let Some(pool) = config.pool(&id.pool)
        && let HandlerConfig::Program(command) = &pool.handler
    {
        let (program, args) = command.split_first().ok_or_else(|| failed("the pool's program has no name"))?;
        let patou = own_path().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(args).envs(&pool.environment).env("PATOU_WORKER", id.instance()).env("PATOU_BIN", patou);
        if let Some(path) = path {
            command.env("PATOU_CONFIG", path);
        }
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
