//! A program that a handler runs, and one process of it.
//!
//! Processes are awaited through a pidfd and reaped by `std`, not by `tokio::process`: a handler also
//! reaps orphans, and must know which exit statuses are already spoken for.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use crate::{executable, sys};

/// What a program inherits of the worker's environment. Everything else stays here, above all what systemd
/// gave the worker for itself (`LISTEN_*`, `NOTIFY_SOCKET`, `WATCHDOG_*`) and `PATOU_CONFIG`. What systemd gave it
/// for the handler are secrets: `LoadCredential=` puts them where `CREDENTIALS_DIRECTORY` says.
const INHERITED: [&str; 4] = ["PATH", "LANG", "TZ", "CREDENTIALS_DIRECTORY"];

/// Why a handler cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The command line is empty.
    #[error("the handler names no program: write [\"program\", \"argument\", ...]")]
    NoProgram,
    /// There is no such program, or it must not be executed.
    #[error("`{0}` is not an executable file, here or in PATH ({1})")]
    NotExecutable(String, String),
    /// A variable with an empty name, a `=` in its name, or a NUL.
    #[error("`{0}` cannot be the name or the value of an environment variable")]
    BadVariable(String),
    /// The system refused to start it.
    #[error("cannot start `{0}`: {1}")]
    Spawn(String, io::Error),
}

/// A command line and the environment that all its processes get.
#[derive(Debug)]
pub struct Program {
    argv: Vec<String>,
    environment: BTreeMap<OsString, OsString>,
}

impl Program {
    /// Checks a command line and an environment: `own` is added to what is inherited, and prevails.
    pub fn new(argv: &[String], own: &BTreeMap<String, String>) -> Result<Self, StartError> {
        let name = argv.first().filter(|name| !name.is_empty()).ok_or(StartError::NoProgram)?;
        let inherited = INHERITED.iter().filter_map(|name| Some((OsString::from(name), env::var_os(name)?)));
        let mut environment: BTreeMap<_, _> = inherited.collect();
        environment.insert("PATH".into(), executable::search_path(own));
        for (name, value) in own {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(StartError::BadVariable(name.clone()));
            }
            environment.insert(name.into(), value.into());
        }
        let path = &environment[OsStr::new("PATH")];
        if !executable::is_executable(name, path) {
            return Err(StartError::NotExecutable(name.clone(), path.to_string_lossy().into_owned()));
        }
        Ok(Self { argv: argv.to_vec(), environment })
    }

    /// The program's name, for messages.
    pub fn name(&self) -> &str {
        &self.argv[0]
    }

    /// A command with nothing of this worker's but the clean environment and `map` (see [`sys::map_fds`]): in
    /// a process group of its own, killed when the spawning thread dies.
    pub fn command(&self, map: Vec<(OwnedFd, i32)>) -> io::Result<Command> {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(&self.environment).process_group(0);
        sys::die_with_parent(&mut command);
        sys::map_fds(&mut command, map)?;
        Ok(command)
    }
}

/// How a process ended; nothing is known when somebody else reaped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(Option<ExitStatus>);

impl Ended {
    /// Whether it ended by itself with status 0.
    pub fn well(self) -> bool {
        self.0.is_some_and(|status| status.success())
    }

    /// Whether it came to the end of its program, with whatever status, and was not killed.
    pub fn by_itself(self) -> bool {
        self.0.is_some_and(|status| status.code().is_some())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => write!(f, "ended with status {code}"),
            Some((_, Some(signal))) => match Signal::try_from(signal) {
                Ok(name) => write!(f, "was killed by {name}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
            _ => f.write_str("ended in an unknown way"),
        }
    }
}

/// A started process. Dropping it neither kills nor reaps: [`crate::process_tree`] does.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    ended: Option<Ended>,
}

impl Child {
    /// Starts `command`. Its pipes are in the `std` child, to be taken with [`Child::pipes`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut process = command.spawn()?;
        match sys::pidfd_open(Pid::from_raw(process.id() as i32)).and_then(sys::when_readable) {
            Ok(pidfd) => Ok(Self { process, pidfd: Arc::new(pidfd), ended: None }),
            Err(error) => {
                process.kill()?;
                process.wait()?;
                Err(error)
            }
        }
    }

    /// The ends of its standard streams, as far as the command made pipes of them: input, output, errors.
    pub fn pipes(&mut self) -> [Option<OwnedFd>; 3] {
        let process = &mut self.process;
        [
            process.stdin.take().map(Into::into),
            process.stdout.take().map(Into::into),
            process.stderr.take().map(Into::into),
        ]
    }

    /// Its number; after its end perhaps somebody else's.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }

    /// Whether it has ended; if so, reaps it.
    pub fn try_wait(&mut self) -> Option<Ended> {
        if self.ended.is_none() {
            self.ended = match self.process.try_wait() {
                Ok(status) => status.map(|status| Ended(Some(status))),
                // ECHILD: it has been reaped as part of a tree, so it is dead for certain.
                Err(_) => Some(Ended(None)),
            };
        }
        self.ended
    }

    /// Waits for its end and reaps it. May be dropped and called again.
    pub async fn wait(&mut self) -> Ended {
        loop {
            if let Some(ended) = self.try_wait() {
                return ended;
            }
            match self.pidfd.readable().await {
                // Readable for ever once it has ended, so never wrong for long.
                Ok(mut ready) => ready.clear_ready(),
                // The runtime is going down, and this future with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// A future that is done once the process has ended; it does not reap.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let pidfd = Arc::clone(&self.pidfd);
        async move {
            if pidfd.readable().await.is_err() {
                // The runtime is going down, and this future with it.
                std::future::pending().await
            }
        }
    }

    /// Kills its process group, unless it has ended.
    pub fn kill_group(&mut self) {
        if self.try_wait().is_none() {
            // Not reaped, so the number is still its own; its group is gone when it just ended.
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(argv: &[&str], own: &[(&str, &str)]) -> Result<Program, StartError> {
        let own = own.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Program::new(&argv.iter().map(|word| word.to_string()).collect::<Vec<_>>(), &own)
    }

    #[test]
    fn what_cannot_run_is_refused_at_once() {
        assert!(program(&["sh"], &[("A", "1")]).is_ok());
        assert!(matches!(program(&[], &[]), Err(StartError::NoProgram)));
        assert!(matches!(program(&["no-such-program"], &[]), Err(StartError::NotExecutable(..))));
        assert!(matches!(program(&["/etc/passwd"], &[]), Err(StartError::NotExecutable(..))));
        assert!(matches!(program(&["sh"], &[("PATH", "/nowhere")]), Err(StartError::NotExecutable(..))));
        for (name, value) in [("", "1"), ("A=B", "1"), ("A", "\0")] {
            assert!(matches!(program(&["sh"], &[(name, value)]), Err(StartError::BadVariable(_))));
        }
    }

    #[test]
    fn nothing_of_the_worker_is_inherited() {
        let command = program(&["env"], &[("MINE", "1")]).unwrap().command(Vec::new()).unwrap();
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        assert!(names.iter().all(|name| name == "MINE" || INHERITED.contains(&name.as_str())), "{names:?}");
    }
}
