//! A program that a handler runs, and one process of it.
//!
//! Processes are awaited through a pidfd and reaped by `std`, not by `tokio::process`: a handler also reaps orphans,
//! and must not take the exit status of a process that something else awaits.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use crate::config::{PoolConfig, placeholder};
use crate::ids::WorkerId;
use crate::procfs::ProcessStat;
use crate::{executable, sys};

/// The variables that a program inherits from the worker. It must not get those that systemd sets for the worker
/// (`LISTEN_*`, `NOTIFY_SOCKET`, `WATCHDOG_*`), nor `PATOU_CONFIG`. `CREDENTIALS_DIRECTORY` leads to the secrets of
/// `LoadCredential=`, which are meant for the handler.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "CREDENTIALS_DIRECTORY"];

/// Why a handler cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum HandlerStartError {
    /// The command line is empty.
    #[error("the handler has no program: write [\"program\", \"argument\", ...]")]
    NoProgram,
    /// The program does not exist or is not executable.
    #[error("`{0}` is not an executable file, neither as a path nor in PATH ({1}): install it or correct the handler")]
    NotExecutable(String, String),
    /// A variable with an empty name, a `=` in the name, or a NUL.
    #[error(
        "environment variable `{0}` is invalid: a name must not be empty or contain `=`, and neither name nor value \
         may contain NUL"
    )]
    BadVariable(String),
    /// The working directory of the pool.
    #[error("working_dir `{0}` is not a directory that this worker may enter: create it or correct the pool")]
    BadWorkingDir(String),
    /// The directory of `scripts`.
    #[error("scripts `{0}` is not a directory that this worker may enter: create it or correct the handler")]
    BadScripts(String),
    /// A warm process has never become ready, with the reason.
    #[error("`{0}` is not ready: {1}")]
    NotReady(String, String),
    /// The system cannot start a process.
    #[error("cannot start `{0}`: {1}")]
    Spawn(String, io::Error),
}

/// A command line, and the environment of all its processes.
#[derive(Debug)]
pub(crate) struct HandlerProgram {
    argv: Vec<String>,
    /// The variables of the worker.
    inherited: BTreeMap<OsString, OsString>,
    /// The variables of the pool, which replace them.
    environment: BTreeMap<String, String>,
    working_dir: Option<PathBuf>,
}

impl HandlerProgram {
    /// Checks a command line, and the environment and working directory of a pool. `{n}` is replaced by the number of the
    /// worker, see [`placeholder::with_number`].
    pub(super) fn new(argv: &[String], worker: &WorkerId, pool: &PoolConfig) -> Result<Self, HandlerStartError> {
        let program = Self::unchecked(argv, worker, pool)?;
        let name = program.argv.first().filter(|name| !name.is_empty()).ok_or(HandlerStartError::NoProgram)?;
        let path = &program.inherited[OsStr::new("PATH")];
        if !executable::is_executable(name, path, program.working_dir.as_deref()) {
            return Err(HandlerStartError::NotExecutable(name.clone(), path.to_string_lossy().into_owned()));
        }
        Ok(program)
    }

    /// The same for a directory of programs, of which each request names one.
    pub(super) fn directory(dir: &str, worker: &WorkerId, pool: &PoolConfig) -> Result<Self, HandlerStartError> {
        let program = Self::unchecked(&[dir.to_owned()], worker, pool)?;
        if !executable::may_enter(Path::new(program.name())) {
            return Err(HandlerStartError::BadScripts(program.name().to_owned()));
        }
        Ok(program)
    }

    fn unchecked(argv: &[String], worker: &WorkerId, pool: &PoolConfig) -> Result<Self, HandlerStartError> {
        let number = worker.number.to_string();
        let numbered = |text: &String| placeholder::with_number(text, &number);
        let argv = argv.iter().map(numbered).collect();
        let inherited = INHERITED.iter().filter_map(|name| Some((OsString::from(name), env::var_os(name)?)));
        let mut inherited: BTreeMap<_, _> = inherited.collect();
        let path = executable::search_path(&pool.environment);
        inherited.insert("PATH".into(), path);
        let mut environment = BTreeMap::new();
        for (name, value) in &pool.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(HandlerStartError::BadVariable(name.clone()));
            }
            environment.insert(name.clone(), numbered(value));
        }
        let working_dir = Some(&pool.working_dir).filter(|dir| !dir.is_empty()).map(|dir| PathBuf::from(numbered(dir)));
        if let Some(dir) = working_dir.as_ref().filter(|dir| !executable::may_enter(dir)) {
            return Err(HandlerStartError::BadWorkingDir(dir.display().to_string()));
        }
        Ok(Self { argv, inherited, environment, working_dir })
    }

    /// The name of the program, for messages.
    pub(super) fn name(&self) -> &str {
        &self.argv[0]
    }

    /// Whether the command or the environment has this placeholder.
    pub(super) fn mentions(&self, placeholder: &str) -> bool {
        self.argv.iter().chain(self.environment.values()).any(|text| placeholder::contains(text, placeholder))
    }

    /// A variable of the environment of the pool.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// A command that inherits nothing from this worker but the environment above and `map` (see [`sys::map_fds`]).
    /// `values` take the places of further placeholders. The process gets its own process group, and is killed when the
    /// spawning thread ends.
    pub(super) fn command(&self, map: Vec<(OwnedFd, i32)>, values: &[(&str, &str)]) -> io::Result<Command> {
        let filled = |text: &String| {
            values
                .iter()
                .fold(text.clone(), |text, (placeholder, value)| placeholder::replace(&text, placeholder, value))
        };
        let mut command = Command::new(filled(&self.argv[0]));
        command.args(self.argv[1..].iter().map(filled)).env_clear().envs(&self.inherited);
        command.envs(self.environment.iter().map(|(name, value)| (name, filled(value))));
        if let Some(dir) = &self.working_dir {
            command.current_dir(dir);
        }
        Self::isolate(&mut command, map)?;
        Ok(command)
    }

    /// The same for a program of the directory: `file` is executed under the name `path`, in the directory of `path` unless
    /// the pool has another one (RFC 3875 section 7.2).
    pub(super) fn command_of(&self, file: &Path, path: &Path) -> io::Result<Command> {
        let mut command = Command::new(file);
        command.arg0(path).env_clear().envs(&self.inherited).envs(&self.environment);
        if let Some(dir) = self.working_dir.as_deref().or(path.parent()) {
            command.current_dir(dir);
        }
        Self::isolate(&mut command, Vec::new())?;
        Ok(command)
    }

    fn isolate(command: &mut Command, map: Vec<(OwnedFd, i32)>) -> io::Result<()> {
        sys::die_with_parent(command.process_group(0));
        sys::map_fds(command, map)
    }
}

/// Logs a process of a handler that is about to be killed (see [`crate::process_tree::kill`]). At level debug: a request
/// that was cancelled leaves one each time.
pub(super) fn log_killed(process: &ProcessStat, name: &str) {
    tracing::debug!(pid = process.pid.as_raw(), "killing process {} ({name}), which the handler has left", process.pid);
}

/// How a process ended; unknown if it was reaped elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessExit(Option<ExitStatus>);

impl ProcessExit {
    /// Whether it exited with status 0.
    pub(super) fn succeeded(self) -> bool {
        self.0.is_some_and(|status| status.success())
    }

    /// Whether it exited, with any status, and was not killed by a signal.
    pub(super) fn exited(self) -> bool {
        self.0.is_some_and(|status| status.code().is_some())
    }
}

/// With a hint at the cause, where a sandbox is a likely one: the program itself does not name it.
impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = match self.0.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => {
                write!(f, "exited with status {code}")?;
                code - 128 // a shell whose command was killed exits so
            }
            Some((_, Some(signal))) => {
                match Signal::try_from(signal) {
                    Ok(name) => write!(f, "was killed by {name}"),
                    Err(_) => write!(f, "was killed by signal {signal}"),
                }?;
                signal
            }
            _ => return f.write_str("ended with an unknown status"),
        };
        f.write_str(match Signal::try_from(signal) {
            Ok(Signal::SIGTRAP) => {
                " (in a unit: its runtime may need MemoryDenyWriteExecute=no, see RUNTIMES in patou(7))"
            }
            Ok(Signal::SIGSYS) => " (in a unit: SystemCallFilter= forbids one of its calls, see RUNTIMES in patou(7))",
            _ => "",
        })
    }
}

/// Why there is no process of a program.
#[derive(Debug)]
pub(super) enum SpawnError {
    NotStarted(io::Error),
    /// Its end could not be awaited, for example for lack of a descriptor. It may have done something until then.
    Killed(io::Error),
}

impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::NotStarted(error) | SpawnError::Killed(error) => error,
        }
    }
}

/// A started process. Dropping it neither kills nor reaps; [`crate::process_tree`] does.
#[derive(Debug)]
pub(crate) struct HandlerProcess {
    process: std::process::Child,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    exit: Option<ProcessExit>,
}

impl HandlerProcess {
    /// Starts `command`. Take its pipes with [`HandlerProcess::pipes`].
    pub(super) fn spawn(command: &mut Command) -> Result<Self, SpawnError> {
        let mut process = command.spawn().map_err(SpawnError::NotStarted)?;
        match sys::pidfd_open(Pid::from_raw(process.id() as i32)).and_then(sys::when_readable) {
            Ok(pidfd) => Ok(Self { process, pidfd: Arc::new(pidfd), exit: None }),
            Err(error) => {
                let killed = process.kill().and_then(|()| process.wait());
                Err(SpawnError::Killed(killed.err().unwrap_or(error)))
            }
        }
    }

    /// Our ends of its standard input, output and error, where the command has made pipes.
    pub(super) fn pipes(&mut self) -> [Option<OwnedFd>; 3] {
        let process = &mut self.process;
        [
            process.stdin.take().map(Into::into),
            process.stdout.take().map(Into::into),
            process.stderr.take().map(Into::into),
        ]
    }

    /// Its process id, which the kernel may reuse once it has been reaped.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }

    /// Reaps it if it has ended.
    pub(super) fn try_wait(&mut self) -> Option<ProcessExit> {
        if self.exit.is_none() {
            self.exit = match self.process.try_wait() {
                Ok(status) => status.map(|status| ProcessExit(Some(status))),
                // ECHILD: it was reaped as part of a process tree, so it is dead.
                Err(_) => Some(ProcessExit(None)),
            };
        }
        self.exit
    }

    /// Whether it is about to end, and may have closed its descriptors.
    pub(super) fn is_exiting(&self) -> bool {
        ProcessStat::of(self.process.id()).is_none_or(|stat| stat.is_exiting)
    }

    /// Waits for its end and reaps it. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> ProcessExit {
        loop {
            if let Some(exit) = self.try_wait() {
                return exit;
            }
            match self.pidfd.readable().await {
                // A pidfd stays readable after the end, so a stale readiness is corrected in the next round.
                Ok(mut ready) => ready.clear_ready(),
                // The runtime is shutting down, and drops this future.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Completes when the process has ended; does not reap it.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let pidfd = Arc::clone(&self.pidfd);
        async move {
            if pidfd.readable().await.is_err() {
                // The runtime is shutting down, and drops this future.
                std::future::pending().await
            }
        }
    }

    /// Sends SIGTERM to it, unless it has ended.
    pub(super) fn terminate(&mut self) {
        if self.try_wait().is_none() {
            // As below.
            let _ = kill(self.pid(), Signal::SIGTERM);
        }
    }

    /// Kills its process group, unless it has ended.
    pub(super) fn kill_group(&mut self) {
        if self.try_wait().is_none() {
            // Not reaped, so the number still refers to it. An error means that it has just ended.
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    fn program(argv: &[&str], pool: &[(&str, &str)]) -> Result<HandlerProgram, HandlerStartError> {
        let environment = pool.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let argv = argv.iter().map(|argument| argument.to_string()).collect::<Vec<_>>();
        HandlerProgram::new(&argv, &"web-3".parse().unwrap(), &PoolConfig { environment, ..PoolConfig::default() })
    }

    #[test]
    fn program_that_cannot_run_is_rejected_at_start() {
        assert!(program(&["sh"], &[("A", "1")]).is_ok());
        assert!(matches!(program(&[], &[]), Err(HandlerStartError::NoProgram)));
        assert!(matches!(program(&["no-such-program"], &[]), Err(HandlerStartError::NotExecutable(..))));
        assert!(matches!(program(&["/etc/passwd"], &[]), Err(HandlerStartError::NotExecutable(..))));
        assert!(matches!(program(&["sh"], &[("PATH", "/nowhere")]), Err(HandlerStartError::NotExecutable(..))));
        for (name, value) in [("", "1"), ("A=B", "1"), ("A", "\0")] {
            assert!(matches!(program(&["sh"], &[(name, value)]), Err(HandlerStartError::BadVariable(_))));
        }
    }

    #[test]
    fn death_by_a_signal_of_the_sandbox_names_its_keys() {
        let text = |raw| ProcessExit(Some(ExitStatus::from_raw(raw))).to_string();
        assert_eq!(text(7 << 8), "exited with status 7");
        assert_eq!(text(libc::SIGKILL), "was killed by SIGKILL");
        assert_eq!(text(40), "was killed by signal 40");
        assert!(text(libc::SIGTRAP).starts_with("was killed by SIGTRAP (in a unit: its runtime may need MemoryDeny"));
        assert!(text(libc::SIGSYS).starts_with("was killed by SIGSYS (in a unit: SystemCallFilter= forbids"));
        assert!(text((128 + libc::SIGSYS) << 8).starts_with("exited with status 159 (in a unit: SystemCallFilter="));
    }

    #[test]
    fn program_inherits_only_listed_variables() {
        let command = program(&["env"], &[("MINE", "1")]).unwrap().command(Vec::new(), &[]).unwrap();
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        assert!(names.iter().all(|name| name == "MINE" || INHERITED.contains(&name.as_str())), "{names:?}");
    }
    #[test]
    fn placeholders_are_filled_in_command_and_environment() {
        let program = program(&["env", "{n}", "${n}", "unix:{socket}"], &[("LOG", "{n}.log")]).unwrap();
        assert!(program.mentions(placeholder::SOCKET) && !program.mentions(placeholder::PORT));
        let command = program.command(Vec::new(), &[(placeholder::SOCKET, "/run/s")]).unwrap();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(arguments, ["3", "${n}", "unix:/run/s"]);
        assert!(command.get_envs().any(|pair| pair == ("LOG".as_ref(), Some("3.log".as_ref()))));
    }
}
