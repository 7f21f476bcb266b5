// SPDX-License-Identifier: GPL-2.0

//! VMAs of a page-less device: what mmap asks for, and the operations the kernel calls on them.
//!
//! One type per state of locking: [`Request`] is a VMA that does not exist yet, [`FaultSite`] (in
//! `insert.rs`) one under the mmap read lock or the VMA lock, [`Access`] one under the mmap read
//! lock, [`Splitting`] and [`Copied`] one under
//! the mmap write lock.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{addr_of, NonNull};
use kernel::ffi::{c_int, c_uint, c_void};
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::Arc;

use crate::access;
use crate::device::Device;
use crate::fault::{self, Answer};
use crate::insert::FaultSite;
use crate::mmap;
use crate::plan::{Leaf, PageOff, VirtAddr, Window};

use super::kernel_map::KernelMap;
use super::space::Space;
use super::{from_ulong, raw, to_ulong, Table};

/// The open device behind a file of this driver.
///
/// # Safety
///
/// `file` must be valid for `'a` and have been opened by `char_device::open`.
pub(super) unsafe fn device_of<'a>(file: *const raw::file) -> &'a Device {
    // SAFETY: `open` stored a reference count of an `Arc<Device>` there, which `release` gives back
    // when no user of the file is left.
    let device = ManuallyDrop::new(unsafe {
        Arc::<Device>::from_raw((*file).private_data.cast_const().cast::<Device>())
    });
    // SAFETY: The allocation lives as long as the file, which the caller guarantees for `'a`.
    unsafe { &*Arc::as_ptr(&device) }
}

/// Whether this driver has made the VMA, and so opened its file.
///
/// # Safety
///
/// `vma` must be valid.
pub(super) unsafe fn is_ours(vma: NonNull<raw::vm_area_struct>) -> bool {
    // SAFETY: By the safety requirement.
    unsafe { vma.as_ref().vm_ops == addr_of!(OPERATIONS.0) }
}

/// What a VMA maps.
///
/// # Safety
///
/// `vma` must be valid, and its bounds stable, during the call: a lock on it or its mm is held.
pub(crate) unsafe fn window_of(vma: *const raw::vm_area_struct) -> Option<Window> {
    // SAFETY: By the safety requirement.
    let (bounds, pgoff) = unsafe { ((*vma).__bindgen_anon_1.__bindgen_anon_1, (*vma).vm_pgoff) };
    Window::new(
        VirtAddr::from_raw(from_ulong(bounds.vm_start)),
        VirtAddr::from_raw(from_ulong(bounds.vm_end)),
        PageOff::from_raw(from_ulong(pgoff)),
    )
}

/// What mmap asks for, before the VMA exists.
///
/// # Invariants
///
/// The pointer is the valid descriptor of an mmap call under way on a file of this driver.
pub(crate) struct Request<'a>(
    NonNull<raw::vm_area_desc>,
    PhantomData<&'a mut raw::vm_area_desc>,
);

impl Request<'_> {
    /// # Safety
    ///
    /// `desc` must be what the kernel passed to `mmap_prepare`, and no longer be used than that
    /// call.
    pub(super) unsafe fn from_raw(desc: NonNull<raw::vm_area_desc>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(desc, PhantomData)
    }

    /// Whether MAP_SHARED (or MAP_SHARED_VALIDATE) was given.
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: Valid by the invariant.
        unsafe { raw::dmem_desc_is_shared(self.0.as_ptr()) }
    }

    /// First device offset.
    pub(crate) fn pgoff(&self) -> PageOff {
        // SAFETY: Valid by the invariant.
        PageOff::from_raw(from_ulong(unsafe { (*self.0.as_ptr()).pgoff }))
    }

    /// Length in 4 KiB pages.
    pub(crate) fn pages(&self) -> u64 {
        // SAFETY: Valid by the invariant.
        let (start, end) = unsafe { ((*self.0.as_ptr()).start, (*self.0.as_ptr()).end) };
        from_ulong(end - start) / Leaf::Pte.size()
    }

    /// Makes the VMA one of page-less memory, served by this driver.
    pub(crate) fn accept(self) {
        // SAFETY: Valid by the invariant; the table is a static of the module, which the file keeps
        // loaded.
        unsafe {
            raw::dmem_desc_set_pageless(self.0.as_ptr());
            (*self.0.as_ptr()).vm_ops = addr_of!(OPERATIONS.0);
        }
    }

    /// Tells the operator why the request is refused.
    pub(crate) fn log_refusal(&self, device: &CStr, why: &CStr) {
        let (pgoff, pages) = (to_ulong(self.pgoff().raw()), to_ulong(self.pages()));
        // SAFETY: Both strings end in NUL and outlive the call.
        unsafe {
            raw::dmem_notice_refused_mmap(device.as_char_ptr(), why.as_char_ptr(), pgoff, pages)
        };
    }
}

/// A VMA that is about to be split.
///
/// # Invariants
///
/// The pointer is a valid VMA of this driver, the mmap write lock is held.
pub(crate) struct Splitting<'a>(NonNull<raw::vm_area_struct>, PhantomData<&'a ()>);

impl Splitting<'_> {
    /// Keeps faults out until the mmap lock is released.
    ///
    /// `__split_vma()` does it only after `may_split`: a fault under the VMA lock could bring a
    /// leaf back that was just dropped.
    pub(crate) fn stop_faults(&self) {
        // SAFETY: The mmap write lock is held by the invariant.
        unsafe { raw::dmem_vma_start_write(self.0.as_ptr()) };
    }

    /// Whether a 1 GiB leaf maps this address.
    pub(crate) fn has_pud_leaf(&self, addr: VirtAddr) -> bool {
        // SAFETY: The VMA is valid, and nobody frees or changes its upper tables under the mmap
        // write lock.
        unsafe {
            let pud = raw::dmem_pud_of((*self.0.as_ptr()).vm_mm, to_ulong(addr.raw()));
            !pud.is_null() && raw::dmem_pud_leaf(pud.read_volatile())
        }
    }

    /// Removes the leaf of this size around `addr`; a later access brings what fits then.
    pub(crate) fn drop_leaf(&self, addr: VirtAddr, leaf: Leaf) {
        let start = to_ulong(addr.align_down(leaf).raw());
        // SAFETY: The VMA is valid and the mmap write lock held; the callee checks the bounds.
        unsafe { raw::zap_special_vma_range(self.0.as_ptr(), start, to_ulong(leaf.size())) };
    }
}

/// A VMA that was just made as a copy of another: by a split, for a child, or to move to.
///
/// # Invariants
///
/// The pointer is a valid VMA of this driver, the mmap write lock of the caller's mm is held.
pub(crate) struct Copied<'a>(NonNull<raw::vm_area_struct>, PhantomData<&'a ()>);

impl Copied<'_> {
    /// Whether mremap is about to move page tables here.
    pub(crate) fn is_moving(&self) -> bool {
        // SAFETY: Valid by the invariant.
        unsafe { raw::dmem_vma_is_moving(self.0.as_ptr()) }
    }

    /// The VMA's bounds and device offset.
    pub(crate) fn window(&self) -> Option<Window> {
        // SAFETY: Valid and locked by the invariant.
        unsafe { window_of(self.0.as_ptr()) }
    }

    /// The address space it is in, which is a child's perhaps.
    pub(crate) fn space(&self) -> Option<Space> {
        // SAFETY: Valid by the invariant, and so is its mm.
        unsafe { NonNull::new(self.0.as_ref().vm_mm).map(|mm| Space::of(mm)) }
    }
}

/// What a debugger wants to read or write of a process.
///
/// # Invariants
///
/// `vma` is a valid VMA of this driver, the mmap read lock of its mm is held; `buf` is valid for
/// reads and writes of `len` bytes.
pub(crate) struct Access<'a> {
    vma: NonNull<raw::vm_area_struct>,
    addr: VirtAddr,
    buf: *mut c_void,
    len: u64,
    write: bool,
    _vma: PhantomData<&'a ()>,
}

impl Access<'_> {
    /// The first address.
    pub(crate) fn addr(&self) -> VirtAddr {
        self.addr
    }

    /// Bytes wanted.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The VMA's bounds and device offset.
    pub(crate) fn window(&self) -> Option<Window> {
        // SAFETY: Valid and locked by the invariant.
        unsafe { window_of(self.vma.as_ptr()) }
    }

    /// Whether the VMA allows it, as for shared mappings with pages (`mm/gup.c`,
    /// `check_vma_flags`): a debugger may read what the process itself could make readable, but
    /// write only where the process can.
    pub(crate) fn is_permitted(&self) -> bool {
        let needed = if self.write {
            raw::VM_WRITE
        } else {
            raw::VM_MAYREAD
        };
        // SAFETY: Valid and locked by the invariant.
        unsafe { self.vma.as_ref().__bindgen_anon_2.vm_flags & needed != 0 }
    }

    /// Copies `len` bytes, in the direction that is wanted, between the memory `at` bytes into
    /// `map` and the buffer `done` bytes into it. Both must have them. Returns how many were copied:
    /// fewer where a memory error comes to light.
    pub(crate) fn copy(&self, map: &KernelMap, at: u64, done: u64, len: u64) -> u64 {
        debug_assert!(done + len <= self.len);
        let (at, size) = (to_ulong(at), to_ulong(len));
        // SAFETY: The buffer is valid by the invariant, and has `len` bytes there by the caller.
        unsafe {
            let buf = self.buf.byte_add(to_ulong(done));
            if self.write {
                map.copy_in(at, buf, size);
                len
            } else {
                from_ulong(map.copy_out(at, buf, size))
            }
        }
    }
}

/// The operations of every VMA of this driver.
static OPERATIONS: Table<raw::vm_operations_struct> = Table(raw::vm_operations_struct {
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    may_split: Some(may_split),
    mapped: Some(mapped),
    open: Some(open),
    close: Some(close),
    access: Some(access),
    ..pin_init::zeroed()
});

/// Called for 4 KiB leaves: huge ones do not fit, or MADV_NOHUGEPAGE forbids them. Goes on to
/// [`fault::fault`].
///
/// # Safety
///
/// `vmf` must be a valid fault on a VMA of this driver, with the mmap read lock or the VMA lock
/// held.
unsafe extern "C" fn fault(vmf: *mut raw::vm_fault) -> raw::vm_fault_t {
    // SAFETY: The kernel passes a valid fault under the mmap read lock or the VMA lock.
    unsafe { answer(vmf, Some(Leaf::Pte)) }
}

/// Called where no table is in the way of a leaf of 2^`order` pages, and for a write to such a leaf
/// that is read-only. Goes on to [`fault::fault`].
///
/// # Safety
///
/// As for `fault`.
unsafe extern "C" fn huge_fault(vmf: *mut raw::vm_fault, order: c_uint) -> raw::vm_fault_t {
    // SAFETY: As above.
    unsafe { answer(vmf, Leaf::from_order(order)) }
}

/// # Safety
///
/// `vmf` must be a valid fault on a VMA of this driver, with the mmap read lock or the VMA lock
/// held.
unsafe fn answer(vmf: *mut raw::vm_fault, leaf: Option<Leaf>) -> raw::vm_fault_t {
    // SAFETY: By the safety requirement.
    let (site, device) = unsafe {
        let Some(vmf) = NonNull::new(vmf) else {
            return raw::vm_fault_reason_VM_FAULT_SIGBUS;
        };
        let vma = vmf.as_ref().__bindgen_anon_1.vma;
        (FaultSite::from_raw(vmf), device_of((*vma).vm_file))
    };
    let answer = match leaf {
        Some(leaf) => fault::fault(device, &site, leaf),
        None => Answer::TrySmaller,
    };
    match answer {
        Answer::Done => raw::vm_fault_reason_VM_FAULT_NOPAGE,
        Answer::TrySmaller => raw::vm_fault_reason_VM_FAULT_FALLBACK,
        Answer::Sigbus => raw::vm_fault_reason_VM_FAULT_SIGBUS,
        Answer::Poisoned => raw::vm_fault_reason_VM_FAULT_HWPOISON,
    }
}

/// Called before a VMA is cut in two at `addr`. Goes on to [`fault::before_split`].
///
/// # Safety
///
/// `vma` must be a valid VMA of this driver, with the mmap write lock held.
unsafe extern "C" fn may_split(vma: *mut raw::vm_area_struct, addr: usize) -> c_int {
    if let Some(vma) = NonNull::new(vma) {
        // INVARIANT: `__split_vma()` holds the mmap write lock and passes a valid VMA.
        let vma = Splitting(vma, PhantomData);
        fault::before_split(&vma, VirtAddr::from_raw(from_ulong(addr)));
    }
    0
}

/// Called for a VMA that mmap has made. Goes on to [`mmap::begun`].
///
/// # Safety
///
/// `file` must have been opened by this driver.
unsafe extern "C" fn mapped(
    start: usize,
    end: usize,
    pgoff: usize,
    file: *const raw::file,
    _private: *mut *mut c_void,
) -> c_int {
    let window = Window::new(
        VirtAddr::from_raw(from_ulong(start)),
        VirtAddr::from_raw(from_ulong(end)),
        PageOff::from_raw(from_ulong(pgoff)),
    );
    // SAFETY: By the safety requirement.
    mmap::begun(unsafe { device_of(file) }, window.as_ref());
    0
}

/// Called once for each VMA that `mapped` or `open` was called for, when no leaf is left in it. Goes
/// on to [`mmap::ended`].
///
/// # Safety
///
/// `vma` must be a valid VMA of this driver.
unsafe extern "C" fn close(vma: *mut raw::vm_area_struct) {
    if let Some(vma) = NonNull::new(vma) {
        // SAFETY: By the safety requirement; the file goes after this, and nobody changes the bounds
        // of a VMA that is no longer in its mm.
        let (device, window) =
            unsafe { (device_of(vma.as_ref().vm_file), window_of(vma.as_ptr())) };
        mmap::ended(device, window.as_ref());
    }
}

/// Called for a VMA that was copied. Goes on to [`fault::before_move`] and [`mmap::copied`].
///
/// # Safety
///
/// As for `may_split`.
unsafe extern "C" fn open(vma: *mut raw::vm_area_struct) {
    if let Some(vma) = NonNull::new(vma) {
        // SAFETY: split, fork and mremap hold the mmap write lock and pass a valid VMA with its
        // file.
        let device = unsafe { device_of(vma.as_ref().vm_file) };
        // INVARIANT: As above.
        let vma = Copied(vma, PhantomData);
        fault::before_move(device, &vma);
        mmap::copied(device, vma.space(), vma.window().as_ref());
    }
}

/// Called for ptrace and `/proc/PID/mem`. Goes on to [`access::access`].
///
/// # Safety
///
/// `vma` must be a valid VMA of this driver with the mmap read lock held, `buf` valid for reads and
/// writes of `len` bytes.
unsafe extern "C" fn access(
    vma: *mut raw::vm_area_struct,
    addr: usize,
    buf: *mut c_void,
    len: c_int,
    write: c_int,
) -> c_int {
    let (Some(vma), Ok(len)) = (NonNull::new(vma), u64::try_from(len)) else {
        return 0;
    };
    // SAFETY: `__access_remote_vm()` holds the mmap read lock and passes a valid VMA with its file.
    let device = unsafe { device_of(vma.as_ref().vm_file) };
    // INVARIANT: By the safety requirement.
    let access = Access {
        vma,
        addr: VirtAddr::from_raw(from_ulong(addr)),
        buf,
        len,
        write: write != 0,
        _vma: PhantomData,
    };
    // No more than `len`, which came as an int.
    access::access(device, &access) as c_int
}
