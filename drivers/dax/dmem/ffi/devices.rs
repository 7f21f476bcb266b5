// SPDX-License-Identifier: GPL-2.0

//! The module's one global: the list of devices. `registry.rs` says what it means.

use core::pin::Pin;
use kernel::prelude::*;
use kernel::sync::{global_lock, Arc};

use crate::device::Device;

global_lock! {
    // SAFETY: `Devices::new()` is called by the module's own init before the driver is registered,
    // that is before anything can look for a device.
    pub(crate) unsafe(uninit) static DEVICES: Mutex<KVec<Arc<Device>>> = KVec::new();
}

/// The list while the module is loaded; statics are not dropped with their module.
pub(crate) struct Devices(());

impl Devices {
    /// Makes the list usable. Must be called once, before anything else.
    pub(crate) fn new() -> Self {
        // SAFETY: Called once, from the module's init.
        unsafe { DEVICES.init() };
        Self(())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // Empty: the driver is unregistered, and no file is open when the module goes.
        let devices = core::mem::replace(&mut *DEVICES.lock(), KVec::new());
        drop(devices);
    }
}
