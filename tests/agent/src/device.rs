// SPDX-License-Identifier: GPL-2.0
//! Devices on the dax bus: `daxX.Y`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;
use crate::region::Region;
use crate::{check_eq, sysfs};

const BUS: &str = "/sys/bus/dax";
/// The driver under test.
pub const DAX_DMEM: &str = "dax_dmem";
/// The kernel's own character device driver, the peer to measure against.
pub const DEVICE_DAX: &str = "device_dax";

/// One physical range of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Offset in the device, bytes.
    pub offset: u64,
    /// First physical address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// A device; one made by [`Region::create`] is destroyed on drop.
#[derive(Debug)]
pub struct Device {
    /// `daxX.Y`.
    pub name: String,
    region: Option<Region>,
}

impl Device {
    /// A device somebody else made and will destroy: by the tool, or static.
    pub fn existing(name: &str) -> Device {
        Device {
            name: name.to_owned(),
            region: None,
        }
    }

    /// The device the region created last; the value owns it.
    pub fn youngest(region: &Region) -> Outcome<Device> {
        let name = sysfs::read(region.attribute("create"))?;
        Ok(Device {
            name,
            region: Some(region.clone()),
        })
    }

    /// An attribute below the device's directory.
    pub fn attribute(&self, name: &str) -> PathBuf {
        Path::new(BUS).join("devices").join(&self.name).join(name)
    }

    /// The character device.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Bytes.
    pub fn size(&self) -> Outcome<u64> {
        sysfs::read_number(self.attribute("size"))
    }

    /// Ranges by device offset, as sysfs says.
    pub fn ranges(&self) -> Outcome<Vec<Range>> {
        let mut ranges = Vec::new();
        for index in 0.. {
            let mapping = self.attribute(&format!("mapping{index}"));
            if !mapping.exists() {
                break;
            }
            let start = sysfs::read_number(mapping.join("start"))?;
            let end = sysfs::read_number(mapping.join("end"))?;
            let page = sysfs::read_number(mapping.join("page_offset"))?;
            ranges.push(Range {
                offset: page * 4096,
                start,
                length: end - start + 1,
            });
        }
        ranges.sort_by_key(|range| range.offset);
        Ok(ranges)
    }

    /// The physical address of a byte of the device, by sysfs.
    pub fn physical(&self, offset: u64) -> Outcome<u64> {
        let holds = |range: &Range| (range.offset..range.offset + range.length).contains(&offset);
        match self.ranges()?.into_iter().find(holds) {
            Some(range) => Ok(range.start + (offset - range.offset)),
            None => Err(Failure::Fail(format!(
                "{}: no range has offset {offset:#x}",
                self.name
            ))),
        }
    }

    /// The driver the device is bound to.
    pub fn driver(&self) -> Option<String> {
        sysfs::link_name(self.attribute("driver"))
    }

    /// Binds as [`Device::try_bind`], and fails unless the driver has the device afterwards.
    pub fn bind(&self, driver: &str) -> Outcome {
        self.try_bind(driver)
            .named(format_args!("binding {} to {driver}", self.name))
    }

    /// Binds by `new_id`; the errno stays visible to the caller.
    ///
    /// The driver under test leaves the memory as it is: most cases look at bytes of before, some at regions larger than
    /// the machine, and scrubbing takes its time. Cases about scrubbing use [`Device::attach`].
    pub fn try_bind(&self, driver: &str) -> io::Result<()> {
        if driver == DAX_DMEM {
            let policy = format!("{} never", self.name);
            sysfs::try_write(driver_attribute(DAX_DMEM, "scrub_policy"), &policy)?;
        }
        self.attach(driver)
    }

    /// Binds by `new_id`, with the scrub policy that was chosen, or the default.
    ///
    /// `new_id` itself reports success when the probe fails, so `bind` is asked next: it gives the probe's error.
    pub fn attach(&self, driver: &str) -> io::Result<()> {
        sysfs::try_write(driver_attribute(driver, "new_id"), &self.name)?;
        if self.driver().as_deref() == Some(driver) {
            return Ok(());
        }
        let result = sysfs::try_write(driver_attribute(driver, "bind"), &self.name);
        if result.is_err() {
            // Leaves no trace: the id would bind the device on the next occasion.
            let _ = sysfs::try_write(driver_attribute(driver, "remove_id"), &self.name);
        }
        result
    }

    /// Unbinds and removes the id, as `new_id` requires.
    pub fn unbind(&self) -> Outcome {
        let Some(driver) = self.driver() else {
            return Err(Failure::Fail(format!(
                "{}: has no driver to unbind",
                self.name
            )));
        };
        sysfs::write(driver_attribute(&driver, "unbind"), &self.name)?;
        sysfs::write(driver_attribute(&driver, "remove_id"), &self.name)
    }

    /// Opens the character device for reading and writing.
    pub fn open(&self) -> Outcome<File> {
        let path = self.path();
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .named(path.display())
    }

    /// Gives the memory back to the region.
    pub fn destroy(mut self) -> Outcome {
        self.release()
    }

    fn release(&mut self) -> Outcome {
        let Some(region) = self.region.take() else {
            return Ok(());
        };
        if self.driver().is_some() {
            self.unbind()?;
        }
        sysfs::write(self.attribute("size"), "0")?;
        sysfs::write(region.attribute("delete"), &self.name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(Failure::Fail(reason)) = self.release() {
            // Drop cannot fail the case; the next one that needs the memory says so loudly enough.
            crate::say!("{}: not destroyed: {reason}", self.name);
        }
    }
}

/// An attribute of a dax driver.
pub fn driver_attribute(driver: &str, name: &str) -> PathBuf {
    Path::new(BUS).join("drivers").join(driver).join(name)
}

/// The lines of the driver's list of what is quarantined.
pub fn quarantine() -> Outcome<Vec<String>> {
    let text = sysfs::read(driver_attribute(DAX_DMEM, "quarantine"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Waits until they are these: files are closed a little after the process has let go of them, and that DMA is over is
/// seen a second later.
pub fn wait_for_quarantine(expected: &[String]) -> Outcome {
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while quarantine()? != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    check_eq!(quarantine()?, expected, "quarantine");
    Ok(())
}
