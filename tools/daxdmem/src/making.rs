// SPDX-License-Identifier: GPL-2.0

//! Choosing where devices go, and making them.
//!
//! What can be refused is refused while a [`Planner`] looks, before anything is written down; whatever fails or is
//! interrupted later is undone as [`crate::repair`] says.

use std::collections::BTreeMap;

use crate::bus::{Bus, Device, Identity, Range, Region};
use crate::change;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Create, CreateAll, Group, Operation, Survey};
use crate::layout::placement::Place;
use crate::link::Links;
use crate::nodes::Part;
use crate::repair::{self, guest_of};
use crate::settings::Settings;
use crate::size::Size;
use crate::space::{choose, extent_of, Layout, Space};
use crate::store::Store;

/// A device with its place.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The device.
    pub part: Part,
    /// Where it goes.
    pub layout: Layout,
    /// Where its region starts and ends.
    whole: Option<Range>,
    /// What is chosen for it.
    pub settings: Settings,
}

impl Plan {
    /// What makes a device as it is, where it is, in that region.
    pub fn again(part: Part, region: u32, place: Place, settings: Settings) -> Plan {
        Plan {
            part,
            layout: Layout {
                region,
                ranges: place.ranges,
            },
            whole: Some(place.region),
            settings,
        }
    }

    /// Its place, as it is kept over a reboot.
    pub fn place(&self) -> Option<Place> {
        Some(Place {
            size: self.part.size.0,
            align: self.part.align.bytes(),
            region: self.whole?,
            ranges: self.layout.ranges.clone(),
        })
    }
}

/// A device that was made.
#[derive(Debug)]
pub struct Made {
    /// What was wanted.
    pub plan: Plan,
    /// The device.
    pub device: Identity,
}

/// The free space, less what was planned.
pub struct Planner<'b> {
    bus: &'b Bus,
    extents: BTreeMap<u32, Range>,
    spaces: Vec<Space>,
}

impl<'b> Planner<'b> {
    /// Looks at these regions. One that does not tell where it starts is asked. The memory of devices that are `going`
    /// counts as free.
    pub fn new(
        store: &mut Store,
        links: &Links,
        bus: &'b Bus,
        regions: &[&Region],
        going: &[Identity],
    ) -> Result<Planner<'b>> {
        let regions: BTreeMap<u32, &Region> =
            regions.iter().map(|region| (region.id, *region)).collect();
        let regions: Vec<&Region> = regions.into_values().collect();
        let goes = |device: &Device| going.contains(&device.identity());
        let gives = |region: &Region| region.available > 0 || bus.devices_of(region.id).any(goes);
        let asked: Vec<&Region> = regions
            .iter()
            .copied()
            .filter(|region| gives(region))
            .collect();
        let extents = survey(store, links, &asked, bus)?;
        let quarantine = Driver::quarantine();
        let space = |region: &Region| {
            let whole = extents.get(&region.id).copied();
            // A region that is full, or does not tell where it starts, has no free space to give.
            let devices: Vec<&Device> = bus
                .devices_of(region.id)
                .filter(|device| !goes(device))
                .collect();
            let space = whole.and_then(|whole| Space::of(region, whole, &devices, &quarantine));
            let strangers = devices.into_iter().filter(|device| device.size > 0);
            let strangers =
                strangers.filter(|device| guest_of(device, store.state(), bus).is_none());
            Space {
                strangers: strangers
                    .map(|device| (device.name, Size(device.size)))
                    .collect(),
                ..space.unwrap_or_else(|| Space::none(region.id))
            }
        };
        let spaces = regions.iter().map(|region| space(region)).collect();
        Ok(Planner {
            bus,
            extents,
            spaces,
        })
    }

    /// Chooses a place, which later ones do not get.
    pub fn plan(&mut self, part: &Part, region: Option<u32>, settings: Settings) -> Result<Plan> {
        let candidates = candidates(self.bus, part.node, region)?;
        let among: Vec<&Space> = self
            .spaces
            .iter()
            .filter(|space| candidates.iter().any(|region| region.id == space.region))
            .collect();
        let layout = choose(&among, part.size, part.align).map_err(|shortage| Error::NoSpace {
            size: part.size,
            align: part.align,
            shortage,
        })?;
        Ok(self.take(part, layout, settings))
    }

    /// As [`Planner::plan`], at a place of old; `None` where that is no more to be had.
    pub fn plan_at(
        &mut self,
        part: &Part,
        region: Option<u32>,
        settings: Settings,
        place: &Place,
    ) -> Result<Option<Plan>> {
        let candidates = candidates(self.bus, part.node, region)?;
        let grain = part.align.grain().0;
        let fits = |space: &&Space| {
            candidates.iter().any(|region| region.id == space.region)
                && self.extents.get(&space.region) == Some(&place.region)
                && space.has(&place.ranges, grain)
        };
        let found = self.spaces.iter().find(fits).map(|space| space.region);
        let layout = found.map(|region| Layout {
            region,
            ranges: place.ranges.clone(),
        });
        Ok(layout.map(|layout| self.take(part, layout, settings)))
    }

    fn take(&mut self, part: &Part, layout: Layout, settings: Settings) -> Plan {
        if let Some(space) = self
            .spaces
            .iter_mut()
            .find(|space| space.region == layout.region)
        {
            space.take(&layout.ranges);
        }
        Plan {
            part: part.clone(),
            whole: self.extents.get(&layout.region).copied(),
            layout,
            settings,
        }
    }
}

/// The regions that a device may go to.
pub fn candidates(bus: &Bus, node: Option<u32>, region: Option<u32>) -> Result<Vec<&Region>> {
    if bus.regions.is_empty() {
        return Err(Error::NoRegion);
    }
    let known = || {
        let text = |region: &Region| {
            let node = region
                .node
                .map_or(String::new(), |node| format!(", node {node}"));
            format!("{} ({} free{node})", region.id, Size(region.available))
        };
        bus.regions.iter().map(text).collect::<Vec<_>>().join(", ")
    };
    let fixed = |region: &Region| {
        let device = bus.devices_of(region.id).next().map(|device| device.name);
        device.map_or(Error::NoRegion, |device| Error::StaticRegion {
            region: region.id,
            device,
        })
    };
    if let Some(id) = region {
        let region = bus.region(id).ok_or_else(|| Error::UnknownRegion {
            region: id,
            known: known(),
        })?;
        if !region.dynamic {
            return Err(fixed(region));
        }
        if let Some(node) = node.filter(|node| region.node != Some(*node)) {
            return Err(Error::UnknownNode {
                node,
                known: known(),
            });
        }
        return Ok(vec![region]);
    }
    let dynamic: Vec<&Region> = bus.regions.iter().filter(|region| region.dynamic).collect();
    if dynamic.is_empty() {
        return Err(bus.regions.first().map_or(Error::NoRegion, fixed));
    }
    let Some(node) = node else {
        return Ok(dynamic);
    };
    let there: Vec<&Region> = dynamic
        .into_iter()
        .filter(|region| region.node == Some(node))
        .collect();
    if there.is_empty() {
        return Err(Error::UnknownNode {
            node,
            known: known(),
        });
    }
    Ok(there)
}

/// Where the regions start and end, by id. A region whose devices do not tell is asked by a device without memory,
/// which is deleted at once.
pub fn survey(
    store: &mut Store,
    links: &Links,
    regions: &[&Region],
    bus: &Bus,
) -> Result<BTreeMap<u32, Range>> {
    let mut extents = BTreeMap::new();
    for region in regions {
        let mut whole = extent_of(region, bus, store.state());
        if whole.is_none() {
            let known = inodes(bus, region);
            let entry = Operation::Survey(Survey {
                region: region.path.clone(),
                known: known.clone(),
            });
            store.update(|state| state.operation = Some(entry.clone()))?;
            let added = change::add(&region.path, &known).and_then(|_| change::read());
            let now = added.map_err(|error| repair::undo(store, links, error))?;
            whole = now
                .region(region.id)
                .and_then(|region| extent_of(region, &now, store.state()));
            repair::end(store, links, &entry)?;
        }
        extents.extend(whole.map(|whole| (region.id, whole)));
    }
    Ok(extents)
}

fn inodes(bus: &Bus, region: &Region) -> Vec<u64> {
    bus.devices_of(region.id)
        .map(|device| device.inode)
        .collect()
}

/// Makes a guest's devices, all of them or none.
pub fn make_all(store: &mut Store, links: &Links, plans: Vec<Plan>) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    let steps = || {
        if let [Plan { part, .. }, _, ..] = plans.as_slice() {
            let group = Group::Create(CreateAll {
                guest: part.name.guest.clone(),
                nodes: plans
                    .iter()
                    .filter_map(|plan| plan.part.name.node)
                    .collect(),
            });
            store.update(|state| state.group = Some(group))?;
        }
        for plan in plans {
            let device = make(store, links, &plan)?;
            made.push(Made { plan, device });
        }
        Ok(())
    };
    let result: Result<()> = steps();
    match result {
        Ok(()) => Ok(made),
        Err(error) => Err(repair::undo(store, links, error)),
    }
}

/// Makes the device. An error leaves the operation in the journal, for [`repair::undo`].
fn make(store: &mut Store, links: &Links, plan: &Plan) -> Result<Identity> {
    let bus = change::read()?;
    let region = bus.region(plan.layout.region).ok_or(Error::NoRegion)?;
    // Device 0 is always there: it is used before another one is added.
    let first = bus
        .devices_of(region.id)
        .find(|device| device.name.is_first() && device.is_vacant());
    let first = first.filter(|device| store.state().guest_of(device.name).is_none());
    let mut entry = Create {
        name: plan.part.name.clone(),
        region: region.path.clone(),
        known: inodes(&bus, region),
        device: first.map(|device| device.identity()),
        reused: first.map(|device| device.align),
        align: plan.part.align.bytes(),
        ranges: plan.layout.ranges.clone(),
        whole: plan.whole,
        settings: plan.settings,
    };
    store.update(|state| state.operation = Some(Operation::Create(entry.clone())))?;

    let device = match entry.device.clone() {
        Some(device) => device,
        None => {
            let device = change::add(&region.path, &entry.known)?.identity();
            entry.device = Some(device.clone());
            store.update(|state| state.operation = Some(Operation::Create(entry.clone())))?;
            device
        }
    };
    // A name that somebody left in the driver's list would have the device bound before it is whole.
    change::forget_id(&device)?;
    change::set_align(&device, entry.align)?;
    for (index, range) in entry.ranges.iter().enumerate() {
        change::add_range(
            &device,
            entry.ranges.get(..index).unwrap_or_default(),
            *range,
        )?;
    }
    // Before it can be opened: device 0 may have a node that somebody else was given.
    if let Some(access) = entry.settings.access {
        change::set_access(&device, access)?;
    }
    change::bind(&device, entry.settings.scrub)?;
    change::expect_ranges(&device, &entry.ranges)?;
    repair::record(store, links, &entry, &device)?;
    Ok(device)
}
