// SPDX-License-Identifier: GPL-2.0

//! Everything that talks to C: with `mm/dmem/insert.rs`, the only code that is `unsafe`.
//!
//! Each file wraps one kernel object and offers the rest of the driver a safe view of it. The
//! callbacks the kernel calls are here as well; they turn raw arguments into those views and go
//! straight on to the safe code that is named in their documentation.

pub(crate) mod attributes;
pub(crate) mod badblocks_file;
pub(crate) mod bus;
pub(crate) mod char_device;
pub(crate) mod dev_dax;
pub(crate) mod globals;
pub(crate) mod inode;
pub(crate) mod kernel_map;
pub(crate) mod layout;
pub(crate) mod leaves;
pub(crate) mod liveness;
pub(crate) mod machine_check;
pub(crate) mod memory_failure;
pub(crate) mod poison_file;
pub(crate) mod raw;
pub(crate) mod region;
pub(crate) mod reservation;
pub(crate) mod space;
pub(crate) mod stand_in;
pub(crate) mod task;
pub(crate) mod trace;
pub(crate) mod vma;
pub(crate) mod workqueue;

// The driver depends on X86_64: the conversions below lose nothing.
const _: () = assert!(core::mem::size_of::<usize>() == core::mem::size_of::<u64>());

/// A 64-bit number as the kernel's `unsigned long`.
pub(crate) const fn to_ulong(value: u64) -> usize {
    value as usize
}

/// The kernel's `unsigned long` as a 64-bit number.
pub(crate) const fn from_ulong(value: usize) -> u64 {
    value as u64
}

/// This module, as C's `THIS_MODULE`.
const fn this_module() -> *mut raw::module {
    #[cfg(dmem_this_module_in_metadata)]
    return <crate::DaxDmem as kernel::ModuleMetadata>::THIS_MODULE.as_ptr();
    #[cfg(not(dmem_this_module_in_metadata))]
    crate::THIS_MODULE.as_ptr()
}

/// A full memory barrier between CPUs.
pub(crate) fn smp_mb() {
    #[cfg(dmem_barrier_takes_ordering)]
    kernel::sync::barrier::smp_mb(kernel::sync::barrier::Full);
    #[cfg(not(dmem_barrier_takes_ordering))]
    kernel::sync::barrier::smp_mb();
}

/// A value that is only read, shared with C as a table of constants.
#[repr(transparent)]
struct Table<T>(T);

// SAFETY: Nothing changes a `Table` after it was made at compile time; the pointers inside lead to
// statics and functions.
unsafe impl<T> Sync for Table<T> {}
