// SPDX-License-Identifier: GPL-2.0

//! The kernel's handling of memory errors: whom to signal for an error in page-less memory.

use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::ffi::{c_int, c_ulong, c_void};
use kernel::prelude::*;

use crate::plan::{PhysAddr, RangeMap, PAGE_SHIFT};
use crate::poison;

use super::inode::DaxInode;
use super::reservation::has_no_page;
use super::vma::{device_of, is_ours, window_of};
use super::{from_ulong, raw, to_ulong};

// SAFETY: Integers, pointers and an optional function: all of them may be zero.
unsafe impl pin_init::Zeroable for raw::pfn_address_space {}

/// The ranges of a device, registered with `memory_failure()`.
///
/// # Invariants
///
/// The first `registered` entries of `spaces` are registered; the vector does not change.
pub(crate) struct Registered {
    spaces: KVec<raw::pfn_address_space>,
    registered: usize,
}

// SAFETY: Registered structures may be unregistered by any task.
unsafe impl Send for Registered {}
// SAFETY: A shared value has no operations.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers the ranges, which `inode` maps. It must outlive the value.
    ///
    /// # Errors
    ///
    /// EBUSY when somebody else has registered part of them; ENOMEM.
    pub(crate) fn new(map: &RangeMap<'_>, inode: &DaxInode) -> Result<Self> {
        let ranges = map.ranges();
        let mut spaces = KVec::with_capacity(ranges.len(), GFP_KERNEL)?;
        for range in ranges {
            let mut space: raw::pfn_address_space = pin_init::zeroed();
            space.node.start = to_ulong(range.start.pfn());
            space.node.last = to_ulong(range.start.pfn() + range.pages - 1);
            // SAFETY: The inode is valid.
            space.mapping = unsafe { (*inode.as_ptr()).i_mapping };
            space.pfn_to_vma_pgoff = Some(pfn_to_vma_pgoff);
            spaces.push(space, GFP_KERNEL)?;
        }
        // INVARIANT: None is yet. What follows registers one after the other; dropping the value
        // unregisters as many.
        let mut all = Self {
            spaces,
            registered: 0,
        };
        for index in 0..all.spaces.len() {
            let space: *mut raw::pfn_address_space = &mut all.spaces[index];
            // SAFETY: The structure lies on the heap and stays there until it is unregistered.
            to_result(unsafe { raw::register_pfn_address_space(space) })?;
            all.registered += 1;
        }
        Ok(all)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for space in self.spaces.iter_mut().take(self.registered) {
            // SAFETY: Registered, by the invariant; nobody is in it when this returns, as the caller
            // takes the lock that is held meanwhile.
            unsafe { raw::unregister_pfn_address_space(space) };
        }
    }
}

/// Hears of every memory failure that the kernel has dealt with. Gone when dropped.
///
/// # Invariants
///
/// The pointer is what `dmem_watch_failures()` returned for [`heard`].
pub(crate) struct Listener(Option<NonNull<c_void>>);

// SAFETY: May be unregistered by any task.
unsafe impl Send for Listener {}
// SAFETY: A shared value has no operations.
unsafe impl Sync for Listener {}

impl Listener {
    /// Begins to listen, where the kernel has the tracepoint for it.
    pub(crate) fn new() -> Self {
        // SAFETY: The function fits, and stays loaded until it is unregistered.
        let watched = unsafe { raw::dmem_watch_failures(Some(heard)) };
        if watched.is_null() {
            pr_notice!("errors in memory that is not mapped are heard of by machine check only\n");
        }
        // INVARIANT: Registered just now, if it is not null.
        Self(NonNull::new(watched))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(watched) = self.0 {
            // SAFETY: Registered, by the invariant.
            unsafe { raw::dmem_unwatch_failures(watched.as_ptr(), Some(heard)) };
        }
    }
}

/// Called when the kernel has dealt with a memory failure, be the memory mapped or not. Goes on to
/// [`poison::note`].
///
/// # Safety
///
/// None but those of a tracepoint's probe: it may not sleep.
unsafe extern "C" fn heard(_: *mut c_void, pfn: c_ulong, _: c_int, _: c_int) {
    let at = PhysAddr::from_raw(from_ulong(pfn) << PAGE_SHIFT);
    if has_no_page(at) {
        poison::note(at);
    }
}

/// Called for every mapping of a device's inode, of every process, when an error was reported in one
/// of its ranges: says which page of the mapping's file it is, so that the process gets SIGBUS with
/// the address. Goes on to [`poison::note`].
///
/// An answer of 0 for a page that the mapping does not reach would have the process killed.
///
/// # Safety
///
/// `vma` must be valid and its bounds stable: `i_mmap_rwsem` is held for reading, and RCU. `pgoff`
/// must be valid for writes.
unsafe extern "C" fn pfn_to_vma_pgoff(
    vma: *mut raw::vm_area_struct,
    pfn: c_ulong,
    pgoff: *mut c_ulong,
) -> c_int {
    let at = PhysAddr::from_raw(from_ulong(pfn) << PAGE_SHIFT);
    poison::note(at);
    let Some(vma) = NonNull::new(vma) else {
        return EFAULT.to_errno();
    };
    // SAFETY: By the safety requirement. A VMA with this driver's operations holds a file of this
    // driver; others of the same inode were made by another driver, before.
    let (device, window) = unsafe {
        if !is_ours(vma) {
            return EFAULT.to_errno();
        }
        (device_of(vma.as_ref().vm_file), window_of(vma.as_ptr()))
    };
    let page = device.map().pgoff_of(at).filter(|_| device.is_live());
    match (page, window) {
        (Some(page), Some(window)) if window.maps(page) => {
            // SAFETY: By the safety requirement.
            unsafe { pgoff.write(to_ulong(page.raw())) };
            0
        }
        _ => EFAULT.to_errno(),
    }
}
