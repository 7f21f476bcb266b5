// SPDX-License-Identifier: GPL-2.0

//! Proof that Rust and C mean the same memory.
//!
//! bindgen lays structures out with libclang, the kernel was built with gcc. `helpers.c` records
//! what gcc chose for the structures this driver shares with the kernel; loading fails where
//! bindgen differs.

use core::mem::{offset_of, size_of};

use super::raw;

/// What Rust believes `helpers.c` has recorded.
const HERE: raw::dmem_layout = raw::dmem_layout {
    dev_dax_size: size_of::<raw::dev_dax>(),
    dev_dax_dev: offset_of!(raw::dev_dax, dev),
    dev_dax_nr_range: offset_of!(raw::dev_dax, nr_range),
    dev_dax_ranges: offset_of!(raw::dev_dax, ranges),
    dev_dax_range_size: size_of::<raw::dev_dax_range>(),
    dax_device_driver_size: size_of::<raw::dax_device_driver>(),
    dax_device_driver_probe: offset_of!(raw::dax_device_driver, probe),
    vm_fault_size: size_of::<raw::vm_fault>(),
    vm_operations_size: size_of::<raw::vm_operations_struct>(),
    file_operations_size: size_of::<raw::file_operations>(),
    vm_area_desc_size: size_of::<raw::vm_area_desc>(),
    inode_size: size_of::<raw::inode>(),
};

/// Whether every structure has the layout gcc gave it.
pub(crate) fn agrees() -> bool {
    // SAFETY: `dmem_layout` is a constant of this module's C part.
    unsafe { raw::dmem_layout == HERE }
}
