//! POSIX shared memory: one segment per worker, with a header and the worker's slot.

mod error;
mod guarded_page;
mod layout;
mod lock;
mod segment;
mod snapshot;

pub use error::{Damage, SegmentError};
pub use lock::{is_locked, try_lock};
pub use segment::{Segment, SegmentIdentity, SegmentRole};
pub use snapshot::SlotSnapshot;
