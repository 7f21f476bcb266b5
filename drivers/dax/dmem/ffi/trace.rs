// SPDX-License-Identifier: GPL-2.0

//! Tracepoints: what `include/trace/events/dax_dmem.h` declares, see Documentation/tracing.md.
//!
//! A tracepoint that is off is an instruction that does nothing, which the kernel overwrites with a
//! jump when it is switched on (a static key). What an event is made of is collected behind it.

use kernel::ffi::c_uint;
use kernel::jump_label::static_branch_unlikely;
use kernel::prelude::*;

use crate::device::Device;
use crate::fault::Answer;
use crate::insert::FaultSite;
use crate::plan::{Extent, Leaf, PhysAddr, Window};

use super::{raw, to_ulong};

/// Whether a tracepoint is on.
macro_rules! is_on {
    ($tracepoint:ident) => {
        // SAFETY: A tracepoint of this module's own C part, whose key is a static key.
        unsafe { static_branch_unlikely!(raw::$tracepoint, raw::tracepoint, key) }
    };
}

/// A device was bound, and so many bytes of it have to be scrubbed; or it was refused.
#[inline(always)]
pub(crate) fn bind(name: &CStr, outcome: Result<&Device, i32>) {
    #[cold]
    fn emit(name: &CStr, outcome: Result<&Device, i32>) {
        let (size, dirty, error) = match outcome {
            Ok(device) => {
                let ranges = device.map();
                let dirty = device.scrub().map_or(0, |scrub| scrub.progress().total);
                (ranges.pages() * Leaf::Pte.size(), dirty, 0)
            }
            Err(error) => (0, 0, error),
        };
        // SAFETY: The name ends in NUL.
        unsafe { raw::rust_do_trace_dax_dmem_bind(name.as_char_ptr(), size, dirty, error) };
    }
    if is_on!(__tracepoint_dax_dmem_bind) {
        emit(name, outcome);
    }
}

/// A device was taken away from its users.
#[inline(always)]
pub(crate) fn unbind(device: &Device) {
    if is_on!(__tracepoint_dax_dmem_unbind) {
        let (name, openers) = (device.name(), device.openers());
        // SAFETY: The name ends in NUL.
        unsafe { raw::rust_do_trace_dax_dmem_unbind(name.as_char_ptr(), openers) };
    }
}

/// A VMA of a device came to be.
#[inline(always)]
pub(crate) fn map(device: &Device, window: &Window) {
    if is_on!(__tracepoint_dax_dmem_map) {
        let (start, end) = (to_ulong(window.start().raw()), to_ulong(window.end().raw()));
        let (name, pgoff) = (device.name(), to_ulong(window.pgoff().raw()));
        // SAFETY: The name ends in NUL.
        unsafe { raw::rust_do_trace_dax_dmem_map(name.as_char_ptr(), start, end, pgoff) };
    }
}

/// A VMA of a device has gone.
#[inline(always)]
pub(crate) fn unmap(device: &Device, window: &Window) {
    if is_on!(__tracepoint_dax_dmem_unmap) {
        let (start, end) = (to_ulong(window.start().raw()), to_ulong(window.end().raw()));
        let (name, pgoff) = (device.name(), to_ulong(window.pgoff().raw()));
        // SAFETY: The name ends in NUL.
        unsafe { raw::rust_do_trace_dax_dmem_unmap(name.as_char_ptr(), start, end, pgoff) };
    }
}

/// A fault was answered.
#[inline(always)]
pub(crate) fn fault(device: &Device, site: &FaultSite<'_>, leaf: Leaf, answer: &Answer) {
    #[cold]
    fn emit(device: &Device, site: &FaultSite<'_>, leaf: Leaf, answer: &Answer) {
        let result = match answer {
            Answer::Done => 0,
            Answer::TrySmaller => 1,
            Answer::Sigbus => 2,
            Answer::Poisoned => 3,
        };
        let (name, address) = (device.name(), to_ulong(site.addr().raw()));
        // SAFETY: The name ends in NUL.
        unsafe {
            raw::rust_do_trace_dax_dmem_fault(name.as_char_ptr(), address, leaf.order(), result)
        };
    }
    if is_on!(__tracepoint_dax_dmem_fault) {
        emit(device, site, leaf, answer);
    }
}

/// What a worker of a scrub does.
#[derive(Clone, Copy)]
pub(crate) enum Scrubbing {
    /// It begins.
    Begun,
    /// All is done.
    Done,
    /// It was told to stop.
    Stopped,
    /// A step could not be made.
    Failed,
}

/// A worker begins or ends; so many bytes from the start of its extent on are done.
#[inline(always)]
pub(crate) fn scrub(extent: &Extent, done: u64, state: Scrubbing) {
    if is_on!(__tracepoint_dax_dmem_scrub) {
        let state: c_uint = match state {
            Scrubbing::Begun => 0,
            Scrubbing::Done => 1,
            Scrubbing::Stopped => 2,
            Scrubbing::Failed => 3,
        };
        // SAFETY: Numbers only.
        unsafe { raw::rust_do_trace_dax_dmem_scrub(extent.start.raw(), extent.len, done, state) };
    }
}

/// A page was taken out of use, or back into it.
#[inline(always)]
pub(crate) fn poison(page: PhysAddr, cleared: bool) {
    if is_on!(__tracepoint_dax_dmem_poison) {
        // SAFETY: Numbers only.
        unsafe { raw::rust_do_trace_dax_dmem_poison(page.raw(), cleared) };
    }
}

/// A device was unbound while so many files are open; none: the last of them was closed.
#[inline(always)]
pub(crate) fn quarantine(device: &Device) {
    if is_on!(__tracepoint_dax_dmem_quarantine) {
        let (name, openers) = (device.name(), device.openers());
        // SAFETY: The name ends in NUL.
        unsafe { raw::rust_do_trace_dax_dmem_quarantine(name.as_char_ptr(), openers) };
    }
}
