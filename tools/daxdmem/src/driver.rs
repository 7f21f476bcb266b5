// SPDX-License-Identifier: GPL-2.0

//! The driver dax_dmem, as sysfs shows it: binding, openers, quarantine.
//!
//! A device is bound by its name in `new_id`, which attaches at once. The kernel keeps the name, and would bind any
//! later device of that name along with the next one written there; so it is taken out again as soon as the device is
//! bound, and before a new device gets memory.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bus::Range;
use crate::name::DeviceName;
use crate::sysfs;

/// The driver.
pub struct Driver;

/// A range that is unbound and still in use. Nobody else may have it until its last user is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// The range.
    pub range: Range,
    /// The device it was unbound from.
    pub device: String,
    /// Files still open.
    pub openers: u64,
}

impl Driver {
    /// Its name, and its module's.
    pub const NAME: &'static str = "dax_dmem";

    fn attribute(name: &str) -> PathBuf {
        Path::new("/sys/bus/dax/drivers")
            .join(Self::NAME)
            .join(name)
    }

    /// Whether it is there to bind devices.
    pub fn is_loaded() -> bool {
        Self::attribute("new_id").exists()
    }

    /// Loads the module; returns what modprobe had to say when the driver is not there afterwards.
    pub fn load() -> Result<(), String> {
        if Self::is_loaded() {
            return Ok(());
        }
        let run = Command::new("modprobe")
            .arg(Self::NAME)
            .stdin(Stdio::null())
            .output();
        if Self::is_loaded() {
            return Ok(());
        }
        Err(match run {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if said.is_empty() {
                    format!("modprobe {}: {}", Self::NAME, output.status)
                } else {
                    said
                }
            }
            Err(error) => format!("cannot run modprobe: {error}"),
        })
    }

    /// Has the driver take the device. Says nothing about success: look at the device's driver.
    pub fn add_id(device: DeviceName) -> io::Result<()> {
        sysfs::write(&Self::attribute("new_id"), &device.to_string())
    }

    /// Takes the name out of the driver's list. Does nothing when it is not there.
    pub fn remove_id(device: DeviceName) -> io::Result<()> {
        sysfs::write(&Self::attribute("remove_id"), &device.to_string())
    }

    /// Takes the device away from whatever driver has it.
    pub fn unbind(device: DeviceName, driver: &str) -> io::Result<()> {
        sysfs::write(
            &Path::new("/sys/bus/dax/drivers")
                .join(driver)
                .join("unbind"),
            &device.to_string(),
        )
    }

    /// Number of open files of a device, given its directory; `None` while the driver is not bound.
    pub fn openers(device: &Path) -> Option<u64> {
        sysfs::number(&device.join(Self::NAME).join("openers"))
    }

    /// All ranges in quarantine; none while the driver is not loaded, for it cannot go while there are any.
    pub fn quarantine() -> Vec<Quarantine> {
        let text = sysfs::text(&Self::attribute("quarantine")).unwrap_or_default();
        text.lines().filter_map(Quarantine::parse).collect()
    }
}

impl Quarantine {
    /// `0xSTART-0xEND daxX.Y OPENERS`, the end inclusive.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, last) = words.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let (start, last) = (hex(start)?, hex(last)?);
        Some(Quarantine {
            range: Range {
                start,
                len: last.checked_sub(start)?.checked_add(1)?,
            },
            device: words.next()?.to_owned(),
            openers: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_quarantine() {
        assert_eq!(
            Quarantine::parse("0x100000000-0x13fffffff dax0.1 3"),
            Some(Quarantine {
                range: Range {
                    start: 4 << 30,
                    len: 1 << 30
                },
                device: "dax0.1".to_owned(),
                openers: 3
            })
        );
        for line in [
            "",
            "0x100000000 dax0.1 3",
            "100-200 dax0.1 3",
            "0x2-0x1 dax0.1 3",
            "0x1-0x2 dax0.1",
            "0x1-0x2 dax0.1 x",
        ] {
            assert_eq!(Quarantine::parse(line), None, "{line}");
        }
    }
}
