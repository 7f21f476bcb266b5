// SPDX-License-Identifier: GPL-2.0

//! dax_dmem: guest memory without `struct page` on the device-dax bus.
//!
//! Wiring only. The way of a page fault: `ffi/vma.rs`, `fault.rs`, `mm/dmem/leaf.rs`,
//! `mm/dmem/insert.rs`. The life of a device: `ffi/bus.rs`, `device.rs`, `registry.rs`, `dma.rs`. Between
//! two tenants: `custody.rs`, `scrub.rs`. A memory error: `ffi/machine_check.rs`,
//! `ffi/memory_failure.rs`, `poison.rs`, `loan.rs`. The way of an mmap: `ffi/char_device.rs`,
//! `mmap.rs`, `mm/dmem/congruence.rs`. Of ptrace: `ffi/vma.rs`, `access.rs`. What is counted:
//! `stats.rs`, `ffi/leaves.rs`.

use kernel::prelude::*;

mod access;
mod badblocks;
mod custody;
mod device;
mod dma;
mod error;
mod fault;
mod ffi;
#[cfg(CONFIG_DEV_DAX_DMEM_KUNIT_TEST)]
mod kunit;
mod loan;
mod mmap;
mod poison;
mod registry;
mod scrub;
mod stats;
mod store;

#[path = "../../../mm/dmem/insert.rs"]
mod insert;
// Shared with the operator's tool, which uses the parts the driver does not.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../../mm/dmem/plan.rs"]
mod plan;

module! {
    type: DaxDmem,
    name: "dax_dmem",
    authors: ["The daxdmem authors"],
    description: "DMEM DAX: guest memory without struct page",
    license: "GPL",
}

/// The loaded module.
#[pin_data]
struct DaxDmem {
    /// Dropped at unload, when no file is open: unbinds what is still bound.
    #[pin]
    driver: ffi::bus::Registration,
    #[pin]
    decoder: ffi::machine_check::Decoder,
    _listener: ffi::memory_failure::Listener,
    /// Dropped after the driver, which uses it to the last.
    _globals: ffi::globals::Globals,
}

impl kernel::InPlaceModule for DaxDmem {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let layouts = if ffi::layout::agrees() {
            Ok(())
        } else {
            pr_err!(
                "structures are laid out differently in Rust and in C; rebuild for this kernel\n"
            );
            Err(ENOEXEC)
        };
        try_pin_init!(Self {
            _: { layouts? },
            _globals: ffi::globals::Globals::new()?,
            decoder <- ffi::machine_check::Decoder::new(),
            _listener: ffi::memory_failure::Listener::new(),
            driver <- ffi::bus::Registration::new(),
        })
    }
}
