//! What the watchdog decides: who is started, who is declared frozen, who goes first at the end.
//!
//! Pure: the shell tells it what happened and performs the actions in order.
//!
//! Start: the dispatcher, and when it is ready the workers. Stop: the workers, and when all are gone the
//! dispatcher. In between each part lives for itself: none is restarted because another was.

mod liveness;
mod messages;
mod systemd;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::ids::{Monotonic, PoolName, WorkerId};
use crate::liveness::{RestartHistory, SilenceTimer, Verdict};
pub use messages::{Absence, Action, Bounds, Change, Event, Notice, Order, Part, Sign};

#[derive(Clone, Debug)]
enum Stage {
    /// Waits for the dispatcher's first READY.
    Held,
    /// Is started at that time.
    Waiting(Monotonic),
    Running(SilenceTimer),
    /// Has been told to go, and is killed at that time.
    Going(Monotonic, StopReason),
    Failed,
    Stopped,
    /// systemd answers for it, and says this.
    Away(Absence),
}

/// Who starts and stops the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    Watchdog,
    Systemd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    Frozen,
    /// Comes back at once: its end was wanted.
    Planned,
    /// Does not come back.
    Leaving,
}

#[derive(Clone, Debug)]
struct Record {
    stage: Stage,
    pid: Option<u32>,
    drain: Duration,
    restarts: RestartHistory,
    count: u32,
    cause: Option<String>,
    /// It has ended, and systemd has not said yet whether somebody wanted it so.
    unexplained: bool,
    /// When it was last killed in a way that may leave a core.
    aborted: Option<Monotonic>,
    /// Why it is excused, if it is: starved or suspended.
    plight: Option<Verdict>,
    /// Whether the shell has been asked for a look at it.
    looking: bool,
    /// Since when its process is ready, if there is one and it has been.
    ready: Option<Monotonic>,
}

impl Record {
    fn new(stage: Stage, drain: Duration) -> Self {
        Self {
            stage,
            pid: None,
            drain,
            restarts: RestartHistory::default(),
            count: 0,
            cause: None,
            unexplained: false,
            aborted: None,
            plight: None,
            looking: false,
            ready: None,
        }
    }
}

/// What `patou status` is told of a part.
#[derive(Clone, Debug, Serialize)]
pub struct PartStatus {
    /// Its process, if it has one.
    pub pid: Option<u32>,
    /// `starting`, `up`, `starved`, `suspended`, `frozen`, `gone`, `draining`, `failed`, `stopped`.
    pub state: &'static str,
    /// Unplanned restarts.
    pub restarts: u32,
    /// What ended it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetPhase {
    Rising,
    Running,
    StoppingWorkers,
    StoppingDispatcher,
    Over,
}

/// The set as the watchdog sees it.
#[derive(Debug)]
pub struct Plan {
    parts: BTreeMap<Part, Record>,
    bounds: Bounds,
    keeper: Keeper,
    era: SetPhase,
    /// Nobody is blamed for silence before this.
    amnesty: Monotonic,
    /// What was lost since the last report and the amnesty: who is heard of as silent now may have been it then.
    lost: Duration,
    /// When the report was asked for that has not come yet.
    asked: Option<Monotonic>,
    /// When something was heard last that does not answer an action.
    heard: Monotonic,
    /// Up to when it has been counted what was lost while actions were performed.
    counted: Option<Monotonic>,
    actions: Vec<Action>,
}

impl Plan {
    /// A set of which nothing runs. The first action starts the dispatcher.
    pub fn new(workers: &BTreeMap<WorkerId, Duration>, bounds: Bounds, now: Monotonic) -> (Self, Vec<Action>) {
        let mut parts = BTreeMap::from([(Part::Dispatcher, Record::new(Stage::Waiting(now), Duration::ZERO))]);
        for (id, drain) in workers {
            parts.insert(Part::Worker(id.clone()), Record::new(Stage::Held, *drain));
        }
        let keeper = Keeper::Watchdog;
        let lost = Duration::ZERO;
        let (era, asked, heard, counted) = (SetPhase::Rising, None, now, None);
        let actions = Vec::new();
        let mut plan = Self { parts, bounds, keeper, era, amnesty: now, lost, asked, heard, counted, actions };
        let actions = plan.handle(now, Event::Tick);
        (plan, actions)
    }

    /// Takes in what happened and returns what to do.
    pub fn handle(&mut self, now: Monotonic, event: Event) -> Vec<Action> {
        match &event {
            Event::Observed(..) | Event::StartFailed(..) => {}
            Event::Started(..) if self.keeper == Keeper::Watchdog => {}
            _ => self.heard = self.heard.max(now),
        }
        // What has been heard meanwhile comes right after these, and nobody is judged before it is taken in: an answer to a
        // watchdog that was late may be in it.
        let is_all = !matches!(event, Event::Lost(_) | Event::Resumed | Event::Probed);
        match event {
            Event::Started(part, pid) => self.started(now, &part, pid),
            Event::StartFailed(part, how) => self.ended(now, &part, how, 0.5),
            Event::Ready(part) => self.ready(now, &part),
            Event::Exited { part, how, .. } if self.keeper == Keeper::Systemd => self.left(&part, how),
            Event::Told { part, absence, restarts } => self.told(&part, absence, restarts),
            Event::Exited { part, how, chance } => self.ended(now, &part, how, chance),
            Event::Probed => {
                self.asked.get_or_insert(now);
                self.with_pulse(&Part::Dispatcher, |pulse| pulse.asked(now));
            }
            Event::Report(signs) => self.report(now, signs),
            Event::Observed(part, look) => self.observed(now, &part, look),
            Event::Lost(time) => self.excuse(now, time),
            Event::Resumed => self.forgive(now),
            Event::Tick => {}
            Event::Stop if self.era == SetPhase::Over => {}
            Event::Stop => self.stop(now),
            Event::StopNow => self.stop_now(now),
            Event::Apply(change) if self.keeper == Keeper::Systemd => self.take_over(change),
            Event::Apply(change) => self.apply(now, change),
        }
        if is_all {
            self.judge(now);
            self.advance(now);
        }
        std::mem::take(&mut self.actions)
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Monotonic> {
        let due = |(part, record): (&Part, &Record)| match &record.stage {
            Stage::Waiting(at) | Stage::Going(at, _) => Some(*at),
            Stage::Running(_) if record.ready.is_some() && *part != Part::Dispatcher => None,
            Stage::Running(pulse) if !self.answers_for(pulse) => None,
            Stage::Running(pulse) => pulse.due(self.patience(part)),
            Stage::Held | Stage::Failed | Stage::Stopped | Stage::Away(_) => None,
        };
        self.parts.iter().filter_map(due).min()
    }

    /// How each part is.
    pub fn status(&self) -> impl Iterator<Item = (&Part, PartStatus)> {
        self.parts.iter().map(|(part, record)| {
            let state = match &record.stage {
                Stage::Held => "starting",
                Stage::Waiting(_) => "gone",
                Stage::Running(_) if record.plight == Some(Verdict::Starved) => "starved",
                Stage::Running(_) if record.plight.is_some() => "suspended",
                Stage::Running(pulse) if pulse.is_ready() => "up",
                Stage::Running(_) => "starting",
                Stage::Going(_, StopReason::Frozen) => "frozen",
                Stage::Going(..) => "draining",
                Stage::Failed => "failed",
                Stage::Stopped => "stopped",
                Stage::Away(absence) => absence.as_str(),
            };
            (part, PartStatus { pid: record.pid, state, restarts: record.count, cause: record.cause.clone() })
        })
    }

    /// The pools of which every worker is given up, and what ended the last of them.
    pub fn failed_pools(&self) -> Vec<(&PoolName, &str)> {
        let mut pools: BTreeMap<&PoolName, Option<&str>> = BTreeMap::new();
        for (part, record) in &self.parts {
            let Part::Worker(id) = part else { continue };
            let failed = matches!(record.stage, Stage::Failed | Stage::Away(Absence::Failed));
            let cause = failed.then(|| record.cause.as_deref().unwrap_or("it ended too often"));
            // One that is not given up speaks for its pool.
            pools.entry(&id.pool).and_modify(|all| *all = all.and(cause)).or_insert(cause);
        }
        pools.into_iter().filter_map(|(pool, cause)| Some((pool, cause?))).collect()
    }

    /// Whether everything has been told to stop.
    pub fn is_stopping(&self) -> bool {
        !matches!(self.era, SetPhase::Rising | SetPhase::Running)
    }

    /// Whether its start is ours to judge: systemd has a bound of its own for that (TimeoutStartSec=).
    fn answers_for(&self, pulse: &SilenceTimer) -> bool {
        self.keeper == Keeper::Watchdog || pulse.is_ready()
    }

    fn with_pulse<T>(&mut self, part: &Part, change: impl FnOnce(&mut SilenceTimer) -> T) -> Option<T> {
        match self.parts.get_mut(part) {
            Some(Record { stage: Stage::Running(pulse), .. }) => Some(change(pulse)),
            _ => None,
        }
    }

    fn started(&mut self, now: Monotonic, part: &Part, pid: u32) {
        if let Some(record) = self.parts.get_mut(part) {
            record.pid = Some(pid);
            record.looking = false;
            record.ready = None;
            record.stage = Stage::Running(SilenceTimer::born(now));
        }
    }

    fn ready(&mut self, now: Monotonic, part: &Part) {
        let Some(record) = self.parts.get_mut(part) else { return };
        let Stage::Running(pulse) = &mut record.stage else { return };
        if pulse.is_ready() {
            return; // recycled in place
        }
        pulse.ready();
        if record.ready.replace(now).is_some() {
            return; // so it is, and was missed meanwhile
        }
        if record.count > 0 && self.keeper == Keeper::Watchdog {
            let restarts = record.count;
            self.actions.push(Action::Tell(part.clone(), Notice::Ready { restarts }));
        }
        if *part == Part::Dispatcher {
            for record in self.parts.values_mut() {
                if matches!(record.stage, Stage::Held) {
                    record.stage = Stage::Waiting(now);
                }
            }
        }
    }

    fn ended(&mut self, now: Monotonic, part: &Part, how: String, chance: f64) {
        let stopping = self.is_stopping();
        let Some(record) = self.parts.get_mut(part) else { return };
        record.pid = None;
        if let Part::Worker(id) = part {
            self.actions.push(Action::Sweep(id.clone()));
        }
        let why = match &record.stage {
            Stage::Going(_, why) => Some(*why),
            _ => None,
        };
        if stopping || why == Some(StopReason::Leaving) {
            record.stage = Stage::Stopped;
            if let (Part::Worker(id), false) = (part, stopping) {
                self.actions.push(Action::Remove(id.clone()));
                self.parts.remove(part);
            }
            return;
        }
        if why == Some(StopReason::Planned) {
            record.stage = Stage::Waiting(now);
            return;
        }
        let how = if why == Some(StopReason::Frozen) { "frozen".to_owned() } else { how };
        record.cause = Some(how.clone());
        match record.restarts.next(now, &self.bounds.restarts, chance) {
            Some(delay) => {
                record.count += 1;
                record.stage = Stage::Waiting(now + delay);
                self.actions.push(Action::Tell(part.clone(), Notice::Restart { how, delay }));
            }
            None => {
                record.stage = Stage::Failed;
                self.actions.push(Action::Tell(part.clone(), Notice::Failed { how }));
            }
        }
    }

    fn stop(&mut self, now: Monotonic) {
        if self.is_stopping() {
            return self.stop_now(now);
        }
        self.era = SetPhase::StoppingWorkers;
        self.actions.push(Action::Quiesce);
        let workers: Vec<Part> = self.parts.keys().filter(|part| **part != Part::Dispatcher).cloned().collect();
        for part in workers {
            self.send_away(now, &part, StopReason::Leaving);
        }
    }

    /// Tells a part to finish and go; one that has no process just goes.
    fn send_away(&mut self, now: Monotonic, part: &Part, why: StopReason) {
        let parting = self.bounds.parting;
        let Some(record) = self.parts.get_mut(part) else { return };
        match &record.stage {
            Stage::Running(_) => {
                record.stage = Stage::Going(now + record.drain + parting, why);
                self.actions.push(Action::Order(part.clone(), Order::Leave));
            }
            Stage::Going(at, _) => record.stage = Stage::Going(*at, why),
            Stage::Held | Stage::Waiting(_) | Stage::Failed | Stage::Stopped | Stage::Away(_) => {
                record.stage = Stage::Stopped
            }
        }
    }

    fn stop_now(&mut self, now: Monotonic) {
        self.era = SetPhase::StoppingDispatcher;
        for (part, record) in &mut self.parts {
            match record.stage {
                Stage::Running(_) | Stage::Going(..) => {
                    record.stage = Stage::Going(now + Duration::from_secs(1), StopReason::Leaving);
                    self.actions.push(Action::Order(part.clone(), Order::Kill));
                }
                _ => record.stage = Stage::Stopped,
            }
        }
    }

    /// Takes the next step of the start or of the stop when the one before is done.
    fn advance(&mut self, now: Monotonic) {
        // Who is given up is not waited for: the others serve.
        let settled = |record: &Record| match &record.stage {
            Stage::Running(pulse) => pulse.is_ready(),
            stage => matches!(stage, Stage::Failed),
        };
        let serves = matches!(&self.parts[&Part::Dispatcher].stage, Stage::Running(pulse) if pulse.is_ready());
        if self.era == SetPhase::Rising && serves && self.parts.values().all(settled) {
            self.era = SetPhase::Running;
            self.actions.push(Action::AllUp);
        }
        let gone = |record: &Record| matches!(record.stage, Stage::Stopped | Stage::Failed);
        if self.era == SetPhase::StoppingWorkers
            && self.parts.iter().all(|(part, record)| *part == Part::Dispatcher || gone(record))
        {
            self.era = SetPhase::StoppingDispatcher;
            self.send_away(now, &Part::Dispatcher, StopReason::Leaving);
        }
        if self.era == SetPhase::StoppingDispatcher && self.parts.values().all(gone) {
            self.era = SetPhase::Over;
            self.actions.push(Action::Finish);
        }
    }

    fn apply(&mut self, now: Monotonic, change: Change) {
        self.bounds = change.bounds;
        let surplus: Vec<Part> = self
            .parts
            .keys()
            .filter(|part| matches!(part, Part::Worker(id) if !change.workers.contains_key(id)))
            .cloned()
            .collect();
        if change.restart_dispatcher {
            self.send_away(now, &Part::Dispatcher, StopReason::Planned);
        } else {
            self.actions.push(Action::Order(Part::Dispatcher, Order::Reload));
        }
        for part in surplus {
            self.send_away(now, &part, StopReason::Leaving);
            if let (Some(Record { stage: Stage::Stopped, .. }), Part::Worker(id)) = (self.parts.get(&part), &part) {
                self.actions.push(Action::Remove(id.clone()));
                self.parts.remove(&part);
            }
        }
        for (id, drain) in change.workers {
            let part = Part::Worker(id.clone());
            let record = self.parts.entry(part.clone()).or_insert_with(|| Record::new(Stage::Waiting(now), drain));
            record.drain = drain;
            if change.restart.contains(&id) {
                self.send_away(now, &part, StopReason::Planned);
            } else if change.reload.contains(&id) {
                self.actions.push(Action::Order(part.clone(), Order::Reload));
            } else if let Stage::Going(at, StopReason::Leaving) = record.stage {
                // Wanted again before it was gone: it goes and comes back.
                record.stage = Stage::Going(at, StopReason::Planned);
            }
        }
        // A new configuration, even the same, is a new chance for whoever was given up.
        for part in self.parts.keys().cloned().collect::<Vec<_>>() {
            self.revive(now, &part);
        }
    }

    /// Starts a part that was given up, or that had no process when it was to be replaced.
    fn revive(&mut self, now: Monotonic, part: &Part) {
        if let Some(record) = self.parts.get_mut(part)
            && matches!(record.stage, Stage::Failed | Stage::Stopped)
        {
            record.restarts = RestartHistory::default();
            record.stage = Stage::Waiting(now);
        }
    }
}

#[cfg(test)]
mod tests;
