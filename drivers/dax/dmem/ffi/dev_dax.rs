// SPDX-License-Identifier: GPL-2.0

//! A device on the dax bus, as its driver's probe and remove see it.

use core::marker::PhantomData;
use core::ptr::{addr_of_mut, NonNull};
use core::slice;
use kernel::prelude::*;
use kernel::str::CStr;

use crate::error::Error;
use crate::plan::{DevRange, PageOff, PhysAddr, PAGE_SIZE};

use super::inode::DaxInode;
use super::{from_ulong, raw};

/// A dax device under its device lock.
///
/// # Invariants
///
/// The pointer is a registered `dev_dax` whose device lock is held for `'a`.
pub(crate) struct DevDax<'a>(NonNull<raw::dev_dax>, PhantomData<&'a ()>);

impl<'a> DevDax<'a> {
    /// # Safety
    ///
    /// `dev_dax` must be a registered device whose lock is held for `'a`, as in probe and remove.
    pub(super) unsafe fn from_raw(dev_dax: NonNull<raw::dev_dax>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(dev_dax, PhantomData)
    }

    pub(super) fn device(&self) -> *mut raw::device {
        // SAFETY: Valid by the invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.0.as_ptr()).dev) }
    }

    pub(super) fn kobject(&self) -> *mut raw::kobject {
        // SAFETY: As above.
        unsafe { addr_of_mut!((*self.0.as_ptr()).dev.kobj) }
    }

    /// `daxX.Y`.
    pub(crate) fn name(&self) -> &'a CStr {
        // SAFETY: A registered device has a name, and keeps it while the device lock is held.
        unsafe { CStr::from_char_ptr(raw::dev_name(self.device())) }
    }

    /// Device number of the node.
    pub(crate) fn devt(&self) -> u32 {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.0.as_ptr()).dev.devt }
    }

    /// The dax inode, with a reference of its own.
    pub(crate) fn inode(&self) -> DaxInode {
        // SAFETY: Valid by the invariant; a `dev_dax` holds its `dax_dev`, which contains the
        // inode.
        unsafe {
            let inode = raw::dax_inode((*self.0.as_ptr()).dax_dev);
            DaxInode::get(NonNull::new_unchecked(inode))
        }
    }

    /// A copy of the ranges as they are now.
    ///
    /// The dax core lets root add ranges through sysfs under locks of its own that drivers cannot
    /// take (`dax_dev_rwsem` is not exported): adding one at the very moment of binding is a race,
    /// for this driver as for every other on the bus.
    pub(crate) fn ranges(&self) -> Result<KVec<DevRange>, Error> {
        // SAFETY: Valid by the invariant; `ranges` has `nr_range` elements.
        let ranges = unsafe {
            let dev_dax = self.0.as_ref();
            match usize::try_from(dev_dax.nr_range) {
                Ok(count) if count > 0 => slice::from_raw_parts(dev_dax.ranges, count),
                _ => &[],
            }
        };
        let mut copy = KVec::with_capacity(ranges.len(), GFP_KERNEL)?;
        for range in ranges {
            copy.push(
                DevRange {
                    pgoff: PageOff::from_raw(from_ulong(range.pgoff)),
                    start: PhysAddr::from_raw(range.range.start),
                    // `end` is inclusive.
                    pages: (range
                        .range
                        .end
                        .wrapping_sub(range.range.start)
                        .wrapping_add(1))
                        / PAGE_SIZE,
                },
                GFP_KERNEL,
            )?;
        }
        Ok(copy)
    }

    /// Removes every leaf of every mapping, after all faults that began before the device was
    /// marked dead have ended.
    ///
    /// The device itself is never marked alive (`run_dax()`): a mapping that device_dax made before
    /// this driver was bound must keep failing, as its fault handler would look for pages.
    pub(crate) fn kill(&self, inode: &DaxInode) {
        // SAFETY: Valid by the invariant; sleeping is allowed.
        unsafe {
            raw::kill_dev_dax(self.0.as_ptr());
            // A munmap of the same moment clears an entry and then asks the inode whether it had
            // pages, in one section without preemption (`mm/huge_memory.c`, `zap_huge_pud`): let it
            // finish.
            raw::synchronize_rcu_expedited();
        }
        inode.set_has_pages(true);
    }
}
