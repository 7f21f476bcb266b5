// SPDX-License-Identifier: GPL-2.0

//! Insertion of special leaves: the one place that writes page tables.
//!
//! The kernel's own `vmf_insert_pfn_*()` ask the PAT memtype tree for the cache mode, and memory
//! that is neither RAM nor tracked there comes out uncached (`arch/x86/mm/pat/memtype.c`,
//! `pfnmap_setup_cachemode`). Here the leaf gets the VMA's own protection, which is write-back.
//!
//! Locks: the caller (a fault) holds the mmap read lock or the VMA lock, so that the VMA and its
//! upper tables stay. The page-table lock of the entry is taken here and released before return;
//! the page table's lock is never taken inside the PMD's.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::ffi::vma::window_of;
use crate::ffi::{from_ulong, raw, to_ulong};
use crate::plan::{Leaf, Placement, VirtAddr, Window, PAGE_SIZE};

/// A page fault that is being answered.
///
/// # Invariants
///
/// The pointer is a valid `vm_fault` on a `VM_PFNMAP` VMA; the mmap read lock or the VMA lock is
/// held for `'a`.
pub(crate) struct FaultSite<'a>(NonNull<raw::vm_fault>, PhantomData<&'a ()>);

/// What became of an insertion.
pub(crate) enum Installed {
    /// The address is mapped, here or by somebody faster.
    Mapped,
    /// Something that is not this memory is mapped there.
    Conflict,
}

impl FaultSite<'_> {
    /// # Safety
    ///
    /// `vmf` must be what the kernel passed to a fault handler of a `VM_PFNMAP` VMA, and be used
    /// during that call only.
    pub(crate) unsafe fn from_raw(vmf: NonNull<raw::vm_fault>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(vmf, PhantomData)
    }

    fn vmf(&self) -> &raw::vm_fault {
        // SAFETY: Valid by the invariant; the kernel changes nothing in it while the handler runs.
        unsafe { self.0.as_ref() }
    }

    fn vma(&self) -> *mut raw::vm_area_struct {
        self.vmf().__bindgen_anon_1.vma
    }

    fn mm(&self) -> *mut raw::mm_struct {
        // SAFETY: The VMA is valid under the lock of the invariant.
        unsafe { (*self.vma()).vm_mm }
    }

    /// The address that was touched.
    pub(crate) fn addr(&self) -> VirtAddr {
        VirtAddr::from_raw(from_ulong(self.vmf().__bindgen_anon_1.address))
    }

    /// The VMA's bounds and device offset.
    pub(crate) fn window(&self) -> Option<Window> {
        // SAFETY: The VMA is valid and its bounds stable under the lock of the invariant.
        unsafe { window_of(self.vma()) }
    }

    /// Whether KVM asks for what a guest has touched, and not a process for what it has touched
    /// itself (`virt/kvm/kvm_main.c`, `hva_to_pfn_remapped`; `mm/gup.c`, `fixup_user_fault`).
    ///
    /// The processor's own page faults can be interrupted by signals, those for other processes
    /// and for DMA are marked, and a futex does not let go of the lock.
    pub(crate) fn is_for_guest(&self) -> bool {
        const THESE: raw::fault_flag =
            raw::fault_flag_FAULT_FLAG_ALLOW_RETRY | raw::fault_flag_FAULT_FLAG_KILLABLE;
        const OTHERS: raw::fault_flag = raw::fault_flag_FAULT_FLAG_USER
            | raw::fault_flag_FAULT_FLAG_REMOTE
            | raw::fault_flag_FAULT_FLAG_INTERRUPTIBLE
            | raw::fault_flag_FAULT_FLAG_VMA_LOCK;
        self.vmf().flags & (THESE | OTHERS) == THESE
    }

    /// Removes what is mapped for these bytes, if anything is, and has the VMA's notifiers told.
    pub(crate) fn clear(&self, virt: VirtAddr, leaf: Leaf) {
        let (start, size) = (to_ulong(virt.raw()), to_ulong(leaf.size()));
        // SAFETY: The VMA is valid under the lock of the invariant; the callee checks the bounds.
        unsafe { raw::zap_special_vma_range(self.vma(), start, size) };
    }

    /// Protection of the VMA, and whether it may be written.
    fn protection(&self) -> (raw::pgprot_t, bool) {
        // SAFETY: The VMA is valid under the lock of the invariant.
        unsafe {
            let vma = &*self.vma();
            (
                vma.vm_page_prot,
                vma.__bindgen_anon_2.vm_flags & raw::VM_WRITE != 0,
            )
        }
    }

    /// Maps `at`: with one leaf, or for [`Leaf::Pte`] with as many as it has pages.
    ///
    /// `at` must come from the plan for this very window: inside the VMA and, for a PMD or PUD,
    /// aligned to it.
    pub(crate) fn install(&self, leaf: Leaf, at: Placement) -> Installed {
        match leaf {
            // SAFETY: The kernel has set `pud` (`pmd`) to the entry that covers the address, in a
            // table that stays under the lock of the invariant.
            Leaf::Pud => unsafe { self.install_huge(self.vmf().pud, at) },
            // SAFETY: As above.
            Leaf::Pmd => unsafe { self.install_huge(self.vmf().pmd, at) },
            Leaf::Pte => self.install_table(at),
        }
    }

    /// # Safety
    ///
    /// `slot` must be the entry of this fault's mm for `at.virt`.
    unsafe fn install_huge<E: HugeEntry>(&self, slot: *mut E, at: Placement) -> Installed {
        let (prot, writable) = self.protection();
        let pfn = to_ulong(at.phys.pfn());
        // SAFETY: `slot` is valid by the safety requirement; its lock is held between `lock` and
        // `dmem_unlock`.
        unsafe {
            let lock = E::lock(self.mm(), slot);
            let old = slot.read_volatile();
            let installed = if old.is_none() || (old.is_leaf() && old.pfn() == pfn) {
                // Present already: made writable, or by somebody faster. Either way the entry gets
                // no less permissive, so that no TLB needs a flush.
                E::special(pfn, prot, writable).set(self.vma(), to_ulong(at.virt.raw()), slot);
                Installed::Mapped
            } else if old.is_leaf() {
                Installed::Conflict
            } else {
                // A table came first; the retried fault goes on below it.
                Installed::Mapped
            };
            raw::dmem_unlock(lock);
            installed
        }
    }

    /// Fills a page table. A function of its own, whose loop has all registers for itself.
    #[inline(never)]
    fn install_table(&self, at: Placement) -> Installed {
        if !self.ensure_table() {
            // A huge leaf came first (huge pages were allowed for the process between the two
            // faults), or the table is missing; the retried fault sorts it out.
            return Installed::Mapped;
        }
        let (prot, writable) = self.protection();
        let pmd = self.vmf().pmd;
        // SAFETY: `ensure_table` saw a table at `pmd`. It stays under the lock of the invariant:
        // page tables of a `VM_PFNMAP` VMA are freed under the mmap write lock only, as
        // MADV_DONTNEED, which frees them under the read lock, is refused for it. The placement
        // lies inside the 2 MiB the table covers, and its entries are changed under the table's
        // lock.
        unsafe {
            let lock = raw::dmem_pte_lock(self.mm(), pmd);
            let mut virt = to_ulong(at.virt.raw());
            let mut pfn = to_ulong(at.phys.pfn());
            let mut slot = raw::dmem_pte_of(pmd, virt);
            for _ in 0..at.pages {
                if raw::dmem_pte_none(slot.read_volatile()) {
                    raw::dmem_set_pte(
                        self.vma(),
                        virt,
                        slot,
                        raw::dmem_special_pte(pfn, prot, writable),
                    );
                }
                virt += to_ulong(PAGE_SIZE);
                pfn += 1;
                slot = slot.add(1);
            }
            raw::dmem_unlock(lock);
        }
        Installed::Mapped
    }

    /// Whether a page table is at the fault's PMD; puts the one the kernel has prepared there where
    /// the entry is empty.
    fn ensure_table(&self) -> bool {
        let vmf = self.0.as_ptr();
        // SAFETY: The kernel has set `pmd` to the entry that covers the address, and `prealloc_pte`
        // to an unused table where it found that entry empty (`mm/memory.c`, `__do_fault`).
        // Ownership of the table goes to the page tables under the PMD's lock.
        unsafe {
            let pmd = (*vmf).pmd;
            let lock = raw::dmem_pmd_lock(self.mm(), pmd);
            let old = pmd.read_volatile();
            let mut table = !old.is_none() && !old.is_leaf();
            if old.is_none() && !(*vmf).prealloc_pte.is_null() {
                raw::dmem_populate_pmd(self.mm(), pmd, (*vmf).prealloc_pte);
                (*vmf).prealloc_pte = core::ptr::null_mut();
                table = true;
            }
            raw::dmem_unlock(lock);
            table
        }
    }
}

/// A page-table entry that can be a leaf of more than a page.
///
/// # Safety
///
/// Implementations must pass their arguments to the functions of their own level.
unsafe trait HugeEntry: Copy {
    /// Takes the lock that guards `slot`.
    ///
    /// # Safety
    ///
    /// `slot` must be a valid entry of `mm`.
    unsafe fn lock(mm: *mut raw::mm_struct, slot: *mut Self) -> *mut raw::spinlock_t;
    /// Whether nothing is mapped.
    fn is_none(self) -> bool;
    /// Whether the entry maps memory itself.
    fn is_leaf(self) -> bool;
    /// Page frame of a leaf.
    fn pfn(self) -> usize;
    /// A special leaf: young, and dirty and writable if so asked.
    fn special(pfn: usize, prot: raw::pgprot_t, writable: bool) -> Self;
    /// Stores the entry.
    ///
    /// # Safety
    ///
    /// `slot` must be the entry for `addr` in the VMA's mm, its lock held.
    unsafe fn set(self, vma: *mut raw::vm_area_struct, addr: usize, slot: *mut Self);
}

macro_rules! huge_entry {
    (
        $entry:ident, $lock:ident, $none:ident, $leaf:ident, $pfn:ident, $special:ident, $set:ident
    ) => {
        // SAFETY: All are functions of this level.
        unsafe impl HugeEntry for raw::$entry {
            unsafe fn lock(mm: *mut raw::mm_struct, slot: *mut Self) -> *mut raw::spinlock_t {
                // SAFETY: By the safety requirement.
                unsafe { raw::$lock(mm, slot) }
            }
            fn is_none(self) -> bool {
                // SAFETY: Looks at the value only.
                unsafe { raw::$none(self) }
            }
            fn is_leaf(self) -> bool {
                // SAFETY: As above.
                unsafe { raw::$leaf(self) }
            }
            fn pfn(self) -> usize {
                // SAFETY: As above.
                unsafe { raw::$pfn(self) }
            }
            fn special(pfn: usize, prot: raw::pgprot_t, writable: bool) -> Self {
                // SAFETY: As above.
                unsafe { raw::$special(pfn, prot, writable) }
            }
            unsafe fn set(self, vma: *mut raw::vm_area_struct, addr: usize, slot: *mut Self) {
                // SAFETY: By the safety requirement.
                unsafe { raw::$set(vma, addr, slot, self) }
            }
        }
    };
}

huge_entry!(
    pud_t,
    dmem_pud_lock,
    dmem_pud_none,
    dmem_pud_leaf,
    dmem_pud_pfn,
    dmem_special_pud,
    dmem_set_pud
);
huge_entry!(
    pmd_t,
    dmem_pmd_lock,
    dmem_pmd_none,
    dmem_pmd_leaf,
    dmem_pmd_pfn,
    dmem_special_pmd,
    dmem_set_pmd
);
