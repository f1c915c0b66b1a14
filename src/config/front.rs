//! The dispatcher towards its clients.

use std::time::Duration;

/// Bounds of the dispatcher towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// Most connections at a time, at least 1.
    pub connections: usize,
    /// Largest head of a request in bytes, 8192 (the least hyper's buffer can be) to 1 MiB.
    pub head_bytes: usize,
    /// How long a client may take to send the head.
    pub head_timeout: Duration,
    /// How long a client may be silent within a body.
    pub body_timeout: Duration,
    /// How long an early answer waits for the client to stop sending; 0: not at all.
    pub linger_timeout: Duration,
    /// Largest body in bytes; 0: no limit.
    pub max_body: u64,
    /// A connection that waits longer than this is put into the supervisor's descriptor store.
    pub store_after: Duration,
    /// How often leased slots are read without having been rung.
    pub slot_scan: Duration,
    /// How long a connection that is handed over for each of its requests may be silent between two of them.
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
            idle_timeout: Duration::from_secs(60),
        }
    }
}
