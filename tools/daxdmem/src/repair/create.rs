// SPDX-License-Identifier: GPL-2.0

//! The last steps of making a guest's device, and the end of one whose making was interrupted.

use super::{put_back, Ended};
use crate::bus::{Device, Identity};
use crate::change;
use crate::error::Result;
use crate::journal::{Create, Group};
use crate::link::Links;
use crate::name::PartName;
use crate::store::{Record, Store};
use crate::users::Users;

/// Unmakes what there is of a new device, unless somebody uses it already: then it is made a guest's for good.
pub fn undo(store: &mut Store, links: &Links, create: &Create) -> Result<Ended> {
    if let Some(identity) = &create.device {
        change::settle_policy(identity)?;
    }
    let device = match &create.device {
        Some(identity) => Device::again(identity),
        // Interrupted between adding the device and writing down which: one that is new and has nothing.
        None => change::newcomer(&create.region, create.newest)?,
    };
    let ended = match device {
        None => Ended::CreateUndone(create.name.clone()),
        Some(device) => match unmake(&device, create)? {
            Unmade::Yes => Ended::CreateUndone(create.name.clone()),
            Unmade::InUse => {
                record(store, links, create, &device.identity())?;
                return Ok(Ended::CreateDone(create.name.clone(), device.name));
            }
            Unmade::Changed(why) => Ended::LeftAlone(create.name.clone(), device.name, why),
        },
    };
    links.remove(&create.name)?;
    store.end()?;
    Ok(ended)
}

/// The last steps of making a device: makes it the guest's, by link and in the state.
pub fn record(store: &mut Store, links: &Links, create: &Create, device: &Identity) -> Result<()> {
    links.set(&create.name, device.device)?;
    let guest = Record {
        device: device.clone(),
        ranges: create.ranges.clone(),
        settings: create.settings,
    };
    store.complete(|state| {
        state.devices.remove(&device.device);
        state.guests.insert(create.name.clone(), guest);
        state.operation = None;
        if let Some(whole) = create.whole {
            state.regions.insert(create.region.clone(), whole);
        }
        // A guest of several devices is there with the last of them.
        let whole = match &state.group {
            Some(Group::Create(all)) => all.nodes.iter().all(|node| {
                let name = PartName {
                    guest: all.guest.clone(),
                    node: Some(*node),
                };
                state.guests.contains_key(&name)
            }),
            _ => false,
        };
        if whole {
            state.group = None;
        }
    })
}

enum Unmade {
    Yes,
    InUse,
    Changed(String),
}

fn unmake(device: &Device, create: &Create) -> Result<Unmade> {
    let identity = device.identity();
    let ours = device
        .ranges
        .as_ref()
        .is_some_and(|ranges| create.ranges.starts_with(ranges));
    if !ours {
        return Ok(Unmade::Changed(
            "another program changed its ranges".to_owned(),
        ));
    }
    match device.driver.as_deref() {
        _ if device.is_vacant() => {}
        None => {}
        Some(driver) if device.is_page_less() || driver == "device_dax" => {
            match Users::of(device) {
                None => {}
                Some(_) if device.is_page_less() => return Ok(Unmade::InUse),
                Some(users) => return Ok(Unmade::Changed(format!("it came into use ({users})"))),
            }
        }
        Some(driver) => return Ok(Unmade::Changed(format!("the driver {driver} took it"))),
    }
    change::forget_id(&identity)?;
    put_back(&identity, create.reused)?;
    Ok(Unmade::Yes)
}
