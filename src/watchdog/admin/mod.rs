//! The admin server: health, status and metrics of the set over HTTP, for monitors and load balancers, on `admin.sock`
//! and on a TCP address if one is configured.
//!
//! The watchdog serves it because the other parts may be frozen. A separate thread does, because no client may
//! delay the watchdog's decisions: the deciding loop leaves a [`SetSnapshot`] at each turn and waits for nothing.

mod metrics;
mod respond;
mod server;
mod snapshot;

pub(super) use server::AdminServer;
pub(super) use snapshot::SetSnapshot;
