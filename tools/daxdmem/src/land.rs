// SPDX-License-Identifier: GPL-2.0

//! Who has what of the regions' memory: what a place for a new device is chosen by.
//!
//! The kernel shows a device's ranges in a file each, so asking all devices takes as many steps as there are. Of a guest's
//! device it is known what it has, as long as it is the one that was made for the guest: a look at the names and inode
//! numbers in the region's directory tells. Should another program have changed the ranges of such a device, the free
//! bytes of the region tell (or, where it moved as many bytes from one guest to another, the kernel does, by refusing
//! them to a new device).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bus::{members, total, Bus, Device, Identity, Range, Region, DEVICES};
use crate::name::DeviceName;
use crate::store::{Record, State};
use crate::sysfs;

/// All regions, and what is taken of them.
#[derive(Debug, Default)]
pub struct Land {
    /// The regions, in ascending order.
    pub regions: Vec<Region>,
    holdings: Vec<Holding>,
}

/// What a device has.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The device.
    pub device: Identity,
    /// Bytes in it.
    pub size: u64,
    /// Its ranges in order of offset; `None` where the caller may not read them.
    pub ranges: Option<Vec<Range>>,
    /// Whether it is a guest's.
    pub is_guests: bool,
}

impl Land {
    /// As the bus shows it.
    pub fn of(bus: &Bus, state: &State) -> Land {
        let records = records(state);
        let devices = bus.devices.iter();
        Land {
            regions: bus.regions.clone(),
            holdings: devices
                .map(|device| Holding::of(device, &records))
                .collect(),
        }
    }

    /// Reads it. Devices that are no guest's are asked, and where the sum of all is wrong every one is.
    pub fn read(state: &State) -> io::Result<Land> {
        let records = records(state);
        let mut land = Land::default();
        for (id, path) in regions()? {
            let there = members(&path)?;
            let known = |(name, inode): &(DeviceName, u64)| {
                let record = records.get(name)?;
                let same = record.device.inode == *inode && record.device.region == path;
                same.then(|| Holding::recorded(record))
            };
            let asked = |(name, _): &(DeviceName, u64)| {
                Some(Holding::of(&Device::read(*name, &path)?, &records))
            };
            let mut holdings: Vec<Holding> = there
                .iter()
                .filter_map(|member| known(member).or_else(|| asked(member)))
                .collect();
            let mut region = region(id, &path, &holdings);
            let sum = holdings
                .iter()
                .fold(0u64, |sum, holding| sum.saturating_add(holding.size));
            if region.dynamic && sum != region.size.saturating_sub(region.available) {
                holdings = there.iter().filter_map(asked).collect();
                region = self::region(id, &path, &holdings);
            }
            land.regions.push(region);
            land.holdings.extend(holdings);
        }
        Ok(land)
    }

    /// The region of this id.
    pub fn region(&self, id: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// What the devices of a region have.
    pub fn holdings(&self, region: u32) -> impl Iterator<Item = &Holding> {
        self.holdings
            .iter()
            .filter(move |holding| holding.device.device.region() == region)
    }

    /// Number of devices that are guests'.
    pub fn guests(&self) -> usize {
        self.holdings
            .iter()
            .filter(|holding| holding.is_guests)
            .count()
    }
}

impl Holding {
    fn of(device: &Device, records: &BTreeMap<DeviceName, &Record>) -> Holding {
        let identity = device.identity();
        let guest = records
            .get(&device.name)
            .is_some_and(|record| record.is(&identity, device.ranges.as_deref()));
        Holding {
            size: device.size,
            ranges: device.ranges.clone(),
            is_guests: guest,
            device: identity,
        }
    }

    fn recorded(record: &Record) -> Holding {
        Holding {
            device: record.device.clone(),
            size: total(record.ranges.iter()),
            ranges: Some(record.ranges.clone()),
            is_guests: true,
        }
    }
}

fn records(state: &State) -> BTreeMap<DeviceName, &Record> {
    let records = state.guests.values();
    records
        .map(|record| (record.device.device, record))
        .collect()
}

fn region(id: u32, path: &Path, holdings: &[Holding]) -> Region {
    let vacant = holdings.iter().find(|holding| holding.size == 0);
    let vacant = vacant.map(|holding| holding.device.path());
    let ranges = holdings
        .iter()
        .flat_map(|holding| holding.ranges.iter().flatten());
    Region::read(id, path.to_owned(), vacant.as_deref(), ranges)
}

/// The regions' directories in sysfs, by id.
fn regions() -> io::Result<BTreeMap<u32, PathBuf>> {
    let mut found = BTreeMap::new();
    let listed = sysfs::entries(Path::new(DEVICES), |name, _| {
        let id = DeviceName::of(name).map(DeviceName::region);
        let Some(id) = id.filter(|id| !found.contains_key(id)) else {
            return;
        };
        // One that goes at this moment has others beside it.
        let device = fs::canonicalize(Path::new(DEVICES).join(name)).ok();
        let path = device.as_deref().and_then(Path::parent);
        found.extend(path.map(|path| (id, path.to_owned())));
    });
    match listed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn record(ranges: &[Range]) -> Record {
        Record {
            device: crate::report::tests::device().identity(),
            ranges: ranges.to_vec(),
            settings: Settings::NEW,
        }
    }

    #[test]
    fn a_device_is_a_guests_with_its_own_ranges_only() {
        let device = crate::report::tests::device();
        let name: crate::name::PartName = "vm1".parse().unwrap();
        let bus = Bus {
            regions: Vec::new(),
            devices: vec![device.clone()],
        };
        let ranges = device.ranges.clone().unwrap();
        let guests = |record: Record| {
            let state = State::of_guests(BTreeMap::from([(name.clone(), record)]));
            Land::of(&bus, &state).guests()
        };
        assert_eq!(guests(record(&ranges)), 1);
        assert_eq!(guests(record(&[])), 0);
        let mut namesake = record(&ranges);
        namesake.device.inode += 1;
        assert_eq!(guests(namesake), 0);
    }
}
