//! `patou drill`: faults from a seed, injected into a running set, while clients of its own keep the books.
//!
//! [`schedule`] says what is done when, [`inject`] and [`rude`] do it, [`watch`] and [`tracker`] see what becomes of
//! each part, [`traffic`], [`plain`] and [`keeping`] send requests through every listener, [`record`] is the handler that writes
//! down each start, and [`ledger`] judges in the end whether what was promised was kept.

mod bad_clients;
mod checker;
mod fault_tracker;
mod generator;
mod http_clients;
mod keepalive_clients;
mod nemesis;
mod raw_http;
pub mod recording_handler;
mod report;
pub mod set;
mod traffic;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;

use self::checker::{Breach, Facts};
use self::generator::{Expect, Fault, Keeper, Kind, Part, Shape};
use self::nemesis::Injector;
use self::report::Report;
use self::set::{LOOK, Set};
use self::traffic::Traffic;
use self::watch::{Watch, held};
use super::duration_arg::duration;
use super::error::{CommandError, failed, ignore_broken_pipe};
use crate::clock;
use crate::exchange;
use crate::ids::Claim;
use crate::ipc;
use crate::process_tree;
use crate::signals::Signal;

#[derive(Debug, Args)]
pub struct Drill {
    /// Where the list of faults begins; the same seed gives the same list [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many faults to inject
    #[arg(long, value_name = "N", default_value_t = 40)]
    faults: u32,
    /// Faults per second, on average
    #[arg(long, value_name = "X", default_value_t = 5.0, value_parser = pace)]
    pace: f64,
    /// Inject no more faults after this time, and send requests until then
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Really injure the set that --config names
    #[arg(long)]
    yes: bool,
    /// Path of the requests to handlers of which the drill knows nothing
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    path: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Keep the log of the drill's own set
    #[arg(long)]
    keep_log: bool,
}

fn pace(text: &str) -> Result<f64, String> {
    let pace = text.parse().ok().filter(|pace| (0.001..=1000.0).contains(pace));
    pace.ok_or_else(|| format!("{text} is not a number of faults per second, 0.001 to 1000"))
}

fn path(text: &str) -> Result<String, String> {
    match text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("a path begins with a slash and has no spaces".into()),
    }
}

/// So many parts may be away at once.
const OVERLAP: usize = 3;

/// Descriptors that a part may have more in the end than in the beginning: what it opens once.
const SPARE: usize = 4;

pub fn run(path: Option<&Path>, drill: &Drill) -> Result<(), CommandError> {
    let stop = Signal::stop().map_err(failed)?;
    let configured = path.is_some() || std::env::var_os("PATOU_CONFIG").is_some();
    let mut set = if configured { Set::running(path)? } else { Set::own()? };
    if configured && !drill.yes {
        return Err(failed(refusal(&set, drill)));
    }
    let seed = match drill.seed {
        Some(seed) => seed,
        // Short enough to be typed again.
        None => u64::from(getrandom::u32().map_err(failed)?),
    };
    tell(&format!("drill: seed {seed}, {} faults, {}", drill.faults, of_whom(&set)));
    let watch = Watch::default();
    let traffic = Traffic::new(&set, &watch, drill.path.clone());
    let injector = Injector::new(&traffic, stop.flag());
    let course = run_course(&mut set, &injector, drill, seed);
    let (mut effects, strays) = {
        let mut tracker = watch.tracker();
        (std::mem::take(&mut tracker.effects), std::mem::take(&mut tracker.strays))
    };
    if injector.stop.is_set() {
        // Nobody waited for its end.
        effects.iter_mut().filter(|effect| effect.over.is_none()).for_each(|e| e.excused = Some("the drill was ended"));
    }
    let attempts = std::mem::take(&mut *held(&traffic.attempts));
    let facts = Facts { began: course.began, attempts, records: Vec::new(), effects, strays, late: watch.late() };
    let mut wrong = std::mem::take(&mut *held(&injector.complaints));
    let stopped = set.stop().into_iter().map(|what| Breach { promise: "P6", what, story: Vec::new() });
    wrong.extend(stopped);
    let report = conclude(&set, &traffic, course, facts, wrong, drill, seed);
    let broken = report.as_ref().map_or(true, |report| !report.violations.is_empty());
    if let Some(log) = set.log().filter(|_| broken || drill.keep_log) {
        tell(&format!("drill: the log of the set is {}", log.display()));
    }
    set.forget(broken || drill.keep_log);
    let report = report?;
    let text = match drill.json {
        true => serde_json::to_string(&report).map_err(failed)? + "\n",
        false => report.to_string(),
    };
    ignore_broken_pipe(io::stdout().lock().write_all(text.as_bytes()))?;
    match report.violations.len() {
        0 => Ok(()),
        n => Err(failed(format!("drill: {n} violations; repeat with: {}", report.repeat))),
    }
}

fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}"); // nobody need read it
}

fn of_whom(set: &Set) -> String {
    let dir = set.dir().display();
    let of = match set.keeper {
        Keeper::Own => "on a set of its own",
        Keeper::Run => "on the set of patou run",
        Keeper::Units => "on the set of systemd units",
    };
    format!("{of} in {dir}, with {} workers", set.workers.len())
}

fn refusal(set: &Set, drill: &Drill) -> String {
    let restarts = if set.keeper == Keeper::Units { ", restart its units" } else { "" };
    format!(
        "drill: this would kill, stop and starve the dispatcher and the {} workers of set {} in {}{restarts}, spoil \
         their segments and bells, and load it with requests for {} to each listener, {} times: clients will lose \
         requests. Repeat it with --yes if that is meant",
        set.workers.len(),
        set.config.set.name,
        set.dir().display(),
        drill.path,
        drill.faults
    )
}

/// How the faults went.
struct Course {
    began: crate::ids::Monotonic,
    injected: usize,
    skipped: Vec<String>,
    took: Duration,
    listeners: Vec<String>,
}

/// Ends all threads, also when this one panics.
struct Ending<'a>(&'a Watch, &'a Traffic<'a>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.1.end();
        self.0.end();
    }
}

fn run_course(set: &mut Set, injector: &Injector<'_>, drill: &Drill, seed: u64) -> Course {
    let (traffic, watch) = (injector.traffic, injector.traffic.watch);
    let config = set.config.clone();
    std::thread::scope(|outer| {
        let ending = Ending(watch, traffic);
        outer.spawn(|| watch.run(&config));
        wait(Duration::from_secs(5), || !watch.listeners().is_empty() && watch.tracker().is_quiet());
        let before = descriptors(set, watch);
        let mut course = Course {
            began: clock::now(),
            injected: 0,
            skipped: Vec::new(),
            took: Duration::ZERO,
            listeners: watch.listeners(),
        };
        std::thread::scope(|scope| {
            let clients = Ending(watch, traffic);
            traffic.start(scope, seed);
            let since = Instant::now();
            inject_all(set, injector, drill, seed, &mut course, scope);
            course.took = since.elapsed();
            // Whoever was hit comes back while clients still ask.
            if !injector.stop.is_set() {
                wait(set.bounds().watchdog * 2, || watch.tracker().is_quiet());
            }
            std::mem::forget(clients);
            traffic.end();
        });
        if !injector.stop.is_set() {
            if set.keeper == Keeper::Own {
                look_for_leases(injector, set);
            }
            compare(injector, set, &before);
        }
        drop(ending);
        course
    })
}

fn inject_all<'s>(
    set: &mut Set,
    injector: &'s Injector<'_>,
    drill: &Drill,
    seed: u64,
    course: &mut Course,
    scope: &'s std::thread::Scope<'s, '_>,
) {
    let watch = injector.traffic.watch;
    let watchdog = set.config.watchdog.clone();
    let shape = Shape {
        workers: set.workers.len(),
        doors: injector.traffic.open().collect(),
        keeper: set.keeper,
        worker_timeout: watchdog.worker_timeout,
        dispatcher_timeout: watchdog.dispatcher_timeout,
        pace: drill.pace,
    };
    let mut budget = Budget::new(watchdog.restarts.max, watchdog.restarts.within);
    let end = drill.duration.and_then(|duration| Instant::now().checked_add(duration));
    for fault in shape.faults(seed).take(drill.faults as usize) {
        injector.sleep(fault.pause);
        let part = Injector::part_of(fault.target);
        if let Some(wait) = part.filter(|_| fault.kind.expect() != Expect::Stays).map(|part| budget.wait(part)) {
            injector.sleep(wait);
        }
        if injector.stop.is_set() || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        if !wait(set.bounds().watchdog * 2, || injector.stop.is_set() || is_ready(watch, &fault)) {
            let what =
                format!("fault {}: {:?} does not serve any more, so that it cannot be hit", fault.number, fault.target);
            return injector.complain("P2", what);
        }
        course.injected += 1;
        if let (Some(part), Expect::Ends | Expect::MayEnd) = (part, fault.kind.expect()) {
            budget.spend(part);
        }
        if let Err(why) = injector.inject(set, &fault, scope) {
            course.skipped.push(format!(
                "fault {}, {} of {:?}: {why}",
                fault.number,
                fault.kind.as_str(),
                fault.target
            ));
        }
    }
    if let Some(end) = end {
        injector.sleep(end.saturating_duration_since(Instant::now()));
    }
}

/// Whether its target is there to be hit, and not too many are away already.
fn is_ready(watch: &Watch, fault: &Fault) -> bool {
    let tracker = watch.tracker();
    match (fault.kind, Injector::part_of(fault.target)) {
        // It may come at any time, whoever is away.
        (Kind::Kill, Some(Part::Watchdog)) | (_, None) => true,
        (_, Some(part)) => tracker.is_free(part) && tracker.held() < OVERLAP,
    }
}

/// How often each part was hit lately: a part that its operator would have given up is no test of anything.
struct Budget {
    most: usize,
    within: Duration,
    spent: HashMap<Part, VecDeque<Instant>>,
}

impl Budget {
    fn new(max: u32, within: Duration) -> Self {
        // Some are left for what happens besides.
        Self { most: (max as usize * 3 / 4).max(1), within, spent: HashMap::new() }
    }

    fn wait(&mut self, part: Part) -> Duration {
        let spent = self.spent.entry(part).or_default();
        while spent.front().is_some_and(|at| at.elapsed() >= self.within) {
            spent.pop_front();
        }
        let Some(over) = (spent.len() + 1).checked_sub(self.most).filter(|over| *over > 0) else {
            return Duration::ZERO;
        };
        self.within.saturating_sub(spent[over - 1].elapsed())
    }

    fn spend(&mut self, part: Part) {
        self.spent.entry(part).or_default().push_back(Instant::now());
    }
}

/// Waits until something is so.
fn wait(patience: Duration, so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + patience;
    loop {
        if so() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

fn parts(set: &Set) -> impl Iterator<Item = Part> {
    [Part::Watchdog, Part::Dispatcher].into_iter().chain((0..set.workers.len()).map(Part::Worker))
}

/// How many descriptors each part has.
fn descriptors(set: &Set, watch: &Watch) -> HashMap<Part, usize> {
    let count = |part| Some((part, std::fs::read_dir(format!("/proc/{}/fd", watch.identity(part)?.0)).ok()?.count()));
    parts(set).filter_map(count).collect()
}

/// P2 when nobody asks any more: every worker is free for the next client.
fn look_for_leases(injector: &Injector<'_>, set: &Set) {
    let held = || {
        let lease = |id: &crate::ids::WorkerId| match exchange::claim(&*ipc::open(&set.config, id).ok()?.segment)? {
            Claim::Free => None,
            claim => Some(format!("{id} is free for nobody, although nobody uses it: {claim:?}")),
        };
        set.workers.iter().filter_map(lease).collect::<Vec<_>>()
    };
    let longest = set.config.pools.iter().map(|pool| pool.claim_timeout + pool.request_timeout).max();
    if !wait(longest.unwrap_or_default() + Duration::from_secs(5), || held().is_empty()) {
        held().into_iter().for_each(|what| injector.complain("P2", what));
    }
}

/// P6 while it runs: descriptors and zombies.
fn compare(injector: &Injector<'_>, set: &Set, before: &HashMap<Part, usize>) {
    let watch = injector.traffic.watch;
    // A dispatcher that hands over opens a way to each worker, when it first needs it.
    let hands_over = (0..set.config.listeners.len()).any(|index| !set.redirects(index));
    let spare = SPARE + if hands_over { set.workers.len() } else { 0 };
    let grown = || {
        let after = descriptors(set, watch);
        let more = |(part, count): (&Part, &usize)| {
            let now = *after.get(part)?;
            (now > count + spare).then(|| format!("{part:?} has {now} descriptors, and had {count}"))
        };
        before.iter().filter_map(more).collect::<Vec<_>>()
    };
    let zombies = || {
        let Some((pid, _)) = watch.identity(Part::Watchdog).filter(|_| set.keeper != Keeper::Units) else {
            return Vec::new();
        };
        let all = process_tree::descendants(nix::unistd::Pid::from_raw(pid as i32));
        all.into_iter().filter(|process| process.zombie).map(|process| format!("{} is a zombie", process.pid)).collect()
    };
    for what in [&grown as &dyn Fn() -> Vec<String>, &zombies] {
        // What is still ending has time to.
        if !wait(Duration::from_secs(5), || what().is_empty()) {
            what().into_iter().for_each(|what| injector.complain("P6", what));
        }
    }
}

fn conclude(
    set: &Set,
    traffic: &Traffic<'_>,
    course: Course,
    mut facts: Facts,
    wrong: Vec<Breach>,
    drill: &Drill,
    seed: u64,
) -> Result<Report, CommandError> {
    facts.records = traffic.records().map_err(failed)?;
    let (doors, pool_of) = (set.doors(), set.pool_of());
    let mut violations = wrong;
    violations.extend(checker::judge(&facts, &doors, &pool_of, &set.bounds()));
    let mut remarks = Vec::new();
    for (index, entrance) in traffic.entrances.iter().enumerate() {
        if let Some(why) = entrance.closed {
            remarks.push(format!("no requests to {}: {why}", set.config.listeners[index].address));
        }
    }
    if !doors.iter().any(|door| door.records) {
        remarks.push("P1 was not checked: no pool has the handler patou record".into());
    }
    let seconds = course.took.as_secs_f64();
    let config = if set.keeper == Keeper::Own { "" } else { " --yes" };
    let pace = if drill.pace == 5.0 { String::new() } else { format!(" --pace {}", drill.pace) };
    Ok(Report {
        seed,
        faults: course.injected,
        skipped: course.skipped,
        seconds,
        faults_per_second: course.injected as f64 / seconds.max(0.001),
        by_kind: report::by_kind(&facts, &doors, &pool_of),
        by_listener: report::by_listener(&facts, &doors, &course.listeners),
        starts_on_record: facts.records.len(),
        own_lateness_ms: facts.late.iter().map(|(_, by)| by.as_millis() as u64).sum(),
        violations: violations.into_iter().map(Into::into).collect(),
        remarks,
        repeat: format!("patou drill{config} --seed {seed} --faults {}{pace}", drill.faults),
    })
}
