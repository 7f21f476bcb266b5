// SPDX-License-Identifier: GPL-2.0

//! The dax core's SRCU section: what begins inside it has ended when `kill_dev_dax()` returns.

use core::marker::PhantomData;
use kernel::ffi::c_int;
use kernel::types::NotThreadSafe;

use super::raw;

/// Held while a fault looks at a device's state and acts on it.
///
/// Unbinding first marks the device dead, then calls `kill_dev_dax()`, which waits for every
/// section that might have seen it alive (`drivers/dax/super.c`, `kill_dax`) before it removes the
/// leaves.
pub(crate) struct Section {
    id: c_int,
    _task: PhantomData<NotThreadSafe>,
}

impl Section {
    /// Enters the section; the value leaves it when dropped.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: May be called in any context that may take an SRCU read lock; faults and mmap
            // are.
            id: unsafe { raw::dax_read_lock() },
            _task: PhantomData,
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        // SAFETY: `id` comes from the matching `dax_read_lock()` of the same task.
        unsafe { raw::dax_read_unlock(self.id) };
    }
}
