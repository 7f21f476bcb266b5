// SPDX-License-Identifier: GPL-2.0

//! The driver's sysfs attributes.
//!
//! Of the driver, in `/sys/bus/dax/drivers/dax_dmem/`:
//!
//! - `quarantine`: see [`Quarantine`];
//! - `scrubbing`: see [`Scrubbing`];
//! - `clean`: see [`Clean`];
//! - `poison`: see `poison_file.rs`;
//! - `scrub_policy`: see [`Policies`]; `daxX.Y POLICY` sets the one for that device's next bind;
//! - `scrubbed`: bytes overwritten since the module was loaded.
//!
//! Of each bound device, in `/sys/bus/dax/devices/daxX.Y/dax_dmem/`:
//!
//! - `state`: one word for what it is doing, see [`stats::state`];
//! - `openers`: number of open files;
//! - `dma`: whether a device of the machine may reach it, see [`dma::may_reach`];
//! - `mappings`: number of VMAs, in all processes;
//! - `leaves`: page-table entries that map it, see [`Leaves`];
//! - `faults`: page faults, see [`Stats`](stats::Stats);
//! - `scrub_policy`: what is done at release, to be changed at any time;
//! - `scrub_state`: see [`Cleanness`](crate::device::Cleanness);
//! - `scrub_progress`: `DONE TOTAL` bytes of what bind found to be scrubbed;
//! - `badblocks`: see `badblocks_file.rs`.
//!
//! Of each region, in `dax_dmem/` of its directory: `badblocks`, see `region.rs`.

use core::ptr::{addr_of, null};
use core::slice;
use kernel::error::from_result;
use kernel::ffi::c_char;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::{CString, Formatter};
use kernel::sync::Arc;

use crate::dma;
use crate::registry::{self, Clean, Policies, Quarantine, Scrubbing};
use crate::scrub::{self, Policy, Progress, Scrub};
use crate::stats;

use super::bus::binding_of;
use super::leaves::Leaves;
use super::{badblocks_file, poison_file, raw, Table};

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
static DRIVER_GROUP: Table<raw::attribute_group> = group(
    null(),
    addr_of!(DRIVER_ATTRIBUTES.0).cast(),
    poison_file::files(),
);
static DRIVER_ATTRIBUTES: Table<[*const raw::attribute; 6]> = Table([
    addr_of!(QUARANTINE.0.attr),
    addr_of!(SCRUBBING.0.attr),
    addr_of!(CLEAN.0.attr),
    addr_of!(NEXT_POLICY.0.attr),
    addr_of!(SCRUBBED.0.attr),
    null(),
]);

static DEVICE_GROUPS: Table<[*const raw::attribute_group; 2]> =
    Table([addr_of!(DEVICE_GROUP.0), null()]);
static DEVICE_GROUP: Table<raw::attribute_group> = group(
    name_of(c"dax_dmem"),
    addr_of!(DEVICE_ATTRIBUTES.0).cast(),
    badblocks_file::device_files(),
);
static DEVICE_ATTRIBUTES: Table<[*const raw::attribute; 10]> = Table([
    addr_of!(OPENERS.0.attr),
    addr_of!(DMA.0.attr),
    addr_of!(POLICY.0.attr),
    addr_of!(STATE.0.attr),
    addr_of!(PROGRESS.0.attr),
    addr_of!(DOING.0.attr),
    addr_of!(MAPPINGS.0.attr),
    addr_of!(LEAVES.0.attr),
    addr_of!(FAULTS.0.attr),
    null(),
]);

// Physical addresses are root's, as in the dax core's own attributes.
static QUARANTINE: Table<raw::driver_attribute> =
    of_driver(c"quarantine", 0o400, show_quarantine, None);
static SCRUBBING: Table<raw::driver_attribute> =
    of_driver(c"scrubbing", 0o400, show_scrubbing, None);
static CLEAN: Table<raw::driver_attribute> = of_driver(c"clean", 0o400, show_clean, None);
static NEXT_POLICY: Table<raw::driver_attribute> = of_driver(
    c"scrub_policy",
    0o600,
    show_next_policies,
    Some(store_next_policy),
);

static SCRUBBED: Table<raw::driver_attribute> = of_driver(c"scrubbed", 0o444, show_scrubbed, None);

static OPENERS: Table<raw::device_attribute> = of_device(c"openers", 0o444, show_openers, None);
static DMA: Table<raw::device_attribute> = of_device(c"dma", 0o444, show_dma, None);
static POLICY: Table<raw::device_attribute> =
    of_device(c"scrub_policy", 0o644, show_policy, Some(store_policy));
static STATE: Table<raw::device_attribute> = of_device(c"scrub_state", 0o444, show_state, None);
static PROGRESS: Table<raw::device_attribute> =
    of_device(c"scrub_progress", 0o444, show_progress, None);
static DOING: Table<raw::device_attribute> = of_device(c"state", 0o444, show_doing, None);
static MAPPINGS: Table<raw::device_attribute> = of_device(c"mappings", 0o444, show_mappings, None);
// To count takes time, and locks: root's.
static LEAVES: Table<raw::device_attribute> = of_device(c"leaves", 0o400, show_leaves, None);
static FAULTS: Table<raw::device_attribute> = of_device(c"faults", 0o444, show_faults, None);

type ShowDriver = unsafe extern "C" fn(*mut raw::device_driver, *mut c_char) -> isize;
type StoreDriver = unsafe extern "C" fn(*mut raw::device_driver, *const c_char, usize) -> isize;
type ShowDevice =
    unsafe extern "C" fn(*mut raw::device, *mut raw::device_attribute, *mut c_char) -> isize;
type StoreDevice = unsafe extern "C" fn(
    *mut raw::device,
    *mut raw::device_attribute,
    *const c_char,
    usize,
) -> isize;

/// An attribute of the driver.
const fn of_driver(
    name: &'static CStr,
    mode: raw::umode_t,
    show: ShowDriver,
    store: Option<StoreDriver>,
) -> Table<raw::driver_attribute> {
    Table(raw::driver_attribute {
        attr: attribute(name, mode),
        show: Some(show),
        store,
    })
}

/// An attribute of a bound device.
const fn of_device(
    name: &'static CStr,
    mode: raw::umode_t,
    show: ShowDevice,
    store: Option<StoreDevice>,
) -> Table<raw::device_attribute> {
    Table(raw::device_attribute {
        attr: attribute(name, mode),
        __bindgen_anon_1: raw::device_attribute__bindgen_ty_1 { show: Some(show) },
        __bindgen_anon_2: raw::device_attribute__bindgen_ty_2 { store },
    })
}

/// A group of attributes and files, in a directory of that name unless it is null.
pub(super) const fn group(
    name: *const c_char,
    attrs: *const *const raw::attribute,
    bin_attrs: *const *const raw::bin_attribute,
) -> Table<raw::attribute_group> {
    Table(raw::attribute_group {
        name,
        bin_attrs,
        __bindgen_anon_2: raw::attribute_group__bindgen_ty_2 { attrs_const: attrs },
        ..pin_init::zeroed()
    })
}

/// A name as C wants it.
pub(super) const fn name_of(name: &'static CStr) -> *const c_char {
    name.to_bytes_with_nul().as_ptr()
}

/// The name of an attribute, and who may do what with it.
pub(super) const fn attribute(name: &'static CStr, mode: raw::umode_t) -> raw::attribute {
    // With lockdep there are more fields, one of them of a type that pin_init knows nothing of.
    // SAFETY: Null pointers, a number and bits, for all of which zero is a value.
    let mut attribute: raw::attribute = unsafe { core::mem::zeroed() };
    attribute.name = name_of(name);
    attribute.mode = mode;
    attribute
}

/// Defines a show function of the driver: `NAME => TEXT`.
macro_rules! show_driver {
    ($($name:ident => $text:expr;)*) => {$(
        /// # Safety
        ///
        /// `buf` must be a page, as sysfs passes it.
        unsafe extern "C" fn $name(_: *mut raw::device_driver, buf: *mut c_char) -> isize {
            // SAFETY: By the safety requirement.
            unsafe { show(buf, fmt!("{}", $text)) }
        }
    )*};
}

show_driver! {
    show_quarantine => Quarantine;
    show_scrubbing => Scrubbing;
    show_clean => Clean;
    show_next_policies => Policies;
    show_scrubbed => Line(scrub::cleared());
}

/// Defines a show function of a bound device: `NAME(DEVICE) => TEXT`.
macro_rules! show_device {
    ($($name:ident($device:ident) => $text:expr;)*) => {$(
        /// # Safety
        ///
        /// `device` must be bound to this driver, `buf` a page: sysfs calls this for attributes the
        /// driver core adds after probe and removes before remove.
        unsafe extern "C" fn $name(
            device: *mut raw::device,
            _: *mut raw::device_attribute,
            buf: *mut c_char,
        ) -> isize {
            // SAFETY: By the safety requirement.
            let $device = unsafe { binding_of(device) }.device();
            // SAFETY: As above.
            unsafe { show(buf, fmt!("{}", $text)) }
        }
    )*};
}

show_device! {
    show_openers(device) => Line(device.openers());
    show_dma(device) => Line(u8::from(dma::may_reach(device)));
    show_policy(device) => Line(device.policy().name());
    show_state(device) => Line(device.cleanness().name());
    show_progress(device) => Line(ShownProgress(device.scrub()));
    show_doing(device) => Line(stats::state(device));
    show_mappings(device) => Line(device.stats().mappings());
    show_leaves(device) => Leaves::of(device);
    show_faults(device) => device.stats();
}

/// A text of one line, to which the end is still missing.
struct Line<T>(T);

impl<T: fmt::Display> fmt::Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{}\n", self.0))
    }
}

/// `DONE TOTAL`; zeros where there is no scrub.
struct ShownProgress<'a>(Option<&'a Arc<Scrub>>);

impl fmt::Display for ShownProgress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = Progress { done: 0, total: 0 };
        let progress = self.0.map_or(none, |scrub| scrub.progress());
        f.write_fmt(fmt!("{} {}", progress.done, progress.total))
    }
}

/// # Safety
///
/// `buf` must be valid for reads of `count` bytes.
unsafe extern "C" fn store_next_policy(
    _: *mut raw::device_driver,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    let text = unsafe { written(buf, count) };
    answer(count, || {
        let (name, policy) = text?.split_once(' ').ok_or(EINVAL)?;
        let policy = Policy::parse(policy.trim()).ok_or(EINVAL)?;
        if !is_device_name(name) {
            return Err(EINVAL);
        }
        registry::set_policy(CString::try_from_fmt(fmt!("{}", name))?, policy)
    })
}

/// # Safety
///
/// `device` must be bound to this driver, `buf` valid for reads of `count` bytes.
unsafe extern "C" fn store_policy(
    device: *mut raw::device,
    _: *mut raw::device_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirement.
    let (device, text) = unsafe { (binding_of(device).device(), written(buf, count)) };
    answer(count, || {
        device.set_policy(Policy::parse(text?).ok_or(EINVAL)?);
        Ok(())
    })
}

/// Whether a device can have that name: `daxX.Y`.
fn is_device_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let ids = name.strip_prefix("dax").and_then(|ids| ids.split_once('.'));
    ids.is_some_and(|(region, device)| is_number(region) && is_number(device))
}

/// What was written to an attribute, less the space around it.
///
/// # Safety
///
/// `buf` must be valid for reads of `count` bytes for `'a`.
pub(super) unsafe fn written<'a>(buf: *const c_char, count: usize) -> Result<&'a str> {
    // SAFETY: By the safety requirement.
    let text = unsafe { slice::from_raw_parts(buf.cast::<u8>(), count) };
    Ok(core::str::from_utf8(text).map_err(|_| EINVAL)?.trim())
}

/// Takes what was written, all of it, or refuses it.
pub(super) fn answer(count: usize, take: impl FnOnce() -> Result) -> isize {
    from_result(|| {
        take()?;
        Ok(count as isize)
    })
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
