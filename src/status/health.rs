//! Whether a set is well: one word for a load balancer, and the reasons for people.

use serde::Serialize;

use super::{StatusView, WorkerView};

/// The states of a worker that serves, now or after the client it has.
pub const SERVING: [&str; 3] = ["idle", "leased", "busy"];

/// How a set is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Every part does its work.
    Ready,
    /// Clients are served, though not by all who should.
    Degraded,
    /// Nobody can be served.
    Unavailable,
}

impl Condition {
    /// All there are.
    pub const ALL: [Condition; 3] = [Condition::Ready, Condition::Degraded, Condition::Unavailable];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Ready => "ready",
            Condition::Degraded => "degraded",
            Condition::Unavailable => "unavailable",
        }
    }
}

/// The answer of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// In a word.
    pub state: Condition,
    /// Why it is not ready.
    pub reasons: Vec<String>,
}

/// How the set is.
pub fn health(view: &StatusView) -> Health {
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
        let missing: Vec<_> = pool.workers.iter().filter(|worker| !serves(worker)).collect();
        if missing.len() < pool.workers.len() {
            served = true;
        } else {
            reasons.push(format!("pool {} has nobody who serves", pool.name));
        }
        let why = |worker: &&WorkerView| {
            format!("worker {} is {}{}", worker.id, worker.state, last_end(worker.cause.as_deref()))
        };
        reasons.extend(missing.iter().map(why));
    }
    let state = match reasons.is_empty() {
        true => Condition::Ready,
        false if served && dispatcher.state == "up" && view.watchdog.state != "stopping" => Condition::Degraded,
        false => Condition::Unavailable,
    };
    Health { state, reasons }
}

fn last_end(cause: Option<&str>) -> String {
    cause.map_or(String::new(), |cause| format!(" (last end: {cause})"))
}

#[cfg(test)]
mod tests {
    use super::super::{DispatcherView, PoolView, WatchdogView};
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
            counted: None,
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
            watchdog: WatchdogView { pid: None, state: watchdog, restarts: 0 },
            dispatcher: DispatcherView { pid: None, state: dispatcher.into(), restarts: 0, queue: 0, cause: None },
            pools: pools.iter().zip(["a", "b"]).map(pool).collect(),
        }
    }

    #[test]
    fn who_is_served_decides_and_every_reason_is_told() {
        let of = |watchdog, dispatcher, pools: &[&[&str]]| {
            let Health { state, reasons } = health(&view(watchdog, dispatcher, pools));
            (state, reasons.join("; "))
        };
        use Condition::*;
        assert_eq!(of("up", "up", &[&["idle", "busy"], &["leased"]]), (Ready, String::new()));
        assert_eq!(
            of("up", "up", &[&["idle", "failed"]]),
            (Degraded, "worker a/2 is failed (last end: exit code 1)".into())
        );
        assert_eq!(
            of("up", "up", &[&["idle"], &["gone"]]),
            (Degraded, "pool b has nobody who serves; worker b/1 is gone".into())
        );
        assert_eq!(
            of("up", "up", &[&["frozen", "late"]]),
            (Unavailable, "pool a has nobody who serves; worker a/1 is frozen; worker a/2 is late".into())
        );
        assert_eq!(of("up", "frozen", &[&["idle"]]), (Unavailable, "the dispatcher is frozen".into()));
        assert_eq!(of("late", "up", &[&["idle"]]), (Degraded, "the watchdog is late".into()));
        assert_eq!(of("stopping", "up", &[&["busy"]]), (Unavailable, "the watchdog is stopping".into()));
    }
}
