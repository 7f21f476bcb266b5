// SPDX-License-Identifier: GPL-2.0
//! Memory errors: how they are brought about, and what the driver knows of them.

use std::io;
use std::ops::Range;

use crate::case::{Failure, Outcome};
use crate::device::{driver_attribute, DAX_DMEM};
use crate::scrub::extent;
use crate::sysfs;

/// Bytes that an error costs.
pub const PAGE: u64 = 4096;

/// The pages that the driver takes for poisoned, as extents.
pub fn known() -> Outcome<Vec<Range<u64>>> {
    let text = std::fs::read_to_string(driver_attribute(DAX_DMEM, "poison"))?;
    let parse = |line: &str| {
        extent(line).ok_or_else(|| Failure::Fail(format!("poison has a line '{line}'")))
    };
    text.lines().map(parse).collect()
}

/// Tells the driver of an error.
pub fn add(at: u64) -> io::Result<()> {
    sysfs::try_write(
        driver_attribute(DAX_DMEM, "poison"),
        &format!("add {at:#x}"),
    )
}

/// Has the driver test a page and take it back into use.
pub fn clear(at: u64) -> io::Result<()> {
    sysfs::try_write(
        driver_attribute(DAX_DMEM, "poison"),
        &format!("clear {at:#x}"),
    )
}

/// Has the kernel's memory-failure code deal with an error at this address.
pub fn offline(at: u64) -> io::Result<()> {
    sysfs::try_write(
        "/sys/devices/system/memory/hard_offline_page",
        &format!("{at:#x}"),
    )
}

/// Takes every page back into use when dropped, so that the next case finds none.
pub struct Cleaned;

impl Drop for Cleaned {
    fn drop(&mut self) {
        for extent in known().unwrap_or_default() {
            for page in extent.step_by(PAGE as usize) {
                let _ = clear(page);
            }
        }
    }
}
