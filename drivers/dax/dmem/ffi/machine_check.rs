// SPDX-License-Identifier: GPL-2.0

//! The machine check decoder: uncorrectable memory errors, be the memory mapped or not.

use core::ptr::null_mut;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

use crate::plan::PhysAddr;
use crate::poison;

use super::{from_ulong, raw};

/// This driver's place in the chain of decoders. Gone when dropped.
///
/// # Invariants
///
/// The block is registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Decoder {
    #[pin]
    block: Opaque<raw::notifier_block>,
}

// SAFETY: The chain has its own lock.
unsafe impl Send for Decoder {}
// SAFETY: A shared `Decoder` has no operations.
unsafe impl Sync for Decoder {}

impl Decoder {
    /// Registers it, before the one that has processes signalled: what they are told of is out of
    /// use by then.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Registered here.
            block <- Opaque::ffi_init(|slot: *mut raw::notifier_block| {
                // SAFETY: `slot` is valid for writes and does not move until it is unregistered.
                unsafe {
                    slot.write(raw::notifier_block {
                        notifier_call: Some(decode),
                        next: null_mut(),
                        priority: raw::mce_notifier_prios_MCE_PRIO_EARLY as c_int,
                    });
                    raw::mce_register_decode_chain(slot);
                }
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Decoder {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, by the invariant.
        unsafe { raw::mce_unregister_decode_chain(self.block.get()) };
    }
}

/// Called for every machine check that was logged, in process context. Goes on to
/// [`poison::report`].
///
/// # Safety
///
/// `data` must be a valid `struct mce`, as the chain passes it.
unsafe extern "C" fn decode(_: *mut raw::notifier_block, _: usize, data: *mut c_void) -> c_int {
    const NOTIFY_DONE: c_int = raw::NOTIFY_DONE as c_int;
    let mce = data.cast::<raw::mce>();
    // SAFETY: By the safety requirement.
    let address = unsafe {
        if mce.is_null()
            || !raw::mce_usable_address(mce)
            || !raw::mce_is_memory_error(mce)
            || raw::mce_is_correctable(mce)
        {
            return NOTIFY_DONE;
        }
        raw::dmem_mce_address(mce)
    };
    let at = PhysAddr::from_raw(from_ulong(address));
    // Memory with pages is the kernel's to deal with.
    if super::reservation::has_no_page(at) {
        poison::report(at);
    }
    NOTIFY_DONE
}
