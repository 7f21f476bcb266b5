// SPDX-License-Identifier: GPL-2.0

//! mmap of a page-less device: what is refused, which address is chosen, and that it is counted.
//!
//! Called under the mmap write lock of the caller, or at the end of a process; takes the dax core's
//! SRCU section only.

use kernel::str::CStr;

use crate::device::Device;
use crate::dma;
use crate::error::Error;
use crate::ffi::liveness::Section;
use crate::ffi::space::Space;
use crate::ffi::trace;
use crate::ffi::vma::Request;
use crate::plan::{congruence, PageOff, Window, PAGE_SIZE};

/// How much there is to be mapped, bytes.
///
/// # Errors
///
/// As with a mapping, when the device has been unbound.
pub(crate) fn size(device: &Device) -> Result<u64, Error> {
    match device.is_live() {
        true => Ok(device.map().pages() * PAGE_SIZE),
        false => Err(Error::NotBound),
    }
}

/// Accepts a shared mapping that lies inside the device, at any page of it.
///
/// # Errors
///
/// Everything else is refused now and said why in the log, not by a SIGBUS later.
pub(crate) fn prepare(device: &Device, request: Request<'_>) -> Result<(), Error> {
    let _section = Section::enter();
    if !device.is_live() {
        return Err(Error::NotBound);
    }
    if let Some(why) = objection(device, &request) {
        request.log_refusal(device.name(), why);
        return Err(Error::MapRefused);
    }
    if let Some(space) = Space::current() {
        dma::note_mapper(device, space)?;
    }
    request.accept();
    Ok(())
}

/// What is wrong with the request, if anything.
fn objection(device: &Device, request: &Request<'_>) -> Option<&'static CStr> {
    if !request.is_shared() {
        return Some(c"memory without struct page cannot be copied on write; use MAP_SHARED");
    }
    match request.pgoff().checked_add(request.pages()) {
        Some(end) if end.raw() <= device.map().pages() => None,
        _ => Some(c"it reaches beyond the end of the device"),
    }
}

/// A VMA has come to be as a copy of another one: for a child, by a split or to move to.
pub(crate) fn copied(device: &Device, space: Option<Space>, window: Option<&Window>) {
    let noted = space.map(|space| dma::note_mapper(device, space));
    if !matches!(noted, Some(Ok(()))) {
        device.set_unknown_mapper();
    }
    begun(device, window);
}

/// A VMA has come to be: by an mmap that was accepted, or as a copy.
pub(crate) fn begun(device: &Device, window: Option<&Window>) {
    device.stats().add_mapping();
    if let Some(window) = window {
        trace::map(device, window);
    }
}

/// A VMA is going: by munmap, a move or the end of the process.
pub(crate) fn ended(device: &Device, window: Option<&Window>) {
    device.stats().drop_mapping();
    if let Some(window) = window {
        trace::unmap(device, window);
    }
}

/// A mapping that looks for an address.
pub(crate) struct Spot {
    /// Address the caller would like, or 0.
    pub(crate) hint: u64,
    /// Whether the caller insists on that address (MAP_FIXED), be it 0.
    pub(crate) is_fixed: bool,
    /// Bytes.
    pub(crate) len: u64,
    /// First device offset.
    pub(crate) pgoff: PageOff,
}

/// Finds an address at which large leaves are possible.
///
/// `find` looks for a hole of so many bytes, at an address it is given if that is free (0:
/// anywhere). A hole larger than the mapping by 1 GiB (2 MiB) always contains a start that is
/// congruent to the physical memory; where there is none, or the caller's own address can be had,
/// any hole will do.
pub(crate) fn choose_address<E>(
    device: &Device,
    spot: &Spot,
    find: impl Fn(u64, u64) -> Result<u64, E>,
) -> Result<u64, E> {
    let plain = find(spot.hint, spot.len)?;
    if spot.is_fixed || (spot.hint != 0 && plain == spot.hint) {
        return Ok(plain);
    }
    let roomy = || {
        let wish = congruence(&device.map(), spot.pgoff, spot.len / PAGE_SIZE)?;
        let hole = find(0, spot.len.checked_add(wish.modulus())?).ok()?;
        wish.apply(hole)
    };
    Ok(roomy().unwrap_or(plain))
}
