// SPDX-License-Identifier: GPL-2.0

//! Claims on physical memory in `/proc/iomem`, and the question whether it has struct pages.

use core::ptr::addr_of_mut;
use kernel::prelude::*;
use kernel::str::{CStr, CString};

use crate::error::Error;
use crate::plan::{DevRange, PhysAddr, PAGE_SHIFT, PAGE_SIZE};

use super::{from_ulong, raw, to_ulong};

/// A device's ranges, claimed as busy so that neither another driver nor `/dev/mem` gets at them.
///
/// # Invariants
///
/// Each element of `claimed` is a busy resource of that start and length named by `name`.
pub(crate) struct Reservation {
    claimed: KVec<Claim>,
    name: CString,
}

#[derive(Clone, Copy)]
struct Claim {
    start: u64,
    len: u64,
}

impl Reservation {
    /// Claims all `ranges` under the device's name, or none.
    pub(crate) fn new(name: &CStr, ranges: &[DevRange]) -> Result<Self, Error> {
        let mut this = Self {
            claimed: KVec::with_capacity(ranges.len(), GFP_KERNEL)?,
            name: CString::try_from(name)?,
        };
        for range in ranges {
            this.claim(range)?;
        }
        Ok(this)
    }

    /// The name the ranges are claimed under.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    fn claim(&mut self, range: &DevRange) -> Result<(), Error> {
        let claim = Claim {
            start: range.start.raw(),
            len: bytes(range)?,
        };
        // SAFETY: `iomem_resource` is the kernel's; the name outlives the resource, which `drop`
        // releases while `self.name` still exists.
        let resource = unsafe {
            raw::__request_region(
                addr_of_mut!(raw::iomem_resource),
                claim.start,
                claim.len,
                self.name.as_char_ptr(),
                0,
            )
        };
        if resource.is_null() {
            return Err(Error::RangeTaken { start: range.start });
        }
        // INVARIANT: The region was claimed just now. There is room for every range.
        self.claimed.push(claim, GFP_KERNEL).map_err(|error| {
            release(claim);
            error.into()
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for claim in &self.claimed {
            release(*claim);
        }
    }
}

fn release(claim: Claim) {
    // SAFETY: Only regions claimed by `Reservation::claim` come here, once.
    unsafe { raw::__release_region(addr_of_mut!(raw::iomem_resource), claim.start, claim.len) };
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

fn bytes(range: &DevRange) -> Result<u64, Error> {
    range
        .pages
        .checked_mul(PAGE_SIZE)
        .ok_or(Error::Kernel(EOVERFLOW))
}
