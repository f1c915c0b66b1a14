//! The command line. Each command has its own file; only this file prints errors and chooses the exit code.

mod account;
mod bench;
mod call;
mod check;
mod completions;
mod config_source;
mod dispatcher_error;
mod drain;
mod drill;
mod duration_arg;
mod error;
mod init;
mod ipc;
mod launch;
mod patou_run;
mod poll;
mod recycle;
mod reload;
mod roles;
mod status;
mod systemd;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::ArgValueCandidates;

use self::bench::exchange;
use self::error::CommandError;
use crate::ids::WorkerId;
use crate::{inherited, log, units};

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
        /// The worker, for example default-1
        #[arg(value_name = "POOL-N", add = ArgValueCandidates::new(completions::workers))]
        worker: WorkerId,
    },
    /// Create, remove or list the segments and named pipes of a set
    Ipc {
        #[command(subcommand)]
        command: ipc::IpcCommand,
    },
    /// Validate the configuration and print what the set would create
    Check,
    /// Print the annotated default configuration
    Config(check::ConfigArgs),
    /// Show the state of the set and its parts
    Status(status::StatusArgs),
    /// Send a request through the set
    Call(call::CallArgs),
    /// Take a worker out of service and wait until it is free
    Drain {
        /// The worker, for example default-1
        #[arg(value_name = "POOL-N", add = ArgValueCandidates::new(completions::workers))]
        worker: WorkerId,
    },
    /// Put a worker back into service
    Resume {
        /// The worker, for example default-1
        #[arg(value_name = "POOL-N", add = ArgValueCandidates::new(completions::workers))]
        worker: WorkerId,
    },
    /// Replace the workers of a pool by new processes, one after the other, without losing a request
    Recycle(recycle::RecycleArgs),
    /// Have a set of `patou run` apply its changed configuration, and wait for the result (units: systemctl reload patou)
    Reload(reload::ReloadArgs),
    /// Measure exchanges over a private segment and named pipes, and print percentiles (see also bench exchange)
    Pingpong(exchange::PingpongArgs),
    /// Measure what patou costs, each time beside a baseline of the same run
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Inject faults into a set, by default a private one, and check that every promise holds
    Drill(drill::DrillOptions),
    /// Commands for the systemd units and the package; operators use systemctl
    Systemd {
        #[command(subcommand)]
        command: systemd::SystemdCommand,
    },
    /// Become a part of the set, with LISTEN_PID set
    #[command(hide = true)]
    Launch(launch::LaunchArgs),
    /// Serve the address of a worker that is down: send its clients back to the dispatcher
    #[command(hide = true)]
    StandIn {
        /// The worker, for example default-1
        #[arg(value_name = "POOL-N")]
        worker: WorkerId,
    },
    /// The handler of a drill: records each start, responds with the body
    #[command(hide = true)]
    Record(drill::recording_handler::RecordingHandler),
    /// The baseline servers of a benchmark
    #[command(hide = true)]
    BenchServer(bench::server::BenchServerArgs),
    /// The answering end of a measured exchange
    #[command(hide = true)]
    BenchPeer(bench::peer::BenchPeerArgs),
}

/// Wrong arguments (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// Invalid configuration (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// How long the process stays for the journal to read its last line.
const LAST_LINE_DELAY: Duration = Duration::from_millis(50);

/// Parses the arguments, runs the command, prints its error.
pub(crate) fn main() -> ExitCode {
    // Parts are started as /proc/self/exe: without this, ps(1), pgrep(1) and ss(8) show the name `exe`.
    let _ = nix::sys::prctl::set_name(c"patou");
    completions::complete(Cli::command);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            drop_hidden_suggestions(&mut error);
            let _ = error.print(); // a closed stderr leaves no place for a message
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Run | Command::Watchdog | Command::Dispatcher | Command::Worker { .. } => {
            inherited::reset_for_part(crate::ipc::PASSED_TO_WORKER);
        }
        // Descriptors and SIGHUP are as the watchdog has prepared them for the part.
        Command::Launch(_) => {}
        _ => inherited::reset(),
    }
    let code = match run(&cli) {
        Ok(()) => {
            log::flush();
            return ExitCode::SUCCESS;
        }
        Err(CommandError::Failed(text)) => {
            if !text.is_empty() && !log_to_journal(&cli.command, log::Event::StartRefused, &text) {
                print_error(&cli.command, &format!("patou: {text}"));
            }
            ExitCode::FAILURE
        }
        Err(CommandError::Config(text)) => {
            if !log_to_journal(&cli.command, log::Event::ConfigRefused, &text) {
                print_error(&cli.command, &text);
            }
            ExitCode::from(EXIT_CONFIG)
        }
        Err(CommandError::GivenUp(text)) => {
            let text = format!("{text}: it stays down; fix the cause, then run systemctl reload patou");
            if !log_to_journal(&cli.command, log::Event::PartFailed, &text) {
                print_error(&cli.command, &format!("patou: {text}"));
            }
            ExitCode::from(units::GIVEN_UP)
        }
        Err(CommandError::Exited(code)) => ExitCode::from(code),
    };
    log::flush();
    // The journal looks up the unit of a line when it reads the line: if the process has exited by then, the line has
    // no unit (journalctl -u).
    if log::stderr_is_the_journal() {
        std::thread::sleep(LAST_LINE_DELAY);
    }
    code
}

/// Prints on stderr why the command failed. A part does not wait for a reader that does not read.
fn print_error(command: &Command, text: &str) {
    match command {
        Command::Run | Command::Watchdog | Command::Dispatcher | Command::Worker { .. } | Command::Launch(_) => {
            log::print_fatal(text);
        }
        _ => drop(writeln!(io::stderr(), "{text}")), // a closed stderr leaves no place for a message
    }
}

/// Logs why a part exits, if stderr is the journal and the command is a part.
fn log_to_journal(command: &Command, event: log::Event, text: &str) -> bool {
    match command {
        Command::Run | Command::Watchdog => log::log_fatal("watchdog", event, text),
        Command::Ipc { .. } => log::log_fatal("patou ipc", event, text),
        Command::Systemd { command: systemd::SystemdCommand::Reload } => {
            log::log_fatal("patou systemd", log::Event::ReloadRefused, text)
        }
        Command::Systemd { .. } => log::log_fatal("patou systemd", event, text),
        Command::Dispatcher => log::log_fatal("dispatcher", event, text),
        Command::Worker { worker } => log::log_fatal(&format!("worker {worker}"), event, text),
        _ => false,
    }
}

/// Removes hidden commands from the suggestions of an error.
fn drop_hidden_suggestions(error: &mut clap::Error) {
    let cli = Cli::command();
    let is_visible = |name: &String| cli.find_subcommand(name).is_some_and(|command| !command.is_hide_set());
    let visible: Vec<String> = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.iter().filter(|name| is_visible(name)).cloned().collect(),
        Some(ContextValue::String(name)) if !is_visible(name) => Vec::new(),
        _ => return,
    };
    if visible.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
    } else {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(visible));
    }
}

fn run(cli: &Cli) -> Result<(), CommandError> {
    let path = cli.config.as_deref();
    match &cli.command {
        Command::Run => roles::run(path),
        Command::Watchdog => roles::watchdog(path),
        Command::Dispatcher => roles::dispatcher(path),
        Command::Worker { worker } => roles::worker(path, worker),
        Command::Ipc { command } => ipc::run(path, *command),
        Command::Check => check::check(path),
        Command::Config(args) => check::print_defaults(args),
        Command::Status(args) => status::run(path, args),
        Command::Call(args) => call::run(args, || call::default_target(path)).map_err(CommandError::Failed),
        Command::Drain { worker } => drain::drain(path, worker),
        Command::Resume { worker } => drain::resume(path, worker),
        Command::Reload(args) => reload::run(path, args),
        Command::Recycle(args) => recycle::run(path, args),
        Command::Pingpong(args) => exchange::run_pingpong(path, args),
        Command::Bench { command } => bench::run(path, command),
        Command::Drill(args) => drill::run(path, args),
        Command::Systemd { command } => systemd::run(path, command),
        Command::Launch(args) => launch::run(args),
        Command::StandIn { worker } => roles::stand_in(path, worker),
        Command::Record(args) => drill::recording_handler::run(args),
        Command::BenchServer(args) => bench::server::run(args),
        Command::BenchPeer(args) => bench::peer::run(path, args),
    }
}
