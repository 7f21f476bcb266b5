// SPDX-License-Identifier: GPL-2.0

//! The way of a page fault: from the address to the leaf that maps it.
//!
//! [`fault`] is called under the mmap read lock or the VMA lock, [`before_split`] and
//! [`before_move`] under the mmap write lock. All leave the page-table locks to `insert.rs` and the
//! kernel.

use crate::device::Device;
use crate::ffi::liveness::Section;
use crate::ffi::trace;
use crate::ffi::vma::{Copied, Splitting};
use crate::insert::{FaultSite, Installed};
use crate::loan;
use crate::plan::{fill, fits, Leaf, Placement, VirtAddr};
use crate::poison::{is_sound, screen, Look, Screened};

/// What becomes of a fault.
pub(crate) enum Answer {
    /// The access can be tried again.
    Done,
    /// No leaf of this size can be here; the kernel asks for the next smaller one.
    TrySmaller,
    /// There is no memory behind the address.
    Sigbus,
    /// The memory behind the address has failed.
    Poisoned,
}

/// Maps the faulting address with a leaf of the size the kernel asks for, if that fits.
///
/// The kernel begins with 1 GiB, so that the largest leaf the addresses allow is what remains. A
/// fault for 4 KiB fills the 2 MiB around it. No leaf leads to poison.
pub(crate) fn fault(device: &Device, site: &FaultSite<'_>, leaf: Leaf) -> Answer {
    let answer = resolve(device, site, leaf);
    device.stats().count_fault(leaf, &answer);
    trace::fault(device, site, leaf, &answer);
    answer
}

/// Does what [`fault`] says.
#[inline]
fn resolve(device: &Device, site: &FaultSite<'_>, leaf: Leaf) -> Answer {
    let _section = Section::enter();
    if !device.is_live() {
        return Answer::Sigbus;
    }
    let Some(window) = site.window() else {
        return Answer::Sigbus;
    };
    let map = device.map();
    let placement = match leaf {
        Leaf::Pte => fill(&map, &window, site.addr()),
        Leaf::Pmd | Leaf::Pud => fits(&map, &window, site.addr(), leaf),
    };
    let Some(placement) = placement else {
        return match leaf {
            Leaf::Pte => Answer::Sigbus,
            Leaf::Pmd | Leaf::Pud => Answer::TrySmaller,
        };
    };
    let look = Look::now();
    let placement = match screen(device, look, placement, site.addr(), leaf) {
        Screened::Sound(placement) => placement,
        Screened::Smaller => return Answer::TrySmaller,
        Screened::Poisoned => {
            let lost = placement.phys_at(site.addr());
            return match lost {
                Some(lost) if site.is_for_guest() && loan::lend(site, lost) => Answer::Done,
                _ => Answer::Poisoned,
            };
        }
    };
    let giants = (leaf == Leaf::Pud).then(|| device.giants().lock());
    let installed = site.install(leaf, placement);
    drop(giants);
    match installed {
        Installed::Mapped => {
            if !look.still_holds() {
                take_back(device, &placement);
            }
            Answer::Done
        }
        Installed::Conflict => Answer::Sigbus,
    }
}

/// Removes what was mapped while an error was being reported, if it is that memory: whoever removed
/// the page from all mappings may have come too early for this one.
#[cold]
fn take_back(device: &Device, placement: &Placement) {
    if is_sound(&placement.extent()) {
        return;
    }
    if let Some(pgoff) = device.map().pgoff_of(placement.phys) {
        device.drop_leaves(pgoff, placement.pages);
    }
}

/// Makes any page boundary a safe place to split a VMA at.
///
/// The kernel removes a 2 MiB leaf that straddles the boundary (`vma_adjust_trans_huge`) but does
/// not know 1 GiB leaves there: it would take one for a table of PMDs (`mm_find_pmd`).
pub(crate) fn before_split(vma: &Splitting<'_>, addr: VirtAddr) {
    vma.stop_faults();
    if !addr.is_aligned(Leaf::Pud) && vma.has_pud_leaf(addr) {
        vma.drop_leaf(addr, Leaf::Pud);
    }
}

/// Makes every move of a mapping safe.
///
/// mremap moves page tables entry by entry, and where the new place is not congruent to the old one
/// modulo 1 GiB it takes a 1 GiB leaf for a bad table (`mm/mremap.c`, `move_page_tables`). Without
/// leaves there is nothing to move, and later accesses bring the largest that fit the new place.
/// The kernel keeps faults out of the old place meanwhile (`move_vma`), but not out of other
/// mappings of the same memory, whose leaves go as well.
pub(crate) fn before_move(device: &Device, vma: &Copied<'_>) {
    if vma.is_moving() {
        if let Some(window) = vma.window() {
            device.drop_leaves(window.pgoff(), window.pages());
        }
    }
}
