// SPDX-License-Identifier: GPL-2.0

//! libdaxctl in safe clothes: which regions there are, as the library sees them.
//!
//! The library reads sysfs once per context and keeps what it read, even past its own writes. So a [`Context`] is made
//! for one look and dropped after it. Devices are read and changed without it: it reads all of them to find one.
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

impl Region<'_> {
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
}

/// The library's results: 0, or a negative errno.
fn check(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::from_raw_os_error(result.saturating_neg())),
    }
}
