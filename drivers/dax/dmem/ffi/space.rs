// SPDX-License-Identifier: GPL-2.0

//! Address spaces of processes, and whether somebody holds on to them.

use core::ptr::NonNull;
use kernel::mm::Mm;
use kernel::sync::aref::ARef;

use super::raw;

/// An address space: its structure, not what is mapped there, which goes with the process.
pub(crate) struct Space(ARef<Mm>);

impl Space {
    /// # Safety
    ///
    /// `mm` must be valid during the call.
    pub(super) unsafe fn of(mm: NonNull<raw::mm_struct>) -> Self {
        // SAFETY: By the safety requirement.
        Self(ARef::from(unsafe { Mm::from_raw(mm.as_ptr()) }))
    }

    /// The running task's own. `None` for a kernel thread.
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: The running task's address space cannot go while it runs here.
        unsafe { NonNull::new((*raw::dmem_current()).mm).map(|mm| Self::of(mm)) }
    }

    /// Whether these `known` references are all there are, be it of processes that run in it.
    pub(crate) fn has_only(&self, known: usize) -> bool {
        // SAFETY: Valid as long as `self` holds it.
        let count = unsafe { raw::dmem_mm_count(self.0.as_raw()) };
        usize::try_from(count).is_ok_and(|count| count <= known)
    }

    /// Whether more than `known` references to it are there, processes that run in it apart: those
    /// of VFIO's containers, which have one for each mapping for DMA that was made from it. KVM and
    /// some others have them, too.
    pub(crate) fn has_more_than(&self, known: usize) -> bool {
        // SAFETY: Valid as long as `self` holds it. The callee asks all CPUs, and may sleep.
        let references = unsafe { raw::dmem_mm_references(self.0.as_raw()) };
        usize::try_from(references).is_ok_and(|references| references > known)
    }
}

impl PartialEq for Space {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0.as_raw(), other.0.as_raw())
    }
}

/// Whether there is any device whose DMA a process may rule, as by VFIO.
pub(crate) fn dma_is_lent() -> bool {
    // SAFETY: Looks at all devices; may sleep.
    unsafe { raw::dmem_dma_is_lent() }
}
