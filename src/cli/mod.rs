//! The commands: from arguments to action, one file each.

mod bench;
pub mod call;
mod check;
mod completions;
mod drill;
mod ipc;
mod pingpong;
mod roles;
mod service;
mod status;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, LoadError, Loaded};
use crate::ids::WorkerId;
use crate::{executable, log};

/// A pool of worker processes that notices the frozen, not only the dead.
#[derive(Debug, Parser)]
#[command(name = "patou", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The configuration [default: $PATOU_CONFIG, then /etc/patou/patou.toml, then the built-in one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole set in the foreground
    Run,
    /// Run the watchdog of a set of systemd units
    Watchdog,
    /// Run the dispatcher of a set
    Dispatcher,
    /// Run one worker of a set
    Worker {
        /// Which worker, for instance default-1
        #[arg(value_name = "POOL-N")]
        worker: WorkerId,
    },
    /// Create, remove or list the segments and named pipes of a set
    Ipc {
        #[command(subcommand)]
        action: ipc::Action,
    },
    /// Validate the configuration and print what the set would create
    Check,
    /// Print the annotated default configuration
    Config(check::Defaults),
    /// Show how the set is
    Status(status::Status),
    /// Send a request through the set
    Call(call::Call),
    /// Take a worker out of service once it is free
    Drain {
        /// Which worker, for instance default-1
        #[arg(value_name = "POOL-N")]
        worker: WorkerId,
    },
    /// Put a worker back into service
    Resume {
        /// Which worker, for instance default-1
        #[arg(value_name = "POOL-N")]
        worker: WorkerId,
    },
    /// Exchange questions and answers over a real segment and real pipes, and say how long it takes
    Pingpong(pingpong::Pingpong),
    /// Measure what patou costs, each time beside a baseline of the same run
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Inject faults into a set, by default one of its own, and see whether every promise holds
    Drill(drill::Drill),
    /// What the systemd units and the package run; an operator uses systemctl
    Systemd {
        #[command(subcommand)]
        action: systemd::Action,
    },
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions(completions::Completions),
    /// Become a part of the set, with LISTEN_PID set
    #[command(hide = true)]
    Launch(roles::Launch),
    /// The handler of a drill: records each start, answers with the body
    #[command(hide = true)]
    Record(drill::recording_handler::Record),
    /// The baselines of a benchmark: nothing but a server
    #[command(hide = true)]
    Bare(bench::bare::Bare),
    /// The answering end of pingpong
    #[command(hide = true)]
    Pong(pingpong::Pong),
}

/// Why a command failed, with the exit code that says so (sysexits(3) where it has one).
#[derive(Debug)]
pub enum Failure {
    /// 1. Nothing is printed where there are no words: then the watchdog has been told.
    Failed(String),
    /// 78: the configuration is wrong.
    Config(String),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable { .. } => Failure::Config(format!("patou: {error}")),
            // Every line begins with the file.
            LoadError::Faults(faults) => Failure::Config(faults.to_string()),
        }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure::Failed(text)
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The end of a command that prints. Who reads no more (`patou status | head`) has what he wants.
fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(format!("cannot write: {error}"))),
        _ => Ok(()),
    }
}

fn no_set(dir: &Path) -> Failure {
    let dir = dir.display();
    failed(format!("no set is running in {dir}: start it with patou run, or name its configuration with --config"))
}

/// Wrong arguments (`EX_USAGE`).
const USAGE: u8 = 64;
/// Wrong configuration (`EX_CONFIG`).
const CONFIG: u8 = 78;

/// Does what the arguments say. The only place that prints an error and chooses the exit code.
pub fn main() -> ExitCode {
    // Parts are started as /proc/self/exe: without this ps(1), pgrep(1) and ss(8) would call them `exe`.
    let _ = nix::sys::prctl::set_name(c"patou");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            forget_hidden(&mut error);
            let _ = error.print(); // nowhere left to tell
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let code = match run(&cli) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(text)) => {
            if !text.is_empty() && !told(&cli.command, log::Event::StartRefused, &text) {
                eprintln!("patou: {text}");
            }
            ExitCode::FAILURE
        }
        Err(Failure::Config(text)) => {
            if !told(&cli.command, log::Event::ConfigRefused, &text) {
                eprintln!("{text}");
            }
            ExitCode::from(CONFIG)
        }
    };
    // The journal asks whose line it is when it reads it: whoever has ended by then has no unit (journalctl -u).
    if log::stderr_is_the_journal() {
        std::thread::sleep(LAST_LINE);
    }
    code
}

/// How long the journal is given to read why this process ends.
const LAST_LINE: std::time::Duration = std::time::Duration::from_millis(50);

/// Tells the journal why a part of a set ends, if that is where the part speaks to.
fn told(command: &Command, event: log::Event, text: &str) -> bool {
    match command {
        Command::Run | Command::Watchdog => log::log_fatal("watchdog", event, text),
        Command::Ipc { .. } => log::log_fatal("patou ipc", event, text),
        Command::Systemd { action: systemd::Action::Reload } => {
            log::log_fatal("patou systemd", log::Event::ReloadRefused, text)
        }
        Command::Systemd { .. } => log::log_fatal("patou systemd", event, text),
        Command::Dispatcher => log::log_fatal("dispatcher", event, text),
        Command::Worker { worker } => log::log_fatal(&format!("worker {worker}"), event, text),
        _ => false,
    }
}

/// What is hidden in the help is not suggested either.
fn forget_hidden(error: &mut clap::Error) {
    let cli = Cli::command();
    let shown = |name: &String| cli.find_subcommand(name).is_some_and(|command| !command.is_hide_set());
    let near = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.iter().filter(|name| shown(name)).cloned().collect(),
        Some(ContextValue::String(name)) if !shown(name) => Vec::new(),
        _ => return,
    };
    match near.is_empty() {
        true => drop(error.remove(ContextKind::SuggestedSubcommand)),
        false => drop(error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(near))),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let path = cli.config.as_deref();
    match &cli.command {
        Command::Run => roles::run(path),
        Command::Watchdog => roles::watchdog(path),
        Command::Dispatcher => roles::dispatcher(path),
        Command::Worker { worker } => roles::worker(path, worker),
        Command::Ipc { action } => ipc::run(path, *action),
        Command::Check => check::check(path),
        Command::Config(defaults) => check::defaults(defaults),
        Command::Status(status) => status::run(path, status),
        Command::Call(call) => call::run(call, || service::default_target(path)).map_err(Failure::Failed),
        Command::Drain { worker } => service::drain(path, worker),
        Command::Resume { worker } => service::resume(path, worker),
        Command::Pingpong(pingpong) => pingpong::run(path, pingpong),
        Command::Bench { what } => bench::run(path, what),
        Command::Bare(bare) => bench::bare::run(bare),
        Command::Drill(drill) => drill::run(path, drill),
        Command::Record(record) => drill::recording_handler::run(record),
        Command::Systemd { action } => systemd::run(path, action),
        Command::Completions(completions) => completions::run(completions),
        Command::Launch(launch) => roles::launch(launch),
        Command::Pong(pong) => pingpong::pong(pong),
    }
}

fn load(path: Option<&Path>) -> Result<Loaded, Failure> {
    Ok(Config::load(path)?)
}

/// As [`load`], and the programs that it names are there.
fn load_to_run(path: Option<&Path>) -> Result<Loaded, Failure> {
    let loaded = load(path)?;
    loaded.check(executable::missing_program).map_err(LoadError::from)?;
    Ok(loaded)
}

/// The configuration that the set in its runtime directory runs on, which may differ from the file.
fn load_applied(path: Option<&Path>) -> Result<Config, Failure> {
    match Config::load(path) {
        Ok(Loaded { config, .. }) => applied(&config.set.runtime_dir).unwrap_or(Ok(config)),
        // The file is being edited, perhaps, and the set runs on.
        Err(LoadError::Faults(faults)) => {
            let file = faults.0.first().map_or("", |fault| &fault.file);
            let dir = Config::runtime_dir_in(&std::fs::read_to_string(file).unwrap_or_default());
            let config = applied(&dir).ok_or_else(|| LoadError::Faults(faults.clone()))?;
            static ONCE: std::sync::Once = std::sync::Once::new();
            let dir = dir.display();
            ONCE.call_once(|| {
                eprintln!("{faults}\npatou: this is about the set in {dir}, as it runs, not about that file")
            });
            config
        }
        Err(error) => Err(error.into()),
    }
}

/// What the set in `dir` runs on, if there is one.
fn applied(dir: &Path) -> Option<Result<Config, Failure>> {
    let applied =
        if crate::ipc::is_run_by_systemd(dir) { crate::units::APPLIED.into() } else { dir.join("applied.toml") };
    let text = std::fs::read_to_string(&applied).ok()?;
    Some(Config::parse(&text, &applied.display().to_string()).map_err(|error| Failure::Config(error.to_string())))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text} is not a duration such as 500ms or 10s"))
}
