//! 503 responses: why a pool refuses a client.

use std::fmt;

use http::StatusCode;

use crate::net::ProblemResponse;
use crate::pool::Refusal;

/// The workers of a pool, by what keeps clients from them.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolAvailability {
    pub workers: usize,
    /// Taken out of service by an operator.
    pub drained: usize,
    /// Not drained and not running.
    pub down: usize,
    /// The cause, if the watchdog has given up every worker.
    pub failed: Option<String>,
}

impl fmt::Display for PoolAvailability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolAvailability { workers, drained, down, .. } = *self;
        match workers {
            0 => f.write_str("it is no longer part of the set"),
            1 if drained == 1 => f.write_str("its worker is out of service"),
            1 if down == 1 => f.write_str("its worker is not running"),
            1 => f.write_str("its worker is busy"),
            n if drained == n => write!(f, "all {n} workers are out of service"),
            n if down == n => write!(f, "none of its {n} workers is running"),
            n if drained + down == 0 => write!(f, "all {n} workers are busy"),
            n => {
                write!(f, "of its {n} workers")?;
                let busy = n - drained - down;
                let all = [(drained, "out of service"), (down, "not running"), (busy, "busy")];
                for (i, (count, what)) in all.into_iter().filter(|(count, _)| *count > 0).enumerate() {
                    let (comma, verb) = (if i > 0 { "," } else { "" }, if count == 1 { "is" } else { "are" });
                    write!(f, "{comma} {count} {verb} {what}")?;
                }
                Ok(())
            }
        }
    }
}

/// 503 with the reason: which bound is exhausted, or which workers are missing.
pub(super) fn refusal(refusal: Refusal, pool: &str, availability: &PoolAvailability) -> ProblemResponse {
    let detail = match refusal {
        Refusal::QueueFull(bound) => {
            format!("pool {pool}: {availability}, and the queue is full with {bound} clients (`queue`)")
        }
        Refusal::QueueTimeout(waited) => {
            let waited = waited.as_secs_f32();
            format!("pool {pool}: no worker became free within `queue_timeout` ({waited:.1} s): {availability}")
        }
        Refusal::NoWorkerFree => format!("pool {pool}: {availability}, and there is no queue (`queue` is 0)"),
        Refusal::OutOfService => format!("pool {pool}: {availability}"),
        Refusal::Failed => {
            let cause = availability.failed.as_deref().unwrap_or("its workers ended too often");
            format!(
                "every worker of pool {pool} has failed: {cause}; an operator must fix the cause and reload the set"
            )
        }
        Refusal::Stopping => "the set is stopping".to_owned(),
    };
    // A failed pool recovers only when an operator acts.
    let seconds = if refusal == Refusal::Failed { 10 } else { 1 };
    ProblemResponse::not_started(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_the_missing_workers() {
        let text = |workers, drained, down| PoolAvailability { workers, drained, down, failed: None }.to_string();
        assert_eq!(text(1, 0, 0), "its worker is busy");
        assert_eq!(text(2, 0, 0), "all 2 workers are busy");
        assert_eq!(text(2, 2, 0), "all 2 workers are out of service");
        assert_eq!(text(2, 0, 2), "none of its 2 workers is running");
        assert_eq!(text(2, 1, 1), "of its 2 workers 1 is out of service, 1 is not running");
        assert_eq!(text(4, 1, 0), "of its 4 workers 1 is out of service, 3 are busy");
    }
}
