// SPDX-License-Identifier: GPL-2.0
//! PCI devices: finding one, and saying which driver has it.

use std::path::{Path, PathBuf};

use crate::case::{Failure, Outcome};
use crate::sysfs;

/// Class code of disks behind NVMe.
pub const NVME: u64 = 0x01_08_02;

/// All devices.
const DEVICES: &str = "/sys/bus/pci/devices";

/// A device.
pub struct Function {
    path: PathBuf,
}

impl Function {
    /// The first of this class.
    pub fn of_class(class: u64) -> Outcome<Function> {
        for entry in std::fs::read_dir(DEVICES)? {
            let path = entry?.path();
            if sysfs::read_number(path.join("class"))? == class {
                return Ok(Function { path });
            }
        }
        Err(Failure::Fail(format!(
            "the machine has no PCI device of class {class:06x}"
        )))
    }

    /// `0000:00:04.0`.
    pub fn address(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Has this driver, which is loaded, take it from whichever has it.
    pub fn bind(&self, driver: &str) -> Outcome {
        let bound = self.path.join("driver");
        if sysfs::link_name(&bound).as_deref() == Some(driver) {
            return Ok(());
        }
        if bound.exists() {
            sysfs::write(bound.join("unbind"), &self.address())?;
        }
        sysfs::write(self.path.join("driver_override"), driver)?;
        sysfs::write(Path::new("/sys/bus/pci/drivers_probe"), &self.address())?;
        match sysfs::link_name(&bound).as_deref() == Some(driver) {
            true => Ok(()),
            false => Err(Failure::Fail(format!(
                "{}: {driver} did not take it",
                self.address()
            ))),
        }
    }
}

/// The directory of the first device of this vendor and device number.
pub fn find(id: (u64, u64)) -> Outcome<PathBuf> {
    for entry in std::fs::read_dir(DEVICES)? {
        let path = entry?.path();
        let found = (
            sysfs::read_number(path.join("vendor"))?,
            sysfs::read_number(path.join("device"))?,
        );
        if found == id {
            return Ok(path);
        }
    }
    Err(Failure::Fail(format!(
        "the machine has no PCI device {:04x}:{:04x}",
        id.0, id.1
    )))
}
