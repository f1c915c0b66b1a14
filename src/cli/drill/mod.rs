//! `patou drill`: injects seeded faults into a set while its own clients send requests, and checks the promises.
//!
//! [`generator`] makes the list of faults, [`execution`] has [`injection`] inject them; [`watch`] and
//! [`fault_tracker`] observe each part. The [`clients`] send requests through every listener, and [`recording_handler`]
//! records each start. [`history`] holds all of it; [`checker`] compares it at the end.

mod bad_clients;
mod checker;
mod clients;
mod connection;
mod descriptor_limits;
mod drain_faults;
mod execution;
mod fastcgi_application;
mod fastcgi_clients;
mod fault;
mod fault_tracker;
mod file_faults;
mod final_checks;
mod generator;
mod history;
mod http_clients;
mod injection;
mod ipc_faults;
mod keepalive_clients;
mod library_clients;
mod lost_files;
mod nemesis;
mod options;
mod part_faults;
mod random;
mod raw_http;
pub(super) mod recording_handler;
mod report;
mod restart_budget;
mod session_clients;
mod set;
mod shared_sockets;
mod suspension;
mod traffic;
mod watch;

pub(super) use options::DrillOptions;

use std::io::{self, Write};
use std::path::Path;

use self::execution::DrillExecution;
use self::generator::SetKind;
use self::history::{DrillHistory, PromiseViolation};
use self::nemesis::Nemesis;
use self::report::DrillReport;
use self::set::DrillSet;
use self::traffic::Traffic;
use self::watch::SetWatch;
use crate::cli::error::{CommandError, failed, ignore_broken_pipe};
use crate::signals::Signal;
use crate::sync::lock;

pub(super) fn run(path: Option<&Path>, options: &DrillOptions) -> Result<(), CommandError> {
    let stop = Signal::stop().map_err(failed)?;
    let is_configured = path.is_some() || std::env::var_os("PATOU_CONFIG").is_some();
    let mut set = if is_configured { DrillSet::running(path)? } else { DrillSet::start_private()? };
    if is_configured && !options.yes {
        return Err(failed(confirmation_required(&set, options)));
    }
    let seed = match options.seed {
        Some(seed) => seed,
        // 32 bits, so that it is short enough to type.
        None => u64::from(getrandom::u32().map_err(failed)?),
    };
    let watch = SetWatch::default();
    let traffic = Traffic::new(&set, &watch, options.path.clone());
    let nemesis = Nemesis::new(&traffic, stop.flag());
    if options.faults > 0 && execution::generator(&set, &nemesis, options).is_empty() {
        drop(nemesis);
        set.stop();
        set.remove();
        return Err(failed(
            "drill: no fault of the kinds selected by --only and --except can be injected into this set",
        ));
    }
    print_progress(&format!("seed {seed}, {} faults, {}", options.faults, describe(&set)));
    let execution = execution::run(&mut set, &nemesis, options, seed);
    let mut history = collect_history(&execution, &traffic, &watch);
    if nemesis.interrupted.is_set() {
        let open = history.effects.iter_mut().filter(|effect| effect.ended.is_none());
        open.for_each(|effect| effect.excluded = Some("the drill was interrupted"));
    }
    let mut violations = nemesis.take_violations();
    violations.extend(set.stop().into_iter().map(|what| PromiseViolation::new("P6", what)));
    let report = make_report(&set, &traffic, execution, history, violations, options, seed);
    let keep_log = options.keep_log || report.as_ref().map_or(true, |report| !report.violations.is_empty());
    if let Some(log) = set.log().filter(|_| keep_log) {
        print_progress(&format!("the log of the private set is {}", log.display()));
    }
    if !keep_log {
        set.remove();
    }
    print_report(&report?, options.json)
}

fn collect_history(execution: &DrillExecution, traffic: &Traffic<'_>, watch: &SetWatch) -> DrillHistory {
    let mut tracker = watch.tracker();
    DrillHistory {
        started_at: execution.started_at,
        attempts: std::mem::take(&mut *lock(&traffic.attempts)),
        sessions: std::mem::take(&mut *lock(&traffic.sessions)),
        recorded_starts: Vec::new(), // read once the set has stopped
        effects: std::mem::take(&mut tracker.effects),
        unexplained_exits: std::mem::take(&mut tracker.unexplained_exits),
        delays: watch.delays(),
    }
}

fn print_report(report: &DrillReport, json: bool) -> Result<(), CommandError> {
    let text = if json { serde_json::to_string(report).map_err(failed)? + "\n" } else { report.to_string() };
    ignore_broken_pipe(io::stdout().lock().write_all(text.as_bytes()))?;
    match report.violations.len() {
        0 => Ok(()),
        n => Err(failed(format!("drill: {n} violations; repeat with: {}", report.repeat))),
    }
}

fn print_progress(line: &str) {
    let _ = writeln!(io::stderr().lock(), "drill: {line}"); // a closed standard error does not stop the drill
}

fn describe(set: &DrillSet) -> String {
    let kind = match set.kind {
        SetKind::Private => "a private set",
        SetKind::PatouRun => "the set of patou run",
        SetKind::Units => "the set of systemd units",
    };
    format!("{kind} in {} with {} workers", set.dir().display(), set.workers.len())
}

fn confirmation_required(set: &DrillSet, options: &DrillOptions) -> String {
    let files = if set.kind == SetKind::Units { "" } else { ", remove its files" };
    let restarts = if set.kind == SetKind::Units { ", restart its units" } else { "" };
    format!(
        "drill: this would kill, stop and starve the dispatcher and the {} workers of set {} in {}{restarts}{files}, \
         corrupt and remove their segments and doorbells, and send requests for {} to each listener, with {} faults: \
         clients will lose requests. Repeat the command with --yes to confirm",
        set.workers.len(),
        set.config.set.name,
        set.dir().display(),
        options.path,
        options.faults
    )
}

fn make_report(
    set: &DrillSet,
    traffic: &Traffic<'_>,
    execution: DrillExecution,
    mut history: DrillHistory,
    mut violations: Vec<PromiseViolation>,
    options: &DrillOptions,
    seed: u64,
) -> Result<DrillReport, CommandError> {
    history.recorded_starts = traffic.recorded_starts().map_err(failed)?;
    let (listeners, pool_of) = (set.listeners(), set.pool_of());
    violations.extend(checker::check(&history, &listeners, &pool_of, &set.bounds()));
    let seconds = execution.took.as_secs_f64();
    Ok(DrillReport {
        seed,
        faults: execution.injected,
        skipped: execution.skipped,
        seconds,
        faults_per_second: execution.injected as f64 / seconds.max(0.001),
        by_kind: report::by_kind(&history, &listeners, &pool_of),
        by_listener: report::by_listener(&history, &listeners, &execution.listeners),
        false_kills: history.unexplained_exits.len() + report::false_kills(&history),
        longest_wait_ms: report::longest_wait_ms(&history),
        starts_on_record: history.recorded_starts.len(),
        sessions: history.sessions.len(),
        own_lateness_ms: history.delays.iter().map(|(_, by)| by.as_millis() as u64).sum(),
        violations,
        remarks: remarks(set, traffic),
        repeat: options.repeat_command(set.kind == SetKind::Private, seed),
    })
}

fn remarks(set: &DrillSet, traffic: &Traffic<'_>) -> Vec<String> {
    let unused = traffic.listeners.iter().zip(&set.config.listeners).filter_map(|(listener, config)| {
        Some(format!("no requests were sent to {}: {}", config.address, listener.unused?))
    });
    let mut remarks: Vec<_> = unused.collect();
    if !set.listeners().iter().any(|listener| listener.records) {
        remarks.push("P1 was not checked: no pool has the handler patou record".into());
    }
    remarks
}
