// SPDX-License-Identifier: GPL-2.0

//! `daxdmem create`: makes a page-less device for a guest.
//!
//! The order of steps: choose, write down, make, give to the owner, bind, link, record. Everything that can be refused is refused before
//! anything is written down; whatever fails or is interrupted later is undone as [`crate::repair`] says.

use std::collections::BTreeMap;

use dmem_plan::Leaf;

use super::{begin, bus, guest_of, need_driver, undo, warn};
use crate::align::Align;
use crate::bus::{gib_leaves, Bus, Identity, Range, Region};
use crate::change;
use crate::cli::CreateArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Create, Operation, Survey};
use crate::link::Links;
use crate::name::GuestName;
use crate::repair;
use crate::settings::Settings;
use crate::size::Size;
use crate::space::{choose, extent_of, Layout, Space};
use crate::store::{State, Store};
use crate::terminal::done;
use crate::wait;

/// Runs it.
pub fn run(args: &CreateArgs, links: &Links) -> Result<()> {
    let mut store = begin("create", links)?;
    let align = args.align.unwrap_or_else(|| Align::default_for(args.size));
    check_size(args.size, align)?;
    if let Some(guest) = store.state().guests.get(&args.name) {
        return Err(Error::NameTaken {
            name: args.name.clone(),
            device: guest.device.device,
        });
    }
    links.check(&args.name)?;
    let settings = Settings::NEW.with(&args.settings, None)?;
    let now = bus()?;
    let candidates = candidates(args, &now)?;
    let extents = survey(&mut store, links, &candidates, &now)?;
    let layout = lay_out(&extents, &candidates, &now, store.state(), args.size, align)?;
    need_driver()?;

    let region = now.region(layout.region).ok_or(Error::NoRegion)?;
    let plan = Plan {
        name: &args.name,
        align,
        layout,
        settings,
    };
    let made = make(&mut store, links, region, &now, plan);
    let (device, ranges) = made.map_err(|error| undo(&mut store, links, error))?;
    // Later devices may leave none behind that tells.
    if let Some(whole) = extents.get(&region.id) {
        store.update(|state| _ = state.regions.insert(region.path.clone(), *whole))?;
    }
    drop(store);
    report(args, links, &device, &ranges);
    warn(&args.name, &settings);
    match args.wait.no_wait {
        true => Ok(()),
        false => wait::for_device(&args.name.to_string(), &device),
    }
}

/// What is to be made.
struct Plan<'a> {
    name: &'a GuestName,
    align: Align,
    layout: Layout,
    settings: Settings,
}

fn check_size(size: Size, align: Align) -> Result<()> {
    let grain = align.grain();
    let below = size.0 / grain.0 * grain.0;
    if size.0 != 0 && below == size.0 {
        return Ok(());
    }
    let near = match (below, below.checked_add(grain.0)) {
        (0, Some(above)) => Size(above).to_string(),
        (below, Some(above)) => format!("{} or {}", Size(below), Size(above)),
        (below, None) => Size(below).to_string(),
    };
    let finer = Align::default_for(Size(1 << 21));
    let near = match size.0 != 0 && size.0 % finer.grain().0 == 0 {
        true => format!("{near}, or keep the size and add --align {finer}"),
        false => near,
    };
    Err(Error::Misaligned {
        size,
        align,
        grain,
        near,
    })
}

/// The regions that the device may go to.
fn candidates<'b>(args: &CreateArgs, bus: &'b Bus) -> Result<Vec<&'b Region>> {
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
    if let Some(id) = args.region {
        let region = bus.region(id).ok_or_else(|| Error::UnknownRegion {
            region: id,
            known: known(),
        })?;
        if !region.dynamic {
            let device = bus
                .devices_of(id)
                .next()
                .map(|device| device.name)
                .ok_or(Error::NoRegion)?;
            return Err(Error::StaticRegion { region: id, device });
        }
        if let Some(node) = args.node.filter(|node| region.node != Some(*node)) {
            return Err(Error::UnknownNode {
                node,
                known: known(),
            });
        }
        return Ok(vec![region]);
    }
    let dynamic: Vec<&Region> = bus.regions.iter().filter(|region| region.dynamic).collect();
    if dynamic.is_empty() {
        let region = bus.regions.first().ok_or(Error::NoRegion)?;
        let device = bus
            .devices_of(region.id)
            .next()
            .map(|device| device.name)
            .ok_or(Error::NoRegion)?;
        return Err(Error::StaticRegion {
            region: region.id,
            device,
        });
    }
    let Some(node) = args.node else {
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
fn survey(
    store: &mut Store,
    links: &Links,
    regions: &[&Region],
    bus: &Bus,
) -> Result<BTreeMap<u32, Range>> {
    let mut extents = BTreeMap::new();
    for region in regions.iter().filter(|region| region.available > 0) {
        let mut whole = extent_of(region, bus, store.state());
        if whole.is_none() {
            let known = inodes(bus, region);
            let entry = Operation::Survey(Survey {
                region: region.path.clone(),
                known: known.clone(),
            });
            store.update(|state| state.operation = Some(entry.clone()))?;
            let added = change::add(&region.path, &known).and_then(|_| change::read());
            let now = added.map_err(|error| undo(store, links, error))?;
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

fn lay_out(
    extents: &BTreeMap<u32, Range>,
    regions: &[&Region],
    bus: &Bus,
    state: &State,
    size: Size,
    align: Align,
) -> Result<Layout> {
    let quarantine = Driver::quarantine();
    let space = |region: &&Region| {
        let whole = extents.get(&region.id).copied();
        // A region that is full, or does not tell where it starts, has no free space to give.
        let space = whole.and_then(|whole| Space::of(region, whole, bus, &quarantine));
        let strangers = bus.devices_of(region.id).filter(|device| device.size > 0);
        let strangers = strangers.filter(|device| guest_of(device, state, bus).is_none());
        Space {
            strangers: strangers
                .map(|device| (device.name, Size(device.size)))
                .collect(),
            ..space.unwrap_or_else(|| Space::none(region.id))
        }
    };
    let spaces: Vec<Space> = regions.iter().map(space).collect();
    choose(&spaces, size, align).map_err(|shortage| Error::NoSpace {
        size,
        align,
        shortage,
    })
}

/// Makes the device. An error leaves the operation in the journal, for [`undo`].
fn make(
    store: &mut Store,
    links: &Links,
    region: &Region,
    bus: &Bus,
    plan: Plan<'_>,
) -> Result<(Identity, Vec<Range>)> {
    // Device 0 is always there: it is used before another one is added.
    let first = bus
        .devices_of(region.id)
        .find(|device| device.name.is_first() && device.is_vacant());
    let first = first.filter(|device| store.state().guest_of(device.name).is_none());
    let mut entry = Create {
        name: plan.name.clone(),
        region: region.path.clone(),
        known: inodes(bus, region),
        device: first.map(|device| device.identity()),
        reused: first.map(|device| device.align),
        align: plan.align.bytes(),
        ranges: plan.layout.ranges,
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
    Ok((device, entry.ranges))
}

fn report(args: &CreateArgs, links: &Links, device: &Identity, ranges: &[Range]) {
    let (name, size) = (&args.name, args.size);
    let pieces = match ranges {
        [range] => format!("at {range}"),
        ranges => format!("in {} ranges", ranges.len()),
    };
    let leaves = match gib_leaves(ranges) {
        0 => format!("{} of 2M", size.0 / Leaf::Pmd.size()),
        gib => match size.0 % Leaf::Pud.size() + size.0.saturating_sub(gib * Leaf::Pud.size()) {
            0 => format!("{gib} of 1G"),
            _ => format!(
                "{gib} of 1G, {} of 2M",
                (size.0 - gib * Leaf::Pud.size()) / Leaf::Pmd.size()
            ),
        },
    };
    done(&format!(
        "{name}: {size} {pieces}, on {}; leaves: {leaves}; {}",
        device.device,
        links.path(name).display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(size: &str, align: &str) -> String {
        check_size(size.parse().unwrap(), align.parse().unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn sizes_that_do_not_fit_the_grain() {
        assert_eq!(
            refusal("1.5G", "1G"),
            "size 1.5G is no multiple of 1G, the unit of devices with align 1G\n\
             Use 1G or 2G, or keep the size and add --align 2M"
        );
        assert_eq!(
            refusal("3M", "4K"),
            "size 3M is no multiple of 2M, the unit of devices with align 4K\nUse 2M or 4M"
        );
        assert_eq!(
            refusal("1", "2M"),
            "size 1 is no multiple of 2M, the unit of devices with align 2M\nUse 2M"
        );
        assert_eq!(
            refusal("0", "1G"),
            "size 0 is no multiple of 1G, the unit of devices with align 1G\nUse 1G"
        );
        assert!(refusal("18446744073709551615", "1G").ends_with("\nUse 17179869183G"));
        assert!(check_size(Size(2 << 20), Align::from_bytes(4096).unwrap()).is_ok());
    }
}
