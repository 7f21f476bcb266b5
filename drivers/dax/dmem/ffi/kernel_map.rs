// SPDX-License-Identifier: GPL-2.0

//! Short-lived kernel mappings of page-less memory: for a step of a scrub, for a copy of ptrace.
//!
//! The kernel has no mapping of this memory otherwise.

use core::ptr::NonNull;
use kernel::ffi::{c_ulong, c_void};
use kernel::prelude::*;

use crate::plan::Extent;

use super::{raw, to_ulong};

/// A write-back mapping of a piece of physical memory; gone when dropped.
///
/// # Invariants
///
/// `addr` comes from `memremap()` for `len` bytes that start on a page.
pub(crate) struct KernelMap {
    addr: NonNull<c_void>,
    len: usize,
}

impl KernelMap {
    /// Maps whole pages, which must be claimed by this driver as long as the mapping lives.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new(extent: &Extent) -> Result<Self> {
        let len = to_ulong(extent.len);
        // SAFETY: May be called for any memory and may sleep; the memory has no other kernel
        // mapping whose cache mode could differ.
        let addr = unsafe { raw::memremap(extent.start.raw(), len, raw::MEMREMAP_WB as c_ulong) };
        // INVARIANT: Mapped just now.
        Ok(Self {
            addr: NonNull::new(addr).ok_or(ENOMEM)?,
            len,
        })
    }

    /// Overwrites all of it with zeros, past the cache.
    pub(crate) fn clear(&self) {
        // SAFETY: Mapped for `len` bytes, by the invariant; no Rust reference leads there.
        unsafe { raw::dmem_clear(self.addr.as_ptr(), self.len) };
    }

    /// Whether patterns that are written, past the cache, are what is read again. Leaves zeros.
    pub(crate) fn stands_test(&self) -> bool {
        // SAFETY: Mapped for `len` bytes, by the invariant; no Rust reference leads there.
        unsafe { raw::dmem_stands_test(self.addr.as_ptr(), self.len) }
    }

    /// Copies from the mapping to `to`. Returns how many bytes come before a memory error.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes; `at + len` must lie inside the mapping.
    pub(super) unsafe fn copy_out(&self, at: usize, to: *mut c_void, len: usize) -> usize {
        // SAFETY: By the safety requirement. A user may change the memory at the same time, which
        // is why the copy is C's.
        let left = unsafe { raw::dmem_copy_mc(to, self.addr.as_ptr().byte_add(at), len) };
        len - left.min(len)
    }

    /// Copies from `from` into the mapping.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes; `at + len` must lie inside the mapping.
    pub(super) unsafe fn copy_in(&self, at: usize, from: *const c_void, len: usize) {
        // SAFETY: As above.
        unsafe { raw::memcpy(self.addr.as_ptr().byte_add(at), from, len) };
    }
}

impl Drop for KernelMap {
    fn drop(&mut self) {
        // SAFETY: Mapped by `memremap()`, by the invariant.
        unsafe { raw::memunmap(self.addr.as_ptr()) };
    }
}
