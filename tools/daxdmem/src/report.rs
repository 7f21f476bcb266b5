// SPDX-License-Identifier: GPL-2.0

//! What `list` tells: the bus, with the guests' names and what follows from the ranges.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dmem_plan::{congruence, DevRange, PageOff, PhysAddr, RangeMap, PAGE_SIZE};

use crate::bus::{Bus, Device, Range, Region};
use crate::driver::{Driver, Quarantine, Scrubbing, Unowned};
use crate::name::{DeviceName, PartName};
use crate::poison::Pages;
use crate::repair::is_there;
use crate::scrub::Policy;
use crate::space::{extent_of, Space};
use crate::store::State;

pub mod json;
pub mod poison;
pub mod show;
pub mod stats;
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
    /// Ranges without a device that are being scrubbed, where the caller may know.
    pub scrubbing: Option<Vec<Scrubbing>>,
    /// Names whose device is gone.
    pub lost: Vec<(PartName, DeviceName)>,
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
    /// Bytes that neither a device nor quarantine has, and that nobody gets because of poison, where that is known.
    pub lost: Option<u64>,
    /// Pages in it that failed, whoever has them, where that is known.
    pub poison: Option<Pages>,
    /// Bytes of the free pieces that are known to be zero, where that is known.
    pub clean: Option<u64>,
    /// Bytes of the free pieces that are being scrubbed, where that is known.
    pub scrubbing: Option<u64>,
}

/// A device.
#[derive(Debug)]
pub struct DeviceLine {
    /// As on the bus.
    pub device: Device,
    /// Whose it is.
    pub guest: Option<PartName>,
    /// Size in bytes of the largest leaf it can be mapped with, where that is known.
    pub leaf: Option<u64>,
    /// Pages of it that failed, where that is known.
    pub poison: Option<Pages>,
    /// When it is scrubbed: by the driver while that is bound, else as was chosen.
    pub policy: Option<Policy>,
}

impl Report {
    /// With the state, for who may read it.
    pub fn new(bus: Bus, state: &State, unowned: Unowned) -> Report {
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
            ..Report::with_names(bus, state, names, unowned)
        }
    }

    /// With names from elsewhere.
    pub fn with_names(
        bus: Bus,
        state: &State,
        names: BTreeMap<DeviceName, PartName>,
        unowned: Unowned,
    ) -> Report {
        let line = |region: &Region| {
            let whole = extent_of(region, &bus, state);
            let space = region.dynamic.then(|| {
                let poison = unowned.poison.clone().unwrap_or_default();
                Space::of_region(region, &bus, state, &unowned.quarantine, &poison)
            });
            let space = space.flatten();
            let full = region.dynamic && region.available == 0;
            let space = space.or_else(|| full.then(|| Space::none(region.id)));
            let (free, lost) = space.map(|space| (space.free, space.lost)).unzip();
            let running = unowned.scrubbing.as_ref();
            let running =
                running.map(|all| all.iter().map(|scrub| scrub.range).collect::<Vec<_>>());
            let of_free = |some: Option<&[Range]>| Some(common(free.as_deref()?, some?));
            RegionLine {
                region: region.clone(),
                clean: of_free(unowned.clean.as_deref()),
                scrubbing: of_free(running.as_deref()),
                free,
                lost: lost.filter(|_| unowned.poison.is_some()),
                poison: unowned
                    .poison
                    .as_ref()
                    .zip(whole)
                    .map(|(poison, whole)| poison.within(&[whole])),
                start: whole.map(|whole| whole.start),
            }
        };
        let regions = bus.regions.iter().map(line).collect();
        let line = |device: Device| {
            let guest = names.get(&device.name).cloned();
            let chosen = state.settings(guest.as_ref(), &device.identity());
            DeviceLine {
                leaf: device.ranges.as_deref().and_then(largest_leaf),
                poison: unowned
                    .poison
                    .as_ref()
                    .zip(device.ranges.as_deref())
                    .map(|(poison, ranges)| poison.within(ranges)),
                policy: device
                    .scrub
                    .map(|scrub| scrub.policy)
                    .or_else(|| chosen.map(|chosen| chosen.scrub)),
                guest,
                device,
            }
        };
        let devices = bus.devices.into_iter().map(line).collect();
        Report {
            driver: Driver::is_loaded(),
            regions,
            devices,
            quarantine: unowned.quarantine,
            scrubbing: unowned.scrubbing,
            lost: Vec::new(),
        }
    }
}

/// Number of bytes that both have; the pieces of each are apart from each other.
pub(crate) fn common(these: &[Range], those: &[Range]) -> u64 {
    let pairs = these
        .iter()
        .flat_map(|this| those.iter().map(move |that| (this, that)));
    let bytes = |(this, that): (&Range, &Range)| {
        let first = this.start.max(that.start);
        let last = this.last().min(that.last());
        last.checked_sub(first)
            .map_or(0, |len| len.saturating_add(1))
    };
    pairs.map(bytes).fold(0, u64::saturating_add)
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
    use crate::access::Access;
    use crate::scrub::{Progress, Scrub, Stage};
    use crate::settings::Settings;
    use crate::store::Record;

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
            scrub: Some(Scrub {
                policy: Policy::HandOut,
                stage: Stage::Scrubbing,
                progress: Progress {
                    done: GIB / 2,
                    total: 2 * GIB,
                },
            }),
            access: Some(Access {
                uid: 0,
                gid: 54321,
                mode: "0660".parse().unwrap(),
            }),
        }
    }

    /// A region of 8 GiB with a guest's device, one without memory, a GiB in quarantine, one that is being scrubbed and
    /// two that are clean; a region of persistent memory; a name without a device.
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
            scrub: None,
            access: Some(Access::ROOT),
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
            scrub: None,
            access: None,
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
        let guest = |device: &Device| Record {
            device: device.identity(),
            ranges: device.ranges.clone().unwrap(),
            settings: Settings::NEW,
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
        let scrubbing = Scrubbing {
            range: Range {
                start: 8 * GIB,
                len: GIB,
            },
            device: "dax0.3".to_owned(),
            progress: Progress {
                done: 4 * MIB,
                total: GIB,
            },
        };
        // Half of it belongs to a device by now.
        let clean = Range {
            start: 5 * GIB,
            len: 2 * GIB,
        };
        let unowned = Unowned {
            quarantine,
            scrubbing: Some(vec![scrubbing]),
            clean: Some(vec![clean]),
            // One in the guest's device, two in free memory, one in quarantine.
            poison: Some(Pages::of(
                [5 * GIB, 6 * GIB, 6 * GIB + MIB, 7 * GIB].map(|start| Range { start, len: 1 }),
            )),
        };
        let bus = Bus {
            regions: vec![dynamic, fixed],
            devices: vec![device(), vacant, pmem],
        };
        Report {
            driver: true,
            ..Report::new(bus, &state, unowned)
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
                    start: 6 * GIB + 2 * MIB,
                    len: GIB - 2 * MIB
                },
                Range {
                    start: 8 * GIB,
                    len: 4 * GIB
                }
            ]
        );
        assert_eq!(report.regions[0].lost, Some(2 * MIB));
        assert_eq!(report.regions[1].lost, None);
        let poisoned: Vec<_> = report
            .devices
            .iter()
            .map(|line| line.poison.clone())
            .collect();
        let vm1 = Pages::of([Range {
            start: 5 * GIB,
            len: 1,
        }]);
        assert_eq!(poisoned, [Some(vm1), Some(Pages::default()), None]);
        assert_eq!(report.regions[0].clean, Some(GIB - 2 * MIB));
        assert_eq!(report.regions[0].scrubbing, Some(GIB));
        assert_eq!(report.regions[1].free, None);
        assert_eq!(report.regions[1].clean, None);
        // The driver's word goes before what was chosen.
        assert_eq!(report.devices[0].policy, Some(Policy::HandOut));
        assert_eq!(report.devices[1].policy, None);
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

    #[test]
    fn an_unbound_device_shows_what_was_chosen_for_it() {
        let unbound = Device {
            driver: None,
            scrub: None,
            ..device()
        };
        let settings = Settings {
            scrub: Policy::Never,
            ..Settings::NEW
        };
        let mut state = State::default();
        state.keep(None, &unbound, settings);
        let policy = |device: Device| {
            let bus = Bus {
                regions: Vec::new(),
                devices: vec![device],
            };
            Report::new(bus, &state, Unowned::default()).devices[0].policy
        };
        assert_eq!(policy(unbound.clone()), Some(Policy::Never));
        let namesake = Device {
            inode: 5,
            ..unbound
        };
        assert_eq!(policy(namesake), None);
    }

    #[test]
    fn bytes_in_common() {
        let ranges = |ranges: &[(u64, u64)]| {
            let range = |(start, len): &(u64, u64)| Range {
                start: *start,
                len: *len,
            };
            ranges.iter().map(range).collect::<Vec<_>>()
        };
        let common =
            |these: &[(u64, u64)], those: &[(u64, u64)]| common(&ranges(these), &ranges(those));
        assert_eq!(common(&[(0, 10), (20, 10)], &[(5, 20)]), 10);
        assert_eq!(common(&[(0, 10)], &[(10, 10)]), 0);
        assert_eq!(common(&[(0, 10)], &[(2, 1), (9, 9)]), 2);
        assert_eq!(common(&[], &[(2, 1)]), 0);
    }
}
