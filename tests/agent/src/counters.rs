// SPDX-License-Identifier: GPL-2.0
//! What the driver counts of a bound device.

use crate::case::{Failure, Outcome};
use crate::device::Device;
use crate::pages::Census;
use crate::sysfs;

/// The device's page-table entries in all processes, as the driver finds them.
pub fn leaves(device: &Device) -> Outcome<Census> {
    let text = sysfs::read(device.attribute("dax_dmem/leaves"))?;
    let lines = text.lines().map(|line| line.split_once(' '));
    let lines: Option<Vec<_>> = lines.collect();
    let number = |text: &str| text.parse().ok();
    if let Some([("1g", giant), ("2m", huge), ("4k", small)]) = lines.as_deref() {
        let numbers = (number(giant), number(huge), number(small));
        if let (Some(giant), Some(huge), Some(small)) = numbers {
            return Ok(Census::new(giant, huge, small));
        }
    }
    Err(Failure::Fail(format!("leaves is '{text}'")))
}

/// VMAs of the device in all processes.
pub fn mappings(device: &Device) -> Outcome<u64> {
    sysfs::read_number(device.attribute("dax_dmem/mappings"))
}

/// One word for what the device is doing.
pub fn state(device: &Device) -> Outcome<String> {
    sysfs::read(device.attribute("dax_dmem/state"))
}

/// Page faults for leaves of a size (`1g`, `2m`, `4k`) that came to this result.
pub fn faults(device: &Device, leaf: &str, result: &str) -> Outcome<u64> {
    let text = sysfs::read(device.attribute("dax_dmem/faults"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(leaf).filter(|rest| rest.starts_with(' ')));
    let mut words = line.unwrap_or_default().split_ascii_whitespace();
    let number = words
        .find(|word| *word == result)
        .and_then(|_| words.next()?.parse().ok());
    number.ok_or_else(|| Failure::Fail(format!("faults has no {leaf} {result}: '{text}'")))
}
