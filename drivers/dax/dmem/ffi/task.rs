// SPDX-License-Identifier: GPL-2.0

//! The running task.

use super::raw;

/// Lets others run where that is due. Called between steps of long work, without locks.
pub(crate) fn yield_if_due() {
    // SAFETY: Workers and bind sleep as they like.
    unsafe { raw::dmem_cond_resched() };
}
