// SPDX-License-Identifier: GPL-2.0

//! Ordinary pages of the kernel that are mapped for a moment in the place of poison.

use core::ptr::NonNull;
use kernel::ffi::c_void;
use kernel::prelude::*;

use crate::plan::{PhysAddr, PAGE_SIZE};

use super::{from_ulong, raw, to_ulong};

/// A page of zeros.
///
/// It is never given back to the kernel: VFIO, which is not told when a leaf goes, may have met it
/// while it was mapped, and would let a device write to it.
///
/// # Invariants
///
/// The pointer is a page of the kernel's, in its own map of memory, that nobody else has.
pub(crate) struct StandIn(NonNull<c_void>);

// SAFETY: A page belongs to no task.
unsafe impl Send for StandIn {}

impl StandIn {
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May sleep.
        let page = unsafe { raw::dmem_zero_page() };
        // INVARIANT: Allocated just now.
        Ok(Self(NonNull::new(page).ok_or(ENOMEM)?))
    }

    /// Its physical address.
    pub(crate) fn phys(&self) -> PhysAddr {
        // SAFETY: By the invariant.
        PhysAddr::from_raw(from_ulong(unsafe { raw::dmem_phys_of(self.0.as_ptr()) }))
    }

    /// Makes it zero again.
    pub(crate) fn clear(&self) {
        // SAFETY: A page, by the invariant; no Rust reference leads there.
        unsafe { self.0.cast::<u8>().write_bytes(0, to_ulong(PAGE_SIZE)) };
    }
}
