// SPDX-License-Identifier: GPL-2.0

//! Choosing where devices go, and making them.
//!
//! What can be refused is refused while a [`Planner`] looks, before anything is written down; whatever fails or is
//! interrupted later is undone as [`crate::repair`] says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::bus::{Device, Identity, Range, Region};
use crate::change;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Create, CreateAll, Group, Operation, Survey};
use crate::kexec::{self, Seal};
use crate::land::{Holding, Land};
use crate::layout::placement::Place;
use crate::link::Links;
use crate::name::DeviceName;
use crate::nodes::Part;
use crate::poison;
use crate::repair;
use crate::settings::Settings;
use crate::size::Size;
use crate::space::{choose, extent, Layout, Space};
use crate::store::Store;

/// A device with its place.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The device.
    pub part: Part,
    /// Where it goes.
    pub layout: Layout,
    /// Directory of its region in sysfs.
    region: PathBuf,
    /// Where its region starts and ends.
    whole: Option<Range>,
    /// What is chosen for it.
    pub settings: Settings,
    /// What its memory has to be for it to be kept as it is.
    pub keep: Option<Seal>,
}

impl Plan {
    /// What makes a device as it is, where it is, in that region.
    pub fn again(part: Part, region: &Region, place: Place, settings: Settings) -> Plan {
        Plan {
            part,
            layout: Layout {
                region: region.id,
                ranges: place.ranges,
            },
            region: region.path.clone(),
            whole: Some(place.region),
            settings,
            keep: None,
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
pub struct Planner<'l> {
    land: &'l Land,
    extents: BTreeMap<u32, Range>,
    spaces: Vec<Space>,
}

impl<'l> Planner<'l> {
    /// Looks at these regions. One that does not tell where it starts is asked. The memory of devices that are `going`
    /// counts as free.
    pub fn new(
        store: &mut Store,
        links: &Links,
        land: &'l Land,
        regions: &[&Region],
        going: &[Identity],
    ) -> Result<Planner<'l>> {
        let regions: BTreeMap<u32, &Region> =
            regions.iter().map(|region| (region.id, *region)).collect();
        let regions: Vec<&Region> = regions.into_values().collect();
        let goes = |holding: &Holding| going.contains(&holding.device);
        let gives = |region: &Region| region.available > 0 || land.holdings(region.id).any(goes);
        let asked: Vec<&Region> = regions
            .iter()
            .copied()
            .filter(|region| gives(region))
            .collect();
        let extents = survey(store, links, &asked, land)?;
        let (quarantine, poison) = (Driver::quarantine(), poison::known()?);
        let space = |region: &Region| {
            let whole = extents.get(&region.id).copied();
            // A region that is full, or does not tell where it starts, has no free space to give.
            let stay = || land.holdings(region.id).filter(|holding| !goes(holding));
            let taken = || stay().map(|holding| holding.ranges.as_deref());
            let space =
                whole.and_then(|whole| Space::of(region, whole, taken(), &quarantine, &poison));
            let strangers = stay().filter(|holding| holding.size > 0 && !holding.is_guests);
            Space {
                strangers: strangers
                    .map(|holding| (holding.device.device, Size(holding.size)))
                    .collect(),
                ..space.unwrap_or_else(|| Space::none(region.id))
            }
        };
        let spaces = regions.iter().map(|region| space(region)).collect();
        Ok(Planner {
            land,
            extents,
            spaces,
        })
    }

    /// Chooses a place, which later ones do not get.
    pub fn plan(&mut self, part: &Part, region: Option<u32>, settings: Settings) -> Result<Plan> {
        let candidates = candidates(self.land, part.node, region)?;
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
        self.take(part, layout, settings)
    }

    /// As [`Planner::plan`], at a place of old; `None` where that is no more to be had.
    pub fn plan_at(
        &mut self,
        part: &Part,
        region: Option<u32>,
        settings: Settings,
        place: &Place,
    ) -> Result<Option<Plan>> {
        let candidates = candidates(self.land, part.node, region)?;
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
        layout
            .map(|layout| self.take(part, layout, settings))
            .transpose()
    }

    fn take(&mut self, part: &Part, layout: Layout, settings: Settings) -> Result<Plan> {
        if let Some(space) = self
            .spaces
            .iter_mut()
            .find(|space| space.region == layout.region)
        {
            space.take(&layout.ranges);
        }
        let region = self.land.region(layout.region).ok_or(Error::NoRegion)?;
        Ok(Plan {
            part: part.clone(),
            region: region.path.clone(),
            whole: self.extents.get(&layout.region).copied(),
            layout,
            settings,
            keep: None,
        })
    }
}

/// The regions that a device may go to.
pub fn candidates(land: &Land, node: Option<u32>, region: Option<u32>) -> Result<Vec<&Region>> {
    if land.regions.is_empty() {
        return Err(Error::NoRegion);
    }
    let known = || {
        let text = |region: &Region| {
            let node = region
                .node
                .map_or(String::new(), |node| format!(", node {node}"));
            format!("{} ({} free{node})", region.id, Size(region.available))
        };
        land.regions.iter().map(text).collect::<Vec<_>>().join(", ")
    };
    let fixed = |region: &Region| {
        let device = land.holdings(region.id).next();
        let device = device.map(|holding| holding.device.device);
        device.map_or(Error::NoRegion, |device| Error::StaticRegion {
            region: region.id,
            device,
        })
    };
    if let Some(id) = region {
        let region = land.region(id).ok_or_else(|| Error::UnknownRegion {
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
    let dynamic: Vec<&Region> = land
        .regions
        .iter()
        .filter(|region| region.dynamic)
        .collect();
    if dynamic.is_empty() {
        return Err(land.regions.first().map_or(Error::NoRegion, fixed));
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
    land: &Land,
) -> Result<BTreeMap<u32, Range>> {
    let mut extents = BTreeMap::new();
    for region in regions {
        let taken = || {
            land.holdings(region.id)
                .map(|holding| holding.ranges.as_deref())
        };
        let mut whole = extent(region, taken(), store.state());
        if whole.is_none() {
            let newest = change::newest(&region.path)?;
            let entry = Operation::Survey(Survey {
                region: region.path.clone(),
                newest,
            });
            store.begin(entry.clone())?;
            let added = change::add(&region.path, newest);
            let added = added.map_err(|error| repair::undo(store, links, error))?;
            let path = region.path.clone();
            let now = Region::read(region.id, path, Some(&added.path), [].iter());
            whole = extent(&now, taken(), store.state());
            repair::end(store, links, &entry)?;
        }
        extents.extend(whole.map(|whole| (region.id, whole)));
    }
    Ok(extents)
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
    // Device 0 is always there: it is used before another one is added.
    let first = DeviceName::first(plan.layout.region);
    let first = match store.state().guest_of(first) {
        None => Device::read(first, &plan.region).filter(Device::is_vacant),
        Some(_) => None,
    };
    let mut entry = Create {
        name: plan.part.name.clone(),
        region: plan.region.clone(),
        newest: change::newest(&plan.region)?,
        device: first.as_ref().map(Device::identity),
        reused: first.as_ref().map(|device| device.align),
        align: plan.part.align.bytes(),
        ranges: plan.layout.ranges.clone(),
        whole: plan.whole,
        settings: plan.settings,
    };
    store.begin(Operation::Create(entry.clone()))?;

    let device = match entry.device.clone() {
        Some(device) => device,
        None => {
            let device = change::add(&entry.region, entry.newest)?.identity();
            entry.device = Some(device.clone());
            store.begin(Operation::Create(entry.clone()))?;
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
    match &plan.keep {
        Some(seal) => kexec::bind(&device, &entry.name, seal, &entry.ranges, &entry.settings)?,
        None => {
            // Before it can be opened: device 0 may have a node that somebody else was given.
            if let Some(access) = entry.settings.access {
                change::set_access(&device, access)?;
            }
            change::bind(&device, entry.settings.scrub)?;
        }
    }
    change::expect_ranges(&device, &entry.ranges)?;
    repair::record(store, links, &entry, &device)?;
    Ok(device)
}
