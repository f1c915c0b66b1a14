//! The messages on `probe.sock`: a request as the dispatcher parses it, a report as the watchdog parses and judges it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Monotonic, WorkerNumber};
use crate::liveness::RestartLimits;
use crate::probe::{ProbeReport, ProbeRequest, REQUEST_MAX};
use crate::watchdog::plan::{ChildEvent, Part, Plan, PlanAction, PlanEvent, PlanLimits, WorkerLiveness};

pub(crate) fn run(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<ProbeRequest>(bytes) {
        let command = request.command.clone();
        let line = request.into_line().unwrap();
        assert!(line.len() <= REQUEST_MAX || (command.is_some() && bytes.len() > REQUEST_MAX / 2));
        assert_eq!(serde_json::from_slice::<ProbeRequest>(&line).unwrap().command, command);
    }
    if let Ok(report) = serde_json::from_slice::<ProbeReport>(bytes) {
        let written = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<ProbeReport>(&written).unwrap(), report);
        judge(&report);
    }
}

/// The plan declares only workers frozen that the report calls silent or corrupt.
fn judge(report: &ProbeReport) {
    let ms = Duration::from_millis;
    let restarts = RestartLimits { max: 4, within: ms(60_000), delay: ms(100), delay_max: ms(30_000) };
    let limits = PlanLimits {
        worker_timeout: ms(1000),
        dispatcher_timeout: ms(2000),
        start_timeout: ms(10_000),
        abort_grace: ms(200),
        exit_grace: ms(2000),
        restarts,
    };
    let ids = ["default/1", "default/2"].map(|id| id.parse().unwrap());
    let workers = BTreeMap::from(ids.clone().map(|id| (id, ms(1000))));
    let now = Monotonic(1 << 40);
    let mut plan = Plan::for_children(&workers, limits, now);
    plan.handle(now, PlanEvent::Tick);
    plan.handle(now, ChildEvent::Started(Part::Dispatcher, 1).into());
    plan.handle(now, PlanEvent::Ready(Part::Dispatcher));
    for id in &ids {
        plan.handle(now, ChildEvent::Started(Part::Worker(id.clone()), 2).into());
        plan.handle(now, PlanEvent::Ready(Part::Worker(id.clone())));
    }
    for step in 1..=12 {
        let now = now + ms(250) * step;
        plan.handle(now, PlanEvent::ProbeSent);
        let mut actions = plan.handle(now, PlanEvent::Report(WorkerLiveness::from_report(report, now)));
        while let Some(action) = actions.pop() {
            match action {
                PlanAction::Sample(part) => {
                    actions.extend(plan.handle(now, PlanEvent::Sampled(part, Default::default())))
                }
                PlanAction::DeclareFrozen(Part::Worker(id), _) => {
                    let pools = || report.pools.iter().filter(|pool| pool.name == id.pool);
                    let of = |n: WorkerNumber| pools().filter_map(move |pool| pool.workers.get(n.index()));
                    assert!(
                        of(id.number).any(|worker| worker.corrupt || worker.silent_ms.is_some()),
                        "{id} is declared frozen"
                    );
                }
                PlanAction::DeclareFrozen(Part::Dispatcher, why) => {
                    panic!("a responding dispatcher is declared frozen: {why}")
                }
                _ => {}
            }
        }
    }
}
