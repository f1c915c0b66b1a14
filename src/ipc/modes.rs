//! The access to the objects of a set.

use nix::unistd::Gid;

/// Modes and group of new objects. By default only one user has access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modes {
    /// Mode of directories.
    pub directory: u32,
    /// Mode of doorbells.
    pub doorbell: u32,
    /// Mode of segments.
    pub segment: u32,
    /// The group that shares them.
    pub group: Option<Gid>,
}

impl Default for Modes {
    fn default() -> Self {
        Self { directory: 0o700, doorbell: 0o600, segment: 0o600, group: None }
    }
}
