//! The health of a set: one state for a load balancer, and the reasons for an operator.

use serde::Serialize;

use super::view::{SERVING, StatusView, WorkerView};

/// The health of a set in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HealthState {
    /// Every part is up.
    Ready,
    /// Clients are served, but some parts are not up.
    Degraded,
    /// No client can be served.
    Unavailable,
}

impl HealthState {
    /// All states.
    pub(crate) const ALL: [HealthState; 3] = [HealthState::Ready, HealthState::Degraded, HealthState::Unavailable];

    /// As in `/healthz` and in the metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            HealthState::Ready => "ready",
            HealthState::Degraded => "degraded",
            HealthState::Unavailable => "unavailable",
        }
    }
}

/// The response body of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HealthReport {
    /// The state.
    pub state: HealthState,
    /// Why it is not ready; empty if it is.
    pub reasons: Vec<String>,
}

/// Judges a set: available if the dispatcher is up, the set is not stopping, and at least one pool has a serving
/// worker. A dispatcher and workers that are restarted within the time that their clients wait are no outage.
pub(crate) fn health(view: &StatusView) -> HealthReport {
    let serves = |worker: &&WorkerView| SERVING.contains(&worker.state.as_str());
    let mut reasons = Vec::new();
    if view.watchdog.state != "up" {
        reasons.push(format!("the watchdog is {}", view.watchdog.state));
    }
    let dispatcher = &view.dispatcher;
    if dispatcher.state != "up" {
        reasons.push(format!("the dispatcher is {}{}", dispatcher.state, last_end(dispatcher.cause.as_deref())));
    }
    let mut available = false;
    for pool in &view.pools {
        let down: Vec<_> = pool.workers.iter().filter(|worker| !serves(worker)).collect();
        let is_served = down.len() < pool.workers.len();
        if !is_served {
            reasons.push(format!("pool {} has no serving worker", pool.name));
        }
        available |= is_served || pool.was_in_service && down.iter().any(|worker| is_back_soon(worker));
        let reason = |worker: &&WorkerView| {
            format!("worker {} is {}{}", worker.id, worker.state, last_end(worker.cause.as_deref()))
        };
        reasons.extend(down.iter().map(reason));
    }
    reasons.extend(view.problems.iter().cloned());
    let is_dispatched = match dispatcher.state.as_str() {
        "up" => true,
        state => dispatcher.was_up && RESTARTING.contains(&state),
    };
    let state = if reasons.is_empty() {
        HealthState::Ready
    } else if available && is_dispatched && view.watchdog.state != "stopping" {
        HealthState::Degraded
    } else {
        HealthState::Unavailable
    };
    HealthReport { state, reasons }
}

/// States of a dispatcher whose next incarnation serves soon, if this one has responded a moment ago.
const RESTARTING: [&str; 3] = ["draining", "gone", "starting"];

/// Whether a worker that was in service a moment ago, or its next incarnation, serves soon: not one that an operator has
/// drained.
fn is_back_soon(worker: &WorkerView) -> bool {
    let is_passing =
        RESTARTING.contains(&worker.state.as_str()) || ["late", "starved"].contains(&worker.state.as_str());
    is_passing && !worker.drained
}

fn last_end(cause: Option<&str>) -> String {
    cause.map_or(String::new(), |cause| format!(" (last end: {cause})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_degraded_while_one_worker_serves_and_lists_every_reason() {
        let of = |watchdog, dispatcher, pools: &[&[&str]]| {
            let HealthReport { state, reasons } = health(&StatusView::of_states(watchdog, dispatcher, pools));
            (state, reasons.join("; "))
        };
        use HealthState::*;
        assert_eq!(of("up", "up", &[&["idle", "busy"], &["leased"]]), (Ready, String::new()));
        assert_eq!(
            of("up", "up", &[&["idle", "failed"]]),
            (Degraded, "worker a/2 is failed (last end: exit code 1)".into())
        );
        assert_eq!(
            of("up", "up", &[&["idle"], &["gone"]]),
            (Degraded, "pool b has no serving worker; worker b/1 is gone".into())
        );
        assert_eq!(
            of("up", "up", &[&["frozen", "late"]]),
            (Unavailable, "pool a has no serving worker; worker a/1 is frozen; worker a/2 is late".into())
        );
        assert_eq!(of("up", "frozen", &[&["idle"]]), (Unavailable, "the dispatcher is frozen".into()));
        assert_eq!(of("late", "up", &[&["idle"]]), (Degraded, "the watchdog is late".into()));
        assert_eq!(of("stopping", "up", &[&["busy"]]), (Unavailable, "the watchdog is stopping".into()));
    }

    /// Moment, states of watchdog, dispatcher and workers of the pools, health if all were up recently, health later.
    type Moment =
        (&'static str, &'static str, &'static str, &'static [&'static [&'static str]], HealthState, HealthState);

    /// The moments at which clients may find the set in an unusual state: what a load balancer has to be told, right after
    /// the dispatcher and a worker of the pool were up (`recent`), and later.
    #[test]
    fn every_moment_has_its_health() {
        use HealthState::*;
        #[rustfmt::skip]
        let moments: [Moment; 21] = [
            // moment                              watchdog    dispatcher  workers of the pools          recent       later
            ("all up",                             "up",       "up",       &[&["idle", "busy"]],         Ready,       Ready),
            ("a set that starts",                  "up",       "starting", &[&["starting"]],             Degraded,    Unavailable),
            ("dispatcher ends for a restart",      "up",       "draining", &[&["idle"]],                 Degraded,    Unavailable),
            ("dispatcher between two processes",   "up",       "gone",     &[&["idle"]],                 Degraded,    Unavailable),
            ("dispatcher starts",                  "up",       "starting", &[&["idle"]],                 Degraded,    Unavailable),
            ("dispatcher frozen",                  "up",       "frozen",   &[&["idle"]],                 Unavailable, Unavailable),
            ("dispatcher suspended",               "up",       "suspended", &[&["idle"]],                Unavailable, Unavailable),
            ("dispatcher failed or stopped",       "up",       "failed",   &[&["idle"]],                 Unavailable, Unavailable),
            ("one worker restarts",                "up",       "up",       &[&["gone", "idle"]],         Degraded,    Degraded),
            ("the only worker restarts",           "up",       "up",       &[&["gone"]],                 Degraded,    Unavailable),
            ("all workers recycle or drain",       "up",       "up",       &[&["starting", "draining"]], Degraded,    Unavailable),
            ("dispatcher and workers restart",     "up",       "starting", &[&["starting", "gone"]],     Degraded,    Unavailable),
            ("an operator has drained the host",   "up",       "up",       &[&["drained", "drained"]],   Unavailable, Unavailable),
            ("drained, the other restarts",        "up",       "up",       &[&["drained", "gone"]],      Degraded,    Unavailable),
            ("every worker has failed",            "up",       "up",       &[&["failed", "failed"]],     Unavailable, Unavailable),
            ("every worker is frozen or held",     "up",       "up",       &[&["frozen", "suspended"]],  Unavailable, Unavailable),
            ("every worker is late or starved",    "up",       "up",       &[&["late", "starved"]],      Degraded,    Unavailable),
            ("one pool of two has failed",         "up",       "up",       &[&["failed"], &["idle"]],    Degraded,    Degraded),
            ("the host was suspended",             "late",     "up",       &[&["idle"]],                 Degraded,    Degraded),
            ("the watchdog is being restarted",    "gone",     "up",       &[&["idle"]],                 Degraded,    Degraded),
            ("the set stops",                      "stopping", "draining", &[&["draining"]],             Unavailable, Unavailable),
        ];
        for (moment, watchdog, dispatcher, pools, recent, later) in moments {
            let mut view = StatusView::of_states(watchdog, dispatcher, pools);
            assert_eq!(health(&view).state, later, "later: {moment}");
            view.dispatcher.was_up = true;
            view.pools.iter_mut().for_each(|pool| pool.was_in_service = true);
            assert_eq!(health(&view).state, recent, "recently up: {moment}");
        }
    }

    #[test]
    fn problem_never_makes_a_serving_set_unavailable() {
        let mut view = StatusView::of_states("up", "up", &[&["idle"]]);
        view.problems.push("all requests of pool a have failed".to_owned());
        let HealthReport { state, reasons } = health(&view);
        assert_eq!((state, reasons), (HealthState::Degraded, view.problems));
    }
}
