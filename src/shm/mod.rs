//! POSIX shared memory: one segment per worker, holding a header and its slot.

mod layout;
mod lock;
mod segment;
mod snapshot;

pub use lock::{is_locked, try_lock};
pub use segment::{Damage, Identity, Role, Segment, SegmentError};
pub use snapshot::Snapshot;
