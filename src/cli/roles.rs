//! The commands that are parts of a set.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use sd_notify::NotifyState;

use super::{Failure, failed, load, load_to_run};
use crate::config::{HandlerConfig, Origin};
use crate::ids::WorkerId;
use crate::{dispatcher, watchdog, worker};

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

pub fn run(path: Option<&Path>) -> Result<(), Failure> {
    runtime()?.block_on(watchdog::run(load_to_run(path)?)).map_err(failed)
}

pub fn watchdog(path: Option<&Path>) -> Result<(), Failure> {
    runtime()?.block_on(watchdog::watch(load(path)?)).map_err(|error| failed(format!("watchdog: {error}")))
}

pub fn dispatcher(path: Option<&Path>) -> Result<(), Failure> {
    run_dispatcher(path).map_err(|failure| tell_the_watchdog(failure, "dispatcher"))
}

pub fn worker(path: Option<&Path>, id: &WorkerId) -> Result<(), Failure> {
    run_worker(path, id).map_err(|failure| tell_the_watchdog(failure, &format!("worker {id}")))
}

/// Under `patou run` the watchdog says why a part has ended, in one line with what follows from it.
fn tell_the_watchdog(failure: Failure, part: &str) -> Failure {
    let (Failure::Failed(text) | Failure::Config(text)) = &failure;
    // systemd's socket has another name.
    let ours = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| socket.as_bytes().ends_with(b"/notify.sock"));
    let words = format!("X_PATOU_FAILURE={}", text.trim_start_matches(&format!("{part}: ")).replace('\n', "; "));
    match ours && sd_notify::notify(&[NotifyState::Custom(&words)]).is_ok() {
        true => Failure::Failed(String::new()),
        false => failure,
    }
}

fn run_dispatcher(path: Option<&Path>) -> Result<(), Failure> {
    let loaded = load(path)?;
    let path = match loaded.origin {
        Origin::File(path) => Some(path),
        Origin::BuiltIn => None,
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(dispatcher::on_thread_park).build().map_err(failed)?;
    runtime.block_on(dispatcher::run(loaded.config, path)).map_err(|error| failed(format!("dispatcher: {error}")))
}

fn run_worker(path: Option<&Path>, id: &WorkerId) -> Result<(), Failure> {
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

/// Where this program is, or where the one is that an upgrade has put in its place (proc(5), `/proc/pid/exe`).
fn own_path() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let upgraded = path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(upgraded.filter(|path| path.exists()).unwrap_or(path))
}

/// A step between the watchdog and a part.
#[derive(Debug, Args)]
pub struct Launch {
    /// The process whose end is the end of the part
    #[arg(long)]
    parent: i32,
    /// Soft and hard limit of open files (RLIMIT_NOFILE)
    #[arg(long, value_name = "SOFT:HARD", value_parser = pair)]
    open_files: Option<(u64, u64)>,
    /// Limit of private writable memory in bytes (RLIMIT_DATA)
    #[arg(long, value_name = "BYTES")]
    data: Option<u64>,
    /// The command to become
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(u64, u64), String> {
    let pair = text.split_once(':').and_then(|(soft, hard)| Some((soft.parse().ok()?, hard.parse().ok()?)));
    pair.ok_or_else(|| format!("{text} is not SOFT:HARD"))
}

/// Binds this process and what it starts, as far as it may: as systemd does, it stays below the hard limit it has.
fn limit(resource: Resource, soft: u64, hard: u64) -> nix::Result<()> {
    match setrlimit(resource, soft, hard) {
        Err(Errno::EPERM) => {
            let (_, highest) = getrlimit(resource)?;
            setrlimit(resource, soft.min(highest), hard.min(highest))
        }
        result => result,
    }
}

/// Becomes a part: with its own pid in `LISTEN_PID` (sd_listen_fds(3)), which the parent could not know, and
/// with SIGTERM for the day the parent dies.
pub fn launch(launch: &Launch) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(failed)?;
    if getppid() != Pid::from_raw(launch.parent) {
        return Err(failed("the watchdog has died meanwhile"));
    }
    if let Some((soft, hard)) = launch.open_files {
        limit(Resource::RLIMIT_NOFILE, soft, hard).map_err(|e| failed(format!("limits.open_files: {e}")))?;
    }
    if let Some(bytes) = launch.data {
        limit(Resource::RLIMIT_DATA, bytes, bytes).map_err(|e| failed(format!("limits.memory_max: {e}")))?;
    }
    let pid = std::process::id().to_string();
    Err(failed(Command::new("/proc/self/exe").arg0("patou").args(&launch.command).env("LISTEN_PID", pid).exec()))
}
