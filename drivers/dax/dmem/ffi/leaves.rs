// SPDX-License-Identifier: GPL-2.0

//! The leaves that lead to a device's memory, counted in the page tables of all processes.
//!
//! The kernel removes leaves without a word to the driver (munmap, exit, splits, moves), so there
//! is no counter to keep: whoever wants to know looks.
//!
//! Locks: `i_mmap_rwsem` of the device's inode is held for reading. A VMA leaves that tree before
//! its page tables are freed (`mm/memory.c`, `free_pgtables`), so that all tables stay that the
//! walk can reach, as in `unmap_mapping_pages()`. Entries change meanwhile; each is read once, and
//! the table behind it is found by what was read.

use core::ptr::NonNull;
use kernel::fmt;
use kernel::prelude::*;

use crate::device::Device;
use crate::plan::{Leaf, VirtAddr, Window};

use super::vma::{device_of, is_ours, window_of};
use super::{raw, task, to_ulong};

/// Entries that one count looks at, at most: so many keep mmap and munmap of the device waiting
/// for a tenth of a second or so. 64 GiB that are mapped by 4 KiB have half as many.
const MOST_ENTRIES: u64 = 1 << 25;

/// Entries in a table.
const ENTRIES: u64 = Leaf::Pmd.pages();

/// Page-table entries of each size that lead to a device's memory, in all processes.
pub(crate) struct Leaves {
    giant: u64,
    huge: u64,
    small: u64,
    /// Entries that may still be looked at.
    left: u64,
}

impl Leaves {
    /// Counts those that were made through this binding of the device.
    pub(crate) fn of(device: &Device) -> Self {
        let mut leaves = Self {
            giant: 0,
            huge: 0,
            small: 0,
            left: MOST_ENTRIES,
        };
        // SAFETY: The device holds the inode, and with it its mapping. The lock is held between the
        // two calls, and no other of this driver's is taken inside. A VMA in the tree is valid and
        // has its file; the bounds of one change under the lock for writing only.
        unsafe {
            let mapping = (*device.inode().as_ptr()).i_mapping;
            raw::dmem_lock_vmas(mapping);
            let mut next = NonNull::new(raw::dmem_first_vma(mapping));
            while let Some(vma) = next {
                if is_ours(vma) && core::ptr::eq(device_of(vma.as_ref().vm_file), device) {
                    if let Some(window) = window_of(vma.as_ptr()) {
                        leaves.walk(vma.as_ref().vm_mm, &window);
                    }
                }
                next = NonNull::new(raw::dmem_next_vma(vma.as_ptr()));
            }
            raw::dmem_unlock_vmas(mapping);
        }
        leaves
    }

    /// Whether the entry may be looked at.
    fn spend(&mut self, entries: u64) -> bool {
        match self.left.checked_sub(entries) {
            Some(left) => self.left = left,
            None => self.left = 0,
        }
        self.left > 0
    }

    /// # Safety
    ///
    /// The VMA that the window describes must be one of `mm` and in the tree of an inode whose lock
    /// is held.
    unsafe fn walk(&mut self, mm: *mut raw::mm_struct, window: &Window) {
        for block in blocks(window.start(), window.end(), Leaf::Pud) {
            if !self.spend(1) {
                return;
            }
            // SAFETY: The tables of the VMA stay, by the safety requirement.
            let entry = unsafe {
                let slot = raw::dmem_pud_of(mm, to_ulong(block.start.raw()));
                if slot.is_null() {
                    continue;
                }
                slot.read_volatile()
            };
            // SAFETY: Looks at the value only.
            match unsafe { (raw::dmem_pud_none(entry), raw::dmem_pud_leaf(entry)) } {
                (true, _) => {}
                (_, true) => self.giant += 1,
                // SAFETY: Neither empty nor a leaf: it leads to a table, which stays.
                _ => unsafe { self.walk_huge(entry, &block) },
            }
            task::yield_if_due();
        }
    }

    /// # Safety
    ///
    /// `table` must lead to a table of such a VMA, see [`Leaves::walk`], that covers the block.
    unsafe fn walk_huge(&mut self, table: raw::pud_t, block: &Block) {
        for block in blocks(block.start, block.end, Leaf::Pmd) {
            if !self.spend(1) {
                return;
            }
            // SAFETY: By the safety requirement.
            let entry =
                unsafe { raw::dmem_pmd_in(table, to_ulong(block.start.raw())).read_volatile() };
            // SAFETY: Looks at the value only.
            match unsafe { (raw::dmem_pmd_none(entry), raw::dmem_pmd_leaf(entry)) } {
                (true, _) => {}
                (_, true) => self.huge += 1,
                // SAFETY: As in `walk`.
                _ => unsafe { self.walk_small(entry, &block) },
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Leaves::walk_huge`].
    unsafe fn walk_small(&mut self, table: raw::pmd_t, block: &Block) {
        if !self.spend(ENTRIES) {
            return;
        }
        for page in blocks(block.start, block.end, Leaf::Pte) {
            // SAFETY: By the safety requirement; of the entry the value is looked at only.
            let is_none = unsafe {
                let slot = raw::dmem_pte_in(table, to_ulong(page.start.raw()));
                raw::dmem_pte_none(slot.read_volatile())
            };
            self.small += u64::from(!is_none);
        }
    }
}

/// A line for each size, `SIZE N`, and one of three dots if not everything was looked at.
impl fmt::Display for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (giant, huge, small) = (self.giant, self.huge, self.small);
        f.write_fmt(fmt!("1g {giant}\n2m {huge}\n4k {small}\n"))?;
        match self.left {
            0 => f.write_str("...\n"),
            _ => Ok(()),
        }
    }
}

/// Part of a VMA that one entry covers.
struct Block {
    start: VirtAddr,
    end: VirtAddr,
}

/// `[start, end)`, cut at the multiples of a leaf's size.
fn blocks(start: VirtAddr, end: VirtAddr, leaf: Leaf) -> impl Iterator<Item = Block> {
    let mut at = start;
    core::iter::from_fn(move || {
        let start = at;
        let next = start.align_down(leaf).checked_add(leaf.size());
        at = next.map_or(end, |next| next.min(end));
        (start < end).then_some(Block { start, end: at })
    })
}
