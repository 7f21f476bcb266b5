// SPDX-License-Identifier: GPL-2.0
//! Dax regions: reserved physical ranges from which devices are cut, through sysfs alone.

use std::path::PathBuf;

use crate::case::{Failure, Outcome};
use crate::check_eq;
use crate::device::Device;
use crate::sysfs;

/// Bytes in a KiB, MiB, GiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// A region with dynamic devices (`dax_hmem`).
#[derive(Debug, Clone)]
pub struct Region {
    /// The X of `daxX.Y`.
    pub id: u64,
    /// First physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    attributes: PathBuf,
}

impl Region {
    /// All regions, by physical address.
    pub fn all() -> Outcome<Vec<Region>> {
        let mut regions = Vec::new();
        for entry in std::fs::read_dir("/sys/bus/dax/devices")? {
            // Every region has a device 0. Cases leave it without memory, so that it names the region's start.
            let device = entry?.path().canonicalize()?;
            let attributes = device.with_file_name("dax_region");
            // Static regions, those of persistent memory, have no `create`.
            if !device.to_string_lossy().ends_with(".0") || !attributes.join("create").exists() {
                continue;
            }
            let id = sysfs::read_number(attributes.join("id"))?;
            let start = sysfs::read_number(device.join("resource"))?;
            let size = sysfs::read_number(attributes.join("size"))?;
            regions.push(Region {
                id,
                start,
                size,
                attributes,
            });
        }
        regions.sort_by_key(|region| region.start);
        Ok(regions)
    }

    /// The region at the lowest address; most machines have one only.
    pub fn first() -> Outcome<Region> {
        // dax_hmem's devices are probed after its module is loaded.
        for _ in 0..30 {
            if let Some(first) = Region::all()?.into_iter().next() {
                return Ok(first);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Err(Failure::Fail(
            "no dax region: was memory reserved on the kernel command line?".into(),
        ))
    }

    /// Fails unless no device has memory of any region.
    pub fn check_all_free() -> Outcome {
        Region::all()?.iter().try_for_each(|region| {
            check_eq!(
                region.available()?,
                region.size,
                "free bytes of region {}",
                region.id
            );
            Ok(())
        })
    }

    /// Bytes no device has.
    pub fn available(&self) -> Outcome<u64> {
        sysfs::read_number(self.attribute("available_size"))
    }

    /// An attribute of the region.
    pub fn attribute(&self, name: &str) -> PathBuf {
        self.attributes.join(name)
    }

    /// Makes an unbound device of the bytes at these offsets into the region, in this order.
    ///
    /// `align` and every part must be what the kernel takes: align 4 KiB, 2 MiB or 1 GiB, parts in multiples of
    /// it and of 2 MiB. The device is destroyed when the value is dropped.
    pub fn create(&self, align: u64, parts: &[(u64, u64)]) -> Outcome<Device> {
        sysfs::write(self.attribute("create"), "1")?;
        let device = Device::youngest(self)?;
        sysfs::write(device.attribute("align"), &align.to_string())?;
        for (offset, length) in parts {
            let start = self.start + offset;
            sysfs::write(
                device.attribute("mapping"),
                &format!("{:x}-{:x}", start, start + length - 1),
            )?;
        }
        let wanted: u64 = parts.iter().map(|(_, length)| length).sum();
        let got = device.size()?;
        if got != wanted {
            // A misaligned write to `mapping` reports success and does nothing.
            return Err(Failure::Fail(format!(
                "{}: has {got:#x} bytes, expected {wanted:#x}",
                device.name
            )));
        }
        Ok(device)
    }
}
