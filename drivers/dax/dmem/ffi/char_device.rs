// SPDX-License-Identifier: GPL-2.0

//! The character device `/dev/daxX.Y`: its life, and the file operations the kernel calls.

use core::ptr::{addr_of, addr_of_mut, null_mut, NonNull};
use kernel::error::{from_result, to_result};
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::sync::Arc;

use crate::device::Device;
use crate::mmap::{self, Spot};
use crate::plan::{PageOff, PAGE_SIZE};
use crate::registry;

use super::dev_dax::DevDax;
use super::vma::{device_of, Request};
use super::{from_ulong, raw, this_module, to_ulong, Table};

/// A published character device; withdrawn when dropped.
///
/// The cdev is one of its own for each binding: the one embedded in the dax inode may still be
/// referenced by files of an earlier binding. It holds the device (`kobj.parent`) and with it the
/// dax inode.
///
/// # Invariants
///
/// The pointer is a cdev added by `cdev_add()`.
pub(crate) struct CharDevice(NonNull<raw::cdev>);

// SAFETY: `cdev_del()` may be called by any task.
unsafe impl Send for CharDevice {}
// SAFETY: A shared `CharDevice` has no operations.
unsafe impl Sync for CharDevice {}

impl CharDevice {
    /// Publishes the device's node; files can be opened from here on.
    pub(crate) fn publish(dev_dax: &DevDax<'_>) -> Result<Self> {
        // SAFETY: Allocates a cdev.
        let cdev = NonNull::new(unsafe { raw::cdev_alloc() }).ok_or(ENOMEM)?;
        // SAFETY: The cdev is new and ours until `cdev_add()`; the operations are a static of this
        // module; the parent is a registered device.
        let added = to_result(unsafe {
            let cdev = cdev.as_ptr();
            (*cdev).owner = this_module();
            (*cdev).ops = addr_of!(OPERATIONS.0);
            raw::cdev_set_parent(cdev, dev_dax.kobject());
            raw::cdev_add(cdev, dev_dax.devt(), 1)
        });
        if let Err(error) = added {
            // SAFETY: Drops the only reference to a cdev that was not added; only `cdev_add()`
            // would have taken the reference to the parent that the release gives back.
            unsafe {
                (*cdev.as_ptr()).kobj.parent = null_mut();
                raw::kobject_put(addr_of_mut!((*cdev.as_ptr()).kobj));
            }
            return Err(error);
        }
        // INVARIANT: Added just now.
        Ok(Self(cdev))
    }
}

impl Drop for CharDevice {
    fn drop(&mut self) {
        // SAFETY: Added, by the invariant, and deleted once. Open files keep the memory until they
        // are closed.
        unsafe { raw::cdev_del(self.0.as_ptr()) };
    }
}

/// The operations of every file of this driver.
static OPERATIONS: Table<raw::file_operations> = Table(raw::file_operations {
    owner: this_module(),
    llseek: Some(llseek),
    open: Some(open),
    release: Some(release),
    get_unmapped_area: Some(get_unmapped_area),
    mmap_prepare: Some(mmap_prepare),
    fop_flags: raw::DMEM_FOP_MMAP_SYNC,
    ..pin_init::zeroed()
});

/// Goes on to [`registry::open`].
///
/// # Safety
///
/// `inode` and `file` must be what `chrdev_open()` passes: the node's inode, and a file nobody else
/// has yet.
unsafe extern "C" fn open(inode: *mut raw::inode, file: *mut raw::file) -> c_int {
    from_result(|| {
        // SAFETY: `chrdev_open()` passes the inode of the node that was opened.
        let devt = unsafe { (*inode).i_rdev };
        // SAFETY: The file is new and not shared yet.
        let patient = unsafe { (*file).f_flags } & raw::O_NONBLOCK == 0;
        let device = registry::open(devt, patient)?;
        // SAFETY: The file is new and not shared yet; the device, which it holds from here on,
        // keeps the dax inode.
        unsafe {
            raw::dmem_file_set_mapping(file, device.inode().as_ptr());
            (*file).private_data = Arc::into_raw(device).cast_mut().cast();
        }
        Ok(0)
    })
}

/// Called when neither a descriptor nor a mapping of the file is left. Goes on to
/// [`registry::close`].
///
/// # Safety
///
/// `file` must have been opened by `open`, and nobody may use it any more.
unsafe extern "C" fn release(_inode: *mut raw::inode, file: *mut raw::file) -> c_int {
    // SAFETY: `open` stored the reference, and nobody uses the file any more.
    registry::close(unsafe { Arc::<Device>::from_raw((*file).private_data.cast_const().cast()) });
    0
}

/// Moves the file's position, which says nothing here. Programs seek to the end to learn the size:
/// those that map guests' memory for vhost-user, by the descriptor that QEMU passes them, do so to
/// check what they are asked to map. Goes on to [`mmap::size`].
///
/// # Safety
///
/// `file` must have been opened by `open`.
unsafe extern "C" fn llseek(
    file: *mut raw::file,
    offset: raw::loff_t,
    whence: c_int,
) -> raw::loff_t {
    from_result(|| {
        // SAFETY: The kernel passes a file of this driver.
        let size = raw::loff_t::try_from(mmap::size(unsafe { device_of(file) })?)?;
        // SAFETY: As above.
        Ok(unsafe { raw::fixed_size_llseek(file, offset, whence, size) })
    })
}

/// Goes on to [`mmap::prepare`].
///
/// # Safety
///
/// `desc` must be the descriptor of an mmap call under way on a file of this driver.
unsafe extern "C" fn mmap_prepare(desc: *mut raw::vm_area_desc) -> c_int {
    from_result(|| {
        let desc = NonNull::new(desc).ok_or(EINVAL)?;
        // SAFETY: The kernel passes a valid descriptor of an mmap call on a file of this driver.
        let (device, request) =
            unsafe { (device_of((*desc.as_ptr()).file), Request::from_raw(desc)) };
        mmap::prepare(device, request)?;
        Ok(0)
    })
}

/// Goes on to [`mmap::choose_address`].
///
/// # Safety
///
/// `file` must have been opened by `open`; the other arguments are the kernel's own.
unsafe extern "C" fn get_unmapped_area(
    file: *mut raw::file,
    addr: usize,
    len: usize,
    pgoff: usize,
    flags: usize,
) -> usize {
    // SAFETY: The kernel passes a file of this driver.
    let device = unsafe { device_of(file) };
    let find = |hint: u64, len: u64| {
        // SAFETY: As the kernel would call it for a file without this operation.
        let found =
            unsafe { raw::mm_get_unmapped_area(file, to_ulong(hint), to_ulong(len), pgoff, flags) };
        // Errors are the numbers a page-aligned address cannot have.
        if from_ulong(found) % PAGE_SIZE == 0 {
            Ok(from_ulong(found))
        } else {
            Err(found)
        }
    };
    let spot = Spot {
        hint: from_ulong(addr),
        is_fixed: flags & raw::DMEM_MAP_FIXED != 0,
        len: from_ulong(len),
        pgoff: PageOff::from_raw(from_ulong(pgoff)),
    };
    mmap::choose_address(device, &spot, find).map_or_else(|error| error, to_ulong)
}
