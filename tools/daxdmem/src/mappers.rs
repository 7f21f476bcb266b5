// SPDX-License-Identifier: GPL-2.0

//! Which process maps how much of which device: what smaps does not tell, as memory without pages counts for nothing
//! there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::access;
use crate::bus::Device;
use crate::name::DeviceName;
use crate::sysfs;

/// A process that maps part of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapper {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub program: String,
    /// The device.
    pub device: DeviceName,
    /// Bytes of the device that it maps, each counted once.
    pub bytes: u64,
}

/// A mapping of a file that others may share: a line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
struct Area<'a> {
    /// As in the name of its link in /proc/PID/map_files.
    place: &'a str,
    offset: u64,
    len: u64,
    path: &'a str,
}

/// The processes that map one of the devices, by process and device, as far as /proc shows them to the caller.
pub fn of<'d>(devices: impl Iterator<Item = &'d Device>) -> Vec<Mapper> {
    let numbers: Vec<(String, DeviceName)> = devices
        .filter_map(|device| Some((access::number(&device.path)?, device.name)))
        .collect();
    let device_of = |process: &Path, area: &Area<'_>| {
        // The file itself, whatever its name in this or another container; the name where that may not be followed.
        let link = process.join("map_files").join(area.place);
        let found = fs::metadata(link)
            .or_else(|_| fs::metadata(area.path))
            .ok()?;
        let is_it = |(number, _): &&(String, DeviceName)| access::is_node(&found, number);
        numbers.iter().find(is_it).map(|(_, device)| *device)
    };
    let mut mappers = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = process.path();
        let Ok(maps) = fs::read_to_string(process.join("maps")) else {
            continue;
        };
        let mut parts: BTreeMap<DeviceName, Vec<(u64, u64)>> = BTreeMap::new();
        for area in maps.lines().filter_map(Area::parse) {
            if let Some(device) = device_of(&process, &area) {
                let part = (area.offset, area.offset.saturating_add(area.len));
                parts.entry(device).or_default().push(part);
            }
        }
        mappers.extend(parts.into_iter().map(|(device, parts)| Mapper {
            pid,
            program: sysfs::text(&process.join("comm")).unwrap_or_default(),
            device,
            bytes: union(parts),
        }));
    }
    mappers.sort_by_key(|mapper| (mapper.pid, mapper.device));
    mappers
}

impl<'a> Area<'a> {
    /// `START-END rw-s OFFSET MAJOR:MINOR INODE PATH`; `None` for one that cannot be a device's: those are shared, and
    /// have a name in the file system.
    fn parse(line: &'a str) -> Option<Area<'a>> {
        let (place, rest) = line.split_once(' ')?;
        let (permissions, rest) = rest.split_once(' ')?;
        if !permissions.ends_with('s') {
            return None;
        }
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = place.split_once('-')?;
        let (offset, _) = rest.split_once(' ')?;
        Some(Area {
            place,
            offset: hex(offset)?,
            len: hex(end)?.checked_sub(hex(start)?)?,
            path: line.get(line.find('/')?..)?,
        })
    }
}

/// Bytes in the parts, `[from, to)`, each counted once.
fn union(mut parts: Vec<(u64, u64)>) -> u64 {
    parts.sort_unstable();
    let mut sum = 0;
    let mut at = 0;
    for (from, to) in parts {
        sum += to.saturating_sub(from.max(at));
        at = at.max(to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_processes() {
        let line =
            "7f0000000000-7f0000200000 rw-s 40000000 00:06 301                        /dev/dax0.1";
        assert_eq!(
            Area::parse(line),
            Some(Area {
                place: "7f0000000000-7f0000200000",
                offset: 1 << 30,
                len: 2 << 20,
                path: "/dev/dax0.1",
            })
        );
        for line in [
            "7f0000000000-7f0000200000 rw-p 40000000 00:06 301 /dev/dax0.1",
            "7f0000000000-7f0000200000 rw-s 00000000 00:01 7",
            "7f0000200000-7f0000000000 rw-s 00000000 00:06 301 /dev/dax0.1",
            "nonsense",
            "",
        ] {
            assert_eq!(Area::parse(line), None, "{line}");
        }
    }

    #[test]
    fn bytes_are_counted_once() {
        assert_eq!(union(vec![]), 0);
        assert_eq!(union(vec![(10, 20), (0, 5)]), 15);
        assert_eq!(union(vec![(0, 10), (5, 8), (8, 12), (12, 13)]), 13);
    }
}
