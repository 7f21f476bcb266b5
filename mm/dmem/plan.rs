// SPDX-License-Identifier: GPL-2.0

//! Where a device's pages are and how they may be mapped: the arithmetic of the driver, without its
//! state.
//!
//! Nothing here allocates, locks, panics or holds `unsafe`; every function is total and looks at
//! its arguments only. The same source is compiled into the kernel module (as `mod plan`) and into
//! the host crate `dmem-plan`, where property tests and a fuzzer check it against page-by-page
//! oracles.
//!
//! The way of a page fault through it: [`Checked::map`] gives the device's ranges, [`Window`]
//! describes the VMA, [`fits`] says whether a leaf of the wanted size may be installed at the
//! faulting address, [`fill`] what to install with 4 KiB leaves. [`congruence()`] chooses the start
//! of a mapping so that large leaves become possible.
//!
//! Apart from that stands [`ExtentSet`]: which memory is known to be zero.
//!
//! Addresses, page offsets and leaf sizes are distinct types (see [`PhysAddr`]): mixing them does
//! not compile.

mod congruence;
mod extents;
mod leaf;
mod ranges;
mod units;

pub use congruence::{congruence, Congruence};
pub use extents::{Extent, ExtentSet, Missing, Store};
pub use leaf::{fill, fits, largest, Placement, Window};
pub use ranges::{Checked, DevRange, RangeError, RangeFault, RangeMap, MAX_RANGES};
pub use units::{Leaf, PageOff, PhysAddr, VirtAddr, PAGE_SHIFT, PAGE_SIZE};
