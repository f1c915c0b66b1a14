//! The numbers as OpenMetrics text 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::fmt::{Display, Write};

use super::Snapshot;
use crate::ids::{Monotonic, WorkerId};
use crate::stats::{CounterTotals, Counters, Histogram};
use crate::status::{HealthState, StatusView};

/// Every state that a worker can be in, in the words of patou(1).
const STATES: [&str; 13] = [
    "starting",
    "idle",
    "leased",
    "busy",
    "draining",
    "late",
    "starved",
    "suspended",
    "frozen",
    "gone",
    "stopped",
    "failed",
    "other",
];

/// Bounds of the buckets: 2 to this power of microseconds, from 128 us to 67 s.
const EXPONENTS: std::ops::RangeInclusive<usize> = 7..=26;

/// Everything that is known of the set, as text.
pub fn text(
    now: Monotonic,
    snapshot: &Snapshot,
    view: &StatusView,
    condition: HealthState,
    workers: &CounterTotals<WorkerId, ()>,
) -> String {
    let mut out = Text(String::with_capacity(16 << 10));
    out.family("patou_build", "info", "The version of patou.");
    out.sample("patou_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.family("patou_health", "stateset", "How the set is, as /healthz says.");
    for one in HealthState::ALL {
        out.sample("patou_health", &[("patou_health", one.as_str())], u8::from(one == condition));
    }
    of_the_parts(&mut out, now, snapshot, view);
    of_the_pools(&mut out, snapshot, view);
    of_the_workers(&mut out, view, workers);
    out.0.push_str("# EOF\n");
    out.0
}

/// What the watchdog has seen.
fn of_the_parts(out: &mut Text, now: Monotonic, snapshot: &Snapshot, view: &StatusView) {
    out.family("patou_dispatcher_up", "gauge", "Whether the dispatcher serves.");
    out.sample("patou_dispatcher_up", &[], u8::from(view.dispatcher.state == "up"));
    if let Some((at, _)) = &snapshot.report {
        let help = "Age of the dispatcher's last report, from which the queue and the figures of the pools come.";
        out.family("patou_report_age_seconds", "gauge", help);
        out.sample("patou_report_age_seconds", &[], now.since(*at).as_secs_f64());
    }
    let account = &snapshot.account;
    out.family("patou_restarts", "counter", "Restarts of each part by cause.");
    for ((part, cause), count) in &account.restarts {
        let name = part.worker().map_or("dispatcher".to_owned(), ToString::to_string);
        out.sample("patou_restarts_total", &[("part", &name), ("cause", cause.as_str())], count);
    }
    let kinds = [("dispatcher", &account.dispatcher), ("worker", &account.workers)];
    let help = "From the first question that a frozen part did not answer to the verdict.";
    out.family("patou_detection_seconds", "histogram", help);
    for (kind, times) in kinds {
        out.histogram("patou_detection_seconds", ("part", kind), &times.detection);
    }
    let help = "From the verdict, or the news of its death, until a part was ready again.";
    out.family("patou_recovery_seconds", "histogram", help);
    for (kind, times) in kinds {
        out.histogram("patou_recovery_seconds", ("part", kind), &times.recovery);
    }
}

/// What the dispatchers have counted and the last one knows.
fn of_the_pools(out: &mut Text, snapshot: &Snapshot, view: &StatusView) {
    let tallies = view.pools.iter().map(|pool| (pool.name.as_str(), snapshot.pools.sum(|name| *name == pool.name)));
    let tallies: Vec<(&str, Counters)> = tallies.collect();
    out.family("patou_queue_length", "gauge", "Clients that wait for a worker.");
    for pool in &view.pools {
        out.sample("patou_queue_length", &[("pool", pool.name.as_str())], pool.queue);
    }
    out.family("patou_queue_oldest_seconds", "gauge", "How long the first of them has waited.");
    for pool in &view.pools {
        out.sample("patou_queue_oldest_seconds", &[("pool", pool.name.as_str())], pool.oldest_ms as f64 / 1e3);
    }
    let counters = [
        ("patou_leases_granted", "granted", "Leases that clients were given."),
        ("patou_leases_expired", "expired", "Leases that were not used within claim_timeout."),
        (
            "patou_leases_revoked",
            "revoked",
            "Offers and leases taken back: the worker was late, drained or dead, or the client gone.",
        ),
        ("patou_workers_recycled", "recycled", "Planned replacements of workers."),
    ];
    out.counters(&counters, &tallies);
    out.family("patou_requests_refused", "counter", "Clients that got no worker, by reason.");
    for (pool, tally) in &tallies {
        for (name, count) in &tally.counts {
            if let Some(reason) = name.strip_prefix("refused_") {
                out.sample("patou_requests_refused_total", &[("pool", pool), ("reason", reason)], count);
            }
        }
    }
    let help = "How long clients waited until their lease was granted.";
    out.family("patou_wait_seconds", "histogram", help);
    for (pool, tally) in &tallies {
        out.histogram("patou_wait_seconds", ("pool", pool), &tally.times);
    }
}

/// What stands in the slots.
fn of_the_workers(out: &mut Text, view: &StatusView, workers: &CounterTotals<WorkerId, ()>) {
    out.family("patou_workers", "gauge", "Workers by state.");
    for pool in &view.pools {
        for state in STATES {
            let known = |word: &str| if STATES.contains(&word) { word == state } else { state == "other" };
            let count = pool.workers.iter().filter(|worker| known(&worker.state)).count();
            out.sample("patou_workers", &[("pool", pool.name.as_str()), ("state", state)], count);
        }
    }
    let tallies = view.pools.iter().map(|pool| (pool.name.as_str(), workers.sum(|id| id.pool == pool.name)));
    let tallies: Vec<(&str, Counters)> = tallies.collect();
    let counters = [
        ("patou_requests_served", "served", "Requests that were answered."),
        ("patou_requests_failed", "failed", "Requests that ended with an error of patou's own, a reset or cancelled."),
        ("patou_requests_sent_back", "sent_back", "Requests with a stale or foreign token, sent to the dispatcher."),
        ("patou_request_body_bytes", "bytes_in", "Bytes of bodies received."),
        ("patou_response_body_bytes", "bytes_out", "Bytes of bodies sent."),
    ];
    out.counters(&counters, &tallies);
    out.family("patou_run_seconds", "histogram", "How long requests took from their claim to their end.");
    for (pool, tally) in &tallies {
        out.histogram("patou_run_seconds", ("pool", pool), &tally.times);
    }
}

struct Text(String);

impl Text {
    /// What follows belongs to this family.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.put(format_args!("# TYPE {name} {kind}\n"));
        for unit in ["seconds", "bytes"] {
            if name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')) {
                self.put(format_args!("# UNIT {name} {unit}\n"));
            }
        }
        self.put(format_args!("# HELP {name} {help}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.put(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.put(format_args!("{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' }));
        }
        self.put(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    /// Families of counters: of each the name, what the tallies call it, and what it is.
    fn counters(&mut self, families: &[(&str, &str, &str)], tallies: &[(&str, Counters)]) {
        for (name, count, help) in families {
            self.family(name, "counter", help);
            for (pool, tally) in tallies {
                self.sample(&format!("{name}_total"), &[("pool", pool)], tally.get(count));
            }
        }
    }

    fn histogram(&mut self, name: &str, (label, value): (&str, &str), times: &Histogram) {
        let bucket = format!("{name}_bucket");
        for exponent in EXPONENTS {
            let bound = ((1_u64 << exponent) as f64 / 1e6).to_string();
            self.sample(&bucket, &[(label, value), ("le", &bound)], times.below(exponent));
        }
        self.sample(&bucket, &[(label, value), ("le", "+Inf")], times.count());
        self.sample(&format!("{name}_sum"), &[(label, value)], times.seconds());
        self.sample(&format!("{name}_count"), &[(label, value)], times.count());
    }

    fn put(&mut self, text: impl Display) {
        write!(self.0, "{text}").expect("a String takes all");
    }
}
