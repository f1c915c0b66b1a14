//! `patou net::discard_until_closed` and `resume`, and where `patou call` goes by default.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Failure, failed, load_applied, no_set, written};
use crate::client::Target;
use crate::config::Config;
use crate::exchange::{self, DispatcherSide};
use crate::ids::{Claim, Phase, WorkerId};
use crate::ipc::{self, SetLock};
use crate::probe::{self, ProbeCommand};
use crate::status::SavedState;
use crate::units;

/// How long the dispatcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the worker is free.
const LOOK: Duration = Duration::from_millis(10);

/// Takes a worker out of service and waits, at most for its drain_timeout, until it is free.
pub fn drain(path: Option<&Path>, id: &WorkerId) -> Result<(), Failure> {
    let config = load_applied(path)?;
    let before = was_drained(&config, id);
    order(&config, ProbeCommand::Drain(id.clone()))?;
    let pool = config.pool(&id.pool).ok_or_else(|| failed(format!("the configuration has no worker {id}")))?;
    let slot = ipc::open(&config, id).map_err(failed)?.segment;
    let give_up = Instant::now() + pool.drain_timeout;
    let held = |phase| matches!(phase, Phase::Offered | Phase::Claimed | Phase::Responding);
    while matches!(exchange::claim(&slot), Some(Claim::Held(_, phase)) if held(phase)) {
        if Instant::now() >= give_up {
            return Err(failed(format!("{id} gets no new client, but is still busy after drain_timeout")));
        }
        std::thread::sleep(LOOK);
    }
    let already = if before { "is out of service already" } else { "is out of service" };
    say(&format!("{id} {already}; patou resume {} puts it back", id.instance()))
}

/// Whether an operator keeps the worker out of service.
fn was_drained(config: &Config, id: &WorkerId) -> bool {
    ipc::open(config, id).is_ok_and(|parts| DispatcherSide::was_drained(&parts.segment))
}

fn say(line: &str) -> Result<(), Failure> {
    written(writeln!(io::stdout(), "{line}"))
}

/// Puts it back.
pub fn resume(path: Option<&Path>, id: &WorkerId) -> Result<(), Failure> {
    let config = load_applied(path)?;
    let before = was_drained(&config, id);
    order(&config, ProbeCommand::Resume(id.clone()))?;
    // What has no process cannot be put back by a word.
    let part =
        SavedState::read(&config.set.runtime_dir).ok().and_then(|state| state.workers.get(&id.to_string()).cloned());
    if let Some(part) = part.filter(|part| part.state == "failed" || part.state == "stopped") {
        let cause = part.cause.map_or(String::new(), |cause| format!(" (last end: {cause})"));
        let remedy = if ipc::is_run_by_systemd(&config.set.runtime_dir) {
            format!("systemctl start {}", units::worker_service(id))
        } else {
            "reload the set (SIGHUP)".to_owned()
        };
        return Err(failed(format!(
            "{id} may serve again, but it has {}{cause}: mend the cause, then {remedy}",
            part.state
        )));
    }
    match before {
        true => say(&format!("{id} is back in service")),
        false => say(&format!("{id} was in service already")),
    }
}

fn order(config: &Config, order: ProbeCommand) -> Result<(), Failure> {
    let socket = config.set.runtime_dir.join("probe.sock");
    let report = probe::ask(&socket, Some(order), PATIENCE).map_err(|error| match error.kind() {
        _ if !is_running(&config.set.runtime_dir) => no_set(&config.set.runtime_dir),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            failed("the dispatcher does not answer: see patou status; the watchdog replaces it if it is frozen")
        }
        ErrorKind::PermissionDenied => failed(format!("{}: {error}", socket.display())),
        _ => failed(format!("the dispatcher does not answer on {}: {error}", socket.display())),
    })?;
    report.refused.map_or(Ok(()), |why| Err(Failure::Failed(why)))
}

/// Whether somebody keeps the set in `dir`.
fn is_running(dir: &Path) -> bool {
    ipc::is_run_by_systemd(dir) || SetLock::holder(dir).is_some()
}

/// The first listener of the running set, or else of the configuration.
pub fn default_target(path: Option<&Path>) -> Result<Target, String> {
    let config = load_applied(path).map_err(|failure| match failure {
        Failure::Failed(text) | Failure::Config(text) => text,
    })?;
    let running = SavedState::read(&config.set.runtime_dir).ok().and_then(|state| state.listeners.into_iter().next());
    let address = running.unwrap_or_else(|| config.listeners[0].address.to_string());
    let target = match address.parse::<std::net::SocketAddr>() {
        // Who listens everywhere is reached here.
        Ok(mut tcp) if tcp.ip().is_unspecified() => {
            let here: std::net::IpAddr = match tcp.ip() {
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            tcp.set_ip(here);
            format!("http://{tcp}")
        }
        Ok(tcp) => format!("http://{tcp}"),
        Err(_) => address,
    };
    target.parse().map_err(|error| format!("{target}: {error}"))
}
