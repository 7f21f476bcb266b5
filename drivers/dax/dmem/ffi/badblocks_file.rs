// SPDX-License-Identifier: GPL-2.0

//! `dax_dmem/badblocks` of a bound device and of a region: see [`BadBlocks`]. Of any length.

use core::mem::offset_of;
use core::ptr::{addr_of, null};
use kernel::ffi::c_char;
use kernel::prelude::*;

use crate::badblocks::BadBlocks;
use crate::plan::{Extent, PhysAddr};

use super::attributes::attribute;
use super::bus::binding_of;
use super::poison_file::show_part;
use super::{raw, Table};

/// The files of a bound device that are not made of one page.
pub(super) const fn device_files() -> *const *const raw::bin_attribute {
    addr_of!(DEVICE_FILES.0).cast()
}

/// The files of a region.
pub(super) const fn region_files() -> *const *const raw::bin_attribute {
    addr_of!(REGION_FILES.0).cast()
}

static DEVICE_FILES: Table<[*const raw::bin_attribute; 2]> = Table([addr_of!(OF_DEVICE.0), null()]);
static REGION_FILES: Table<[*const raw::bin_attribute; 2]> = Table([addr_of!(OF_REGION.0), null()]);

// They tell no physical address; other lists of bad blocks are everybody's, too.
static OF_DEVICE: Table<raw::bin_attribute> = badblocks(read_of_device);
static OF_REGION: Table<raw::bin_attribute> = badblocks(read_of_region);

type Read = unsafe extern "C" fn(
    *mut raw::file,
    *mut raw::kobject,
    *const raw::bin_attribute,
    *mut c_char,
    raw::loff_t,
    usize,
) -> isize;

const fn badblocks(read: Read) -> Table<raw::bin_attribute> {
    Table(raw::bin_attribute {
        attr: attribute(c"badblocks", 0o444),
        read: Some(read),
        ..pin_init::zeroed()
    })
}

/// The region that belongs to the device around this kobject.
///
/// # Safety
///
/// `kobject` must be part of the device of a dax region, and the region there.
unsafe fn extent_of(kobject: *mut raw::kobject) -> Extent {
    // SAFETY: By the safety requirement; the dax core keeps its region as that device's data.
    let res = unsafe {
        let device = kobject.byte_sub(offset_of!(raw::device, kobj));
        let region = raw::dev_get_drvdata(device.cast()).cast::<raw::dax_region>();
        &(*region).res
    };
    Extent {
        start: PhysAddr::from_raw(res.start),
        len: res.end.wrapping_sub(res.start).wrapping_add(1),
    }
}

/// # Safety
///
/// `kobject` must be that of a device bound to this driver: sysfs calls this for attributes the
/// driver core adds after probe and removes before remove. `buf` must be valid for writes of
/// `count` bytes.
unsafe extern "C" fn read_of_device(
    _: *mut raw::file,
    kobject: *mut raw::kobject,
    _: *const raw::bin_attribute,
    buf: *mut c_char,
    off: raw::loff_t,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    unsafe {
        let device = kobject.byte_sub(offset_of!(raw::device, kobj));
        let list = BadBlocks::Device(binding_of(device.cast()).device());
        show_part(buf, off, count, fmt!("{}", list))
    }
}

/// # Safety
///
/// `kobject` must be that of a region's device: sysfs calls this for files that `region.rs` adds
/// and removes while the region is there. `buf` must be valid for writes of `count` bytes.
unsafe extern "C" fn read_of_region(
    _: *mut raw::file,
    kobject: *mut raw::kobject,
    _: *const raw::bin_attribute,
    buf: *mut c_char,
    off: raw::loff_t,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    unsafe {
        let list = BadBlocks::Region(extent_of(kobject));
        show_part(buf, off, count, fmt!("{}", list))
    }
}
