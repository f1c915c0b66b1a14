//! Takes from a process the descriptors that it could still open.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::connection::{ClientStream, ServerAddress};
use crate::procfs;
use crate::sys;

/// Idle clients: an address that no other client has.
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// How many descriptors idle clients leave and then take.
const SPARE: u64 = 20;

/// How many more clients connect than there are descriptors for.
const EXCESS: usize = 10;

/// How many descriptors a process may still open.
#[derive(Clone, Copy, Debug)]
pub(super) enum DescriptorLimit {
    /// None: the lowest free number is above the limit.
    None,
    /// Those below the highest open one.
    BelowHighest,
    /// A few above the highest open one.
    Spare,
}

/// A process with a lower limit of open files, which it gets back when this is dropped.
pub(super) struct LimitedProcess {
    pid: u32,
    /// Soft and hard limit before.
    original: (u64, u64),
    /// How many descriptors it may still open.
    free: usize,
}

impl LimitedProcess {
    /// Lowers the soft limit of the process.
    ///
    /// # Errors
    /// The limits of the process may not be changed, or it has ended.
    pub(super) fn limit(pid: u32, limit: DescriptorLimit) -> Result<Self, String> {
        let open = procfs::descriptor_numbers(&procfs::process_dir(pid));
        let highest = u64::from(*open.iter().max().ok_or("its descriptors cannot be read: not permitted")?);
        let soft = match limit {
            DescriptorLimit::None => (0..).find(|number| !open.contains(number)).map_or(highest, u64::from),
            DescriptorLimit::BelowHighest => highest + 1,
            DescriptorLimit::Spare => highest + 1 + SPARE,
        };
        let error = |error| format!("changing its limits is not permitted: {error}");
        let original = sys::descriptor_limit(pid, None).map_err(error)?;
        sys::descriptor_limit(pid, Some((soft, original.1))).map_err(error)?;
        let below = open.iter().filter(|number| u64::from(**number) < soft).count();
        Ok(Self { pid, original, free: (soft as usize).saturating_sub(below) })
    }

    /// Opens idle connections until no descriptor is left for another.
    pub(super) fn use_up(&self, address: &ServerAddress) -> Vec<ClientStream> {
        let connect = |_| address.connect_from(SOURCE, Duration::from_secs(1)).ok();
        (0..self.free + EXCESS).filter_map(connect).collect()
    }
}

impl Drop for LimitedProcess {
    fn drop(&mut self) {
        let _ = sys::descriptor_limit(self.pid, Some(self.original)); // it may have ended
    }
}
