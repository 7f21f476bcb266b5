// SPDX-License-Identifier: GPL-2.0

//! A page-less device: one binding of a dax device to this driver, and who uses it.
//!
//! A [`Device`] begins at bind and ends when it is neither bound nor open. In between it may be
//!
//! - *live*: bound; files may be opened, faults map memory;
//! - *quarantined*: unbound, but files or mappings (which hold their file) still exist, and with
//!   them perhaps DMA that nobody can see. Nothing maps it any more, and its ranges stay claimed.
//!
//! Scrubbing between tenants belongs to the step from here to the next [`bind`]; poison belongs
//! beside `ranges`.
//!
//! Locks: the device lock (driver core) is held by [`bind`] and [`Binding::unbind`]; inside it the
//! registry's mutex (`registry.rs`) is taken for short.

use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Arc;

use crate::error::Error;
use crate::ffi::char_device::CharDevice;
use crate::ffi::dev_dax::DevDax;
use crate::ffi::inode::DaxInode;
use crate::ffi::reservation::{first_page_struct, Reservation};
use crate::plan::{Checked, DevRange, RangeMap};
use crate::registry;

/// State of one binding, shared by the binding itself, the registry and every open file.
pub(crate) struct Device {
    /// Device number: `/dev/daxX.Y`.
    devt: u32,
    /// What sysfs said at bind: ranges added to a bound device take part from the next bind on.
    ranges: Checked<KVec<DevRange>>,
    /// Outlives every file, whose `f_mapping` points into it.
    inode: DaxInode,
    /// Keeps others off the ranges as long as this value exists.
    reservation: Reservation,
    /// Cleared once, by unbind, before it waits for faults under way (`ffi::liveness`).
    live: Atomic<bool>,
    /// Open files; changed under the registry's mutex only.
    openers: Atomic<u32>,
}

impl Device {
    /// `daxX.Y`.
    pub(crate) fn name(&self) -> &CStr {
        self.reservation.name()
    }

    /// Device number.
    pub(crate) fn devt(&self) -> u32 {
        self.devt
    }

    /// The physical ranges in order of device offset.
    pub(crate) fn map(&self) -> RangeMap<'_> {
        self.ranges.map()
    }

    /// The inode whose address space holds all mappings.
    pub(crate) fn inode(&self) -> &DaxInode {
        &self.inode
    }

    /// Whether the device is bound. Stays true to the end of a `liveness::Section` in which it was
    /// true.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Ends [`Device::is_live`].
    pub(crate) fn set_dead(&self) {
        self.live.store(false, Relaxed);
    }

    /// Number of open files.
    pub(crate) fn openers(&self) -> u32 {
        self.openers.load(Relaxed)
    }

    /// Counts one more open file. Under the registry's mutex.
    pub(crate) fn add_opener(&self) {
        self.openers.add(1, Relaxed);
    }

    /// Counts one open file less. Under the registry's mutex.
    pub(crate) fn drop_opener(&self) {
        self.openers.fetch_sub(1, Relaxed);
    }

    /// Whether nothing can reach the device's memory any more: neither bound nor open.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_live() && self.openers() == 0
    }
}

/// What a bound device owns beyond its [`Device`].
pub(crate) struct Binding {
    device: Arc<Device>,
    node: CharDevice,
}

impl Binding {
    /// The device's state.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Takes the device away from its users.
    ///
    /// When this returns, no page table leads to the memory, and none will. Users that are left
    /// find SIGBUS; the range is quarantined until the last of them is gone.
    pub(crate) fn unbind(self, dev_dax: &DevDax<'_>) {
        let Self { device, node } = self;
        registry::retire(&device);
        drop(node);
        dev_dax.kill(device.inode());
        registry::release_retired(device);
    }
}

/// Binds a device: claims its ranges, publishes its character device.
///
/// # Errors
///
/// Refuses ranges that are quarantined, taken, or that have struct pages, and says which. Nothing
/// has changed then.
pub(crate) fn bind(dev_dax: &DevDax<'_>) -> Result<Binding, Error> {
    let inode = dev_dax.inode();
    if inode.is_open_elsewhere() {
        return Err(Error::OpenElsewhere);
    }
    let ranges = Checked::new(dev_dax.ranges()?).map_err(|(error, _)| Error::BadRanges(error))?;
    registry::check_quarantine(&ranges.map())?;
    let reservation = Reservation::new(dev_dax.name(), ranges.map().ranges())?;
    for range in ranges.map().ranges() {
        if let Some(at) = first_page_struct(range) {
            return Err(Error::HasPages { at });
        }
    }

    let device = Arc::new(
        Device {
            devt: dev_dax.devt(),
            ranges,
            inode,
            reservation,
            live: Atomic::new(true),
            openers: Atomic::new(0),
        },
        GFP_KERNEL,
    )?;
    // From the registry on, the device may be opened: a node that was looked up before an earlier
    // unbind leads to this driver as well. Mappings made before have no leaf.
    device.inode().set_has_pages(false);
    let published = registry::publish(device.clone()).and_then(|()| CharDevice::publish(dev_dax));
    match published {
        Ok(node) => Ok(Binding { device, node }),
        Err(error) => {
            registry::retire(&device);
            dev_dax.kill(device.inode());
            registry::release_retired(device);
            Err(error.into())
        }
    }
}
