// SPDX-License-Identifier: GPL-2.0

//! What KVM gets for a poisoned page that its guest has touched.
//!
//! A refused fault ends the guest: KVM gives the VMM EFAULT, and QEMU pauses the guest for good. For
//! memory with pages KVM does better (`arch/x86/kvm/mmu/mmu.c`, `kvm_handle_error_pfn`): it sends the
//! thread SIGBUS, leaves the kernel, and the VMM injects a machine check. It does not do so for a
//! VMA without pages, as it learns of poison from `get_user_pages()` alone.
//!
//! So the fault handler does it in its place. It
//!
//! 1. sends the thread SIGBUS, `BUS_MCEERR_AR`, with the address;
//! 2. invalidates the address, whereupon KVM throws away what it is about to find there and tries
//!    anew (`is_page_fault_stale`), which it does not get to as there is a signal;
//! 3. maps a *stand-in* there, a page of zeros, as KVM demands to find something.
//!
//! On its way out of the kernel, before it gets the signal, the thread removes the stand-in. Until
//! then, that is while KVM goes from one line to the next, whoever else looks at the address finds
//! zeros: not the poison, which may hold bytes of a former tenant.
//!
//! Lock order: `STAND_INS` is innermost, taken by faults under the mmap read lock and by tasks on
//! their way out.

use kernel::prelude::*;

use crate::ffi::globals::STAND_INS;
use crate::ffi::stand_in::StandIn;
use crate::ffi::task::{tell_of_failure, wait_for_tasks, BlankPromise};
use crate::insert::{FaultSite, Installed};
use crate::plan::{Leaf, PhysAddr, Placement};
use crate::poison;

/// Stand-ins that are not lent, all of them zero. As many were made as were lent at a time.
pub(crate) struct StandIns {
    pages: KVec<StandIn>,
    /// Whether there was ever one.
    used: bool,
}

impl StandIns {
    pub(crate) const fn new() -> Self {
        Self {
            pages: KVec::new(),
            used: false,
        }
    }
}

/// A stand-in that is mapped in the place of a poisoned page.
pub(crate) struct Loan {
    lost: PhysAddr,
    page: StandIn,
}

impl Loan {
    /// Removes the stand-in from wherever it is mapped.
    pub(crate) fn end(self) {
        poison::unmap(self.lost);
        self.page.clear();
        // Without memory for the list this page is lost to the kernel: see `StandIn`.
        let _ = STAND_INS.lock().pages.push(self.page, GFP_KERNEL);
    }
}

/// Answers KVM's question for the poisoned page at `lost`. Whether it could; nothing has changed
/// otherwise.
pub(crate) fn lend(site: &FaultSite<'_>, lost: PhysAddr) -> bool {
    match try_to_lend(site, lost) {
        Ok(()) => true,
        Err(_) => {
            pr_warn!(
                "{:#x}: touched by a guest, which cannot be told of the error\n",
                lost.raw()
            );
            false
        }
    }
}

fn try_to_lend(site: &FaultSite<'_>, lost: PhysAddr) -> Result {
    let promise = BlankPromise::new()?;
    let page = take()?;
    let at = Placement {
        virt: site.addr().align_down(Leaf::Pte),
        phys: page.phys(),
        pages: 1,
    };
    promise
        .make(Loan { lost, page })
        .map_err(|loan| put_back(loan.page))?;
    site.clear(at.virt, Leaf::Pte);
    tell_of_failure(at.virt);
    match site.install(Leaf::Pte, at) {
        Installed::Mapped => Ok(()),
        // The promise is kept in any case.
        Installed::Conflict => Err(EFAULT),
    }
}

fn take() -> Result<StandIn> {
    let mut stand_ins = STAND_INS.lock();
    stand_ins.used = true;
    match stand_ins.pages.pop() {
        Some(page) => Ok(page),
        None => StandIn::new(),
    }
}

fn put_back(page: StandIn) -> Error {
    let _ = STAND_INS.lock().pages.push(page, GFP_KERNEL);
    ESRCH
}

/// Ends lending, at the end of the module, when no promise is left.
pub(crate) fn finish() {
    let stand_ins = core::mem::replace(&mut *STAND_INS.lock(), StandIns::new());
    if stand_ins.used {
        wait_for_tasks();
    }
    drop(stand_ins);
}
