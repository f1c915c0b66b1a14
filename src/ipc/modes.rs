//! The access to the objects of a set.

use nix::unistd::{Gid, Uid};

/// Modes and group of new objects. By default only one user has access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modes {
    /// Mode of directories.
    pub directory: u32,
    /// Mode of doorbells.
    pub doorbell: u32,
    /// Mode of segments.
    pub segment: u32,
    /// The user that owns them, if that is not the user of this process.
    pub owner: Option<Uid>,
    /// The group that shares them.
    pub group: Option<Gid>,
}

impl Default for Modes {
    fn default() -> Self {
        Self { directory: 0o700, doorbell: 0o600, segment: 0o600, owner: None, group: None }
    }
}

impl Modes {
    /// The access to the objects of a worker whose user has this group.
    pub(crate) fn shared(group: Gid) -> Self {
        Self { directory: 0o750, doorbell: 0o660, segment: 0o660, owner: None, group: Some(group) }
    }
}
