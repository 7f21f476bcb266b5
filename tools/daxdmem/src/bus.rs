// SPDX-License-Identifier: GPL-2.0

//! The dax bus at one moment: regions, devices and what is bound to them.
//!
//! A [`Bus`] is a copy and does not change: after a change read the device again. Nothing stops another program (daxctl)
//! from changing the bus between two readings, which is why devices are recognised by their [`Identity`].
//!
//! Reading all of it takes as many steps as there are devices: a command that makes or changes one reads that one alone,
//! see [`Bus::of`], [`Device::again`] and [`crate::land`].

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dmem_plan::{Extent, Leaf, PhysAddr};
use serde::{Deserialize, Serialize};

use crate::access::{self, Access};
use crate::daxctl::Context;
use crate::driver::Driver;
use crate::name::DeviceName;
use crate::scrub::Scrub;
use crate::sysfs;

/// All regions and devices, each in ascending order.
#[derive(Debug, Default)]
pub struct Bus {
    /// The regions.
    pub regions: Vec<Region>,
    /// The devices of all regions.
    pub devices: Vec<Device>,
}

/// A reserved physical range.
#[derive(Debug, Clone)]
pub struct Region {
    /// X in the names of its devices.
    pub id: u32,
    /// Its directory in sysfs.
    pub path: PathBuf,
    /// Whether devices can be made in it; a region of persistent memory has one device for good.
    pub dynamic: bool,
    /// NUMA node of its memory.
    pub node: Option<u32>,
    /// Bytes in it; 0 where the kernel does not say.
    pub size: u64,
    /// Bytes that no device has.
    pub available: u64,
    /// Its first byte, where some device tells: one without memory does, and devices that fill the region do.
    pub start: Option<u64>,
}

/// A device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name.
    pub name: DeviceName,
    /// Id of its region.
    pub region: u32,
    /// Its directory in sysfs.
    pub path: PathBuf,
    /// Inode number of that directory. sysfs gives each directory a number that no other has had since boot
    /// (fs/kernfs/dir.c, `__kernfs_new_node`), so it tells a device from a later one of the same name.
    pub inode: u64,
    /// NUMA node of its memory.
    pub node: Option<u32>,
    /// Bytes in it.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Name of the driver that is bound.
    pub driver: Option<String>,
    /// Number of open files, known while dax_dmem is bound.
    pub openers: Option<u64>,
    /// Its ranges in order of offset; `None` where the caller may not read them.
    pub ranges: Option<Vec<Range>>,
    /// How it is scrubbed, known while dax_dmem is bound.
    pub scrub: Option<Scrub>,
    /// Who may open its node; `None` where there is no node.
    pub access: Option<Access>,
}

/// A piece of physical memory, `len` bytes from `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes in it.
    pub len: u64,
}

/// What tells a device from every other one, also from one that gets its name later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub device: DeviceName,
    /// See [`Device::inode`].
    pub inode: u64,
    /// Directory of its region in sysfs.
    pub region: PathBuf,
}

impl Range {
    /// Last byte.
    pub fn last(self) -> u64 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(self, other: Range) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last())
    }
}

impl From<Extent> for Range {
    fn from(extent: Extent) -> Range {
        Range {
            start: extent.start.raw(),
            len: extent.len,
        }
    }
}

impl From<Range> for Extent {
    fn from(range: Range) -> Extent {
        Extent {
            start: PhysAddr::from_raw(range.start),
            len: range.len,
        }
    }
}

/// Where the kernel has links to all devices.
pub const DEVICES: &str = "/sys/bus/dax/devices";

/// Whether the bus has devices. libdaxctl takes one that it cannot read for an empty one.
fn are_there() -> io::Result<bool> {
    match fs::read_dir(DEVICES) {
        Ok(entries) => Ok(!entries.collect::<io::Result<Vec<_>>>()?.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Bus {
    /// Reads the bus. A host without any dax device has an empty one.
    pub fn read() -> io::Result<Bus> {
        let there = are_there()?;
        let context = Context::new()?;
        let mut bus = Bus::default();
        for region in context.regions() {
            let Some(id) = region.id() else { continue };
            let path = region.path();
            let members = members(&path)?.into_iter();
            let devices: Vec<Device> = members
                .filter_map(|(name, _)| Device::read(name, &path))
                .collect();
            let vacant = devices.iter().find(|device| device.is_vacant());
            let ranges = devices
                .iter()
                .flat_map(|device| device.ranges.iter().flatten());
            bus.regions.push(Region::read(
                id,
                path,
                vacant.map(|device| device.path.as_path()),
                ranges,
            ));
            bus.devices.extend(devices);
        }
        if there && bus.devices.is_empty() {
            return Err(io::Error::other("libdaxctl finds none of its devices"));
        }
        bus.regions.sort_by_key(|region| region.id);
        bus.devices.sort_by_key(|device| device.name);
        Ok(bus)
    }

    /// Reads these devices, which takes as many steps as they are, and no region. One that is not there is left out.
    pub fn of(devices: &[DeviceName]) -> io::Result<Bus> {
        let mut bus = Bus::default();
        for name in devices {
            match fs::canonicalize(Path::new(DEVICES).join(name.to_string())) {
                Ok(path) => {
                    let region = path.parent();
                    let device = region.and_then(|region| Device::read(*name, region));
                    bus.devices.extend(device);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        bus.devices.sort_by_key(|device| device.name);
        Ok(bus)
    }

    /// The region of this id.
    pub fn region(&self, id: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// The device of this name.
    pub fn device(&self, name: DeviceName) -> Option<&Device> {
        let found = self
            .devices
            .binary_search_by_key(&name, |device| device.name);
        self.devices.get(found.ok()?)
    }

    /// The device, if it is still the same one.
    pub fn same(&self, identity: &Identity) -> Option<&Device> {
        self.device(identity.device)
            .filter(|device| device.identity() == *identity)
    }

    /// The devices of a region.
    pub fn devices_of(&self, region: u32) -> impl Iterator<Item = &Device> {
        self.devices
            .iter()
            .filter(move |device| device.region == region)
    }
}

impl Region {
    /// Reads a region of which is known, where there is one, the directory of a device without memory, and what ranges
    /// the others have.
    pub fn read<'r>(
        id: u32,
        path: PathBuf,
        vacant: Option<&Path>,
        ranges: impl Iterator<Item = &'r Range>,
    ) -> Region {
        let size = sysfs::number(&path.join("dax_region/size")).unwrap_or(0);
        // All devices of a region say the same.
        let node = |name: DeviceName| node(&path.join(name.to_string()));
        Region {
            id,
            dynamic: path.join("dax_region/create").exists(),
            node: node(DeviceName::first(id)),
            size,
            available: sysfs::number(&path.join("dax_region/available_size")).unwrap_or(0),
            start: start(size, vacant, ranges),
            path,
        }
    }
}

/// First byte of a region: a device without ranges shows it as its `resource` (drivers/dax/bus.c, `resource_show`);
/// and where the devices' ranges span as much as the region, the lowest one starts it.
fn start<'r>(
    size: u64,
    vacant: Option<&Path>,
    ranges: impl Iterator<Item = &'r Range>,
) -> Option<u64> {
    if let Some(start) = vacant.and_then(|path| sysfs::address(&path.join("resource"))) {
        return Some(start);
    }
    let span = |span: Option<(u64, u64)>, range: &Range| {
        let (first, last) = span.unwrap_or((range.start, range.last()));
        Some((first.min(range.start), last.max(range.last())))
    };
    let (first, last) = ranges.fold(None, span)?;
    (last - first == size.checked_sub(1)?).then_some(first)
}

/// The node that the memory of the device with that directory is, or would be, in.
fn node(device: &Path) -> Option<u32> {
    // -1 where the firmware does not say.
    sysfs::number(&device.join("target_node")).or_else(|| sysfs::number(&device.join("numa_node")))
}

impl Identity {
    /// Its directory in sysfs.
    pub fn path(&self) -> PathBuf {
        self.region.join(self.device.to_string())
    }
}

impl Device {
    /// The device of that name in the region with that directory. `None` when it is gone before all is read.
    pub fn read(name: DeviceName, region: &Path) -> Option<Device> {
        let path = region.join(name.to_string());
        let inode = fs::metadata(&path).ok()?.ino();
        let size = sysfs::number(&path.join("size"))?;
        Some(Device {
            name,
            region: name.region(),
            inode,
            node: node(&path),
            size,
            align: sysfs::number(&path.join("align"))?,
            driver: sysfs::link_name(&path.join("driver")),
            openers: Driver::openers(&path),
            ranges: ranges(&path, size),
            scrub: Scrub::of(&path),
            access: access::number(&path)
                .and_then(|number| Access::of(&node_path(name), &number).ok()),
            path,
        })
    }

    /// The device as it is now; `None` when it is gone.
    pub fn again(identity: &Identity) -> Option<Device> {
        Device::read(identity.device, &identity.region)
            .filter(|device| device.inode == identity.inode)
    }

    /// What to recognise it by.
    pub fn identity(&self) -> Identity {
        let region = self
            .path
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        Identity {
            device: self.name,
            inode: self.inode,
            region,
        }
    }

    /// Whether dax_dmem is bound.
    pub fn is_page_less(&self) -> bool {
        self.driver.as_deref() == Some(Driver::NAME)
    }

    /// Whether it has no memory. Then it has no driver either: probing fails, and a bound device keeps its memory
    /// (drivers/dax/bus.c, `dax_bus_probe`, `dev_dax_resize`). [`Device::driver`] can show one that is just failing.
    pub fn is_vacant(&self) -> bool {
        self.size == 0
    }

    /// Its node in /dev.
    pub fn node_path(&self) -> PathBuf {
        node_path(self.name)
    }
}

fn node_path(device: DeviceName) -> PathBuf {
    Path::new("/dev").join(device.to_string())
}

/// The ranges in order of offset, of the device with that directory; `None` when the size says that there are some and
/// they may not be read.
fn ranges(device: &Path, size: u64) -> Option<Vec<Range>> {
    let mut found: Vec<(u64, Range)> = Vec::new();
    for entry in fs::read_dir(device).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        // The attribute `mapping` adds ranges; `mapping0` and so on are those that there are.
        let number = name.to_str().and_then(|name| name.strip_prefix("mapping"));
        if number.is_none_or(str::is_empty) {
            continue;
        }
        let address = |attribute| sysfs::address(&entry.path().join(attribute));
        let (start, last) = (address("start")?, address("end")?);
        let len = last.checked_sub(start)?.checked_add(1)?;
        found.push((address("page_offset")?, Range { start, len }));
    }
    found.sort_by_key(|(offset, _)| *offset);
    let ranges: Vec<Range> = found.into_iter().map(|(_, range)| range).collect();
    (total(ranges.iter()) == size).then_some(ranges)
}

/// The devices in the region with that directory: names, and inode numbers as in [`Device::inode`]. None where the region
/// is gone.
pub fn members(region: &Path) -> io::Result<Vec<(DeviceName, u64)>> {
    let mut found = Vec::new();
    let listed = sysfs::entries(region, |name, inode| {
        found.extend(DeviceName::of(name).map(|name| (name, inode)));
    });
    match listed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(found),
    }
}

/// Ranges as people read them.
pub fn ranges_text(ranges: &[Range]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        return "none".to_owned();
    }
    texts.join(", ")
}

/// Bytes in all of them.
pub fn total<'r>(ranges: impl Iterator<Item = &'r Range>) -> u64 {
    ranges.fold(0, |sum, range| sum.saturating_add(range.len))
}

/// Numbers of leaves of each size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Of 1 GiB.
    pub gib: u64,
    /// Of 2 MiB.
    pub two_mib: u64,
    /// Of 4 KiB.
    pub four_kib: u64,
}

impl Leaves {
    /// Of each range, when the device's mapping starts on a 1 GiB boundary, which is what QEMU's `align=1G` gives it.
    pub fn of_each(ranges: &[Range]) -> Vec<Leaves> {
        let mut offset = 0u64;
        let leaves = |range: &Range| {
            let leaves = Leaves::of(*range, offset);
            offset = offset.saturating_add(range.len);
            leaves
        };
        ranges.iter().map(leaves).collect()
    }

    /// Of all ranges together.
    pub fn of_all(ranges: &[Range]) -> Leaves {
        let add = |sum: Leaves, next: Leaves| Leaves {
            gib: sum.gib + next.gib,
            two_mib: sum.two_mib + next.two_mib,
            four_kib: sum.four_kib + next.four_kib,
        };
        Leaves::of_each(ranges)
            .into_iter()
            .fold(Leaves::default(), add)
    }

    /// Of a piece of memory, wherever it comes to be in a device.
    pub fn in_memory(range: Range) -> Leaves {
        Leaves::of(range, range.start)
    }

    fn of(range: Range, offset: u64) -> Leaves {
        let end = range.start.saturating_add(range.len);
        // A leaf lies as a whole in the range, and at equal places in memory and in the device.
        let whole = |size: u64| match range.start % size == offset % size {
            true => (end / size).saturating_sub(range.start.div_ceil(size)),
            false => 0,
        };
        let (gib_size, mib_size) = (Leaf::Pud.size(), Leaf::Pmd.size());
        let gib = whole(gib_size);
        let two_mib = whole(mib_size).saturating_sub(gib * (gib_size / mib_size));
        let rest = range
            .len
            .saturating_sub(gib * gib_size + two_mib * mib_size);
        Leaves {
            gib,
            two_mib,
            four_kib: rest / Leaf::Pte.size(),
        }
    }
}

impl fmt::Display for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.gib, "1G"),
            (self.two_mib, "2M"),
            (self.four_kib, "4K"),
        ];
        let texts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, size)| format!("{count} of {size}"))
            .collect();
        match texts.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&texts.join(", ")),
        }
    }
}

/// Number of 1 GiB leaves of a device with these ranges.
pub fn gib_leaves(ranges: &[Range]) -> u64 {
    Leaves::of_all(ranges).gib
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    #[test]
    fn ranges_overlap_by_a_byte() {
        assert!(range(0, 10).overlaps(range(9, 1)));
        assert!(!range(0, 10).overlaps(range(10, 1)));
        assert!(range(5, 1).overlaps(range(0, 10)));
        assert_eq!(range(0x1000, 0x1000).to_string(), "0x1000-0x1fff");
        assert_eq!(ranges_text(&[range(0, 1), range(2, 1)]), "0x0-0x0, 0x2-0x2");
        assert_eq!(ranges_text(&[]), "none");
    }

    #[test]
    fn gib_leaves_need_equal_places_in_a_gib() {
        assert_eq!(gib_leaves(&[range(4 * GIB, 2 * GIB)]), 2);
        assert_eq!(gib_leaves(&[range(4 * GIB + GIB / 2, 2 * GIB)]), 0);
        assert_eq!(
            gib_leaves(&[
                range(4 * GIB, GIB + GIB / 2),
                range(7 * GIB + GIB / 2, GIB + GIB / 2)
            ]),
            2
        );
        assert_eq!(
            gib_leaves(&[range(4 * GIB, GIB / 2), range(8 * GIB, GIB)]),
            0
        );
        assert_eq!(gib_leaves(&[]), 0);
    }

    #[test]
    fn leaves_of_every_size() {
        const MIB: u64 = 1 << 20;
        let text = |ranges: &[Range]| Leaves::of_all(ranges).to_string();
        assert_eq!(text(&[range(4 * GIB, 2 * GIB)]), "2 of 1G");
        assert_eq!(text(&[range(4 * GIB, GIB + 4 * MIB)]), "1 of 1G, 2 of 2M");
        assert_eq!(text(&[range(4 * GIB + 2 * MIB, GIB)]), "512 of 2M");
        assert_eq!(text(&[range(4 * GIB + 4096, 2 * MIB)]), "512 of 4K");
        assert_eq!(text(&[]), "none");
        let each = Leaves::of_each(&[
            range(4 * GIB, GIB / 2),
            range(8 * GIB + GIB / 2, 3 * GIB / 2),
        ]);
        assert_eq!(
            each.iter().map(|leaves| leaves.gib).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(
            each.iter().map(|leaves| leaves.two_mib).collect::<Vec<_>>(),
            [256, 256]
        );
    }
}
