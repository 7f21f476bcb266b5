// SPDX-License-Identifier: GPL-2.0

//! The running task: giving way to others, and what a vCPU's thread is told and does on its way
//! out of the kernel.

use core::ptr::{null_mut, NonNull};
use kernel::ffi::{c_int, c_short, c_void};
use kernel::prelude::*;

use crate::loan::Loan;
use crate::plan::{VirtAddr, PAGE_SHIFT};

use super::{raw, to_ulong};

/// Lets others run where that is due. Called between steps of long work, without locks.
pub(crate) fn yield_if_due() {
    // SAFETY: Workers and bind sleep as they like.
    unsafe { raw::dmem_cond_resched() };
}

/// Keeps the module loaded. Whether it does: not when the module is going.
pub(crate) fn pin_module() -> bool {
    // SAFETY: `this_module()` is this module, which runs.
    unsafe { raw::try_module_get(super::this_module()) }
}

/// Takes back one [`pin_module`] that was granted.
///
/// The module may be gone a moment later but for what its exit waits for: a work item on a queue
/// of its own, or a task in a promise.
pub(crate) fn unpin_module() {
    // SAFETY: The reference was taken by `pin_module()`.
    unsafe { raw::module_put(super::this_module()) };
}

/// Sends the running task the signal that the page at `page` of its memory has failed.
pub(crate) fn tell_of_failure(page: VirtAddr) {
    let address: *mut c_void = core::ptr::without_provenance_mut(to_ulong(page.raw()));
    // SAFETY: The address is a number to the callee, the task is the running one. What may fail is
    // memory for the signal's details, and the signal itself comes all the same.
    unsafe {
        raw::send_sig_mceerr(
            raw::BUS_MCEERR_AR as c_int,
            address,
            PAGE_SHIFT as c_short,
            raw::dmem_current(),
        )
    };
}

/// A loan that is returned when the running task leaves the kernel.
#[repr(C)]
struct Promise {
    /// First, so that a pointer to it is one to the whole.
    head: raw::callback_head,
    loan: Option<Loan>,
}

/// Where a promise is kept until a loan is promised.
pub(crate) struct BlankPromise(KBox<Promise>);

impl BlankPromise {
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new() -> Result<Self> {
        let promise = Promise {
            head: raw::callback_head {
                next: null_mut(),
                func: Some(keep),
            },
            loan: None,
        };
        Ok(Self(KBox::new(promise, GFP_KERNEL)?))
    }

    /// Has the running task return the loan on its way out of the kernel, or into a guest, before
    /// it gets a signal. Keeps the module loaded until then.
    ///
    /// # Errors
    ///
    /// Gives the loan back where the task, or the module, is about to end.
    pub(crate) fn make(mut self, loan: Loan) -> Result<(), Loan> {
        if !pin_module() {
            return Err(loan);
        }
        self.0.loan = Some(loan);
        let promise = KBox::into_raw(self.0);
        // SAFETY: The structure is on the heap and stays there until `keep` has it.
        let added = unsafe {
            raw::task_work_add(
                raw::dmem_current(),
                &raw mut (*promise).head,
                raw::task_work_notify_mode_TWA_RESUME,
            )
        };
        if added == 0 {
            return Ok(());
        }
        // A VMA holds another reference.
        unpin_module();
        // SAFETY: Nobody else has it.
        let mut promise = unsafe { KBox::from_raw(promise) };
        // It was put there above.
        promise.loan.take().map_or(Ok(()), Err)
    }
}

/// Called in the task on its way out. Goes on to [`Loan::end`].
///
/// # Safety
///
/// `head` must be that of a promise that was made; it is freed.
unsafe extern "C" fn keep(head: *mut raw::callback_head) {
    let Some(head) = NonNull::new(head) else {
        return;
    };
    // SAFETY: `head` is the first field of a `Promise` that `make` has taken out of its box.
    let mut promise = unsafe { KBox::from_raw(head.cast::<Promise>().as_ptr()) };
    if let Some(loan) = promise.loan.take() {
        loan.end();
    }
    drop(promise);
    // Taken by `make`. What follows in this function is waited for by `wait_for_tasks()`.
    unpin_module();
}

/// Waits until no task is in a function of this module that it got into by a promise.
pub(crate) fn wait_for_tasks() {
    // SAFETY: Called at the end of the module, which may sleep.
    unsafe { raw::synchronize_rcu_tasks() };
}
