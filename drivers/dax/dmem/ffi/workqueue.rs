// SPDX-License-Identifier: GPL-2.0

//! The workqueue that scrubs run on.

use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::workqueue::{Queue, RawWorkItem};

use super::raw;

/// A workqueue of this module's own, so that no work is left when the module goes.
///
/// # Invariants
///
/// The pointer is a workqueue that `alloc_workqueue()` made and nobody has destroyed.
pub(crate) struct WorkQueue(NonNull<raw::workqueue_struct>);

// SAFETY: Workqueues may be used and destroyed by any task.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// A queue whose workers run on any CPU, as many at a time as there are items. sysfs has its
    /// CPU mask and priority (`/sys/devices/virtual/workqueue/NAME`).
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name ends in NUL.
        let queue = unsafe { raw::dmem_alloc_workqueue(name.as_char_ptr()) };
        // INVARIANT: Made just now.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Queues an item.
    pub(crate) fn enqueue<W>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        // SAFETY: Valid by the invariant, as long as `self` is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }.enqueue(item)
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: Valid by the invariant, and destroyed once. Returns when all items have run.
        unsafe { raw::destroy_workqueue(self.0.as_ptr()) };
    }
}
