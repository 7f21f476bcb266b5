// SPDX-License-Identifier: GPL-2.0

//! Claims on physical memory in `/proc/iomem`, and the question whether it has struct pages.

use core::ptr::addr_of_mut;
use kernel::prelude::*;
use kernel::str::{CStr, CString};

use crate::error::Error;
use crate::plan::{DevRange, Extent, PhysAddr, PAGE_SHIFT};

use super::{from_ulong, raw, to_ulong};

/// Physical memory of a device, claimed as busy so that neither another driver nor `/dev/mem` gets at them.
///
/// # Invariants
///
/// Each element of `claimed` is a busy resource of that start and length named by `name`.
pub(crate) struct Reservation {
    claimed: KVec<Extent>,
    name: CString,
}

impl Reservation {
    /// Claims all `extents` under the device's name, or none.
    pub(crate) fn new(
        name: &CStr,
        extents: impl IntoIterator<Item = Extent>,
    ) -> Result<Self, Error> {
        let mut this = Self {
            claimed: KVec::new(),
            name: CString::try_from(name)?,
        };
        for extent in extents {
            this.claim(extent)?;
        }
        Ok(this)
    }

    /// The name the ranges are claimed under.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// What is claimed.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.claimed
    }

    fn claim(&mut self, claim: Extent) -> Result<(), Error> {
        self.claimed.reserve(1, GFP_KERNEL)?;
        // SAFETY: `iomem_resource` is the kernel's; the name outlives the resource, which `drop`
        // releases while `self.name` still exists.
        let resource = unsafe {
            raw::__request_region(
                addr_of_mut!(raw::iomem_resource),
                claim.start.raw(),
                claim.len,
                self.name.as_char_ptr(),
                0,
            )
        };
        if resource.is_null() {
            return Err(Error::RangeTaken { start: claim.start });
        }
        // INVARIANT: The region was claimed just now. There is room for it.
        Ok(self.claimed.push(claim, GFP_KERNEL)?)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for claim in &self.claimed {
            // SAFETY: Claimed by `claim`, by the invariant, and released once.
            unsafe {
                raw::__release_region(
                    addr_of_mut!(raw::iomem_resource),
                    claim.start.raw(),
                    claim.len,
                );
            }
        }
    }
}

/// Whether the memory there has no struct page.
pub(super) fn has_no_page(at: PhysAddr) -> bool {
    let mut pfn = 0;
    // SAFETY: As in `first_page_struct`.
    unsafe { !raw::dmem_first_valid_pfn(to_ulong(at.pfn()), 1, &mut pfn) }
}

/// The first page of the range that has a struct page.
///
/// Such a page may be on a free list, in use or belong to another driver's memory map: memory of
/// this driver must have none.
pub(crate) fn first_page_struct(range: &DevRange) -> Option<PhysAddr> {
    let mut pfn = 0;
    let (start, pages) = (to_ulong(range.start.pfn()), to_ulong(range.pages));
    // SAFETY: Reads the memory section table only; `pfn` is valid for writes.
    let found = unsafe { raw::dmem_first_valid_pfn(start, pages, &mut pfn) };
    found.then(|| PhysAddr::from_raw(from_ulong(pfn) << PAGE_SHIFT))
}
