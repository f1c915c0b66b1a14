//! The metrics as OpenMetrics text 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::fmt::{Display, Write};

use super::snapshot::SetSnapshot;
use crate::ids::{Monotonic, WorkerId};
use crate::probe::ConnectionReport;
use crate::stats::{CounterTotals, Counters, Histogram};
use crate::status::{HealthState, StatusView};

/// Every state of a worker, as in patou(1).
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

/// The upper bounds of the histogram buckets are 2 to these powers, in microseconds: 128 us to 67 s.
const BUCKET_EXPONENTS: std::ops::RangeInclusive<usize> = 7..=26;

/// All metrics of the set.
pub(super) fn text(
    now: Monotonic,
    snapshot: &SetSnapshot,
    view: &StatusView,
    health: HealthState,
    workers: &CounterTotals<WorkerId, ()>,
) -> String {
    let mut out = OpenMetricsText(String::with_capacity(16 << 10));
    out.family("patou_build", "info", "The version of patou.");
    out.sample("patou_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.family("patou_health", "stateset", "Health of the set, as /healthz reports it.");
    for state in HealthState::ALL {
        out.sample("patou_health", &[("patou_health", state.as_str())], u8::from(state == health));
    }
    part_metrics(&mut out, now, snapshot, view);
    pool_metrics(&mut out, snapshot, view, workers);
    worker_metrics(&mut out, view, workers);
    out.0.push_str("# EOF\n");
    out.0
}

/// From the watchdog.
fn part_metrics(out: &mut OpenMetricsText, now: Monotonic, snapshot: &SetSnapshot, view: &StatusView) {
    out.family("patou_dispatcher_up", "gauge", "1 if the dispatcher serves, otherwise 0.");
    out.sample("patou_dispatcher_up", &[], u8::from(view.dispatcher.state == "up"));
    if let Some((at, _)) = &snapshot.last_report {
        let help = "Age of the dispatcher's last report, the source of the queue and pool metrics.";
        out.family("patou_report_age_seconds", "gauge", help);
        out.sample("patou_report_age_seconds", &[], now.since(*at).as_secs_f64());
    }
    let connections = snapshot.last_report.as_ref().and_then(|(_, report)| report.connections);
    if let Some(ConnectionReport { used, places }) = connections {
        out.family("patou_connections", "gauge", "Connections of clients that the dispatcher holds.");
        out.sample("patou_connections", &[], used);
        let help = "Most connections that it holds: front.connections, or fewer if the limit of open files is too low.";
        out.family("patou_connections_max", "gauge", help);
        out.sample("patou_connections_max", &[], places);
    }
    let stats = &snapshot.restart_stats;
    out.family("patou_restarts", "counter", "Restarts of each part by cause.");
    for ((part, cause), count) in &stats.restarts {
        let name = part.worker().map_or("dispatcher".to_owned(), ToString::to_string);
        out.sample("patou_restarts_total", &[("part", &name), ("cause", cause.as_str())], count);
    }
    let kinds = [("dispatcher", &stats.dispatcher), ("worker", &stats.workers)];
    let help = "Time from the first unanswered probe of a frozen part to the verdict.";
    out.family("patou_detection_seconds", "histogram", help);
    for (kind, times) in kinds {
        out.histogram("patou_detection_seconds", ("part", kind), &times.detection);
    }
    let help = "Time from the verdict, or from the death of a part, until the part was ready again.";
    out.family("patou_recovery_seconds", "histogram", help);
    for (kind, times) in kinds {
        out.histogram("patou_recovery_seconds", ("part", kind), &times.recovery);
    }
}

/// From the dispatchers' counters and the last report; workers reject requests as well.
fn pool_metrics(
    out: &mut OpenMetricsText,
    snapshot: &SetSnapshot,
    view: &StatusView,
    workers: &CounterTotals<WorkerId, ()>,
) {
    let pools = view.pools.iter().map(|pool| (pool.name.as_str(), snapshot.pools.sum(|name| *name == pool.name)));
    let pools: Vec<(&str, Counters)> = pools.collect();
    out.family("patou_queue_length", "gauge", "Clients waiting for a worker.");
    for pool in &view.pools {
        out.sample("patou_queue_length", &[("pool", pool.name.as_str())], pool.queue);
    }
    out.family("patou_queue_oldest_seconds", "gauge", "Waiting time of the client that has waited longest.");
    for pool in &view.pools {
        out.sample("patou_queue_oldest_seconds", &[("pool", pool.name.as_str())], pool.oldest_ms as f64 / 1e3);
    }
    let counters = [
        ("patou_leases_granted", "granted", "Leases granted to clients."),
        ("patou_leases_expired", "expired", "Leases not claimed within claim_timeout."),
        (
            "patou_leases_revoked",
            "revoked",
            "Offers and leases revoked: the worker was late, drained or dead, or the client disconnected.",
        ),
        ("patou_workers_recycled", "recycled", "Planned replacements of workers."),
    ];
    out.counters(&counters, &pools);
    out.family("patou_requests_refused", "counter", "Clients refused, by reason.");
    for (pool, totals) in &pools {
        for (name, count) in &totals.counts {
            if let Some(reason) = name.strip_prefix("refused_") {
                let by_workers = match reason {
                    "bad_request" => workers.sum(|id| id.pool.as_str() == *pool).get("rejected"),
                    _ => 0,
                };
                let count = count.saturating_add(by_workers);
                out.sample("patou_requests_refused_total", &[("pool", pool), ("reason", reason)], count);
            }
        }
    }
    let help = "Time that clients waited for their lease.";
    out.family("patou_wait_seconds", "histogram", help);
    for (pool, totals) in &pools {
        out.histogram("patou_wait_seconds", ("pool", pool), &totals.times);
    }
}

/// From the slots.
fn worker_metrics(out: &mut OpenMetricsText, view: &StatusView, workers: &CounterTotals<WorkerId, ()>) {
    out.family("patou_workers", "gauge", "Workers by state.");
    for pool in &view.pools {
        for state in STATES {
            let is_counted = |name: &str| if STATES.contains(&name) { name == state } else { state == "other" };
            let count = pool.workers.iter().filter(|worker| is_counted(&worker.state)).count();
            out.sample("patou_workers", &[("pool", pool.name.as_str()), ("state", state)], count);
        }
    }
    let pools = view.pools.iter().map(|pool| (pool.name.as_str(), workers.sum(|id| id.pool == pool.name)));
    let pools: Vec<(&str, Counters)> = pools.collect();
    let counters = [
        ("patou_requests_served", "served", "Requests served."),
        (
            "patou_requests_failed",
            "failed",
            "Requests that ended with an error response of patou, with a reset, or cancelled.",
        ),
        (
            "patou_requests_sent_back",
            "sent_back",
            "Requests with a stale or foreign token, redirected to the dispatcher.",
        ),
        ("patou_request_body_bytes", "bytes_in", "Bytes of request bodies received."),
        ("patou_response_body_bytes", "bytes_out", "Bytes of response bodies sent."),
    ];
    out.counters(&counters, &pools);
    out.family("patou_run_seconds", "histogram", "Time of requests from claim to end.");
    for (pool, totals) in &pools {
        out.histogram("patou_run_seconds", ("pool", pool), &totals.times);
    }
}

struct OpenMetricsText(String);

impl OpenMetricsText {
    /// Starts a family: the samples that follow belong to it.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.push(format_args!("# TYPE {name} {kind}\n"));
        for unit in ["seconds", "bytes"] {
            if name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')) {
                self.push(format_args!("# UNIT {name} {unit}\n"));
            }
        }
        self.push(format_args!("# HELP {name} {help}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.push(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.push(format_args!("{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' }));
        }
        self.push(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    /// Families of counters by pool: the name of each metric, the name of its counter, and its help text.
    fn counters(&mut self, families: &[(&str, &str, &str)], pools: &[(&str, Counters)]) {
        for (name, count, help) in families {
            self.family(name, "counter", help);
            for (pool, totals) in pools {
                self.sample(&format!("{name}_total"), &[("pool", pool)], totals.get(count));
            }
        }
    }

    fn histogram(&mut self, name: &str, (label, value): (&str, &str), times: &Histogram) {
        let bucket = format!("{name}_bucket");
        for exponent in BUCKET_EXPONENTS {
            let bound = ((1_u64 << exponent) as f64 / 1e6).to_string();
            self.sample(&bucket, &[(label, value), ("le", &bound)], times.below(exponent));
        }
        self.sample(&bucket, &[(label, value), ("le", "+Inf")], times.count());
        self.sample(&format!("{name}_sum"), &[(label, value)], times.seconds());
        self.sample(&format!("{name}_count"), &[(label, value)], times.count());
    }

    fn push(&mut self, text: impl Display) {
        write!(self.0, "{text}").expect("writing to a String cannot fail");
    }
}
