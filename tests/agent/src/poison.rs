// SPDX-License-Identifier: GPL-2.0
//! Memory errors: how they are brought about, and what the driver knows of them.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::case::{Failure, Outcome};
use crate::cmdline::patient;
use crate::device::{driver_attribute, DAX_DMEM};
use crate::scrub::extent;
use crate::{check, sysfs};

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

/// The pages that the driver takes for poisoned.
pub fn known_pages() -> Outcome<Vec<u64>> {
    let pages = known()?.into_iter();
    Ok(pages
        .flat_map(|extent| extent.step_by(PAGE as usize))
        .collect())
}

/// Waits until the driver knows of exactly these pages, in order of address.
pub fn wait_known(expected: &[u64]) -> Outcome {
    let deadline = Instant::now() + patient(Duration::from_secs(5));
    loop {
        let pages = known_pages()?;
        if pages == expected {
            return Ok(());
        }
        check!(
            Instant::now() < deadline,
            "the driver knows of {pages:x?}, not of {expected:x?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
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
