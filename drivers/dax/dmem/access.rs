// SPDX-License-Identifier: GPL-2.0

//! ptrace and `/proc/PID/mem`: reads and writes of a mapping by somebody else.
//!
//! The kernel has checked that the caller may ptrace the process, and calls this under the mmap
//! read lock, as there are no pages it could look at itself. The memory is mapped into the kernel
//! for each page's copy only.

use crate::device::Device;
use crate::ffi::kernel_map::KernelMap;
use crate::ffi::liveness::Section;
use crate::ffi::vma::Access;
use crate::plan::{Extent, Leaf, PAGE_SIZE};
use crate::poison;

/// Copies as many bytes as the VMA and the device have from its address on. Returns how many.
///
/// What is mapped already does not matter: no leaf is needed, none is made.
pub(crate) fn access(device: &Device, access: &Access<'_>) -> u64 {
    let _section = Section::enter();
    if !device.is_live() || !access.is_permitted() {
        return 0;
    }
    let mut done = 0;
    while let Some(copied) = copy_in_page(device, access, done) {
        done += copied;
    }
    done
}

/// Copies what lies in one page, `done` bytes into the access. `None` at the end of it, of the VMA
/// or of the device, and at a poisoned page.
fn copy_in_page(device: &Device, access: &Access<'_>, done: u64) -> Option<u64> {
    let left = access.len().checked_sub(done).filter(|left| *left > 0)?;
    let addr = access.addr().checked_add(done)?;
    let within = addr.bytes_above(addr.align_down(Leaf::Pte))?;
    let len = left.min(PAGE_SIZE.saturating_sub(within));
    let start = device.map().phys(access.window()?.pgoff_at(addr)?)?;
    let page = Extent {
        start,
        len: PAGE_SIZE,
    };
    if !poison::is_sound(&page) {
        return None;
    }
    let copied = access.copy(&KernelMap::new(&page).ok()?, within, done, len);
    Some(copied).filter(|copied| *copied > 0)
}
