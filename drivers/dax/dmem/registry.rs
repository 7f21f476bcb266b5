// SPDX-License-Identifier: GPL-2.0

//! All page-less devices: the bound ones, and the quarantined ones whose users are not gone yet.
//!
//! Called by bind and unbind (device lock held), by open and release of files, and by sysfs reads.
//!
//! Lock order: device lock (driver core) > `DEVICES`. Nothing else is taken under `DEVICES`;
//! devices are dropped after it is released, as dropping one takes the resource lock and may put an
//! inode.

use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::device::Device;
use crate::error::Error;
use crate::ffi::devices::DEVICES;
use crate::plan::{DevRange, RangeMap, PAGE_SHIFT};

/// Files a bound device and makes it open to [`open`].
pub(crate) fn publish(device: Arc<Device>) -> Result {
    Ok(DEVICES.lock().push(device, GFP_KERNEL)?)
}

/// Marks a device unbound; it cannot be opened from here on.
pub(crate) fn retire(device: &Device) {
    let _devices = DEVICES.lock();
    device.set_dead();
}

/// Gives up a retired device: forgotten when nobody has it open, else quarantined until the last
/// user goes.
///
/// Unbind calls this when no leaf leads to the device any more.
pub(crate) fn release_retired(device: Arc<Device>) {
    let mut devices = DEVICES.lock();
    let over = device.is_over();
    let freed = forget_if_over(&mut devices, &device);
    drop(devices);
    drop(freed);
    if !over {
        pr_info!(
            "{}: unbound while in use, its memory is quarantined until {} file(s) are closed\n",
            device.name(),
            device.openers()
        );
    }
}

/// Opens the live device of that number.
///
/// # Errors
///
/// [`Error::NotBound`] when there is none: it was unbound between look-up of the node and now, or
/// another driver's node led here.
pub(crate) fn open(devt: u32) -> Result<Arc<Device>, Error> {
    let devices = DEVICES.lock();
    let device = devices
        .iter()
        .find(|device| device.devt() == devt && device.is_live());
    let device = device.ok_or(Error::NotBound)?;
    device.add_opener();
    Ok(device.clone())
}

/// Closes what [`open`] opened; ends a quarantine with the last one.
pub(crate) fn close(device: Arc<Device>) {
    let mut devices = DEVICES.lock();
    device.drop_opener();
    let freed = forget_if_over(&mut devices, &device);
    drop(devices);
    if freed.is_some() {
        pr_info!("{}: last user is gone, quarantine ends\n", device.name());
    }
}

/// Takes a device that is over out of the list. The caller drops it after the lock.
fn forget_if_over(devices: &mut KVec<Arc<Device>>, device: &Arc<Device>) -> Option<Arc<Device>> {
    if !device.is_over() {
        return None;
    }
    let index = devices
        .iter()
        .position(|other| Arc::ptr_eq(other, device))?;
    devices.remove(index).ok()
}

/// Refuses ranges that somebody can still reach although they were unbound.
pub(crate) fn check_quarantine(ranges: &RangeMap<'_>) -> Result<(), Error> {
    let devices = DEVICES.lock();
    for device in devices.iter().filter(|device| !device.is_live()) {
        for held in device.map().ranges() {
            if ranges.ranges().iter().any(|range| overlap(range, held)) {
                return Err(Error::Quarantined {
                    start: held.start,
                    by: CString::try_from(device.name())?,
                    openers: device.openers(),
                });
            }
        }
    }
    Ok(())
}

fn overlap(a: &DevRange, b: &DevRange) -> bool {
    a.start.pfn() < b.start.pfn() + b.pages && b.start.pfn() < a.start.pfn() + a.pages
}

/// The quarantined ranges, a line each: `0xSTART-0xEND daxX.Y OPENERS`, the end inclusive.
pub(crate) struct Quarantine;

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = DEVICES.lock();
        for device in devices.iter().filter(|device| !device.is_live()) {
            for range in device.map().ranges() {
                let start = range.start.raw();
                let end = start + (range.pages << PAGE_SHIFT) - 1;
                f.write_fmt(fmt!(
                    "{:#x}-{:#x} {} {}\n",
                    start,
                    end,
                    device.name(),
                    device.openers()
                ))?;
            }
        }
        Ok(())
    }
}
