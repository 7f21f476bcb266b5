// SPDX-License-Identifier: GPL-2.0

//! `daxdmem resize`: makes a guest's device larger or smaller.
//!
//! The order of steps: choose, write down, unbind, change the ranges, bind, record. Ranges that it keeps stay where they
//! are in memory and in the device.

use super::{
    begin_giving, bus, idle, need_driver, one, remind_of_layout, resolve, warn, warn_of_poison,
    Named,
};
use crate::align::{near, Align};
use crate::bus::{total, Bus, Device, Leaves, Range};
use crate::change;
use crate::cli::ResizeArgs;
use crate::driver::Driver;
use crate::error::{Error, Result, VerbError};
use crate::journal::{Operation, Resize};
use crate::land::Land;
use crate::link::Links;
use crate::making::survey;
use crate::mode::Mode;
use crate::name::Target;
use crate::poison;
use crate::repair::finish;
use crate::size::Size;
use crate::space::{cut, grow, Space};
use crate::store::Store;
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &ResizeArgs, links: &Links) -> Result<()> {
    let mut store = begin_giving("resize", links)?;
    let now = bus()?;
    let target = Target::Guest(args.name.clone());
    let (device, name) = one(&target, resolve(&target, store.state(), &now)?)?;
    let named = Named(&name, device).to_string();
    let align = Align::from_bytes(device.align).unwrap_or_else(|| Align::default_for(args.size));
    let grain = align.grain();
    if args.size.0 == 0 || args.size.0 % grain.0 != 0 {
        return Err(Error::from(VerbError::Grain {
            name: args.name.clone(),
            size: args.size,
            grain,
            near: near(args.size, grain),
        }));
    }
    if device.size == args.size.0 {
        note(&format!("{named} has that size already"));
        return Ok(());
    }
    idle(device, &named)?;
    let settings = store.state().settings(name.as_ref(), &device.identity());
    let settings = settings.unwrap_or_default();
    let from = device.ranges.clone().unwrap_or_default();
    let to = match args.size.0.checked_sub(device.size) {
        None => cut(&from, args.size.0),
        Some(more) => larger(&mut store, links, device, &now, Size(more), align)?,
    };
    let mode = Mode::of(device);
    if mode == Mode::PageLess {
        need_driver(&store)?;
    }
    let entry = Resize {
        device: device.identity(),
        name: name.clone().unwrap_or_else(|| args.name.clone()),
        from,
        to,
        mode,
        settings,
    };
    store.begin(Operation::Resize(entry.clone()))?;
    make(&mut store, &entry).or_else(|error| finish(&mut store, links, error))?;
    drop(store);

    let (old, new) = (Size(device.size), args.size);
    done(&format!(
        "{named}: {new}, was {old}; leaves: {}",
        Leaves::of_all(&entry.to)
    ));
    warn(&named, &settings);
    warn_of_poison(&named, &entry.to);
    remind_of_layout(&args.name.guest);
    match args.wait.no_wait || entry.mode != Mode::PageLess {
        true => Ok(()),
        false => wait::for_device(&named, &entry.device),
    }
}

fn make(store: &mut Store, entry: &Resize) -> Result<()> {
    change::unbind(&entry.device)?;
    change::reshape(&entry.device, &entry.to)?;
    change::attach(&entry.device, &entry.mode, entry.settings.scrub)?;
    change::expect_ranges(&entry.device, &entry.to)?;
    store.update(|state| {
        if let Some(guest) = state.guests.get_mut(&entry.name) {
            guest.ranges = entry.to.clone();
        }
        state.operation = None;
    })
}

/// Its ranges with `more` bytes behind them.
fn larger(
    store: &mut Store,
    links: &Links,
    device: &Device,
    now: &Bus,
    more: Size,
    align: Align,
) -> Result<Vec<Range>> {
    let region = now.region(device.region).ok_or(Error::NoRegion)?;
    let extents = survey(store, links, &[region], &Land::of(now, store.state()))?;
    let whole = extents.get(&region.id).copied();
    let devices = now.devices_of(region.id);
    let taken = devices.map(|device| device.ranges.as_deref());
    let (quarantine, poison) = (Driver::quarantine(), poison::known()?);
    let space = whole.and_then(|whole| Space::of(region, whole, taken, &quarantine, &poison));
    let space = space.unwrap_or_else(|| Space::none(region.id));
    let has = device.ranges.as_deref().unwrap_or_default();
    let ranges = grow(&space, has, more, align).map_err(|shortage| Error::NoSpace {
        size: more,
        align,
        shortage,
    })?;
    debug_assert_eq!(total(ranges.iter()), device.size.saturating_add(more.0));
    Ok(ranges)
}
