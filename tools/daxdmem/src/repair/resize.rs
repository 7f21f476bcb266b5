// SPDX-License-Identifier: GPL-2.0

//! Ends a change of size: a device that has its new ranges keeps them, any other one gets its old ones back.

use super::{attach_unless_held, Ended};
use crate::bus::{Bus, Device, Range};
use crate::change;
use crate::error::Result;
use crate::journal::Resize;
use crate::mode::Mode;
use crate::store::Store;
use crate::users::Users;

/// Undoes or completes it.
pub fn end(store: &mut Store, resize: &Resize) -> Result<Ended> {
    let bus = change::read()?;
    let name = resize.name.clone();
    change::forget_ids(&resize.device)?;
    change::settle_policy(&resize.device)?;
    let found = bus.same(&resize.device).zip(bus_ranges(&bus, resize));
    let Some((device, has)) = found else {
        store.end()?;
        let why = "another program took it away".to_owned();
        return Ok(Ended::LeftAlone(name, resize.device.device, why));
    };
    let done = has == resize.to;
    let wanted = match done {
        true => &resize.to,
        false => &resize.from,
    };
    if let Some(why) = foreign(device, has, wanted, &bus, resize) {
        let device = device.name;
        store.end()?;
        return Ok(Ended::LeftAlone(name, device, why));
    }
    let bound = resize.mode == Mode::of(device);
    let mut held = None;
    if !(bound && has == *wanted) {
        change::reshape(&resize.device, wanted)?;
        let scrub = resize.settings.scrub;
        held = attach_unless_held(&resize.device, &resize.mode, scrub, wanted)?;
    }
    store.update(|state| {
        if let Some(guest) = state.guests.get_mut(&resize.name) {
            guest.ranges = wanted.clone();
        }
        state.operation = None;
    })?;
    Ok(match held {
        None => Ended::Resized(name, done),
        Some(held) => Ended::ResizeLeft(name, held.unbound()),
    })
}

fn bus_ranges<'b>(bus: &'b Bus, resize: &Resize) -> Option<&'b [Range]> {
    bus.same(&resize.device)?.ranges.as_deref()
}

/// Why the device is not to be touched any more.
fn foreign(
    device: &Device,
    has: &[Range],
    wanted: &[Range],
    bus: &Bus,
    resize: &Resize,
) -> Option<String> {
    // While it gets its new ranges it has those that stay and some of those that are new.
    let between = resize.to.starts_with(has) && has.len() >= resize.kept();
    if has != resize.from && !between {
        return Some("another program changed its ranges".to_owned());
    }
    match Mode::of(device) {
        mode if mode == resize.mode || mode == Mode::Unbound => {}
        Mode::Devdax => {
            if let Some(users) = Users::of(device) {
                return Some(format!("it came into use ({users})"));
            }
        }
        mode => return Some(format!("another program made it {mode}")),
    }
    let others = bus.devices.iter().filter(|other| other.name != device.name);
    let taken = others
        .flat_map(|other| other.ranges.as_deref().unwrap_or_default())
        .any(|range| wanted.iter().any(|wanted| wanted.overlaps(*range)));
    taken.then(|| "another program took some of its memory".to_owned())
}
