// SPDX-License-Identifier: GPL-2.0

//! The dax inode: the one address space that all mappings of a device share.

use core::ptr::NonNull;

use crate::plan::PageOff;

use super::{raw, to_ulong};

/// A counted reference to a device's dax inode.
///
/// # Invariants
///
/// The pointer is valid and holds one reference (`i_count`).
pub(crate) struct DaxInode(NonNull<raw::inode>);

// SAFETY: An inode reference may be used and dropped by any task.
unsafe impl Send for DaxInode {}
// SAFETY: Through a shared `DaxInode`, `i_flags` is changed only by bind and unbind, which the
// driver core serialises with the device lock.
unsafe impl Sync for DaxInode {}

impl DaxInode {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `inode` must be valid and referenced for the duration of the call.
    pub(super) unsafe fn get(inode: NonNull<raw::inode>) -> Self {
        // SAFETY: The caller guarantees a valid inode with a reference of its own.
        unsafe { raw::ihold(inode.as_ptr()) };
        // INVARIANT: `ihold()` took the reference.
        Self(inode)
    }

    /// The raw inode; valid as long as `self`.
    pub(super) fn as_ptr(&self) -> *mut raw::inode {
        self.0.as_ptr()
    }

    /// Says whether mappings of this inode have struct pages.
    ///
    /// The inode is born with `S_DAX`, by which mm takes special leaves of its mappings for leaves
    /// with pages and dereferences those when it removes them (`mm/huge_memory.c`,
    /// `vma_is_special_huge`). So the bit is off while this driver owns the device.
    ///
    /// May be called only with the device lock held and while no mapping of the inode has a leaf.
    pub(crate) fn set_has_pages(&self, has_pages: bool) {
        // SAFETY: Valid by the invariant; the device lock keeps other drivers' changes away.
        let flags = unsafe { &mut (*self.as_ptr()).i_flags };
        if has_pages {
            *flags |= raw::S_DAX;
        } else {
            *flags &= !raw::S_DAX;
        }
    }

    /// Removes every leaf, in any process, that maps these pages of the device.
    ///
    /// Takes `i_mmap_rwsem` and below it page-table locks: none of these may be held.
    pub(crate) fn unmap(&self, pgoff: PageOff, pages: u64) {
        // SAFETY: The inode is valid by the invariant, and with it its mapping.
        unsafe {
            let mapping = (*self.as_ptr()).i_mapping;
            raw::unmap_mapping_pages(mapping, to_ulong(pgoff.raw()), to_ulong(pages), false);
        }
    }

    /// Whether files that were opened while another driver owned the device are still open.
    pub(crate) fn is_open_elsewhere(&self) -> bool {
        // SAFETY: Valid by the invariant; a dax inode's `i_cdev` is its embedded cdev for life
        // (`drivers/dax/super.c`, `dax_dev_get`).
        unsafe { raw::dmem_embedded_cdev_is_held(self.as_ptr()) }
    }
}

impl Drop for DaxInode {
    fn drop(&mut self) {
        // SAFETY: Gives back the reference of the invariant.
        unsafe { raw::iput(self.as_ptr()) };
    }
}
