// SPDX-License-Identifier: GPL-2.0

//! The driver's sysfs attributes.
//!
//! - `/sys/bus/dax/drivers/dax_dmem/quarantine`: see [`Quarantine`];
//! - `/sys/bus/dax/devices/daxX.Y/dax_dmem/openers`: number of open files, while bound.

use core::ptr::{addr_of, null};
use core::slice;
use kernel::ffi::c_char;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::Formatter;

use crate::registry::Quarantine;

use super::bus::binding_of;
use super::{raw, Table};

/// Attributes of the driver.
pub(super) fn driver_groups() -> *const *const raw::attribute_group {
    addr_of!(DRIVER_GROUPS.0).cast()
}

/// Attributes of each bound device.
pub(super) fn device_groups() -> *const *const raw::attribute_group {
    addr_of!(DEVICE_GROUPS.0).cast()
}

static DRIVER_GROUPS: Table<[*const raw::attribute_group; 2]> =
    Table([addr_of!(DRIVER_GROUP.0), null()]);
static DRIVER_GROUP: Table<raw::attribute_group> =
    group(null(), addr_of!(DRIVER_ATTRIBUTES.0).cast());
static DRIVER_ATTRIBUTES: Table<[*const raw::attribute; 2]> =
    Table([addr_of!(QUARANTINE.0.attr), null()]);

static DEVICE_GROUPS: Table<[*const raw::attribute_group; 2]> =
    Table([addr_of!(DEVICE_GROUP.0), null()]);
static DEVICE_GROUP: Table<raw::attribute_group> =
    group(name_of(c"dax_dmem"), addr_of!(DEVICE_ATTRIBUTES.0).cast());
static DEVICE_ATTRIBUTES: Table<[*const raw::attribute; 2]> =
    Table([addr_of!(OPENERS.0.attr), null()]);

static QUARANTINE: Table<raw::driver_attribute> = Table(raw::driver_attribute {
    // Physical addresses are root's, as in the dax core's own attributes.
    attr: read_only(c"quarantine", 0o400),
    show: Some(show_quarantine),
    store: None,
});

static OPENERS: Table<raw::device_attribute> = Table(raw::device_attribute {
    attr: read_only(c"openers", 0o444),
    __bindgen_anon_1: raw::device_attribute__bindgen_ty_1 {
        show: Some(show_openers),
    },
    __bindgen_anon_2: raw::device_attribute__bindgen_ty_2 { store: None },
});

/// A group of attributes, in a directory of that name unless it is null.
const fn group(
    name: *const c_char,
    attrs: *const *const raw::attribute,
) -> Table<raw::attribute_group> {
    Table(raw::attribute_group {
        name,
        __bindgen_anon_2: raw::attribute_group__bindgen_ty_2 { attrs_const: attrs },
        ..pin_init::zeroed()
    })
}

/// A name as C wants it.
const fn name_of(name: &'static CStr) -> *const c_char {
    name.to_bytes_with_nul().as_ptr()
}

/// An attribute to be read, by those the mode names.
const fn read_only(name: &'static CStr, mode: raw::umode_t) -> raw::attribute {
    raw::attribute {
        name: name_of(name),
        mode,
    }
}

/// # Safety
///
/// `buf` must be a page, as sysfs passes it.
unsafe extern "C" fn show_quarantine(_: *mut raw::device_driver, buf: *mut c_char) -> isize {
    // SAFETY: By the safety requirement.
    unsafe { show(buf, fmt!("{}", Quarantine)) }
}

/// # Safety
///
/// `device` must be bound to this driver, `buf` a page: sysfs calls this for attributes the driver
/// core adds after probe and removes before remove.
unsafe extern "C" fn show_openers(
    device: *mut raw::device,
    _: *mut raw::device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirement.
    unsafe { show(buf, fmt!("{}\n", binding_of(device).device().openers())) }
}

/// What stands for the lines a sysfs page has no room for.
const MORE: &[u8] = b"...\n";

/// Writes lines to a sysfs buffer; those that do not fit are replaced by [`MORE`]. Returns the
/// length.
///
/// # Safety
///
/// `buf` must be valid for writes of a page.
unsafe fn show(buf: *mut c_char, text: fmt::Arguments<'_>) -> isize {
    // SAFETY: By the safety requirement.
    let page = unsafe { slice::from_raw_parts_mut(buf.cast::<u8>(), raw::PAGE_SIZE) };
    let mut out = Formatter::new(page);
    let whole = fmt::Write::write_fmt(&mut out, text).is_ok();
    let mut len = out.bytes_written();
    if !whole {
        let room = page.len() - MORE.len();
        len = page[..room]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        page[len..len + MORE.len()].copy_from_slice(MORE);
        len += MORE.len();
    }
    len as isize
}
