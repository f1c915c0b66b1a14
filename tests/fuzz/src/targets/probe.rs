//! The messages on `probe.sock`: a request as the dispatcher parses it, a report as the watchdog parses and judges it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Monotonic, WorkerNumber};
use crate::liveness::RestartLimits;
use crate::probe::{ProbeReport, ProbeRequest, QUESTION_MAX};
use crate::watchdog::plan::{Action, Bounds, Event, Part, Plan, Sign};

pub fn run(bytes: &[u8]) {
    if let Ok(question) = serde_json::from_slice::<ProbeRequest>(bytes) {
        let order = question.order.clone();
        let line = question.to_line().unwrap();
        assert!(line.len() <= QUESTION_MAX || (order.is_some() && bytes.len() > QUESTION_MAX / 2));
        assert_eq!(serde_json::from_slice::<ProbeRequest>(&line).unwrap().order, order);
    }
    if let Ok(report) = serde_json::from_slice::<ProbeReport>(bytes) {
        let written = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<ProbeReport>(&written).unwrap(), report);
        judge(&report);
    }
}

/// The plan accuses only workers that the report calls silent or corrupt.
fn judge(report: &ProbeReport) {
    let ms = Duration::from_millis;
    let restarts = RestartLimits { max: 4, within: ms(60_000), delay: ms(100), delay_max: ms(30_000) };
    let bounds = Bounds {
        worker_timeout: ms(1000),
        dispatcher_timeout: ms(2000),
        start_timeout: ms(10_000),
        abort_grace: ms(200),
        parting: ms(2000),
        restarts,
    };
    let ids = ["default/1", "default/2"].map(|id| id.parse().unwrap());
    let workers = BTreeMap::from(ids.clone().map(|id| (id, ms(1000))));
    let now = Monotonic(1 << 40);
    let (mut plan, _) = Plan::new(&workers, bounds, now);
    plan.handle(now, Event::Started(Part::Dispatcher, 1));
    plan.handle(now, Event::Ready(Part::Dispatcher));
    for id in &ids {
        plan.handle(now, Event::Started(Part::Worker(id.clone()), 2));
        plan.handle(now, Event::Ready(Part::Worker(id.clone())));
    }
    for step in 1..=12 {
        let now = now + ms(250) * step;
        plan.handle(now, Event::Probed);
        let mut actions = plan.handle(now, Event::Report(Sign::all(report, now)));
        while let Some(action) = actions.pop() {
            match action {
                Action::Observe(part) => actions.extend(plan.handle(now, Event::Observed(part, Default::default()))),
                Action::Accuse(Part::Worker(id), _) => {
                    let pools = || report.pools.iter().filter(|pool| pool.name == id.pool);
                    let of = |n: WorkerNumber| pools().filter_map(move |pool| pool.workers.get(n.index()));
                    assert!(
                        of(id.number).any(|worker| worker.corrupt || worker.silent_ms.is_some()),
                        "{id} is accused"
                    );
                }
                Action::Accuse(Part::Dispatcher, why) => panic!("a responding dispatcher is accused: {why}"),
                _ => {}
            }
        }
    }
}
