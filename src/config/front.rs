//! Limits and timeouts of the dispatcher towards clients.

#![forbid(unsafe_code)]

use std::time::Duration;

use serde::Serialize;

use super::quantity;

/// Limits and timeouts of the dispatcher towards clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontConfig {
    /// Most concurrent connections, at least 1.
    pub connections: usize,
    /// Largest request head in bytes, 8192 (the smallest buffer of hyper) to 1 MiB.
    pub head_bytes: usize,
    /// How long a client may take to send the request head.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub head_timeout: Duration,
    /// How long a client may send nothing within a request body.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub body_timeout: Duration,
    /// How long a lingering close waits for a client that makes no progress; 0: not at all.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub linger_timeout: Duration,
    /// Largest request body in bytes; 0: no limit.
    #[serde(serialize_with = "quantity::serialize_bytes")]
    pub max_body: u64,
    /// A connection queued longer than this is put into the supervisor's descriptor store.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub store_after: Duration,
    /// How often leased slots are read without a doorbell.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub slot_scan: Duration,
    /// How long a handoff connection may be idle between two requests.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub idle_timeout: Duration,
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            connections: 20_000,
            head_bytes: 16_384,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(1),
            max_body: 0,
            store_after: Duration::from_millis(20),
            slot_scan: Duration::from_millis(100),
            idle_timeout: Duration::from_secs(75),
        }
    }
}
