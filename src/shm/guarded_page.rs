//! The mappings that the SIGBUS handler may repair: a list that the handler can read at any time, without locks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use super::layout::SIZE;
use crate::sync;

/// One mapping of a segment. An entry is never freed, because the handler may be reading it, but used again.
#[derive(Debug)]
pub(super) struct GuardedPage {
    /// Its address; 0 while the entry is unused.
    address: AtomicUsize,
    replaced: AtomicBool,
    next: OnceLock<&'static GuardedPage>,
}

/// The head of the list; not a mapping itself.
static HEAD: GuardedPage = GuardedPage::new();

/// The last entry of the list, and the unused entries.
static ENTRIES: Mutex<(&GuardedPage, Vec<&GuardedPage>)> = Mutex::new((&HEAD, Vec::new()));

impl GuardedPage {
    const fn new() -> Self {
        Self { address: AtomicUsize::new(0), replaced: AtomicBool::new(false), next: OnceLock::new() }
    }

    /// Adds the mapping at this address.
    pub(super) fn register(address: usize) -> &'static Self {
        let mut entries = sync::lock(&ENTRIES);
        let page = entries.1.pop().unwrap_or_else(|| {
            let page: &'static GuardedPage = Box::leak(Box::new(GuardedPage::new()));
            let _ = entries.0.next.set(page); // unset: only the last entry has no next one
            entries.0 = page;
            page
        });
        page.replaced.store(false, Ordering::Relaxed);
        page.address.store(address, Ordering::Release); // pairs with the load in `find`
        page
    }

    /// Removes the mapping. To call before it is unmapped.
    pub(super) fn unregister(&'static self) {
        self.address.store(0, Ordering::Release);
        sync::lock(&ENTRIES).1.push(self);
    }

    /// The mapping that contains this address, and the start of the mapping. Called by the handler.
    pub(super) fn find(address: usize) -> Option<(&'static Self, usize)> {
        let mut next = HEAD.next.get();
        while let Some(page) = next {
            let start = page.address.load(Ordering::Acquire);
            if start != 0 && (start..start + SIZE).contains(&address) {
                return Some((page, start));
            }
            next = page.next.get();
        }
        None
    }

    /// Whether the handler has put a private page in the place of the segment's.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    pub(super) fn set_replaced(&self, replaced: bool) {
        self.replaced.store(replaced, Ordering::Relaxed);
    }
}
