// SPDX-License-Identifier: GPL-2.0

//! The dax regions, to each of which this driver adds a directory `dax_dmem` with `badblocks`.
//!
//! A region is another driver's device, and is there as long as it has devices on the bus: its first
//! one, which cannot be deleted, goes last. So the directory comes with the first device that the
//! bus tells of, or that is there at load, and goes before the bus has removed the last one, or at
//! unload.
//!
//! `REGIONS` is held while the bus is searched at load. Who is found then has not been removed, and
//! its removal waits for the lock.
//!
//! Lock order: the dax core's locks > `REGIONS` > readers of the file, which take poison's locks.

use core::ptr::{addr_of, addr_of_mut, null, null_mut, NonNull};
use kernel::error::to_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;

use super::attributes::{self, name_of};
use super::badblocks_file::region_files;
use super::bus::dev_dax_of;
use super::globals::REGIONS;
use super::{raw, Table};

static GROUP: Table<raw::attribute_group> =
    attributes::group(name_of(c"dax_dmem"), null(), region_files());

/// The directory of this driver in that of a region. Removed when dropped.
///
/// # Invariants
///
/// The pointer is a counted device that is registered as long as the value exists; the directory is
/// in it.
struct Directory(NonNull<raw::device>);

// SAFETY: A directory may be removed by any task.
unsafe impl Send for Directory {}

impl Directory {
    /// # Safety
    ///
    /// `device` must be the device of a dax region, and registered as long as the value exists.
    unsafe fn new(device: NonNull<raw::device>) -> Result<Self> {
        // SAFETY: By the safety requirement; the group is a static.
        unsafe {
            let kobject = addr_of_mut!((*device.as_ptr()).kobj);
            to_result(raw::sysfs_create_group(kobject, addr_of!(GROUP.0)))?;
            raw::get_device(device.as_ptr());
        }
        // INVARIANT: Made and counted just now.
        Ok(Self(device))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: By the invariant. Nobody reads the file when this returns.
        unsafe {
            let kobject = addr_of_mut!((*self.0.as_ptr()).kobj);
            raw::sysfs_remove_group(kobject, addr_of!(GROUP.0));
            raw::put_device(self.0.as_ptr());
        }
    }
}

/// The directories that there are.
pub(crate) struct Regions {
    directories: KVec<Directory>,
    /// From load to unload.
    open: bool,
}

impl Regions {
    pub(crate) const fn new() -> Self {
        Self {
            directories: KVec::new(),
            open: false,
        }
    }

    /// Sees that the region of this device has its directory.
    ///
    /// # Safety
    ///
    /// `dev_dax` must be a device of the bus whose removal has not been told of to the end, and
    /// will be, to [`hide`].
    unsafe fn show(&mut self, dev_dax: NonNull<raw::dev_dax>) {
        // SAFETY: By the safety requirement: a device has a region, and this has a device.
        let region = unsafe { NonNull::new((*dev_dax.as_ref().region).dev) };
        let Some(region) = region.filter(|_| self.open) else {
            return;
        };
        if self.directories.iter().any(|known| known.0 == region) {
            return;
        }
        let added = self
            .directories
            .reserve(1, GFP_KERNEL)
            .map_err(kernel::error::Error::from)
            // SAFETY: The region stays as long as it has a device, and `hide` is called before the
            // last one is gone.
            .and_then(|()| unsafe { Directory::new(region) });
        match added {
            Ok(directory) => drop(self.directories.push(directory, GFP_KERNEL)),
            Err(error) => {
                // SAFETY: A registered device has a name.
                let name = unsafe { CStr::from_char_ptr(raw::dev_name(region.as_ptr())) };
                pr_warn!(
                    "{}: no list of bad blocks: error {}\n",
                    name,
                    error.to_errno()
                );
            }
        }
    }
}

/// Shows the list of every region that has a device on the bus.
///
/// # Safety
///
/// The bus must be the dax bus, and from before this on tell of all that is added and removed, to
/// [`show`] and [`hide`].
pub(super) unsafe fn show_all(bus: *const raw::bus_type) {
    let mut regions = REGIONS.lock();
    regions.open = true;
    let data: *mut Regions = &mut *regions;
    // SAFETY: `data` is what the function expects, and outlives the call.
    unsafe { raw::bus_for_each_dev(bus, null_mut(), data.cast(), Some(found)) };
}

/// Shows the list of the region of this device.
///
/// # Safety
///
/// `dev_dax` must be a device that was added to the bus and is not being removed.
pub(super) unsafe fn show(dev_dax: NonNull<raw::dev_dax>) {
    // SAFETY: By the safety requirement.
    unsafe { REGIONS.lock().show(dev_dax) };
}

/// Ends the list of the region of this device, the last one it has.
///
/// # Safety
///
/// `dev_dax` must be a device that is being removed from the bus.
pub(super) unsafe fn hide(dev_dax: NonNull<raw::dev_dax>) {
    // SAFETY: A device has a region until its removal has ended.
    let region = unsafe { NonNull::new((*dev_dax.as_ref().region).dev) };
    let mut regions = REGIONS.lock();
    regions.directories.retain(|known| Some(known.0) != region);
}

/// Ends all lists, at unload.
pub(super) fn hide_all() {
    *REGIONS.lock() = Regions::new();
}

/// # Safety
///
/// `device` must be on the dax bus, `data` the [`Regions`] under their lock.
unsafe extern "C" fn found(device: *mut raw::device, data: *mut c_void) -> c_int {
    // SAFETY: By the safety requirement. A device that is found in the search has not been taken
    // from the bus's list, and the bus tells of its removal after that; but not of one whose
    // addition fails. When user space is told of a device, that cannot happen any more.
    unsafe {
        let kobject = addr_of!((*device).kobj);
        let is_added = raw::kobject::state_add_uevent_sent_raw(kobject) != 0;
        if let Some(dev_dax) = dev_dax_of(device).filter(|_| is_added) {
            (*data.cast::<Regions>()).show(dev_dax);
        }
    }
    0
}
