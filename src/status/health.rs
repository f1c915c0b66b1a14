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
/// worker.
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
    let mut served = false;
    for pool in &view.pools {
        let down: Vec<_> = pool.workers.iter().filter(|worker| !serves(worker)).collect();
        if down.len() < pool.workers.len() {
            served = true;
        } else {
            reasons.push(format!("pool {} has no serving worker", pool.name));
        }
        let reason = |worker: &&WorkerView| {
            format!("worker {} is {}{}", worker.id, worker.state, last_end(worker.cause.as_deref()))
        };
        reasons.extend(down.iter().map(reason));
    }
    reasons.extend(view.problems.iter().cloned());
    let state = if reasons.is_empty() {
        HealthState::Ready
    } else if served && dispatcher.state == "up" && view.watchdog.state != "stopping" {
        HealthState::Degraded
    } else {
        HealthState::Unavailable
    };
    HealthReport { state, reasons }
}

fn last_end(cause: Option<&str>) -> String {
    cause.map_or(String::new(), |cause| format!(" (last end: {cause})"))
}

#[cfg(test)]
mod tests {
    use super::super::view::{DispatcherView, PoolView, WatchdogView};
    use super::*;

    fn view(watchdog: &'static str, dispatcher: &str, pools: &[&[&str]]) -> StatusView {
        let worker = |state: &&str, id: String| WorkerView {
            id: id.parse().unwrap(),
            pid: None,
            state: (*state).to_owned(),
            epoch: 1,
            lease: None,
            address: String::new(),
            served: 0,
            failed: 0,
            restarts: 0,
            cause: (*state == "failed").then(|| "exit code 1".to_owned()),
            counters: None,
        };
        let pool = |(states, name): (&&[&str], &str)| PoolView {
            name: crate::ids::PoolName::new(name).unwrap(),
            queue: 0,
            oldest_ms: 0,
            workers: states.iter().zip(1..).map(|(state, n)| worker(state, format!("{name}/{n}"))).collect(),
        };
        StatusView {
            set: "s".into(),
            listeners: Vec::new(),
            problems: Vec::new(),
            watchdog: WatchdogView { pid: None, state: watchdog, restarts: 0 },
            dispatcher: DispatcherView { pid: None, state: dispatcher.into(), restarts: 0, queue: 0, cause: None },
            pools: pools.iter().zip(["a", "b"]).map(pool).collect(),
        }
    }

    #[test]
    fn health_is_degraded_while_one_worker_serves_and_lists_every_reason() {
        let of = |watchdog, dispatcher, pools: &[&[&str]]| {
            let HealthReport { state, reasons } = health(&view(watchdog, dispatcher, pools));
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
}
