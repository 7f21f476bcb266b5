// SPDX-License-Identifier: GPL-2.0

//! What a device is used as, which follows from its driver.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bus::Device;
use crate::driver::Driver;

/// What a device is used as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// By dax_dmem.
    PageLess,
    /// By device_dax: with struct pages.
    Devdax,
    /// By kmem: the kernel's own memory.
    SystemRam,
    /// By no driver.
    Unbound,
    /// By another driver.
    Other(String),
}

impl Mode {
    /// The mode of a device.
    pub fn of(device: &Device) -> Mode {
        match device.driver.as_deref() {
            None => Mode::Unbound,
            Some(Driver::NAME) => Mode::PageLess,
            Some("device_dax") => Mode::Devdax,
            Some("kmem") => Mode::SystemRam,
            Some(driver) => Mode::Other(driver.to_owned()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::PageLess => "page-less",
            Mode::Devdax => "devdax",
            Mode::SystemRam => "system-ram",
            Mode::Unbound => "unbound",
            Mode::Other(driver) => driver,
        })
    }
}
