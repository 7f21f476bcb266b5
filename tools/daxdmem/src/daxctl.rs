// SPDX-License-Identifier: GPL-2.0

//! libdaxctl in safe clothes: regions, devices and mappings as the library sees them.
//!
//! The library reads sysfs once per context and keeps what it read, even past its own writes. So a [`Context`] is made
//! for one look or one change and dropped after it. Where the library reduces every error to ENXIO, nothing better
//! than that can be said here: callers read back what they changed.
//!
//! All `unsafe` of the tool is in this file. The library has no state outside a context and a context is used by the
//! thread that made it only: the wrappers hold raw pointers, hence are neither `Send` nor `Sync`.

use std::ffi::{c_int, CStr, OsStr};
use std::io;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use crate::ffi;

/// syslog's LOG_CRIT: the library reports no error above it, so it prints nothing; errors are reported here.
const LOG_CRIT: c_int = 2;

/// One reading of the dax bus by the library.
///
/// # Invariants
///
/// The pointer is a context with a reference that this value owns.
pub struct Context(NonNull<ffi::daxctl_ctx>);

impl Context {
    /// Starts a fresh reading.
    pub fn new() -> io::Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is writable for the duration of the call; on success it holds a context with one reference.
        check(unsafe { ffi::daxctl_new(&mut raw) })?;
        let raw = NonNull::new(raw).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `raw` is a live context.
        unsafe { ffi::daxctl_set_log_priority(raw.as_ptr(), LOG_CRIT) };
        // INVARIANT: the reference that daxctl_new() returned moves into the value.
        Ok(Self(raw))
    }

    /// The regions that have at least one device (the kernel keeps one in every region).
    pub fn regions(&self) -> impl Iterator<Item = Region<'_>> {
        // SAFETY: the context is live; regions belong to it and live as long.
        let first = NonNull::new(unsafe { ffi::daxctl_region_get_first(self.0.as_ptr()) });
        let next = |raw: &NonNull<_>| {
            // SAFETY: as above, for a region of this context.
            NonNull::new(unsafe { ffi::daxctl_region_get_next(raw.as_ptr()) })
        };
        // INVARIANT: a region of `self`, which the result borrows.
        std::iter::successors(first, next).map(|raw| Region {
            raw,
            context: PhantomData,
        })
    }

    /// The region and device of this name, `daxX.Y`.
    pub fn find(&self, name: &str) -> Option<(Region<'_>, Device<'_>)> {
        self.regions().find_map(|region| {
            let device = region.devices().find(|device| device.name() == name)?;
            Some((region, device))
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: by the invariant the value owns a reference, and nothing borrowed from it is left.
        unsafe { ffi::daxctl_unref(self.0.as_ptr()) };
    }
}

/// A region: a reserved physical range.
///
/// # Invariants
///
/// The pointer is a region of the context that the lifetime borrows.
#[derive(Clone, Copy)]
pub struct Region<'c> {
    raw: NonNull<ffi::daxctl_region>,
    context: PhantomData<&'c Context>,
}

impl<'c> Region<'c> {
    /// X in the names `daxX.Y` of its devices.
    pub fn id(self) -> Option<u32> {
        // SAFETY: by the invariant a live region.
        u32::try_from(unsafe { ffi::daxctl_region_get_id(self.raw.as_ptr()) }).ok()
    }

    /// Its directory in sysfs.
    pub fn path(self) -> PathBuf {
        // SAFETY: by the invariant a live region, whose path is a string that lives as long.
        let path = unsafe { CStr::from_ptr(ffi::daxctl_region_get_path(self.raw.as_ptr())) };
        PathBuf::from(OsStr::from_bytes(path.to_bytes()))
    }

    /// Bytes in it; `None` where the kernel does not say.
    pub fn size(self) -> Option<u64> {
        // SAFETY: by the invariant a live region.
        let size = unsafe { ffi::daxctl_region_get_size(self.raw.as_ptr()) };
        (size != u64::MAX).then_some(size)
    }

    /// Bytes that no device has.
    pub fn available(self) -> u64 {
        // SAFETY: by the invariant a live region.
        unsafe { ffi::daxctl_region_get_available_size(self.raw.as_ptr()) }
    }

    /// Its devices.
    pub fn devices(self) -> impl Iterator<Item = Device<'c>> {
        // SAFETY: by the invariant a live region; devices belong to it and live as long as the context.
        let first = NonNull::new(unsafe { ffi::daxctl_dev_get_first(self.raw.as_ptr()) });
        let next = |raw: &NonNull<_>| {
            // SAFETY: as above, for a device of this region.
            NonNull::new(unsafe { ffi::daxctl_dev_get_next(raw.as_ptr()) })
        };
        // INVARIANT: a device of a region of the context.
        std::iter::successors(first, next).map(|raw| Device {
            raw,
            context: PhantomData,
        })
    }

    /// Makes the kernel add a device without memory.
    pub fn create_device(self) -> io::Result<()> {
        // SAFETY: by the invariant a live region.
        check(unsafe { ffi::daxctl_region_create_dev(self.raw.as_ptr()) })
    }

    /// Makes the kernel delete a device that has no memory and no driver.
    pub fn destroy_device(self, device: Device<'c>) -> io::Result<()> {
        // SAFETY: by their invariants both are live; the library reads the device's name only.
        check(unsafe { ffi::daxctl_region_destroy_dev(self.raw.as_ptr(), device.raw.as_ptr()) })
    }
}

/// A device `daxX.Y`.
///
/// # Invariants
///
/// The pointer is a device of a region of the context that the lifetime borrows.
#[derive(Clone, Copy)]
pub struct Device<'c> {
    raw: NonNull<ffi::daxctl_dev>,
    context: PhantomData<&'c Context>,
}

/// One physical range of a device, as sysfs has it.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub last: u64,
    /// Offset in the device, in 4 KiB pages.
    pub page_offset: u64,
}

impl<'c> Device<'c> {
    /// `daxX.Y`.
    pub fn name(self) -> String {
        // SAFETY: by the invariant a live device, whose name is a string that lives as long.
        let name = unsafe { CStr::from_ptr(ffi::daxctl_dev_get_devname(self.raw.as_ptr())) };
        name.to_string_lossy().into_owned()
    }

    /// Bytes in it.
    pub fn size(self) -> u64 {
        // SAFETY: by the invariant a live device.
        unsafe { ffi::daxctl_dev_get_size(self.raw.as_ptr()) }
    }

    /// Its alignment in bytes.
    pub fn align(self) -> u64 {
        // SAFETY: by the invariant a live device.
        unsafe { ffi::daxctl_dev_get_align(self.raw.as_ptr()) }
    }

    /// The NUMA node that its memory is, or would be, in; `None` where the firmware does not say.
    pub fn target_node(self) -> Option<u32> {
        // SAFETY: by the invariant a live device.
        u32::try_from(unsafe { ffi::daxctl_dev_get_target_node(self.raw.as_ptr()) }).ok()
    }

    /// Its ranges, in no particular order. Empty too where the caller may not read them.
    pub fn mappings(self) -> impl Iterator<Item = Mapping> + use<'c> {
        // SAFETY: by the invariant a live device; mappings belong to it and live as long.
        let first = NonNull::new(unsafe { ffi::daxctl_mapping_get_first(self.raw.as_ptr()) });
        let next = |raw: &NonNull<_>| {
            // SAFETY: as above, for a mapping of this device.
            NonNull::new(unsafe { ffi::daxctl_mapping_get_next(raw.as_ptr()) })
        };
        std::iter::successors(first, next).map(|raw| Mapping {
            // SAFETY: a live mapping.
            start: unsafe { ffi::daxctl_mapping_get_start(raw.as_ptr()) },
            // SAFETY: a live mapping.
            last: unsafe { ffi::daxctl_mapping_get_end(raw.as_ptr()) },
            // SAFETY: a live mapping.
            page_offset: unsafe { ffi::daxctl_mapping_get_offset(raw.as_ptr()) },
        })
    }

    /// Sets the alignment, in bytes. The kernel refuses while a driver is bound.
    pub fn set_align(self, align: u64) -> io::Result<()> {
        // SAFETY: by the invariant a live device.
        check(unsafe { ffi::daxctl_dev_set_align(self.raw.as_ptr(), align) })
    }

    /// Sets the size, in bytes: 0 gives all ranges back. The kernel refuses while a driver is bound.
    pub fn set_size(self, size: u64) -> io::Result<()> {
        // SAFETY: by the invariant a live device.
        check(unsafe { ffi::daxctl_dev_set_size(self.raw.as_ptr(), size) })
    }

    /// Adds the range from `start` to `last`, inclusive, behind the others.
    ///
    /// The kernel reports success for a range that is no multiple of the alignment, and does nothing
    /// (drivers/dax/bus.c, `mapping_store`).
    pub fn add_mapping(self, start: u64, last: u64) -> io::Result<()> {
        // SAFETY: by the invariant a live device.
        check(unsafe { ffi::daxctl_dev_set_mapping(self.raw.as_ptr(), start, last) })
    }
}

/// The library's results: 0, or a negative errno.
fn check(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::from_raw_os_error(result.saturating_neg())),
    }
}
