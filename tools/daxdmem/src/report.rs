// SPDX-License-Identifier: GPL-2.0

//! What `list` tells: the bus, with the guests' names and what follows from the ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use dmem_plan::{congruence, DevRange, PageOff, PhysAddr, RangeMap, PAGE_SIZE};

use crate::bus::{Bus, Device, Range, Region};
use crate::driver::{Driver, Quarantine};
use crate::name::{DeviceName, GuestName};
use crate::repair::is_there;
use crate::space::{extent_of, Space};
use crate::store::State;

pub mod json;
pub mod table;

/// Everything to tell.
#[derive(Debug)]
pub struct Report {
    /// Whether the driver is loaded.
    pub driver: bool,
    /// The regions.
    pub regions: Vec<RegionLine>,
    /// The devices.
    pub devices: Vec<DeviceLine>,
    /// Ranges that are unbound and still in use.
    pub quarantine: Vec<Quarantine>,
    /// Names whose device is gone.
    pub lost: Vec<(GuestName, DeviceName)>,
}

/// A region.
#[derive(Debug)]
pub struct RegionLine {
    /// As on the bus.
    pub region: Region,
    /// Its free pieces, where that is known.
    pub free: Option<Vec<Range>>,
    /// Its first byte, where that is known.
    pub start: Option<u64>,
}

/// A device.
#[derive(Debug)]
pub struct DeviceLine {
    /// As on the bus.
    pub device: Device,
    /// Whose it is.
    pub guest: Option<GuestName>,
    /// Size in bytes of the largest leaf it can be mapped with, where that is known.
    pub leaf: Option<u64>,
}

/// What a device is used as.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Report {
    /// With the state, for who may read it.
    pub fn new(bus: Bus, state: &State, quarantine: Vec<Quarantine>) -> Report {
        let named = state
            .guests
            .iter()
            .filter(|(_, guest)| is_there(&bus, guest));
        let names = named
            .map(|(name, guest)| (guest.device.device, name.clone()))
            .collect();
        let lost = state
            .guests
            .iter()
            .filter(|(_, guest)| !is_there(&bus, guest));
        let lost = lost
            .map(|(name, guest)| (name.clone(), guest.device.device))
            .collect();
        Report {
            lost,
            ..Report::with_names(bus, state, names, quarantine)
        }
    }

    /// With names from elsewhere.
    pub fn with_names(
        bus: Bus,
        state: &State,
        names: BTreeMap<DeviceName, GuestName>,
        quarantine: Vec<Quarantine>,
    ) -> Report {
        let line = |region: &Region| {
            let whole = extent_of(region, &bus, state);
            let space = whole
                .filter(|_| region.dynamic)
                .and_then(|whole| Space::of(region, whole, &bus, &quarantine));
            let full = region.dynamic && region.available == 0;
            RegionLine {
                region: region.clone(),
                free: space
                    .map(|space| space.free)
                    .or_else(|| full.then(Vec::new)),
                start: whole.map(|whole| whole.start),
            }
        };
        let regions = bus.regions.iter().map(line).collect();
        let line = |device: Device| DeviceLine {
            guest: names.get(&device.name).cloned(),
            leaf: device.ranges.as_deref().and_then(largest_leaf),
            device,
        };
        let devices = bus.devices.into_iter().map(line).collect();
        Report {
            driver: Driver::is_loaded(),
            regions,
            devices,
            quarantine,
            lost: Vec::new(),
        }
    }
}

/// Size of the largest leaf that some mapping of the whole device has.
fn largest_leaf(ranges: &[Range]) -> Option<u64> {
    let mut pgoff = PageOff::from_raw(0);
    let mut map = Vec::with_capacity(ranges.len());
    for range in ranges {
        let pages = range.len / PAGE_SIZE;
        map.push(DevRange {
            pgoff,
            start: PhysAddr::from_raw(range.start),
            pages,
        });
        pgoff = pgoff.checked_add(pages)?;
    }
    let map = RangeMap::new(&map).ok()?;
    Some(
        congruence(&map, PageOff::from_raw(0), map.pages())
            .map_or(PAGE_SIZE, |wish| wish.modulus()),
    )
}

impl DeviceLine {
    /// Its node in /dev.
    fn path(&self) -> PathBuf {
        self.device.node_path()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::store::Guest;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// 2 GiB at 4 GiB, page-less.
    pub fn device() -> Device {
        Device {
            name: "dax0.0".parse().unwrap(),
            region: 0,
            path: PathBuf::from("/sys/devices/platform/hmem.0/dax0.0"),
            inode: 77,
            node: Some(0),
            size: 2 * GIB,
            align: GIB,
            driver: Some("dax_dmem".to_owned()),
            openers: Some(1),
            ranges: Some(vec![Range {
                start: 4 * GIB,
                len: 2 * GIB,
            }]),
        }
    }

    /// A region of 8 GiB with a guest's device, one without memory, and a GiB in quarantine; a region of persistent
    /// memory; a name without a device.
    pub fn report() -> Report {
        let vacant = Device {
            name: "dax0.1".parse().unwrap(),
            path: PathBuf::from("/sys/devices/platform/hmem.0/dax0.1"),
            inode: 78,
            size: 0,
            align: 2 * MIB,
            driver: None,
            openers: None,
            ranges: Some(Vec::new()),
            ..device()
        };
        let pmem = Device {
            name: "dax1.0".parse().unwrap(),
            region: 1,
            path: PathBuf::from("/sys/devices/ndbus0/dax1.0"),
            inode: 79,
            node: None,
            driver: Some("device_dax".to_owned()),
            openers: None,
            ranges: None,
            ..device()
        };
        let dynamic = Region {
            id: 0,
            path: PathBuf::from("/sys/devices/platform/hmem.0"),
            dynamic: true,
            node: Some(0),
            size: 8 * GIB,
            available: 6 * GIB,
            start: Some(4 * GIB),
        };
        let fixed = Region {
            id: 1,
            path: PathBuf::from("/sys/devices/ndbus0"),
            dynamic: false,
            node: None,
            size: 2 * GIB,
            available: 0,
            start: None,
        };
        let mut state = State::default();
        let guest = |device: &Device| Guest {
            device: device.identity(),
            ranges: device.ranges.clone().unwrap(),
        };
        state
            .guests
            .insert("vm1".parse().unwrap(), guest(&device()));
        state.guests.insert(
            "vm2".parse().unwrap(),
            guest(&Device {
                inode: 5,
                ..device()
            }),
        );
        let quarantine = vec![Quarantine {
            range: Range {
                start: 7 * GIB,
                len: GIB,
            },
            device: "dax0.2".to_owned(),
            openers: 3,
        }];
        let bus = Bus {
            regions: vec![dynamic, fixed],
            devices: vec![device(), vacant, pmem],
        };
        Report {
            driver: true,
            ..Report::new(bus, &state, quarantine)
        }
    }

    #[test]
    fn what_follows_from_bus_and_state() {
        let report = report();
        let free = report.regions[0].free.clone().unwrap();
        assert_eq!(
            free,
            [
                Range {
                    start: 6 * GIB,
                    len: GIB
                },
                Range {
                    start: 8 * GIB,
                    len: 4 * GIB
                }
            ]
        );
        assert_eq!(report.regions[1].free, None);
        let names: Vec<_> = report
            .devices
            .iter()
            .map(|line| line.guest.as_ref().map(ToString::to_string))
            .collect();
        assert_eq!(names, [Some("vm1".to_owned()), None, None]);
        assert_eq!(
            report.lost,
            [("vm2".parse().unwrap(), "dax0.0".parse().unwrap())]
        );
    }

    #[test]
    fn largest_leaves() {
        let leaf = |ranges: &[(u64, u64)]| {
            largest_leaf(
                &ranges
                    .iter()
                    .map(|(start, len)| Range {
                        start: *start,
                        len: *len,
                    })
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(leaf(&[(4 * GIB, GIB)]), Some(GIB));
        assert_eq!(leaf(&[(4 * GIB + 2 * MIB, GIB)]), Some(2 * MIB));
        assert_eq!(leaf(&[(4 * GIB + 2 * MIB, 2 * GIB)]), Some(GIB));
        assert_eq!(leaf(&[]), None);
    }
}
