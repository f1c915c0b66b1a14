//! POSIX shared memory: one segment per worker, with a header and the worker's slot.

mod error;
mod guarded_page;
mod layout;
mod lock;
mod segment;
mod snapshot;

pub(crate) use error::{Damage, SegmentError};
pub(crate) use lock::{is_locked, try_lock};
pub(crate) use segment::{Segment, SegmentIdentity, SegmentRole, path};
pub(crate) use snapshot::SlotSnapshot;
