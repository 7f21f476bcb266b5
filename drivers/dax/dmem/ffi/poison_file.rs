// SPDX-License-Identifier: GPL-2.0

//! `/sys/bus/dax/drivers/dax_dmem/poison`: the pages that reported an uncorrectable error.
//!
//! A read gives a line an extent, however many: see [`Known`](crate::poison::Known). `add ADDRESS`
//! notes an error, `clear ADDRESS` has a page tested and takes it back into use.

use core::ptr::{addr_of, null};
use core::slice;
use kernel::ffi::c_char;
use kernel::fmt;
use kernel::prelude::*;

use crate::plan::{Leaf, PhysAddr};
use crate::poison::{self, Known};

use super::attributes::{answer, attribute, written};
use super::reservation::has_no_page;
use super::{raw, this_module, to_ulong, Table};

/// The files of the driver that are not made of one page.
pub(super) const fn files() -> *const *const raw::bin_attribute {
    addr_of!(FILES.0).cast()
}

static FILES: Table<[*const raw::bin_attribute; 2]> = Table([addr_of!(POISON.0), null()]);

// Physical addresses are root's.
static POISON: Table<raw::bin_attribute> = Table(raw::bin_attribute {
    attr: attribute(c"poison", 0o600),
    read: Some(read),
    write: Some(write),
    ..pin_init::zeroed()
});

/// Tells of a page that is new in the file: in the kernel log, where many are kept from drowning
/// all else, and by a `change` event of the module.
pub(crate) fn announce(page: PhysAddr) {
    // SAFETY: Prints a number.
    unsafe { raw::dmem_notice_poison(page.raw()) };
    // SAFETY: The module is loaded, and with it its entry in sysfs, as this code runs.
    unsafe {
        raw::kobject_uevent(
            &raw mut (*this_module()).mkobj.kobj,
            raw::kobject_action_KOBJ_CHANGE,
        );
    }
}

/// A window over a text that is longer: `skip` bytes are left out, then `out` is filled.
struct Part<'a> {
    out: &'a mut [u8],
    skip: usize,
    len: usize,
}

impl fmt::Write for Part<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let skipped = self.skip.min(text.len());
        self.skip -= skipped;
        let rest = &text.as_bytes()[skipped..];
        let room = &mut self.out[self.len..];
        let len = rest.len().min(room.len());
        room[..len].copy_from_slice(&rest[..len]);
        self.len += len;
        Ok(())
    }
}

/// Writes the part of a list of poison that was asked for, from byte `off` on; returns its length.
/// What the list has at its begin is mapped nowhere.
///
/// # Safety
///
/// `buf` must be valid for writes of `count` bytes.
pub(super) unsafe fn show_part(
    buf: *mut c_char,
    off: raw::loff_t,
    count: usize,
    list: fmt::Arguments<'_>,
) -> isize {
    if off == 0 {
        poison::settle();
    }
    // SAFETY: By the safety requirement.
    let out = unsafe { slice::from_raw_parts_mut(buf.cast::<u8>(), count) };
    let mut part = Part {
        out,
        // sysfs has refused what is negative.
        skip: to_ulong(off.unsigned_abs()),
        len: 0,
    };
    match fmt::Write::write_fmt(&mut part, list) {
        Ok(()) => part.len as isize,
        Err(_) => EIO.to_errno() as isize,
    }
}

/// # Safety
///
/// `buf` must be valid for writes of `count` bytes.
unsafe extern "C" fn read(
    _: *mut raw::file,
    _: *mut raw::kobject,
    _: *const raw::bin_attribute,
    buf: *mut c_char,
    off: raw::loff_t,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    unsafe { show_part(buf, off, count, fmt!("{}", Known)) }
}

/// # Safety
///
/// `buf` must be valid for reads of `count` bytes.
unsafe extern "C" fn write(
    _: *mut raw::file,
    _: *mut raw::kobject,
    _: *const raw::bin_attribute,
    buf: *mut c_char,
    _: raw::loff_t,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    let text = unsafe { written(buf, count) };
    answer(count, || {
        let (verb, address) = text?.split_once(' ').ok_or(EINVAL)?;
        let digits = address.strip_prefix("0x").ok_or(EINVAL)?;
        let at = PhysAddr::from_raw(u64::from_str_radix(digits, 16).map_err(|_| EINVAL)?);
        if !at.is_aligned(Leaf::Pte) {
            return Err(EINVAL);
        }
        match verb {
            "add" if !has_no_page(at) => Err(EBUSY),
            "add" => {
                poison::report(at);
                Ok(())
            }
            "clear" => poison::clear(at),
            _ => Err(EINVAL),
        }
    })
}
